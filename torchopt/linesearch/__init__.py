# SPDX-License-Identifier: Apache-2.0
r"""Line searches: how far to go along a ray.

A search sees a function of one number, :math:`\varphi(\eta) = f(w + \eta\, u)`: :func:`backtracking` its values,
:func:`zoom` its slopes too.  :func:`along` makes it from a function of trees.  Neither knows of optimizers.

The numbers of a search are Python floats if they are readable and not differentiated; a search then
stops when it is done.  In a batch of ``torch.func.vmap``, and while compiling, it makes all its evaluations, and
problems that are finished wait for the others.  What a search returns is differentiable wherever its function is.
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
