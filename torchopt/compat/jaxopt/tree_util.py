# SPDX-License-Identifier: Apache-2.0
"""Functions of trees, as ``jaxopt.tree_util`` has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchopt import tree as tt

__all__ = [
    'broadcast_pytrees',
    'tree_add',
    'tree_add_scalar_mul',
    'tree_conj',
    'tree_div',
    'tree_dot',
    'tree_imag',
    'tree_inf_norm',
    'tree_l2_norm',
    'tree_map',
    'tree_mul',
    'tree_negative',
    'tree_ones_like',
    'tree_real',
    'tree_reduce',
    'tree_scalar_mul',
    'tree_sub',
    'tree_sum',
    'tree_vdot',
    'tree_vdot_real',
    'tree_where',
    'tree_zeros_like',
]

tree_map = tt.map
tree_reduce = tt.reduce
tree_add = tt.add
tree_sub = tt.sub
tree_mul = tt.mul
tree_div = tt.div
tree_add_scalar_mul = tt.add_scale
tree_vdot = tt.vdot
tree_conj = tt.conj
tree_real = tt.real


def broadcast_pytrees(*trees: Any) -> tuple[Any, ...]:
    """Trees of one structure: a tree that is a single leaf becomes one like the others, with this leaf everywhere.

    Raises:
        ValueError: If two trees that are not leaves have different structures.

    Example:
        >>> from torchopt.compat.jaxopt.tree_util import broadcast_pytrees
        >>> broadcast_pytrees(1, {'a': 2, 'b': 3})
        ({'a': 1, 'b': 1}, {'a': 2, 'b': 3})
    """
    larger = [x for x in trees if not tt.is_leaf_node(x)]
    if not larger:
        return trees
    spec = tt.structure(larger[0])
    for other in larger[1:]:
        if tt.structure(other) != spec:
            raise ValueError(f'Trees cannot be broadcast: {spec} and {tt.structure(other)}.')
    return tuple(tt.map(lambda _, x=x: x, larger[0]) if tt.is_leaf_node(x) else x for x in trees)


def tree_scalar_mul(scalar: Any, tree_x: Any) -> Any:
    """A number times a tree."""
    return tt.scale(scalar, tree_x)


def tree_vdot_real(tree_x: Any, tree_y: Any) -> Tensor:
    """The real part of the inner product."""
    return torch.as_tensor(tt.vdot(tree_x, tree_y)).real


def tree_dot(tree_x: Any, tree_y: Any) -> Any:
    """The products of matrices and vectors, leaf by leaf."""
    return tt.map(torch.matmul, tree_x, tree_y)


def tree_sum(tree_x: Any) -> Any:
    """The sum of all elements."""
    return tt.sum(tree_x)


def tree_l2_norm(tree_x: Any, squared: bool = False) -> Tensor:
    """The Euclidean norm, or its square."""
    return tt.norm(tree_x, squared=squared)


def tree_inf_norm(tree_x: Any) -> Tensor:
    """The largest absolute value."""
    return tt.norm(tree_x, ord='inf')


def tree_zeros_like(tree_x: Any) -> Any:
    """Zeros."""
    return tt.zeros_like(tree_x)


def tree_ones_like(tree_x: Any) -> Any:
    """Ones."""
    return tt.ones_like(tree_x)


def tree_where(cond: Any, a: Any, b: Any) -> Any:
    """Leaf by leaf ``torch.where``; each argument may be a single leaf for all."""
    return tt.map(
        lambda c, x, y: torch.where(torch.as_tensor(c), torch.as_tensor(x), torch.as_tensor(y)),
        *broadcast_pytrees(cond, a, b),
    )


def tree_negative(tree: Any) -> Any:
    """The negative."""
    return tt.scale(-1, tree)


def tree_imag(tree: Any) -> Any:
    """The imaginary part; zeros for real leaves."""
    return tt.map(lambda x: x.imag if x.is_complex() else torch.zeros_like(x), tree)
