# SPDX-License-Identifier: Apache-2.0
"""A loop over the first dimension of tensors that stacks the outputs of all steps."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from torchopt import autodiff, checks, tree
from torchopt.kinds import kind_of
from torchopt.loop.branches import check_same
from torchopt.tree.ops import detached


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    *,
    checkpoint: int | bool | Literal['auto'] | None = None,
    truncate: int | None = None,
    compile: bool | autodiff.Backend = False,
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
        checkpoint: What to keep for the backward pass.  None keeps the graphs of all steps.  An int :math:`m` keeps the
            carry after every :math:`m` steps, and the steps are recomputed as by :func:`torchopt.checkpoint`.  The
            memory is that of :math:`n / m` carries and of the graphs of :math:`m` steps.  It is smallest near
            :math:`m = \sqrt n`, which ``'auto'`` uses.  True means 1.
        truncate: The number of steps, counted from the first, after which the graph of the carry is cut: truncated
            backpropagation through time.  The value does not change.  The gradient is biased: it ignores the effect
            of ``init`` and of each step on the steps after the next cut.
        compile: Whether to compile ``f``, as one graph, and its vector-Jacobian product, as another: True for
            Inductor, the compiler of ``torch.compile``; the name of another of its backends; or ``'graph'``, which only
            simplifies the graphs and runs them from Python, with the updates of optimizers as single operations.
            ``'graph'`` is ready in seconds; a step of Inductor, which fuses operations, takes less time for small
            tensors.  The graphs are made once for any number of
            steps and of calls, and again for other shapes, dtypes, devices or values of Python variables.  The steps
            keep their results that are not elementwise, such as products of matrices; with ``checkpoint=m``, only one
            carry is kept for ``m`` steps.  Outside of transforms, all steps are one autograd node.  Under transforms
            each step is a node that keeps its arguments and is computed again in the backward pass.  Derivatives of
            higher orders are correct and not compiled.  Take gradients in ``f`` by :func:`torchopt.grad` or
            ``torch.func.grad``.  Under a transform of ``torch.func``, tensors that belong to it are found in ``init``,
            in ``xs`` and in the variables of ``f``, but not in other objects, such as an optimizer with a learned rate.

    Returns:
        The last carry, and the outputs stacked along a new first dimension.  If there are no steps, ``f`` is called
        once on zeros to determine the shapes of the outputs.

    Raises:
        TypeError: If ``xs`` has a leaf that is not a tensor or is 0-d, or if ``f`` does not return a pair or changes
            the dtype of a carry.
        ValueError: If neither ``xs`` nor ``length`` gives the number of steps, or they differ; if ``f`` changes the
            structure or a shape of the carry; if ``checkpoint`` or ``truncate`` is not positive.
        RuntimeError: With ``checkpoint``; see :func:`torchopt.checkpoint`.  With ``compile``, if ``torch.compile``
            cannot capture ``f`` as one graph; if ``f`` draws random numbers, calls a ``torch.autograd.Function``, or
            changes a tensor or a variable from outside; and under autocast.

    Example:
        >>> import torch
        >>> from torchopt.loop import scan
        >>> scan(lambda total, x: (total + x, total), torch.tensor(0.0), torch.tensor([1.0, 2.0, 3.0]))
        (tensor(6.), tensor([0., 1., 3.]))
    """
    checks.function('f', f, 'The order is scan(f, init, xs).')
    leaves, spec = tree.flatten(xs)
    n = _steps(leaves, xs, length)
    segment = _segment(checkpoint, n)
    checks.integer('truncate', truncate, 1, optional=True)
    if not (isinstance(compile, (bool, str)) or callable(compile)):
        raise TypeError(f'Invalid compile: {compile!r}; expected a bool, a backend of torch.compile, or its name.')
    compiled: autodiff.Compiled | None = None
    if compile is not False:
        compiled = f = autodiff.Compiled(f, 'inductor' if compile is True else compile)

    def step(carry: Any, x: list[Any]) -> tuple[Any, Any]:
        pair = f(carry, tree.unflatten(spec, x))
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f'f returned {kind_of(pair)}; expected a pair (carry, output).')
        return pair

    if n == 0:
        with torch.no_grad():
            _, y = step(init, [None if x is None else x.new_zeros(x.shape[1:]) for x in leaves])
        return init, tree.map(lambda z: torch.as_tensor(z).new_zeros((0, *torch.as_tensor(z).shape)), y)

    if compiled is not None:
        result = _compiled(compiled, init, leaves, spec, n, segment, checkpoint in (None, False), truncate, reverse)
        if result is not None:
            return result

    def some_steps(carry: Any, rows: list[Any], ks: range) -> tuple[Any, list[Any]]:
        ys = []
        for i, k in enumerate(ks):
            new, y = step(carry, [None if row is None else row[i] for row in rows])
            if k == 0:
                check_same(carry, new, 'f', 'init')
            if truncate is not None and (k + 1) % truncate == 0 and k + 1 < n:
                new = detached(new)
            carry = new
            ys.append(y)
        return carry, ys

    run = some_steps if checkpoint in (None, False) else autodiff.checkpoint(some_steps)
    rows = [None if x is None else x.unbind(0)[:: -1 if reverse else 1] for x in leaves]
    carry, ys = init, []
    for start in range(0, n, segment):
        ks = range(start, min(start + segment, n))
        carry, found = run(carry, [None if row is None else row[ks.start : ks.stop] for row in rows], ks)
        ys += found
    if reverse:
        ys.reverse()
    return carry, tree.map(lambda *column: torch.stack([torch.as_tensor(z) for z in column]), *ys)


def _compiled(
    step: autodiff.Compiled,
    init: Any,
    leaves: list[Any],
    spec: Any,
    n: int,
    segment: int,
    keep: bool,
    truncate: int | None,
    reverse: bool,
) -> tuple[Any, Any] | None:
    """The loop with one autograd node for each segment, or None if steps must be run one by one."""
    if reverse:
        leaves = [None if x is None else x.flip(0) for x in leaves]
    starts = {*range(0, n, segment), *(() if truncate is None else range(0, n, truncate))}
    bounds = [*sorted(starts), n]
    carry = init
    ys: list[Any] = []
    for start, stop in itertools.pairwise(bounds):
        if start and truncate is not None and start % truncate == 0:
            carry = detached(carry)
        whole = stop - start == n
        rows = leaves if whole else [None if x is None else x[start:stop] for x in leaves]
        check = functools.partial(check_same, carry, function='f', like='init')
        found = step.steps(carry, rows, spec, stop - start, keep=keep, check=check)
        if found is None:
            return None
        carry = found[0]
        ys.append(tree.map(functools.partial(_as_column, length=stop - start), found[1]))
    stacked = ys[0] if len(ys) == 1 else tree.map(lambda *parts: torch.cat(parts), *ys)
    return carry, tree.map(lambda z: z.flip(0), stacked) if reverse else stacked


def _as_column(y: Any, length: int) -> Tensor:
    """A stacked result, or a number for all steps."""
    return y if isinstance(y, Tensor) else torch.as_tensor(y).repeat(length)


def _segment(checkpoint: Any, n: int) -> int:
    """The number of steps that are recomputed together."""
    if checkpoint is None or checkpoint is False:
        return max(n, 1)
    if checkpoint is True:
        return 1
    if checkpoint == 'auto':
        return max(round(math.sqrt(n)), 1)
    if not isinstance(checkpoint, int) or checkpoint < 1:
        raise ValueError(f"Invalid checkpoint: {checkpoint!r}; expected None, True, 'auto' or an int >= 1.")
    return int(checkpoint)


def _steps(leaves: list[Any], xs: Any, length: int | None) -> int:
    """The number of steps."""
    lengths: dict[int, str] = {}
    for i, x in enumerate(leaves):
        if x is None:
            continue
        path = f'xs{tree.flatten_with_path(xs)[i][0]}'
        if not isinstance(x, Tensor) or x.dim() == 0:
            kind = 'is a 0-d tensor' if isinstance(x, Tensor) else f'is {kind_of(x)}'
            raise TypeError(f'{path} {kind}; expected a tensor with at least one dimension.')
        lengths.setdefault(x.shape[0], path)
    if length is not None:
        checks.integer('length', length, 0, optional=True)
        lengths.setdefault(length, 'length')
    if not lengths:
        raise ValueError('The number of steps is not known. Pass xs with at least one tensor, or length.')
    if len(lengths) > 1:
        (n, name), (m, other) = list(lengths.items())[:2]
        raise ValueError(f'The numbers of steps differ: {n} by {name}, {m} by {other}. Pass equal numbers.')
    return next(iter(lengths))
