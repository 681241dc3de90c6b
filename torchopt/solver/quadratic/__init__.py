# SPDX-License-Identifier: Apache-2.0
"""Quadratic programs: solvers with implicit derivatives, batched by ``torch.vmap``."""

from torchopt.solver.quadratic.box_cd import BoxCDQP, BoxCDQPState
from torchopt.solver.quadratic.box_osqp import BoxOSQP, BoxOSQPState
from torchopt.solver.quadratic.cvxpy_qp import CvxpyQP
from torchopt.solver.quadratic.equality import EqualityConstrainedQP
from torchopt.solver.quadratic.osqp import OSQP

__all__ = ['OSQP', 'BoxCDQP', 'BoxCDQPState', 'BoxOSQP', 'BoxOSQPState', 'CvxpyQP', 'EqualityConstrainedQP']
