# SPDX-License-Identifier: Apache-2.0
"""Conversion of trees to vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchopt.dtypes import is_inexact
from torchopt.tree.ops import map
from torchopt.tree.registry import flatten, flatten_with_path, unflatten


def ravel(tree: Any, *, name: str = 'tree') -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
    """Concatenate all elements of a tree to one vector; also return the inverse function.

    Args:
        tree: A tree of tensors of floating or complex dtypes; ``None`` leaves are left out.
        name: The name of ``tree`` in error messages.

    Returns:
        The vector, in the dtype that the dtypes of all leaves promote to, and a function from vectors of its shape to
        trees with the structure, shapes and dtypes of ``tree``.  For real leaves it returns the real part.

    Raises:
        TypeError: If a leaf is neither floating nor complex; the message names its path.

    Example:
        >>> import torch, torchopt
        >>> vector, unravel = torchopt.tree.ravel({'w': torch.ones(2, 2), 'b': torch.tensor(3.0), 'none': None})
        >>> vector
        tensor([3., 1., 1., 1., 1.])
        >>> unravel(2 * vector)['w']
        tensor([[2., 2.],
                [2., 2.]])
    """
    leaves, spec = flatten(tree)
    xs = [None if x is None else torch.as_tensor(x) for x in leaves]
    for i, x in enumerate(xs):
        if x is not None and not is_inexact(x):
            path = flatten_with_path(tree)[i][0]
            raise TypeError(f'{name}{path} has dtype {x.dtype}; expected a floating dtype. Convert it with `.float()`.')
    found = [x for x in xs if x is not None]
    vector = torch.cat([x.flatten() for x in found]) if found else torch.zeros(0)
    # No tensors, which would stay alive, and no structure, which torch.compile cannot use if it was made outside.
    sizes, kinds = [x.numel() for x in found], [(x.shape, x.dtype) for x in found]
    numbers = iter(range(len(found)))
    places = unflatten(spec, [None if x is None else next(numbers) for x in xs])

    def unravel(vector: torch.Tensor) -> Any:
        pieces = torch.split(vector, sizes) if sizes else ()
        return map(lambda i: _like(pieces[i], *kinds[i]), places)

    return vector, unravel


def _like(piece: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    piece = piece.reshape(shape)
    return (piece.real if piece.is_complex() and not dtype.is_complex else piece).to(dtype)
