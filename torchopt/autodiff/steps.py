# SPDX-License-Identifier: Apache-2.0
"""All steps of a compiled loop as one autograd node.

A node for each step takes longer than a small step itself.  Here the forward pass calls the compiled step in turn, and
the backward pass calls its compiled vector-Jacobian product in turn.  Derivatives of higher orders, and under
transforms, come from the steps as nodes of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt.autodiff.pure import Pure, apply_pure, own_hooks
from torchopt.autodiff.split import Split, picker
from torchopt.autodiff.staged import StagedFunction, as_compiled
from torchopt.autodiff.tape import Leaves
from torchopt.dtypes import is_inexact
from torchopt.levels import apply_function, is_plain_level

Sum = Sequence['Tensor | None']
"""Cotangents; None stands for zeros."""


class Plan(NamedTuple):
    """How to differentiate a loop.

    Attributes:
        split: The step and its vector-Jacobian product.
        wanted: The numbers of the tensors whose cotangents the product returns.
    """

    split: Split
    wanted: list[int]


class Loop(Pure):
    """The steps as a function ``(*carry, *sequences, *fixed) -> (*last carry, *stacked results)``.

    In each step, the tensors ``(*carry, *rows, *fixed, *outputs)`` have numbers, where ``fixed`` are the same in all
    steps, and ``outputs`` are those of ``step``.  The numbers of outputs are negative: they count from the end.

    Args:
        step: The compiled function.
        length: The number of steps.
        counts: The numbers of tensors in the carry, of sequences, and of fixed tensors.
        inputs: The numbers of the arguments of ``step``.
        following: The numbers of the next carry.
        results: The numbers of the results, which are stacked.
        check: Called with the carry after the first step.
    """

    def __init__(
        self,
        step: StagedFunction,
        length: int,
        counts: tuple[int, int, int],
        inputs: Sequence[int],
        following: Sequence[int],
        results: Sequence[int],
        check: Callable[[Leaves], None],
    ) -> None:
        self.step, self.length, self.counts = step, length, counts
        self.check: Callable[[Leaves], None] | None = check
        self.inputs, self.following, self.results = inputs, following, results
        self.arguments, self.next_carry, self.stacked = map(picker, (inputs, following, results))

    def __call__(self, *x: Tensor) -> Leaves:
        """The value, with a node for each step."""
        return self._run(x, lambda *inputs: apply_pure(self.step, *inputs))

    def without_graph(self, x: Leaves) -> Leaves:
        """The value, of tensors in the layout for which steps are compiled."""
        return self._run(x, self.step.program(self._first_inputs(x)))

    def plan(self, x: Leaves, needed: Sequence[int]) -> Plan:
        """How to differentiate with respect to some arguments."""
        inputs = self._first_inputs(x)
        wanted = [
            j
            for j, (i, t) in enumerate(zip(self.inputs, inputs))
            if (i < self.counts[0] or i in needed) and is_inexact(t)
        ]
        return Plan(self.step.split(inputs, wanted), [self.inputs[j] for j in wanted])

    def forward(self, plan: Plan, x: Leaves) -> tuple[Leaves, list[Leaves]]:
        """The value without a graph, and what :meth:`backward` needs in each step."""
        kept: list[Leaves] = []

        def call(*inputs: Tensor) -> Leaves:
            outputs, some = plan.split.forward(inputs)
            kept.append(some)
            return outputs

        return self._run(x, call), kept

    def backward(self, plan: Plan, kept: Sequence[Sequence[Tensor]], cotangents: Sum) -> list[Tensor | None]:
        """The cotangents of the arguments."""
        split, wanted = plan
        c, r, f = self.counts
        first = c + r + f
        carry, columns = cotangents[:c], [None if y is None else y.unbind() for y in cotangents[c:]]
        rows: list[Sum] = []
        fixed: Sum = [None] * f
        filled = [j for j in self.step.returned if j in split.given]
        for k in reversed(range(self.length)):
            bars = [*[None] * (c + r), *fixed, *[None] * len(self.step.values)]
            _add(bars, self.following, carry)
            _add(bars, self.results, [None if column is None else column[k] for column in columns])
            outputs = bars[first:]
            if any(bar is not None for bar in outputs):
                for j in filled:
                    if outputs[j] is None:
                        outputs[j] = split.zeros(j)
                _add(bars, wanted, split.backward(kept[k], outputs))
            carry, fixed = bars[:c], bars[c + r : first]
            rows.append(bars[c : c + r])
        return [*carry, *(_stacked(column[::-1]) for column in zip(*rows)), *fixed]

    def _run(self, x: Leaves, call: Callable[..., Leaves]) -> Leaves:
        c, r, _ = self.counts
        carry: Leaves = x[:c]
        rows, fixed = zip(*(s.unbind() for s in x[c : c + r])), x[c + r :]
        results: list[Leaves] = []
        for row in rows if r else [()] * self.length:
            slots = [*carry, *row, *fixed]
            slots += call(*self.arguments(slots))
            carry = self.next_carry(slots)
            results.append(self.stacked(slots))
            if self.check is not None:
                self.check(carry)
                self.check = None  # once; it refers to tensors
        return *carry, *map(torch.stack, zip(*results))

    def _first_inputs(self, x: Leaves) -> Leaves:
        c, r, _ = self.counts
        return self.arguments([*x[:c], *(s[0] for s in x[c : c + r]), *x[c + r :]])


def _add(sums: list[Tensor | None], where: Sequence[int], terms: Sum) -> None:
    for i, term in zip(where, terms):
        if term is not None:
            old = sums[i]
            sums[i] = term if old is None else old + term


def _stacked(rows: Sum) -> Tensor | None:
    some = next((row for row in rows if row is not None), None)
    if some is None:
        return None
    return torch.stack([torch.zeros_like(some) if row is None else row for row in rows])


class _Steps(torch.autograd.Function):
    """``apply(loop, keep, *x) -> loop(*x)``, outside of transforms."""

    @staticmethod
    def forward(ctx: Any, loop: Loop, keep: bool, *x: Tensor) -> tuple[Tensor, ...]:
        needed = [i for i, t in enumerate(x) if ctx.needs_input_grad[i + 2] and is_inexact(t)]
        inside = _inside(x)
        kept: list[Leaves] = []
        with own_hooks():
            plan = _plan(loop, inside, needed)
            if plan is None:
                value = loop.without_graph(inside)
            else:
                value, kept = loop.forward(plan, inside)
        if not keep:
            kept = []
        ctx.loop, ctx.plan, ctx.needed, ctx.sizes = loop, plan, needed, [len(x), *map(len, kept)]
        ctx.save_for_backward(*x, *itertools.chain.from_iterable(kept))
        ctx.set_materialize_grads(False)
        outputs = tuple(y.detach() for y in value)
        ctx.mark_non_differentiable(*(y for y in outputs if not is_inexact(y)))
        return outputs

    @staticmethod
    def backward(ctx: Any, *bar: Tensor | None) -> tuple[Any, ...]:
        saved, loop, needed = iter(ctx.saved_tensors), ctx.loop, ctx.needed
        x, *kept = [list(itertools.islice(saved, size)) for size in ctx.sizes]
        found: Sequence[Tensor | None] = [None] * len(x)
        given = [j for j, b in enumerate(bar) if b is not None]
        if given and needed:
            is_legacy = torch._C._functorch.is_legacy_batchedtensor
            if torch.is_grad_enabled() or not is_plain_level() or any(is_legacy(b) for b in bar if b is not None):
                product = loop.vjp(len(x), needed, given)
                arguments = [*x, *(b for b in bar if b is not None)]
                each = product(*arguments) if torch.is_grad_enabled() else apply_pure(product, *arguments)
                found = [dict(zip(needed, each)).get(i) for i in range(len(x))]
            else:
                with own_hooks():
                    plan = ctx.plan
                    if plan is None or not kept:
                        inside = _inside(x)
                        plan = plan or loop.plan(inside, needed)
                        _, kept = loop.forward(plan, inside)
                    found = loop.backward(plan, kept, [b if b is None else as_compiled(b) for b in bar])
        return None, None, *(t if i in needed else None for i, t in enumerate(found))


def _plan(loop: Loop, x: Leaves, needed: Sequence[int]) -> Plan | None:
    """The plan; None if there is no vector-Jacobian product, which is an error in the backward pass only."""
    try:
        return loop.plan(x, needed) if needed else None
    except (NotImplementedError, RuntimeError):
        return None


def run_loop(loop: Loop, keep: bool, *x: Tensor) -> Leaves:
    """The value of a loop.

    Args:
        loop: The loop.
        keep: Whether what the backward pass needs is kept, not computed again.
        *x: The arguments.
    """
    if not is_plain_level():
        return loop(*x)
    if torch.is_grad_enabled() and (torch._C._len_torch_function_stack() or any(t.requires_grad for t in x)):
        found: tuple[Tensor, ...] = apply_function(_Steps, loop, keep, *x)
        return found
    with torch.no_grad():
        return loop.without_graph(_inside(x))


def _inside(x: Leaves) -> list[Tensor]:
    return [as_compiled(t.detach()) for t in x]
