# SPDX-License-Identifier: Apache-2.0
"""Functions that are recomputed in the backward pass instead of keeping their graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torchopt.autodiff.products import is_autograd_off
from torchopt.autodiff.recompute import recomputed
from torchopt.numerics import is_tracing

__all__ = ['checkpoint']

_P = ParamSpec('_P')
_T = TypeVar('_T')


def checkpoint(fun: Callable[_P, _T]) -> Callable[_P, _T]:
    """The same function, which keeps its inputs for the backward pass, and recomputes everything else there.

    This is ``jax.checkpoint``.  Unlike ``torch.utils.checkpoint``, it works for derivatives of every order, in forward
    mode, under every transform of ``torch.func`` and under ``torch.vmap``.

    The function may return any tree.  Tensors that it closes over get their derivatives too; so do the parameters of
    modules that it calls.  A later run uses the same random numbers, the same variables of Python, and the parameters,
    buffers, training flags and autocast of the first run.  Under ``torch.compile`` this changes nothing, since
    the compiler decides what to keep.

    Args:
        fun: A function of trees.  It may be called several times.

    Returns:
        A function with the same arguments and the same value.

    Raises:
        TypeError: If ``fun`` is not callable.
        RuntimeError: By the new function, if it changes a tensor from outside in place, or depends on one through a
            ``torch.autograd.Function``; in the backward pass, if a tensor that it uses was changed in place since, if
            it gives another value than before, or if the derivative of an operation has no derivative itself.

    Example:
        >>> import torch, torchopt
        >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> layer = torchopt.checkpoint(lambda x: torch.sin(weight * x))
        >>> y = layer(layer(torch.ones(2)))
        >>> torch.autograd.grad(y.sum(), weight)[0]
        tensor([ 0.9208, -0.0189])
    """
    if not callable(fun):
        raise TypeError(f'fun is a {type(fun).__name__}; expected a function.')

    @functools.wraps(fun, updated=())
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if is_tracing() or is_autograd_off():
            return fun(*args, **kwargs)
        return recomputed(fun, args, kwargs)

    return run
