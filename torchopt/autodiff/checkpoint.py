# SPDX-License-Identifier: Apache-2.0
"""Functions that are recomputed in the backward pass instead of keeping their graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torchopt import checks
from torchopt.autodiff.products import is_autograd_off
from torchopt.autodiff.recompute import recomputed
from torchopt.levels import is_tracing
from torchopt.spelling import takes_only_a_function

__all__ = ['checkpoint']

_P = ParamSpec('_P')
_T = TypeVar('_T')


@takes_only_a_function
def checkpoint(fun: Callable[_P, _T]) -> Callable[_P, _T]:
    """Transform a function to keep only its inputs for the backward pass, and to recompute everything else there.

    This is ``jax.checkpoint``.  Unlike ``torch.utils.checkpoint``, it works for derivatives of every order, in forward
    mode, under every transform of ``torch.func`` and under ``torch.vmap``.

    The function may return any tree.  The result is differentiable with respect to the arguments, the tensors that the
    function closes over, and the parameters of the modules that it calls.  A recomputation uses the random numbers, the
    Python variables, and the parameters, buffers, training flags and autocast settings of the first run.  Under
    ``torch.compile`` this transform has no effect, since the compiler decides which tensors to keep.

    Args:
        fun: A function of trees.  It may be called several times.

    Returns:
        A function with the arguments and the value of ``fun``.

    Raises:
        TypeError: If ``fun`` is not callable.
        RuntimeError: Raised by the new function if it changes a tensor from outside in place, depends on one that is
            not a variable, such as an attribute, through a ``torch.autograd.Function``, or calls a module under FSDP.
            Raised in the backward pass if a tensor that it uses was changed in place after the first run, if the
            recomputed value differs, or if the derivative of an operation is not differentiable.

    Example:
        >>> import torch, torchopt
        >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> layer = torchopt.checkpoint(lambda x: torch.sin(weight * x))
        >>> y = layer(layer(torch.ones(2)))
        >>> torch.autograd.grad(y.sum(), weight)[0]
        tensor([ 0.9208, -0.0189])
    """
    checks.function('fun', fun)

    @functools.wraps(fun, updated=())
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if is_tracing() or is_autograd_off():
            return fun(*args, **kwargs)
        return recomputed(fun, args, kwargs)

    return run
