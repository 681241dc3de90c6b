# SPDX-License-Identifier: Apache-2.0
"""Conversion of leaves that are NumPy arrays or numbers to tensors, before a transformation receives them.

The transformations of torchopt reject such leaves.  Here, every public function that makes a transformation is wrapped
when it is exported.  Inner transformations are not wrapped, so that leaves are converted only once per step.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from torchopt import tree
from torchopt.base import GradientTransformation, GradientTransformationExtraArgs, IdentityGradientTransformation
from torchopt.levels import is_tracing
from torchopt.spelling import suggesting

__all__ = ['as_tensors', 'converting', 'export', 'is_converting']

_NUMBERS = (np.ndarray, np.generic, float, int, complex)
_USUAL = frozenset({torch.Tensor, torch.nn.Parameter, type(None)})  # types that need no conversion


def as_tensors(values: Any) -> Any:
    """Replace NumPy arrays and numbers in a tree by tensors; bools and all other leaves stay unchanged."""
    if type(values) is dict and _USUAL.issuperset(map(type, values.values())):
        return values  # the usual case, without rebuilding the tree
    leaves, spec = tree.flatten(values)
    if _USUAL.issuperset(map(type, leaves)) or not any(isinstance(x, _NUMBERS) for x in leaves):
        return values
    return tree.unflatten(spec, [_as_tensor(x) for x in leaves])


def _as_tensor(x: Any) -> Any:
    return torch.as_tensor(x) if isinstance(x, _NUMBERS) and not isinstance(x, bool) else x


def converting(tx: GradientTransformation) -> GradientTransformation:
    """The same transformation, which first converts the leaves of updates and parameters to tensors.

    While compiling, it is returned unchanged.
    """
    if is_tracing() or isinstance(tx, (_Converting, IdentityGradientTransformation)):
        return tx
    init, update = tx.init, tx.update

    def start(params: Any) -> Any:
        return init(as_tensors(params))

    @functools.wraps(update)
    def step(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if 'grad' in extra:  # the gradient for a line search
            extra['grad'] = as_tensors(extra['grad'])
        return update(as_tensors(updates), state, as_tensors(params), **extra)

    kind = _ExtraArgs if isinstance(tx, GradientTransformationExtraArgs) else _Plain
    made = kind(start, step)
    made.inner, made.requires, made.call, made.adds_to_params = tx, tx.requires, tx.call, tx.adds_to_params
    return made


class _Converting:
    """Base of the results of :func:`converting`."""

    __slots__ = ()
    inner: GradientTransformation

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the transformation."""
        return converting, (self.inner,)

    def _spelled(self) -> tree.Spelled:
        return self.inner._spelled()


class _Plain(_Converting, GradientTransformation):
    inner: GradientTransformation


class _ExtraArgs(_Converting, GradientTransformationExtraArgs):
    inner: GradientTransformation


def is_converting(function: Any) -> bool:
    """Whether :func:`export` made a function."""
    return any(function is made for made in _EXPORTED.values())


def export(namespace: dict[str, Any]) -> None:
    """Wrap the public functions of a module that make transformations, so that these convert leaves."""
    for name in namespace['__all__']:
        function = namespace[name]
        if is_converting(function):
            continue
        returned = str(getattr(function, '__annotations__', {}).get('return'))
        if inspect.isfunction(function) and 'GradientTransformation' in returned and name not in _AS_THEY_ARE:
            if function not in _EXPORTED:  # else exported by another module
                _EXPORTED[function] = _wrapped(function)
                # The path of the new function, for pickling.
                _EXPORTED[function].__module__, _EXPORTED[function].__qualname__ = namespace['__name__'], name
            namespace[name] = _EXPORTED[function]


_AS_THEY_ARE = {'identity', 'with_extra_args_support'}
_EXPORTED: dict[Callable[..., Any], Callable[..., Any]] = {}


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    call = suggesting(function)

    def make(*args: Any, **kwargs: Any) -> Any:
        # Inner transformations receive leaves that the outermost has converted.
        made = call(*map(_opened, args), **{key: _opened(x) for key, x in kwargs.items()})
        # inject_hyperparams returns a function that makes the transformation.
        return converting(made) if isinstance(made, GradientTransformation) else _wrapped(made)

    return functools.update_wrapper(make, function)


def _opened(x: Any) -> Any:
    return x.inner if isinstance(x, _Converting) else x
