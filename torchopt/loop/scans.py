# SPDX-License-Identifier: Apache-2.0
"""A loop over the first dimension of tensors that stacks the outputs of all steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchopt import tree
from torchopt.loop.branches import check_same

__all__ = ['scan']


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
) -> tuple[Any, Any]:
    r"""Carry a value through a sequence, and stack the outputs of all steps.

    .. math:: (c_{k+1}, y_k) = f(c_k, x_k), \qquad k = 0, \dots, n - 1

    Args:
        f: ``f(carry, x)`` returns the next carry and an output; the carry keeps its structure, shapes and dtypes.
        init: The first carry :math:`c_0`, a tree.
        xs: The sequence: a tree of tensors; ``x`` is the tree of their rows.  If None, ``x`` is None.
        length: The number of steps; required if ``xs`` has no tensors.
        reverse: Go from the last row to the first; the outputs are in the order of the rows.
        unroll: Not used, for compatibility with JAX.

    Returns:
        The last carry, and the outputs stacked along a new first dimension.  If there are no steps, ``f`` is called
        once on zeros to determine the shapes of the outputs.

    Raises:
        TypeError: If ``xs`` has a leaf that is not a tensor or is 0-d, or if ``f`` does not return a pair or changes
            the dtype of a carry.
        ValueError: If neither ``xs`` nor ``length`` gives the number of steps, or they differ; if ``f`` changes the
            structure or a shape of the carry.

    Example:
        >>> import torch
        >>> from torchopt.loop import scan
        >>> scan(lambda total, x: (total + x, total), torch.tensor(0.0), torch.tensor([1.0, 2.0, 3.0]))
        (tensor(6.), tensor([0., 1., 3.]))
    """
    leaves, spec = tree.flatten(xs)
    n = _steps(leaves, xs, length)
    rows = [None if x is None else x.unbind(0) for x in leaves]

    def step(carry: Any, x: list[Any]) -> tuple[Any, Any]:
        pair = f(carry, tree.unflatten(spec, x))
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f'f returned a {type(pair).__name__}; expected a pair (carry, output).')
        return pair

    if n == 0:
        with torch.no_grad():
            _, y = step(init, [None if x is None else x.new_zeros(x.shape[1:]) for x in leaves])
        return init, tree.map(lambda z: torch.as_tensor(z).new_zeros((0, *torch.as_tensor(z).shape)), y)
    carry = init
    ys: list[Any] = []
    for k in reversed(range(n)) if reverse else range(n):
        new, y = step(carry, [None if row is None else row[k] for row in rows])
        if not ys:
            check_same(carry, new, 'f', 'init')
        carry = new
        ys.append(y)
    if reverse:
        ys.reverse()
    return carry, tree.map(lambda *column: torch.stack([torch.as_tensor(z) for z in column]), *ys)


def _steps(leaves: list[Any], xs: Any, length: int | None) -> int:
    """The number of steps."""
    lengths: dict[int, str] = {}
    for i, x in enumerate(leaves):
        if x is None:
            continue
        path = f'xs{tree.flatten_with_path(xs)[i][0]}'
        if not isinstance(x, Tensor) or x.dim() == 0:
            kind = 'is a 0-d tensor' if isinstance(x, Tensor) else f'is a {type(x).__name__}'
            raise TypeError(f'{path} {kind}; expected a tensor with at least one dimension.')
        lengths.setdefault(x.shape[0], path)
    if length is not None:
        if isinstance(length, bool) or not isinstance(length, int) or length < 0:
            raise ValueError(f'Invalid length: {length!r}; expected None or an int >= 0.')
        lengths.setdefault(length, 'length')
    if not lengths:
        raise ValueError('The number of steps is not known. Pass xs with at least one tensor, or length.')
    if len(lengths) > 1:
        (n, name), (m, other) = list(lengths.items())[:2]
        raise ValueError(f'The numbers of steps differ: {n} by {name}, {m} by {other}. Pass equal numbers.')
    return next(iter(lengths))
