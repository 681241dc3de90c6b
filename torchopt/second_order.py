# SPDX-License-Identifier: Apache-2.0
"""Hessian-vector products, and the diagonals of the Hessian and of the Fisher information.

A loss is a function ``loss(params, inputs, targets)`` that returns a 0-d tensor; its parameters are a tree.  A vector
over the parameters contains the elements of the leaves, in the order of the tree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchopt import tree

__all__ = ['fisher_diag', 'hessian_diag', 'hvp']


def hvp(loss: Callable[..., Any], v: torch.Tensor, params: Any, inputs: Any, targets: Any) -> Any:
    r"""The product :math:`\nabla^2 \ell(\theta)\, v` of the Hessian of a loss with a vector.

    It is computed as the gradient of :math:`\langle \nabla \ell(\theta), v \rangle`, without forming the Hessian.

    Args:
        loss: The function ``loss(params, inputs, targets)``, twice differentiable; it returns a 0-d tensor.
        v: The vector, with as many elements as ``params``.
        params: The parameters :math:`\theta`, a tree of floating tensors.
        inputs: Passed to the loss unchanged.
        targets: Passed to the loss unchanged.

    Returns:
        The product, a tree of the structure of ``params``.

    Raises:
        TypeError: If a parameter is not floating.
        ValueError: If ``v`` has a wrong number of elements.

    Example:
        >>> import torch, torchopt
        >>> loss = lambda p, x, y: (x * p['w'] ** 3 - y).sum()
        >>> params = {'w': torch.tensor([1.0, 2.0])}
        >>> v = torch.tensor([1.0, 10.0])
        >>> torchopt.second_order.hvp(loss, v, params, torch.ones(2), torch.zeros(2))
        {'w': tensor([  6., 120.])}

    References:
        Pearlmutter, `Fast exact multiplication by the Hessian <https://doi.org/10.1162/neco.1994.6.1.147>`_, 1994.
    """
    vector, unravel = tree.ravel(params, name='params')
    if v.numel() != vector.numel():
        raise ValueError(
            f'v has {v.numel()} elements, but params has {vector.numel()}. Pass one element per parameter.'
        )
    product = _product(lambda x: loss(unravel(x), inputs, targets), vector)
    return unravel(product(v.reshape(-1).to(vector.dtype)))


def hessian_diag(loss: Callable[..., Any], params: Any, inputs: Any, targets: Any) -> torch.Tensor:
    r"""The diagonal :math:`\partial^2 \ell / \partial \theta_i^2` of the Hessian of a loss.

    It computes one Hessian-vector product for each of the :math:`n` parameters, all at the same time, which needs
    memory for :math:`n^2` numbers.  Use it for small models only.

    The arguments and the error for other parameters are those of :func:`hvp`.

    Returns:
        The diagonal, a vector of the :math:`n` elements of ``params`` in the order of the tree.

    Example:
        >>> import torch, torchopt
        >>> loss = lambda p, x, y: (x * p['w'] ** 3 - y).sum()
        >>> params = {'w': torch.tensor([1.0, 2.0])}
        >>> torchopt.second_order.hessian_diag(loss, params, torch.ones(2), torch.zeros(2))
        tensor([ 6., 12.])
    """
    vector, unravel = tree.ravel(params, name='params')
    if not vector.numel():
        return vector
    product = _product(lambda x: loss(unravel(x), inputs, targets), vector)
    units = torch.eye(vector.numel(), dtype=vector.dtype, device=vector.device)
    return torch.func.vmap(lambda unit: torch.dot(unit, product(unit)))(units)


def fisher_diag(negative_log_likelihood: Callable[..., Any], params: Any, inputs: Any, targets: Any) -> torch.Tensor:
    r"""The diagonal of the observed Fisher information, the elementwise square of the gradient.

    .. math::
        F_{ii} = \left( \frac{\partial}{\partial \theta_i} \log p(y \mid x, \theta) \right)^2

    Args:
        negative_log_likelihood: The function ``loss(params, inputs, targets)``, :math:`-\log p(y \mid x, \theta)`.
        params: The parameters :math:`\theta`, a tree of floating tensors.
        inputs: The inputs :math:`x`, passed to the function unchanged.
        targets: The targets :math:`y`, passed to the function unchanged.

    Returns:
        The diagonal, a vector of the elements of ``params`` in the order of the tree.

    Raises:
        TypeError: If a parameter is not floating.

    Example:
        >>> import torch, torchopt
        >>> loss = lambda p, x, y: (x * p['w'] ** 3 - y).sum()
        >>> params = {'w': torch.tensor([1.0, 2.0])}
        >>> torchopt.second_order.fisher_diag(loss, params, torch.ones(2), torch.zeros(2))
        tensor([  9., 144.])
    """
    vector, unravel = tree.ravel(params, name='params')
    if not vector.numel():
        return vector
    return torch.func.grad(lambda x: negative_log_likelihood(unravel(x), inputs, targets))(vector).square()


def _product(fun: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that multiplies a vector by the Hessian."""
    # Reverse over reverse mode, not forward over reverse: more operators support it, especially custom ones.
    pull_back = torch.func.vjp(torch.func.grad(fun), x)[1]
    return lambda v: pull_back(v)[0]
