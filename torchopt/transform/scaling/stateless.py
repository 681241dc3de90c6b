# SPDX-License-Identifier: Apache-2.0
"""Stateless transformations: from functions, and those that replace updates by zeros or by signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchopt import checks, elementwise, rules, tree
from torchopt.base import ElementwiseTransformation, EmptyState, GradientTransformation, factory, init_empty_state


@factory
def set_to_zero() -> GradientTransformation:
    """Set every update to zero.

    Use it in :func:`partition`, for parameters that do not change.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.set_to_zero()
        >>> tx.update([torch.tensor([2.0, float('nan')])], tx.init([torch.zeros(2)]))[0]
        [tensor([0., 0.])]
    """
    return ElementwiseTransformation(init_empty_state, elementwise.ElementwiseStep(_zero, (), EmptyState))


def _zero(g: Tensor) -> tuple[Tensor]:
    return (torch.zeros_like(g),)


@factory
def scale_by_sign() -> GradientTransformation:
    """Replace every update by its sign; for complex numbers, by :math:`x / |x|`.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_sign()
        >>> tx.update([torch.tensor([-3.0, 0.0, 0.1])], tx.init(None))[0]
        [tensor([-1.,  0.,  1.])]

    References:
        Bernstein et al., `signSGD: compressed optimisation for non-convex problems
        <https://arxiv.org/abs/1802.04434>`_, ICML 2018.
    """
    return ElementwiseTransformation(init_empty_state, elementwise.ElementwiseStep(_sign, (), EmptyState))


def _sign(g: Tensor) -> tuple[Tensor]:
    return (rules.sign(g),)


@factory
def stateless(f: Callable[[Any, Any], Any]) -> GradientTransformation:
    """Make a transformation from a function of whole trees.

    Args:
        f: ``f(updates, params)`` returns the new updates; ``params`` is None if ``update`` is called without it.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.stateless(lambda updates, params: torchopt.tree.scale(-0.5, updates))
        >>> tx.update([torch.tensor(3.0)], tx.init(None))[0]
        [tensor(-1.5000)]
    """
    checks.function('f', f)

    def update(updates: Any, state: Any, params: Any = None, *, inplace: bool = False) -> tuple[Any, EmptyState]:
        return f(updates, params), EmptyState()

    return GradientTransformation(init_empty_state, update)


@factory
def stateless_with_tree_map(f: Callable[[Any, Any], Any]) -> GradientTransformation:
    """Make a transformation from a function of single leaves.

    Args:
        f: ``f(u, p)`` returns the new update of one leaf; ``p`` is None if ``update`` is called without parameters.
            It is not called for an update of None.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.stateless_with_tree_map(lambda u, p: u + 0.1 * p)
        >>> tx.update([torch.tensor(3.0)], tx.init(None), [torch.tensor(10.0)])[0]
        [tensor(4.)]
    """
    checks.function('f', f)

    def update(updates: Any, state: Any, params: Any = None, *, inplace: bool = False) -> tuple[Any, EmptyState]:
        if params is None:
            return tree.map(lambda u: f(u, None), updates), EmptyState()
        return tree.map(f, updates, params), EmptyState()

    return GradientTransformation(init_empty_state, update)
