# SPDX-License-Identifier: Apache-2.0
r"""Line searches, which choose the step size along a ray.

A line search works on a function of one number, :math:`\varphi(\eta) = f(w + \eta\, u)`: :func:`backtracking` uses its
values, :func:`zoom` also its slopes.  :func:`along` makes it from a function of trees.

The numbers of a search are Python floats if they can be read and are not differentiated; a search then stops early.  In
a batch of ``torch.func.vmap``, and while compiling, it makes the maximum number of evaluations, and finished problems
keep their results.  The result of a search is differentiable if its function is.
"""

from torchopt.linesearch.backtracking import Backtracked, backtracking
from torchopt.linesearch.interpolation import cubic_minimum, quadratic_minimum
from torchopt.linesearch.ray import Point, Ray, along, choose, inner_product, move_along, value_and_gradient
from torchopt.linesearch.zoom import Zoomed, zoom

__all__ = [
    'Backtracked',
    'Point',
    'Ray',
    'Zoomed',
    'along',
    'backtracking',
    'choose',
    'cubic_minimum',
    'inner_product',
    'move_along',
    'quadratic_minimum',
    'value_and_gradient',
    'zoom',
]
