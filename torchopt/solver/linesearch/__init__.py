# SPDX-License-Identifier: Apache-2.0
"""Line searches as solvers with JAXopt's interface: the unknown is the step size along a given direction."""

from torchopt.solver.linesearch.backtracking import BacktrackingLineSearch
from torchopt.solver.linesearch.base import LineSearch, LineSearchStep
from torchopt.solver.linesearch.hager_zhang import HagerZhangLineSearch
from torchopt.solver.linesearch.zoom import ZoomLineSearch

__all__ = ['BacktrackingLineSearch', 'HagerZhangLineSearch', 'LineSearch', 'LineSearchStep', 'ZoomLineSearch']
