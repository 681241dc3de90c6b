# SPDX-License-Identifier: Apache-2.0
"""Checks of the function and the arguments of a gradient."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchopt import tree
from torchopt.kinds import kind_of


def positions_of(argnums: Any) -> tuple[tuple[int, ...], bool]:
    """The positions as a tuple, and whether ``argnums`` was a single int."""
    try:
        single = not isinstance(argnums, (tuple, list))
        positions = (operator.index(argnums),) if single else tuple(map(operator.index, argnums))
    except TypeError:
        raise TypeError(f'Invalid argnums: {argnums!r}; expected an int or a sequence of ints.') from None
    if not positions:
        raise ValueError('argnums is empty; expected the position of at least one argument.')
    return positions, single


def resolve(positions: tuple[int, ...], count: int) -> list[int]:
    """Convert positions to the range from 0 to ``count - 1``."""
    for i in positions:
        if not -count <= i < count:
            raise TypeError(
                f'argnums has {i}, but the function was called with {count} positional arguments. Pass the arguments '
                f'to differentiate by position.'
            )
    found = [i % count for i in positions]
    if len(set(found)) < len(found):
        raise ValueError(f'argnums names one argument twice: {positions} of {count} arguments. Pass each once.')
    return found


def check_leaves(positions: Sequence[int], args: Sequence[Any]) -> None:
    """Require that the arguments at these positions are trees of real numbers."""
    for i in positions:
        for j, x in enumerate(tree.flatten(args[i])[0]):
            kind = _kind(x)
            if kind != 'real':
                name = f'Argument {i}{tree.flatten_with_path(args[i])[j][0]}'
                raise TypeError(f'{name} {_REFUSED[kind].format(found=_describe(x))}')


_REFUSED = {
    'integer': (
        'is {found}; expected a real floating dtype. Convert it with `.float()`, or pass it as '
        'an argument that argnums does not name.'
    ),
    'complex': (
        "is {found}; expected a real floating dtype. PyTorch's gradients for complex arguments are the conjugates of "
        "JAX's: pass the real and the imaginary part, or use `torch.func.grad`."
    ),
    'other': (
        'is {found}; expected a tensor, a NumPy array, a float or None. Pass the parameters of a module as '
        '`dict(module.named_parameters())`, and call it with `torch.func.functional_call`.'
    ),
}


def _kind(x: Any) -> str:
    """Whether a leaf is real, integer, complex or something else; None is real."""
    if x is None or isinstance(x, float):
        return 'real'
    if isinstance(x, Tensor):
        return 'real' if x.is_floating_point() else 'complex' if x.is_complex() else 'integer'
    if isinstance(x, (np.ndarray, np.generic)):
        return {'f': 'real', 'c': 'complex', 'b': 'integer', 'i': 'integer', 'u': 'integer'}.get(x.dtype.kind, 'other')
    return 'integer' if isinstance(x, int) else 'complex' if isinstance(x, complex) else 'other'


def _describe(x: Any) -> str:
    dtype = getattr(x, 'dtype', None)
    return kind_of(x) if dtype is None else f'of dtype {dtype}'


def checked(fun: Callable[..., Any], has_aux: bool) -> Callable[..., tuple[Tensor, Any]]:
    """Wrap a function: check its value, and return auxiliary output in any case."""

    def run(*args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        value, aux = fun(*args, **kwargs), None
        if has_aux:
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                raise TypeError(
                    f'fun returned {_output(value)}; expected a pair of the value and the auxiliary output, since '
                    f'has_aux=True.'
                )
            value, aux = value
        if isinstance(value, float):
            value = torch.tensor(value)
        if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
            raise TypeError(f'fun returned {_output(value)}; expected a real 0-d tensor. {_remedy(value)}')
        return value, aux

    return run


def _output(value: Any) -> str:
    if isinstance(value, Tensor):
        return f'a tensor of shape {tuple(value.shape)} and dtype {value.dtype}'
    length = f' of {len(value)}' if isinstance(value, (tuple, list)) else ''
    return f'{kind_of(value)}{length}'


def _remedy(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return 'Pass has_aux=True if the first item of a pair is the value.'
    if isinstance(value, Tensor) and value.dim():
        return 'Return its mean or its sum; for the Jacobian of several values use torch.func.jacrev.'
    if isinstance(value, Tensor) and value.is_complex():
        return 'Return its real part or its absolute value.'
    return 'Return the loss as a tensor of a floating dtype.'
