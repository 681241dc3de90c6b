# SPDX-License-Identifier: Apache-2.0
r"""Proximity operators, the steps of proximal methods for the nonsmooth part of an objective.

.. math:: \operatorname{prox}_{s g}(x) = \arg\min_y \; \tfrac{1}{2} \|y - x\|_2^2 + s\, g(y)

Every operator takes a tree, its hyper-parameters, and the factor :math:`s`, in this order, as
:class:`torchopt.ProximalGradient` calls it, and returns a tree of the same structure.  Names and signatures are those
of JAXopt.  All are differentiable in all arguments.  Weights and factors must not be negative, which is checked where
their values can be read on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchopt import checks, tree
from torchopt.dtypes import widened
from torchopt.levels import host_values
from torchopt.numerics import tensor_like
from torchopt.rules import sign

__all__ = [
    'make_prox_from_projection',
    'prox_elastic_net',
    'prox_group_lasso',
    'prox_lasso',
    'prox_non_negative_lasso',
    'prox_non_negative_ridge',
    'prox_none',
    'prox_ridge',
]


def prox_none(x: Any, hyperparams: Any = None, scaling: Any = 1.0) -> Any:
    """The operator of :math:`g = 0`: the identity.

    Example:
        >>> import torch, torchopt
        >>> torchopt.prox.prox_none(torch.tensor([1.0, -2.0]))
        tensor([ 1., -2.])
    """
    return x


def prox_lasso(x: Any, l1reg: Any = None, scaling: Any = 1.0) -> Any:
    r"""The operator of :math:`g(y) = \lambda \|y\|_1`, soft thresholding.

    .. math:: y_i = \operatorname{sign}(x_i) \max(|x_i| - s \lambda_i, 0)

    Args:
        x: Tree of floating tensors.
        l1reg: The weight :math:`\lambda \ge 0`: a number, or a tree of numbers and tensors whose structure is that of
            ``x`` or a prefix of it; 1 if None.
        scaling: The factor :math:`s \ge 0`, a number or a 0-d tensor.

    Raises:
        ValueError: If ``l1reg`` or ``scaling`` is negative, or ``l1reg`` is not a prefix of ``x``.

    Example:
        >>> import torch, torchopt
        >>> torchopt.prox.prox_lasso({'w': torch.tensor([3.0, -0.5])}, 2.0)
        {'w': tensor([1., -0.])}
    """

    def threshold(u: torch.Tensor, weight: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return sign(u) * torch.relu(u.abs() - weight * s)

    return _map(threshold, x, scaling, l1reg=l1reg)


def prox_non_negative_lasso(x: Any, l1reg: Any = None, scaling: Any = 1.0) -> Any:
    r"""The operator of :math:`g(y) = \lambda \|y\|_1` for :math:`y \ge 0`.

    .. math:: y_i = \max(x_i - s \lambda_i, 0)

    The arguments and errors are those of :func:`prox_lasso`.

    Example:
        >>> import torch, torchopt
        >>> torchopt.prox.prox_non_negative_lasso(torch.tensor([3.0, -0.5]), 2.0)
        tensor([1., 0.])
    """
    return _map(lambda u, weight, s: torch.relu(u - weight * s), x, scaling, l1reg=l1reg)


def prox_elastic_net(x: Any, hyperparams: tuple[Any, Any] | None = None, scaling: Any = 1.0) -> Any:
    r"""The operator of :math:`g(y) = \lambda (\|y\|_1 + \tfrac{\gamma}{2} \|y\|_2^2)`.

    .. math:: y_i = \frac{\operatorname{sign}(x_i) \max(|x_i| - s \lambda_i, 0)}{1 + s \lambda_i \gamma_i}

    Args:
        x: Tree of floating tensors.
        hyperparams: The pair :math:`(\lambda, \gamma)`, each as the weight of :func:`prox_lasso`; (1, 1) if None.
        scaling: The factor :math:`s \ge 0`, a number or a 0-d tensor.

    Raises:
        ValueError: See :func:`prox_lasso`; also if ``hyperparams`` is not a pair.

    Example:
        >>> import torch, torchopt
        >>> torchopt.prox.prox_elastic_net(torch.tensor([3.0, -0.5]), (1.0, 3.0))
        tensor([0.5000, -0.0000])
    """
    if hyperparams is None:
        hyperparams = (1.0, 1.0)
    if not isinstance(hyperparams, (tuple, list)) or len(hyperparams) != 2:
        raise ValueError(f'Invalid hyperparams: {hyperparams!r}; expected a pair (weight, ridge ratio).')

    def shrink(u: torch.Tensor, weight: torch.Tensor, ratio: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return sign(u) * torch.relu(u.abs() - weight * s) / (1.0 + s * weight * ratio)

    return _map(shrink, x, scaling, **dict(zip(('hyperparams[0]', 'hyperparams[1]'), hyperparams)))


def prox_group_lasso(x: Any, l2reg: Any = 1.0, scaling: Any = 1.0) -> Any:
    r"""The operator of :math:`g(y) = \lambda \|y\|_2`, block soft thresholding of the whole tree.

    .. math:: y = \max\Bigl(1 - \frac{s \lambda}{\|x\|_2}, 0\Bigr)\, x

    For groups of variables, use ``torch.vmap``.

    Args:
        x: Tree of floating tensors, treated as one vector.
        l2reg: The weight :math:`\lambda \ge 0`, a number or a 0-d tensor; 1 if None.
        scaling: The factor :math:`s \ge 0`, a number or a 0-d tensor.

    Raises:
        ValueError: If ``l2reg`` or ``scaling`` is negative.

    Example:
        >>> import torch, torchopt
        >>> torchopt.prox.prox_group_lasso(torch.tensor([3.0, 4.0]), 2.5)
        tensor([1.5000, 2.0000])
        >>> torchopt.prox.prox_group_lasso(torch.tensor([3.0, 4.0]), 9.0)
        tensor([0., 0.])
    """
    l2reg = _weight('l2reg', l2reg)
    _check_nonnegative('scaling', scaling)
    norm = tree.wide_norm(x)
    bound = tensor_like(l2reg, norm) * tensor_like(scaling, norm)
    vanishes = (norm <= bound) & (bound > 0)
    ratio = torch.where(vanishes, 0.0, bound) / torch.where(vanishes | (norm == 0), 1.0, norm)

    def shrink(u: Any) -> torch.Tensor:
        u = torch.as_tensor(u)
        wide = widened(u)
        shrunk = torch.where(vanishes.to(u.device), torch.zeros_like(wide), (1.0 - tensor_like(ratio, wide)) * wide)
        return shrunk.to(u.dtype)

    return tree.map(shrink, x)


def prox_ridge(x: Any, l2reg: Any = 1.0, scaling: Any = 1.0) -> Any:
    r"""The operator of :math:`g(y) = \tfrac{\lambda}{2} \|y\|_2^2`.

    .. math:: y = \frac{x}{1 + s \lambda}

    Args:
        x: Tree of floating tensors.
        l2reg: The weight :math:`\lambda`, as in :func:`prox_lasso`.
        scaling: The factor :math:`s \ge 0`, a number or a 0-d tensor.

    Raises:
        ValueError: See :func:`prox_lasso`.

    Example:
        >>> import torch, torchopt
        >>> torchopt.prox.prox_ridge(torch.tensor([3.0, -0.5]))
        tensor([ 1.5000, -0.2500])
    """
    return _map(lambda u, weight, s: u / (1.0 + weight * s), x, scaling, l2reg=l2reg)


def prox_non_negative_ridge(x: Any, l2reg: Any = 1.0, scaling: Any = 1.0) -> Any:
    r"""The operator of :math:`g(y) = \tfrac{\lambda}{2} \|y\|_2^2` for :math:`y \ge 0`.

    .. math:: y_i = \frac{\max(x_i, 0)}{1 + s \lambda_i}

    The arguments and errors are those of :func:`prox_ridge`.

    Example:
        >>> import torch, torchopt
        >>> torchopt.prox.prox_non_negative_ridge(torch.tensor([3.0, -0.5]))
        tensor([1.5000, 0.0000])
    """
    return _map(lambda u, weight, s: torch.relu(u) / (1.0 + weight * s), x, scaling, l2reg=l2reg)


def make_prox_from_projection(projection: Callable[..., Any]) -> Callable[..., Any]:
    """The operator of the indicator function of a set: the projection onto the set.

    Args:
        projection: ``projection(x, hyperparams)`` returns the nearest point of the set.

    Returns:
        ``prox(x, hyperparams=None, scaling=1.0)``, which does not depend on ``scaling``.

    Example:
        >>> import torch, torchopt
        >>> prox = torchopt.prox.make_prox_from_projection(lambda x, radius: x.clamp(-radius, radius))
        >>> prox(torch.tensor([3.0, -0.5]), 1.0)
        tensor([ 1.0000, -0.5000])
    """

    def prox(x: Any, hyperparams: Any = None, scaling: Any = 1.0) -> Any:
        return projection(x, hyperparams)

    return prox


def _weight(name: str, value: Any) -> Any:
    """A weight, 1 if it is None."""
    if value is None:
        return 1.0
    _check_nonnegative(name, value)
    return value


def _check_nonnegative(name: str, value: Any) -> None:
    """Require numbers that are not negative, where they can be read without synchronization with a device."""
    if isinstance(value, (int, float)):
        checks.at_least(name, value)
        return
    values = host_values(value) if isinstance(value, torch.Tensor) else None
    if values is not None and bool((values < 0).any()):
        raise ValueError(f'Invalid {name}: {values.min().item():g}; expected a number >= 0, or a tensor of such.')


def _map(rule: Callable[..., torch.Tensor], x: Any, scaling: Any, **weights: Any) -> Any:
    """Map ``rule(leaf, *weights, scaling)`` over the leaves, each with its weights."""
    _check_nonnegative('scaling', scaling)
    spread = []
    for name, value in weights.items():
        value = tree.map(lambda v, name=name: _weight(name, v), _weight(name, value))
        spread.append(tree.broadcast_prefix(value, x, name=name, like='x'))

    def run(u: Any, *others: Any) -> torch.Tensor:
        u = torch.as_tensor(u)
        wide = widened(u)
        real = wide.real  # of complex numbers; the weights are real
        return rule(wide, *(_like(v, real) for v in others), _like(scaling, real)).to(u.dtype)

    return tree.map(run, x, *spread)


def _like(value: Any, x: torch.Tensor) -> torch.Tensor:
    """A weight in the dtype and on the device of a leaf, so that it does not widen the leaf."""
    return value.to(x) if isinstance(value, torch.Tensor) else tensor_like(value, x)
