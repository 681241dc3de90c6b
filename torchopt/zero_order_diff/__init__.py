# SPDX-License-Identifier: Apache-2.0
r"""Gradients from function values, for functions that are not differentiable or too costly to differentiate.

The method replaces a function :math:`f` by its smoothing :math:`f_\sigma(x) = \mathbb{E}\, f(x + \sigma z)` over random
directions :math:`z`.  Its gradient is an expectation of function values, so samples give an estimate.

* ``estimators``: the methods, a table of the weights of the evaluations.
* ``directions``: reproducible random directions :math:`z`.
* ``evaluation``: evaluation of the function at many points: by ``vmap``, in a loop, or in other processes.
* ``functions``: value, gradient and curvature as autograd Functions, each the derivative of the previous one.
* ``decorator``: the decorator :func:`zero_order`.
"""

from __future__ import annotations

from torchopt.zero_order_diff.decorator import zero_order
from torchopt.zero_order_diff.estimators import ESTIMATORS, Estimator

__all__ = ['ESTIMATORS', 'Estimator', 'zero_order']
