# SPDX-License-Identifier: Apache-2.0
"""Moving averages of gradients: the functions of ``optax.tree``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torchopt import numerics
from torchopt.tree.leafwise import map_leaves, plain, scalar_like
from torchopt.tree.ops import map

if TYPE_CHECKING:
    from collections.abc import Callable


def update_moment(updates: Any, moments: Any, decay: Any, order: int) -> Any:
    r"""The moving average :math:`(1 - \beta)\, g^k + \beta\, m` of the :math:`k`-th moment.

    Args:
        updates: The tree :math:`g`.
        moments: The tree :math:`m`.
        decay: The number or 0-d tensor :math:`\beta`.
        order: The order :math:`k`.

    Returns:
        The new moments.  As in Optax, they are ``None`` where ``updates`` is ``None``.

    Raises:
        ValueError: If structures or shapes do not match; the message names the path of the first such leaf.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.update_moment([torch.tensor(2.0)], [torch.tensor(0.0)], 0.9, 2)
        [tensor(0.4000)]
    """
    return _average(lambda g: g**order, updates, moments, decay)


def update_moment_per_elem_norm(updates: Any, moments: Any, decay: Any, order: int) -> Any:
    r"""The moving average :math:`(1 - \beta)\, |g|^k + \beta\, m`, with the arguments of :func:`update_moment`.

    For real leaves it uses :math:`g^k`, with the sign.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.update_moment_per_elem_norm([torch.tensor(2.0j)], [torch.tensor(0.0)], 0.9, 2)
        [tensor(0.4000)]
    """
    half = order // 2 if order % 2 == 0 else order / 2
    return _average(lambda g: numerics.abs_sq(g) ** half if g.is_complex() else g**order, updates, moments, decay)


def update_infinity_moment(updates: Any, moments: Any, decay: Any, eps: Any) -> Any:
    r"""The decaying maximum :math:`\max(|g| + \epsilon, \beta\, m)`; see :func:`update_moment`.

    Args:
        updates: The tree :math:`g`.
        moments: The tree :math:`m`.
        decay: The number or 0-d tensor :math:`\beta`.
        eps: The number or 0-d tensor :math:`\epsilon`.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.update_infinity_moment([torch.tensor(-2.0)], [torch.tensor(4.0)], 0.75, 0.0)
        [tensor(3.)]
    """
    return map_leaves(
        lambda g, m: torch.maximum(abs(g) + scalar_like(eps, g), m * scalar_like(decay, m)), updates, moments
    )


def bias_correction(moment: Any, decay: Any, count: Any) -> Any:
    r"""Divide moments by :math:`1 - \beta^t`, to correct the bias from zero initialization.

    Args:
        moment: The tree of moments.
        decay: The number or 0-d tensor :math:`\beta`.
        count: The number :math:`t` of updates of the moments so far, an int or a 0-d tensor.

    Returns:
        A tree of the same structure and dtypes.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.bias_correction([torch.tensor(0.5)], 0.5, torch.tensor(1))
        [tensor(1.)]
    """
    factor = numerics.bias_correction(plain(decay), plain(count))
    return map(lambda m: torch.as_tensor(m) / scalar_like(factor, m), moment)


def _average(power: Callable[[Any], Any], updates: Any, moments: Any, decay: Any) -> Any:
    # Compute 1 - decay before rounding to the dtype of the leaf.
    return map_leaves(lambda g, m: power(g) * scalar_like(1 - decay, g) + m * scalar_like(decay, m), updates, moments)
