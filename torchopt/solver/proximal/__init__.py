# SPDX-License-Identifier: Apache-2.0
"""Solvers for objectives with a part that is not smooth, or with constraints that have a projection."""

from torchopt.solver.proximal.block_cd import BlockCDState, BlockCoordinateDescent
from torchopt.solver.proximal.gradient import ProjectedGradient, ProxGradState, ProximalGradient
from torchopt.solver.proximal.mirror_descent import MirrorDescent, MirrorDescentState

__all__ = [
    'BlockCDState',
    'BlockCoordinateDescent',
    'MirrorDescent',
    'MirrorDescentState',
    'ProjectedGradient',
    'ProxGradState',
    'ProximalGradient',
]
