# SPDX-License-Identifier: Apache-2.0
"""Loops while a condition holds, and over a range of integers."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from torchopt import checks, tree
from torchopt.levels import is_readable, is_tracing, without_wrappers
from torchopt.loop.branches import as_condition, check_same
from torchopt.scalars import pick, settled

_T = TypeVar('_T')


def while_loop(
    cond_fun: Callable[[_T], Any],
    body_fun: Callable[[_T], _T],
    init_val: _T,
    maxiter: int | None = None,
    unroll: bool = False,
    jit: bool = False,
) -> _T:
    """Repeat a function of a tree as long as a condition holds.

    This is ``while cond_fun(val): val = body_fun(val)``, at most ``maxiter`` times.  The loop is differentiable in
    reverse and forward mode, to every order.

    - Under ``torch.vmap`` each sample has its own stopping condition: after it stops, it keeps its value and the
      derivative of this value, while others continue.  The loop ends when no sample continues.
    - Under ``torch.compile``, a condition that is a tensor cannot be read.  With ``maxiter`` the graph has that many
      steps, and steps after the last one change nothing.  Without it the loop is one ``torch.while_loop``, which
      cannot be used inside ``torch.func`` transforms.

    Args:
        cond_fun: ``cond_fun(val)`` returns a bool or a 0-d tensor.
        body_fun: ``body_fun(val)`` returns a tree of the structure, shapes and dtypes of ``val``.
        init_val: The first value, a tree; leaves that are numbers may stay numbers.
        maxiter: The maximum number of steps; no limit if None.
        unroll: Not used, for compatibility with ``jaxopt.loop``; every loop is differentiable.
        jit: Not used, for compatibility with ``jaxopt.loop``.

    Returns:
        The last value.

    Raises:
        TypeError: If ``cond_fun`` returns a tensor that is not 0-d, or ``body_fun`` changes a dtype.
        ValueError: If ``body_fun`` changes the structure or a shape, or ``maxiter`` is negative.

    Example:
        >>> import torch
        >>> from torchopt.loop import while_loop
        >>> while_loop(lambda x: x < 10, lambda x: 2 * x, torch.tensor(3.0))
        tensor(12.)
        >>> double = lambda x: while_loop(lambda x: x < 10, lambda x: 2 * x, x)
        >>> x = torch.tensor([3.0, 9.0, 20.0])
        >>> torch.vmap(double)(x), torch.vmap(torch.func.grad(double))(x)
        (tensor([12., 18., 20.]), tensor([4., 2., 1.]))
    """
    for name, fun in (('cond_fun', cond_fun), ('body_fun', body_fun)):
        checks.function(name, fun, 'The order is while_loop(cond_fun, body_fun, init_val).')
    checks.integer('maxiter', maxiter, 0, optional=True)
    return repeat(cond_fun, body_fun, init_val, maxiter)


def repeat(
    cond_fun: Callable[[_T], Any],
    body_fun: Callable[[_T], _T],
    init_val: _T,
    maxiter: int | None,
    *,
    check: bool = True,
) -> _T:
    """:func:`while_loop`, whose arguments are known to be right.

    Args:
        cond_fun: The condition.
        body_fun: The function.
        init_val: The first value.
        maxiter: The maximum number of calls of ``body_fun``.  A condition may also be a column, see
            :mod:`torchopt.columns`: without derivatives, samples that have stopped need no other arguments.
        check: Whether to check that ``body_fun`` keeps structure, shapes and dtypes.
    """
    val = ran = init_val  # `ran`: for each sample of a batch, the last value at which it still ran
    steps = 0
    while maxiter is None or steps < maxiter:
        running = cond_fun(val)
        known = running is True or running is False
        if not known:
            if isinstance(running, np.ndarray):
                running = settled(running)
                if running is False:
                    break
                val = pick(running, body_fun(val), val)
                steps += 1
                continue
            running = as_condition(running, 'The result of cond_fun')
            known = is_readable(running)
        if known:
            if not running:
                break
            new = body_fun(val)
        else:
            if is_tracing():
                if maxiter is None:
                    return _traced(cond_fun, body_fun, val)
            else:
                some, known = _some_and_all(running)
                if not some:
                    break
            # For a sample that has stopped, repeat the step on its last running value and drop the result.  On other
            # values, the step could give NaN, which a cotangent of zero would not remove.
            ran = val if known else pick(running, val, ran)
            new = body_fun(ran)
        if check and steps == 0:
            check_same(val, new, 'body_fun', 'init_val')
        val = new if known else pick(running, new, val)
        steps += 1
    return val


def fori_loop(
    lower: Any, upper: Any, body_fun: Callable[[Any, _T], _T], init_val: _T, *, unroll: int | bool | None = None
) -> _T:
    """Repeat a function for the integers from ``lower`` to ``upper - 1``.

    This is ``for i in range(lower, upper): val = body_fun(i, val)``.  Under ``torch.vmap`` each sample may have its own
    bounds.

    Args:
        lower: The first integer: an int or a 0-d integer tensor.
        upper: The upper bound, which is excluded.
        body_fun: ``body_fun(i, val)`` returns a tree of the structure, shapes and dtypes of ``val``; ``i`` is an int
            if the bounds can be read, else a 0-d tensor.
        init_val: The first value, a tree.
        unroll: Not used, for compatibility with JAX; every loop is differentiable.

    Returns:
        The last value; ``init_val`` if there is no integer in the range.

    Raises:
        TypeError: If a bound is not an integer, or ``body_fun`` changes a dtype.
        ValueError: If ``body_fun`` changes the structure or a shape.

    Example:
        >>> import torch
        >>> from torchopt.loop import fori_loop
        >>> fori_loop(1, 5, lambda i, total: total + i, torch.tensor(0.0))
        tensor(10.)
    """
    checks.function('body_fun', body_fun, 'The order is fori_loop(lower, upper, body_fun, init_val).')
    for name, bound in (('lower', lower), ('upper', upper)):
        integral = (
            bound.dim() == 0 and not (bound.is_floating_point() or bound.is_complex())
            if isinstance(bound, Tensor)
            else isinstance(bound, numbers.Integral)
        )
        if not integral:
            raise TypeError(f'Invalid {name}: {bound!r}; expected an int or a 0-d integer tensor.')
    if is_readable(lower) and is_readable(upper):
        val, first = init_val, int(lower)
        for i in range(first, int(upper)):
            new = body_fun(i, val)
            if i == first:
                check_same(val, new, 'body_fun', 'init_val')
            val = new
        return val
    start = lower if isinstance(lower, Tensor) else torch.full((), lower, dtype=torch.int64, device=upper.device)
    state = while_loop(lambda s: s[0] < upper, lambda s: (s[0] + 1, body_fun(*s)), (start, init_val))
    return state[1]


def fits_one_operation(val: Any) -> bool:
    """Whether a loop from this value can be compiled as ``torch.while_loop``, which has no derivative and no batch."""
    if not is_tracing() or forward_ad._current_level >= 0:
        return False
    tensors = [x for x in tree.leaves(val) if isinstance(x, Tensor)]
    return not any(x.requires_grad or _functorch.is_batchedtensor(x) for x in tensors)


def _some_and_all(test: Tensor) -> tuple[bool, bool]:
    """Whether a condition holds for at least one sample of all batches, and whether for all."""
    values = without_wrappers(test)
    some, every = torch.stack([values.any(), values.all()]).tolist()
    return some, every


_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float64}


def _as_carry(y: Tensor, x: Tensor, leaf: Any) -> Tensor:
    """The new value ``y`` of a leaf with the first value ``x``: in its dtype, where a Python number became a tensor."""
    return y if isinstance(leaf, Tensor) or _kind(y.dtype) > _kind(x.dtype) else y.to(x.dtype)


def _kind(dtype: torch.dtype) -> int:
    """A number that is larger for dtypes with more values: bools, integers, real and complex numbers."""
    return 3 if dtype.is_complex else 2 if dtype.is_floating_point else int(dtype != torch.bool)


def _traced(cond_fun: Callable[[Any], Any], body_fun: Callable[[Any], Any], val: Any) -> Any:
    """The loop as one operation of the graph, ``torch.while_loop``."""
    leaves, spec = tree.flatten(val)
    # torch.while_loop does not allow that arguments and results share memory.
    tensors = [x.clone() if isinstance(x, Tensor) else torch.tensor(x, dtype=_DTYPES[type(x)]) for x in leaves]

    def condition(*xs: Tensor) -> Any:
        test = as_condition(cond_fun(tree.unflatten(spec, xs)), 'The result of cond_fun')
        return torch.as_tensor(test).clone()

    def body(*xs: Tensor) -> tuple[Tensor, ...]:
        new = tree.flatten_up_to(
            spec, body_fun(tree.unflatten(spec, xs)), name='the result of body_fun', like='init_val'
        )
        found = [_as_carry(torch.as_tensor(y), x, leaf) for y, x, leaf in zip(new, tensors, leaves)]
        check_same(tree.unflatten(spec, tensors), tree.unflatten(spec, found), 'body_fun', 'init_val')
        return tuple(y.clone() for y in found)

    return tree.unflatten(spec, torch.while_loop(condition, body, tuple(tensors)))  # type: ignore[no-untyped-call]
