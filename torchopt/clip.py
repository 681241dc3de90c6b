# SPDX-License-Identifier: Apache-2.0
"""Gradient clipping: by value, and by norm over all leaves, per leaf, per unit or per example."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import EmptyState, GradientTransformation, factory, without_state
from torchopt.dtypes import real_dtype
from torchopt.elementwise import require_real
from torchopt.norms import constant_norm, root_mean_square, two_norm
from torchopt.numerics import as_scalar_like, in_single, tensor_like
from torchopt.preconditions import Precondition, params_for

__all__ = [
    'ClipState',
    'adaptive_grad_clip',
    'clip',
    'clip_by_block_rms',
    'clip_by_global_norm',
    'clip_grad_norm',
    'per_example_global_norm_clip',
    'per_example_layer_norm_clip',
    'unitwise_clip',
    'unitwise_norm',
]

ClipState = EmptyState
"""The state of all clipping transformations, which is empty."""

Axis: TypeAlias = int | tuple[int, ...] | Callable[[Tensor], tuple[int, ...]] | None


@factory
def clip_grad_norm(
    max_norm: Any, norm_type: float | str = 2.0, error_if_nonfinite: bool = False
) -> GradientTransformation:
    r"""Clip by the norm of all gradients together, like ``torch.nn.utils.clip_grad_norm_``.

    .. math::
        u = g \cdot \min\Bigl(1, \frac{c}{\lVert g \rVert_p + 10^{-6}}\Bigr)

    As in TorchOpt 0.7.3, the norm is a constant in derivatives, while a tensor :math:`c` gets its derivative.  Use
    :func:`clip_by_global_norm` to differentiate through the norm.

    Args:
        max_norm: The bound :math:`c \ge 0`.
        norm_type: :math:`p > 0`, or ``'inf'`` for the largest absolute value.
        error_if_nonfinite: Raise if the norm is NaN or infinite.  This synchronizes with the device.

    Raises:
        ValueError: If ``max_norm`` is negative or ``norm_type`` is not positive.
        TypeError: If one of them has the wrong type.
        RuntimeError: In ``update``, with ``error_if_nonfinite``, if the norm is not finite.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.clip_grad_norm(1.0)
        >>> tx.update([torch.tensor([3.0, 4.0])], tx.init([torch.zeros(2)]))[0]
        [tensor([0.6000, 0.8000])]
    """
    checks.at_least('max_norm value', max_norm)
    try:
        order = float(norm_type)
    except (TypeError, ValueError):
        raise TypeError(f"Invalid norm_type value: {norm_type!r}; expected a number > 0, or 'inf'.") from None
    checks.positive('norm_type value', order)

    def clip_all(updates: Any, params: Any) -> Any:
        leaves = tree.leaves(updates)
        if not leaves:
            return updates
        total = constant_norm(leaves, order)
        if error_if_nonfinite and not bool(total.isfinite()):
            raise RuntimeError(
                f'The total norm of order {order} of the gradients is {total.item()}, so they cannot be clipped. '
                f'Pass error_if_nonfinite=False to clip them anyway.'
            )
        factor = (as_scalar_like(max_norm, total) / (total + 1e-6)).clamp(max=1.0)
        return tree.scale(factor, updates)

    # The step itself can fail if the norm is not finite, which no check before it can know.
    requires = [Precondition(lambda state, params: None, is_final=False)] if error_if_nonfinite else []
    return without_state(clip_all, *requires)


@factory
def clip_by_global_norm(max_norm: Any) -> GradientTransformation:
    r"""Clip by the l2 norm of all gradients together.

    The update is :math:`u = g` if :math:`\lVert g \rVert < c`, and :math:`u = c\, g / \lVert g \rVert` otherwise.
    It is also differentiated through the norm, and does not synchronize with the device.

    Args:
        max_norm: The bound :math:`c`.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.clip.clip_by_global_norm(1.0)
        >>> tx.update([torch.tensor(3.0), torch.tensor(4.0)], tx.init([]))[0]
        [tensor(0.6000), tensor(0.8000)]

    References:
        Pascanu et al., `On the difficulty of training recurrent neural networks
        <https://arxiv.org/abs/1211.5063>`_, 2012.
    """
    checks.at_least('max_norm value', max_norm)

    def clip_all(updates: Any, params: Any) -> Any:
        norm = tree.wide_norm(updates)
        bound = as_scalar_like(max_norm, norm)
        inside = norm < bound
        # Without clipping, the divisor must not depend on the norm, which may be zero.
        divisor = torch.where(inside | (norm == 0), torch.ones_like(norm), norm)

        @in_single
        def shrink(g: Tensor) -> Tensor:
            clipped = g / as_scalar_like(divisor, g) * as_scalar_like(bound, g)
            return torch.where(inside.to(g.device), g, clipped)

        return tree.map(shrink, updates)

    return without_state(clip_all)


@factory
def clip(max_delta: Any) -> GradientTransformation:
    r"""Clip every element to :math:`[-\delta, \delta]`.

    Args:
        max_delta: The bound :math:`\delta`.

    Raises:
        TypeError: Raised by ``update`` if updates are complex.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.clip.clip(1.0)
        >>> tx.update([torch.tensor([-3.0, 0.5])], tx.init([]))[0]
        [tensor([-1.0000,  0.5000])]
    """
    checks.at_least('max_delta value', max_delta)

    def clip_each(updates: Any, params: Any) -> Any:
        require_real(updates, 'clip', 'updates')
        return tree.map(lambda g: g.clamp(-max_delta, max_delta), updates)

    return without_state(clip_each)


@factory
def clip_by_block_rms(threshold: Any) -> GradientTransformation:
    r"""Clip every leaf by its own root mean square: :math:`u = g / \max(1, \mathrm{rms}(g) / \tau)`.

    Args:
        threshold: The bound :math:`\tau`.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.clip.clip_by_block_rms(1.0)
        >>> tx.update([torch.tensor([4.0, -4.0])], tx.init([]))[0]
        [tensor([ 1., -1.])]

    References:
        Shazeer and Stern, `Adafactor <https://arxiv.org/abs/1804.04235>`_, section 6, 2018.
    """
    checks.positive('threshold value', threshold)

    @in_single
    def shrink(g: Tensor) -> Tensor:
        rms = root_mean_square(g)
        return g / (rms / as_scalar_like(threshold, rms)).clamp(min=1.0)

    return without_state(lambda updates, params: tree.map(shrink, updates))


def unitwise_norm(x: Tensor, axis: Axis = None) -> Tensor:
    r"""The norm of every unit of a weight, with the shape of the weight.

    Args:
        x: A weight.  A unit is an output row: weights in PyTorch have the shape ``(out, in, ...)``, so the norms are
            over all dimensions but the first.  Weights with at most one dimension larger than 1 are single units.
        axis: The dimensions of the norms, instead of the rule above, or a function from a weight to these dimensions.

    Returns:
        A real tensor with the shape of ``x``, an expanded view: for each element, the norm of its unit.

    Example:
        >>> import torch, torchopt
        >>> torchopt.clip.unitwise_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([[5., 5.],
                [1., 1.]])

    References:
        Brock et al., `High-performance large-scale image recognition without normalization
        <https://arxiv.org/abs/2102.06171>`_, 2021.
    """
    return _unit_norm(x, axis).to(real_dtype(x.dtype)).expand(x.shape)


def _unit_norm(x: Tensor, axis: Axis) -> Tensor:
    if callable(axis):
        axis = axis(x)
    if axis is None and sum(size != 1 for size in x.shape) <= 1:
        return two_norm([x])
    return two_norm([x], tuple(range(1, x.dim())) if axis is None else axis, keepdim=True)


def unitwise_clip(g_norm: Tensor, max_norm: Tensor, grad: Tensor, div_eps: Any = 1e-6) -> Tensor:
    r"""Clip the gradient of every unit, :math:`u = g \min(1, c / \lVert g \rVert)`.

    Args:
        g_norm: The norm of the gradient of each unit, from :func:`unitwise_norm`.
        max_norm: The bound :math:`c` of each unit, of the same shape.
        grad: The gradient.
        div_eps: A lower bound of the divisor :math:`\lVert g \rVert`.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch, torchopt
        >>> g = torch.tensor([[3.0, 4.0]])
        >>> torchopt.clip.unitwise_clip(torchopt.clip.unitwise_norm(g), torch.full((1, 2), 0.5), g)
        tensor([[0.3000, 0.4000]])
    """
    for name, x in (('max_norm', max_norm), ('grad', grad)):
        if x.shape != g_norm.shape:
            raise ValueError(
                f'{name} and g_norm must have the same shape: {tuple(x.shape)} and {tuple(g_norm.shape)}. Pass norms '
                f'with the shape of the gradient, as unitwise_norm returns them.'
            )
    return in_single(_clip_units)(grad, g_norm, max_norm, div_eps)


def _clip_units(g: Tensor, norm: Tensor, bound: Tensor, div_eps: Any) -> Tensor:
    return torch.where(norm < bound, g, g / norm.clamp(min=div_eps) * bound)


@factory
def adaptive_grad_clip(clipping: Any, eps: Any = 1e-3, axis: Axis = None) -> GradientTransformation:
    r"""Clip the gradient of every unit by the norm of its weights.

    With the weights :math:`w` and the gradient :math:`g` of one unit, an output row of a weight,

    .. math::
        u = g \cdot \min\Bigl(1, \lambda \frac{\max(\lVert w \rVert, \epsilon)}{\lVert g \rVert}\Bigr)

    Weights in PyTorch have the shape ``(out, in, ...)``, so the norms are over all dimensions but the first; scalars
    and vectors are single units.

    Args:
        clipping: The factor :math:`\lambda`.
        eps: :math:`\epsilon`, a lower bound of the norm of the weights.
        axis: The dimensions of the norms, instead of the rule above, or a function from a weight to these dimensions.

    Raises:
        ValueError: In ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.clip.adaptive_grad_clip(0.5)
        >>> w = torch.tensor([[1.0, 0.0]])
        >>> tx.update([torch.tensor([[0.0, 8.0]])], tx.init([w]), [w])[0]
        [tensor([[0.0000, 0.5000]])]

    References:
        Brock et al., `High-performance large-scale image recognition without normalization
        <https://arxiv.org/abs/2102.06171>`_, 2021.
    """
    checks.at_least('clipping value', clipping)
    checks.at_least('epsilon value', eps)

    def rule(g: Tensor, p: Tensor) -> tuple[Tensor]:
        norm = _unit_norm(g, axis)
        return (_clip_units(g, norm, as_scalar_like(clipping, norm) * _unit_norm(p, axis).clamp(min=eps), 1e-6),)

    return without_state(
        lambda updates, params: elementwise.apply_rule(rule, updates, reads=(params,))[0],
        params_for('adaptive_grad_clip'),
    )


def per_example_global_norm_clip(grads: Any, l2_norm_clip: float) -> tuple[Any, Tensor]:
    r"""Clip the gradient of every example by its norm over all leaves, and sum over the examples.

    Args:
        grads: Tree of tensors whose first dimension is that of the examples (the result of ``vmap`` of ``grad``).
        l2_norm_clip: The bound on the l2 norm of one example's gradient.

    Returns:
        The sum over the examples of the clipped gradients, and the number of clipped examples, a 0-d int64 tensor.

    Raises:
        ValueError: If the number of examples differs between leaves.

    Example:
        >>> import torch, torchopt
        >>> g = {'w': torch.tensor([[3.0, 4.0], [0.3, 0.4]])}
        >>> torchopt.clip.per_example_global_norm_clip(g, 1.0)
        ({'w': tensor([0.9000, 1.2000])}, tensor(1))

    References:
        Abadi et al., `Deep learning with differential privacy <https://arxiv.org/abs/1607.00133>`_, 2016.
    """
    checks.positive('l2_norm_clip value', l2_norm_clip)
    n = _number_of_examples(grads)
    norms = two_norm([g.reshape(n, -1) for g in tree.leaves(grads)], dim=1)
    return tree.map(lambda g: _clip_and_sum(g, norms, l2_norm_clip), grads), (norms > l2_norm_clip).sum()


def per_example_layer_norm_clip(grads: Any, global_l2_norm_clip: float, uniform: bool = True) -> tuple[Any, Any]:
    r"""Clip the gradient of every example leaf by leaf, and sum over the examples.

    The bounds :math:`C_i` of the leaves satisfy :math:`\sum_i C_i^2 = C^2`.  They are equal, :math:`C_i = C /
    \sqrt{L}` for :math:`L` leaves, or proportional to the root of the number of elements, :math:`C_i = C \sqrt{d_i /
    d}`.

    Args:
        grads: Tree of tensors whose first dimension is that of the examples.
        global_l2_norm_clip: The global bound :math:`C`.
        uniform: Whether all leaves have the same bound.

    Returns:
        The sums of the clipped gradients, and the number of clipped examples for each leaf.

    Raises:
        ValueError: If the number of examples differs between leaves.

    Example:
        >>> import torch, torchopt
        >>> g = [torch.tensor([[3.0, 4.0], [0.3, 0.4]])]
        >>> torchopt.clip.per_example_layer_norm_clip(g, 1.0)
        ([tensor([0.9000, 1.2000])], [tensor(1)])

    References:
        McMahan et al., `Learning differentially private recurrent language models
        <https://arxiv.org/abs/1710.06963>`_, 2017.
    """
    checks.positive('global_l2_norm_clip value', global_l2_norm_clip)
    n = _number_of_examples(grads)
    leaves = tree.leaves(grads)
    total = sum(g[0].numel() for g in leaves)

    def bound(g: Tensor) -> float:
        share = 1.0 / len(leaves) if uniform else g[0].numel() / total
        return global_l2_norm_clip * math.sqrt(share)

    def norms(g: Tensor) -> Tensor:
        return two_norm([g.reshape(n, -1)], dim=1)

    clipped = tree.map(lambda g: _clip_and_sum(g, norms(g), bound(g)), grads)
    return clipped, tree.map(lambda g: (norms(g) > bound(g)).sum(), grads)


def _number_of_examples(grads: Any) -> int:
    sizes = {path: g.shape[0] if g.dim() else None for path, g in tree.flatten_with_path(grads)}
    if not sizes or len(set(sizes.values())) > 1 or None in sizes.values():
        raise ValueError(
            f'grads must be tensors whose first dimension is the number of examples, the same for all leaves; '
            f'found the sizes {sizes}. Compute them with torch.func.vmap(torch.func.grad(loss), ...).'
        )
    return int(next(iter(sizes.values())))  # type: ignore[arg-type]


def _clip_and_sum(g: Tensor, norms: Tensor, bound: float) -> Tensor:
    factors = (tensor_like(bound, norms) / norms.clamp(min=bound)).to(g.device)
    return in_single(lambda g: torch.tensordot(factors.to(g.dtype), g, dims=1))(g)
