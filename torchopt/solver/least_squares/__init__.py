# SPDX-License-Identifier: Apache-2.0
"""Nonlinear least squares: the minimum of a sum of squared residuals."""

from torchopt.solver.least_squares.gauss_newton import GaussNewton
from torchopt.solver.least_squares.levenberg_marquardt import LevenbergMarquardt

__all__ = ['GaussNewton', 'LevenbergMarquardt']
