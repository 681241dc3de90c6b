# SPDX-License-Identifier: Apache-2.0
"""Projections onto boxes, and onto balls and spheres of the 2-norm."""

from __future__ import annotations

from typing import Any

import torch

from torchopt import checks, tree as trees
from torchopt.numerics import in_single
from torchopt.projections.leaves import as_bound, check_order, map_leaves


def projection_non_negative(tree: Any) -> Any:
    r"""Project onto the orthant :math:`p \ge 0`: :math:`p_i = \max(x_i, 0)`.

    Args:
        tree: Tree of real tensors.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_non_negative({'w': torch.tensor([-1.0, 2.0])})
        {'w': tensor([0., 2.])}
    """
    return map_leaves(torch.relu, tree)


def projection_box(tree: Any, lower: Any, upper: Any) -> Any:
    r"""Project onto the box :math:`l \le p \le u`: :math:`p_i = \min(\max(x_i, l_i), u_i)`.

    Args:
        tree: Tree of real tensors.
        lower: The lower bound :math:`l`: a number, or a tree of numbers and tensors whose structure is that of ``tree``
            or a prefix of it.  None means no bound.
        upper: The upper bound :math:`u \ge l`, of the same form.

    Raises:
        ValueError: If the structure of a bound is not a prefix of that of ``tree``, if its shape is not that of the
            leaf, or if bounds cross; values are checked where they can be read on the CPU.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_box({'w': torch.tensor([-1.0, 0.5, 2.0])}, 0.0, {'w': 1.0})
        {'w': tensor([0.0000, 0.5000, 1.0000])}
    """
    return _project(tree, lower, upper, ('lower', 'upper'))


def projection_hypercube(tree: Any, scale: Any = 1) -> Any:
    r"""Project onto the hypercube :math:`0 \le p \le s`.

    Args:
        tree: Tree of real tensors.
        scale: The side length :math:`s \ge 0`, a bound as in :func:`projection_box`; 1 if None.

    Raises:
        ValueError: If the structure of ``scale`` is not a prefix of that of ``tree``, or a length is negative.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_hypercube([torch.tensor([-1.0, 0.5, 2.0])])
        [tensor([0.0000, 0.5000, 1.0000])]
    """
    return _project(tree, 0, 1 if scale is None else scale, ('the lower bound', 'scale'))


def projection_l2_sphere(tree: Any, scale: Any = 1) -> Any:
    r"""Project onto the sphere :math:`\|p\|_2 = s`: :math:`p = s\, x / \|x\|_2`.

    Args:
        tree: Tree of floating tensors.  A tree of zeros gives NaN, since all points of the sphere are equally near.
        scale: The radius :math:`s \ge 0`, a number or a 0-d tensor; 1 if None.

    Raises:
        ValueError: If ``scale`` is negative.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_l2_sphere([torch.tensor([3.0, 4.0])])
        [tensor([0.6000, 0.8000])]
    """
    scale = 1 if scale is None else scale
    checks.at_least('scale', scale)
    norm = trees.wide_norm(tree)
    return map_leaves(in_single(lambda x: x / as_bound(norm, x) * as_bound(scale, x)), tree)


def projection_l2_ball(tree: Any, scale: Any = 1) -> Any:
    r"""Project onto the ball :math:`\|p\|_2 \le s`: :math:`p = s\, x / \max(\|x\|_2, s)`.

    Args:
        tree: Tree of floating tensors.
        scale: The radius :math:`s \ge 0`, a number or a 0-d tensor; 1 if None.

    Raises:
        ValueError: If ``scale`` is negative.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_l2_ball([torch.tensor([3.0, 4.0])], 10.0)
        [tensor([3., 4.])]
    """
    scale = 1 if scale is None else scale
    checks.at_least('scale', scale)
    norm = trees.wide_norm(tree)
    bound = as_bound(scale, norm)
    inside = norm < bound
    unused = inside | (norm == 0)
    # At the boundary torch.maximum gives half of the derivative to each argument.
    divisor = torch.maximum(torch.where(unused, torch.ones_like(norm), norm), torch.where(unused, 1.0, bound))

    @in_single
    def shrink(x: torch.Tensor) -> torch.Tensor:
        return torch.where(inside.to(x.device), x, x / as_bound(divisor, x) * as_bound(scale, x))

    return map_leaves(shrink, tree)


def projection_linf_ball(tree: Any, scale: Any = 1) -> Any:
    r"""Project onto the ball :math:`\max_i |p_i| \le s`.

    Args:
        tree: Tree of real tensors.
        scale: The radius :math:`s \ge 0`, a number or a 0-d tensor; 1 if None.

    Raises:
        ValueError: If ``scale`` is negative.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_linf_ball([torch.tensor([-3.0, 0.5])])
        [tensor([-1.0000,  0.5000])]
    """
    scale = 1 if scale is None else scale
    checks.at_least('scale', scale)
    return projection_box(tree, -scale, scale)


def _project(tree: Any, lower: Any, upper: Any, names: tuple[str, str]) -> Any:
    """Project onto a box whose bounds have these names in errors."""

    def clip(x: torch.Tensor, low: Any, high: Any) -> torch.Tensor:
        low, high = (None if v is None else _like(v, x, name) for v, name in zip((low, high), names))
        check_order(low, high, names)
        x = x if low is None else torch.maximum(x, low)
        return x if high is None else torch.minimum(x, high)

    bounds = (trees.broadcast_prefix(v, tree, name=name) for v, name in zip((lower, upper), names))
    return map_leaves(clip, tree, *bounds)


def _like(value: Any, x: torch.Tensor, name: str) -> torch.Tensor:
    bound = as_bound(value, x)
    if any(m not in (1, n) for m, n in zip(reversed(bound.shape), reversed(x.shape))):
        raise ValueError(
            f'{name} has shape {tuple(bound.shape)}; expected a number, or the shape {tuple(x.shape)} of the leaf.'
        )
    return bound
