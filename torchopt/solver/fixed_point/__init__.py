# SPDX-License-Identifier: Apache-2.0
"""Fixed points, x = T(x)."""

from torchopt.solver.fixed_point.anderson import AndersonAcceleration
from torchopt.solver.fixed_point.anderson_wrapper import AndersonWrapper
from torchopt.solver.fixed_point.iteration import FixedPointIteration

__all__ = ['AndersonAcceleration', 'AndersonWrapper', 'FixedPointIteration']
