# SPDX-License-Identifier: Apache-2.0
"""Quadratic programs: solvers with implicit derivatives, batched by ``torch.vmap``."""

from torchopt.solver.quadratic.box_osqp import BoxOSQP, BoxOSQPState

__all__ = ['BoxOSQP', 'BoxOSQPState']
