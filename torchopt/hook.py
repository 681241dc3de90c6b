# SPDX-License-Identifier: Apache-2.0
"""Hooks on gradients, for the backward pass through an optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchopt import tree
from torchopt.base import GradientTransformation, factory, without_state
from torchopt.dtypes import is_inexact
from torchopt.levels import apply_function
from torchopt.numerics import as_scalar_like
from torchopt.tree.ops import detached

__all__ = ['nan_to_num_hook', 'register_hook', 'scale_gradient', 'zero_nan_hook']


def zero_nan_hook(g: Tensor) -> Tensor:
    """Replace NaN by zero in a gradient.

    Example:
        >>> import torch, torchopt
        >>> torchopt.hook.zero_nan_hook(torch.tensor([float('nan'), 1.0]))
        tensor([0., 1.])
    """
    return g.nan_to_num(nan=0.0)


class nan_to_num_hook:
    """A hook that replaces NaN and infinities in a gradient.

    Args:
        nan: The replacement of NaN.
        posinf: The replacement of positive infinity; by default the largest number of the dtype.
        neginf: The replacement of negative infinity; by default the smallest number of the dtype.

    Example:
        >>> import torch, torchopt
        >>> torchopt.hook.nan_to_num_hook(posinf=7.0)(torch.tensor([float('inf'), 1.0]))
        tensor([7., 1.])
    """

    def __init__(self, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> None:
        self.nan, self.posinf, self.neginf = nan, posinf, neginf

    def __call__(self, g: Tensor) -> Tensor:
        """Replace them in ``g``."""
        return g.nan_to_num(self.nan, self.posinf, self.neginf)


@factory
def register_hook(hook: Callable[[Tensor], Tensor | None]) -> GradientTransformation:
    """Register a hook on every update, which can replace the gradient in the backward pass through the step.

    Args:
        hook: Called with the gradient of each update in the backward pass; see ``torch.Tensor.register_hook``.

    Raises:
        TypeError: If ``hook`` is not callable.
        RuntimeError: In ``update``, if an update does not require grad.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.register_hook(torchopt.hook.zero_nan_hook)
        >>> g = torch.tensor([0.0], requires_grad=True)
        >>> (u,), _ = tx.update((g,), None)
        >>> (u * float('nan')).sum().backward()
        >>> g.grad
        tensor([0.])
    """
    if not callable(hook):
        raise TypeError(f'hook is {hook!r} of type {type(hook).__name__}; expected a function of the gradient.')

    def register(updates: Any, params: Any) -> Any:
        for g in tree.leaves(updates):
            g.register_hook(hook)
        return updates

    return without_state(register)


def scale_gradient(inputs: Any, scale: Any) -> Any:
    """Return a tree unchanged, but scale the gradients that flow back through it.

    Args:
        inputs: Tree of tensors.
        scale: The factor of the gradients, a number or a 0-d tensor.  1 returns the inputs, 0 detaches them.

    Returns:
        A tree with the values of ``inputs``.  In forward mode, the tangents are scaled.

    Example:
        >>> import torch, torchopt
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = torchopt.hook.scale_gradient(x, -0.5) ** 2
        >>> y.backward()
        >>> y.item(), x.grad
        (9.0, tensor(-3.))
    """
    if not isinstance(scale, torch.Tensor):
        if scale == 1.0:
            return inputs
        if scale == 0.0:
            return detached(inputs)
    return tree.map(lambda x: apply_function(_ScaleGradient, x, scale) if is_inexact(x) else x, inputs)


class _ScaleGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Any) -> Tensor:
        # In forward mode, the tangent of a view must be a view as well, which a multiple is not.
        return x.view_as(x) if forward_ad._current_level < 0 else x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, scale = inputs
        ctx.scale = None if isinstance(scale, torch.Tensor) else scale
        if ctx.scale is None:
            ctx.save_for_backward(scale)
            ctx.save_for_forward(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _scaled(ctx, grads[0]), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _scaled(ctx, tangents[0])


def _scaled(ctx: Any, g: Tensor) -> Tensor:
    scale = ctx.saved_tensors[0].detach() if ctx.scale is None else ctx.scale
    return g * as_scalar_like(scale, g)
