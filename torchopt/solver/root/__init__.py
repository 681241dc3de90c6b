# SPDX-License-Identifier: Apache-2.0
"""Roots, F(x) = 0."""

from torchopt.solver.root.bisection import Bisection
from torchopt.solver.root.broyden import Broyden
from torchopt.solver.root.refinement import IterativeRefinement

__all__ = ['Bisection', 'Broyden', 'IterativeRefinement']
