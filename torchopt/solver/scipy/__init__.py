# SPDX-License-Identifier: Apache-2.0
"""SciPy's solvers for trees of tensors, with implicit derivatives: ``pip install "torchopt[scipy]"``."""

from torchopt.solver.scipy.least_squares import ScipyBoundedLeastSquares, ScipyLeastSquares
from torchopt.solver.scipy.minimize import ScipyBoundedMinimize, ScipyMinimize
from torchopt.solver.scipy.root import ScipyRootFinding

__all__ = ['ScipyBoundedLeastSquares', 'ScipyBoundedMinimize', 'ScipyLeastSquares', 'ScipyMinimize', 'ScipyRootFinding']
