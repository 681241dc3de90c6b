# SPDX-License-Identifier: Apache-2.0
"""Second-order facts about a loss: products with its Hessian, the diagonals of its Hessian and Fisher information.

A loss is a function ``loss(params, inputs, targets)`` with a 0-d tensor as its value; its parameters are a tree.  For
what runs over vectors, the parameters are one long vector: the elements of the leaves, in the order of the tree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torchopt import tree

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ['fisher_diag', 'hessian_diag', 'hvp']


def hvp(loss: Callable[..., Any], v: torch.Tensor, params: Any, inputs: Any, targets: Any) -> Any:
    r"""The product :math:`\nabla^2 \ell(\theta)\, v` of the Hessian of a loss with a vector.

    It is the gradient of :math:`\langle \nabla \ell(\theta), v \rangle`, for the Hessian is symmetric, and costs a few
    gradients: no Hessian is formed.

    Args:
        loss: The function ``loss(params, inputs, targets)``, differentiable twice, 0-d.
        v: The vector, of as many elements as ``params`` has in all.
        params: The parameters :math:`\theta`, a tree of floating tensors.
        inputs: Passed to the loss as they are.
        targets: Likewise.

    Returns:
        The product, a tree of the structure of ``params``.

    Raises:
        TypeError: If a parameter is not floating.
        ValueError: If ``v`` has another number of elements.

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
    xs, of_leaves, rebuild = _open(loss, params, inputs, targets)
    size = sum(x.numel() for x in xs)
    if v.numel() != size:
        raise ValueError(f'v has {v.numel()} elements, but params has {size} in all. Pass one for each parameter.')
    return rebuild(_products(of_leaves, xs)(v.reshape(-1)))


def hessian_diag(loss: Callable[..., Any], params: Any, inputs: Any, targets: Any) -> torch.Tensor:
    r"""The diagonal :math:`\partial^2 \ell / \partial \theta_i^2` of the Hessian of a loss.

    It takes one Hessian-vector product for each of the :math:`n` parameters, all at once, and so memory for
    :math:`n^2` numbers: this is for small models.

    Args:
        loss: The function ``loss(params, inputs, targets)``, differentiable twice, 0-d.
        params: The parameters :math:`\theta`, a tree of floating tensors.
        inputs: Passed to the loss as they are.
        targets: Likewise.

    Returns:
        The diagonal, a vector of the :math:`n` elements of ``params`` in the order of the tree.

    Raises:
        TypeError: If a parameter is not floating.

    Example:
        >>> import torch, torchopt
        >>> loss = lambda p, x, y: (x * p['w'] ** 3 - y).sum()
        >>> params = {'w': torch.tensor([1.0, 2.0])}
        >>> torchopt.second_order.hessian_diag(loss, params, torch.ones(2), torch.zeros(2))
        tensor([ 6., 12.])
    """
    xs, of_leaves, _ = _open(loss, params, inputs, targets)
    if not xs:
        return torch.zeros(0)
    like, product = _ravel(xs), _products(of_leaves, xs)

    def entry(unit: torch.Tensor) -> torch.Tensor:
        return torch.dot(unit, _ravel(product(unit)))

    units = torch.eye(like.numel(), dtype=like.dtype, device=like.device)
    return torch.func.vmap(entry)(units)


def fisher_diag(negative_log_likelihood: Callable[..., Any], params: Any, inputs: Any, targets: Any) -> torch.Tensor:
    r"""The diagonal of the observed Fisher information: the squared gradient, element by element.

    .. math::
        F_{ii} = \left( \frac{\partial}{\partial \theta_i} \log p(y \mid x, \theta) \right)^2

    Args:
        negative_log_likelihood: The function ``loss(params, inputs, targets)``, :math:`-\log p(y \mid x, \theta)`.
        params: The parameters :math:`\theta`, a tree of floating tensors.
        inputs: Passed to the function as they are, :math:`x`.
        targets: Likewise, :math:`y`.

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
    xs, of_leaves, _ = _open(negative_log_likelihood, params, inputs, targets)
    return _ravel(torch.func.grad(of_leaves)(xs)).square() if xs else torch.zeros(0)


def _open(
    loss: Callable[..., Any], params: Any, inputs: Any, targets: Any
) -> tuple[tuple[torch.Tensor, ...], Callable[..., Any], Callable[[tuple[torch.Tensor, ...]], Any]]:
    """The parameters as a tuple of tensors, the loss as a function of it, and the way back to the tree."""
    leaves, spec = tree.flatten(params)
    xs = [None if x is None else torch.as_tensor(x) for x in leaves]
    for i, x in enumerate(xs):
        if x is not None and not x.is_floating_point():
            path = tree.flatten_with_path(params)[i][0]
            raise TypeError(f'params{path} has dtype {x.dtype}; expected a floating dtype. Convert it with `.float()`.')

    def rebuild(found: tuple[torch.Tensor, ...]) -> Any:
        rest = iter(found)
        return tree.unflatten(spec, [None if x is None else next(rest) for x in xs])

    return tuple(x for x in xs if x is not None), lambda found: loss(rebuild(found), inputs, targets), rebuild


def _products(
    of_leaves: Callable[..., Any], xs: tuple[torch.Tensor, ...]
) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
    """The function that multiplies a vector by the Hessian."""
    # Backward over backward, not forward over backward: more operators, and most custom ones, can do that.
    pull_back = torch.func.vjp(torch.func.grad(of_leaves), xs)[1]

    def product(v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pieces = torch.split(v, [x.numel() for x in xs])
        direction = tuple(piece.reshape(x.shape).to(x.dtype) for piece, x in zip(pieces, xs))
        return pull_back(direction)[0]

    return product


def _ravel(xs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.cat([x.reshape(-1) for x in xs])
