# SPDX-License-Identifier: Apache-2.0
"""The tables of the engine's tests: rules with coefficients, affine operations, trees, and the step in plain torch."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from torchopt import _C, rules
from torchopt._C import dispatch, fused, plans

if os.environ.get(_C.SWITCH, '1').strip().lower() in ('0', 'off', 'false', 'no'):
    pytest.skip('the environment switches the native engine off', allow_module_level=True)

ADAM = {'b1': 0.9, 'd1': 0.1, 'b2': 0.95, 'd2': 0.05, 'mean': 1.0, 'gradient': 0.0, 'slope': 0.7, 'offset': 1e-3}


class Case(NamedTuple):
    """A sequence of rules with their coefficients, and the signs of their moments."""

    name: str
    rules: tuple[tuple[Callable[..., Any], dict[str, float]], ...]
    moments: str  # for each moment + (nonnegative) or ~ (any sign)

    def partials(self, **tensors: Any) -> list[functools.partial[Any]]:
        return [functools.partial(rule, **{**coefs, **tensors}) for rule, coefs in self.rules]

    def learned(self) -> tuple[list[functools.partial[Any]], list[Tensor]]:
        """The case with tensors that require grad as coefficients, and these tensors."""
        made: list[Tensor] = []
        partials = []
        for rule, coefs in self.rules:
            own = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in coefs.items()}
            made += own.values()
            partials.append(functools.partial(rule, **own))
        return partials, made

    @property
    def plan(self) -> plans.Plan:
        plan = plans.find_plan(tuple(rule for rule, _ in self.rules))
        assert plan is not None, f'there is no kernel for {self.name}'
        return plan


def _case(name: str, moments: str, *partials: Any) -> Case:
    return Case(name, tuple(zip(partials[::2], partials[1::2])), moments)


RMS = {'keep': 0.9, 'take': 0.1, 'offset': 1e-3, 'shift': 0.0}
HEAVY = {'keep': 0.8, 'take': 1.0, 'gradient': 0.0, 'buffer': 1.0}
BELIEF = {'b1': 0.9, 'd1': 0.1, 'b2': 0.95, 'd2': 0.05, 'mean': 1.2, 'slope': 0.7, 'offset': 1e-3, 'shift': 0.0}

# Every rule, with the coefficients of various options.
CASES = [
    _case('identity', '', rules.identity, {}),
    _case('trace', '~', rules.trace, HEAVY),
    _case('trace nesterov', '~', rules.trace, {'keep': 0.8, 'take': 0.7, 'gradient': 1.0, 'buffer': 0.8}),
    _case('adam', '~+', rules.adam, {**ADAM, 'shift': 0.0}),
    _case('adam eps_root', '~+', rules.adam, {**ADAM, 'shift': 0.03}),
    _case('adam nesterov', '~+', rules.adam, {**ADAM, 'mean': 0.8, 'gradient': 0.3, 'shift': 0.0}),
    _case('radam unrectified', '~+', rules.adam, {**ADAM, 'mean': 1.5, 'slope': 0.0, 'offset': 1.0, 'shift': 0.0}),
    _case('amsgrad', '~++', rules.amsgrad, {**BELIEF, 'shift': 0.01, 'correction': 1.1}),
    _case(
        'yogi',
        '~+',
        rules.yogi,
        {'b1': 0.9, 'd1': 0.1, 'd2': 0.05, 'mean': 1.2, 'slope': 0.7, 'offset': 1e-3, 'shift': 0.01},
    ),
    _case('belief', '~+', rules.belief, {**BELIEF, 'floor': 1e-4}),
    _case('adamax', '~+', rules.adamax, {'b1': 0.9, 'd1': 0.1, 'b2': 0.95, 'eps': 1e-3, 'correction': 0.3}),
    _case('rms', '+', rules.rms, RMS),
    _case('rms eps in the root', '+', rules.rms, {**RMS, 'offset': 0.0, 'shift': 0.02}),
    _case('stddev', '~+', rules.stddev, RMS),
    _case('rss', '+', rules.rss, {'offset': 1e-3}),
    _case('adadelta', '++', rules.adadelta, {'keep': 0.9, 'take': 0.1, 'eps': 1e-3}),
    _case('lion', '~', rules.lion, {'b1': 0.9, 'd1': 0.1, 'b2': 0.8, 'd2': 0.2}),
    _case('rms+trace', '+~', rules.rms, RMS, rules.trace, HEAVY),
    _case(
        'rms+trace, a factor between',
        '+~',
        *(rules.rms, RMS),
        *(rules.scale, {'factor': -0.3}),
        *(rules.trace, {'keep': 0.8, 'take': 0.7, 'gradient': 1.0, 'buffer': 0.8}),
    ),
    _case('stddev+trace', '~+~', rules.stddev, RMS, rules.trace, {**HEAVY, 'gradient': 1.0, 'buffer': 0.8}),
]
BY_NAME = {case.name: case for case in CASES}


def scale(factor: Any) -> functools.partial[Any]:
    return functools.partial(rules.scale, factor=factor)


def add_params(weight: Any) -> functools.partial[Any]:
    return functools.partial(rules.add_params, weight=weight)


class Affine(NamedTuple):
    """The affine operations before and after the rule."""

    before: tuple[Any, ...]
    after: tuple[Any, ...]
    onto_params: bool

    @property
    def reads_params(self) -> bool:
        return self.onto_params or any(r.func is rules.add_params for r in self.before + self.after)

    def around(self, partials: Sequence[Any]) -> list[Any]:
        return [*self.before, *partials, *self.after]


AFFINES = {
    'the rule alone': Affine((), (), False),
    'descent': Affine((), (scale(-0.1),), False),
    'a whole step': Affine((), (scale(-0.1),), True),
    'maximize with decay before': Affine((scale(-1.0), add_params(0.2)), (scale(-0.1),), True),
    'decay before': Affine((add_params(0.2),), (scale(-0.1),), False),
    'decay after': Affine((), (add_params(0.3), scale(-0.1)), False),
    'everything': Affine((add_params(0.2), scale(-1.0)), (scale(0.5), add_params(0.3), scale(-0.1)), True),
}

# --- leaves and trees -----------------------------------------------------------------------------------------------

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    'contiguous': lambda x: x,
    'transposed': lambda x: x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() else x,
    'sliced': lambda x: torch.stack([x, x + 1], -1)[..., 0],
    'unaligned': lambda x: torch.cat([x.new_ones(1), x.reshape(-1)])[1:].view(x.shape),
    'expanded': lambda x: x[:1].expand(x.shape) if x.dim() and x.shape[0] else x,
}

SHAPES: dict[str, list[tuple[int, ...]]] = {
    'no leaves': [],
    '0-d': [()],
    'empty': [(0,), (3, 0, 2)],
    'mixed': [(3, 4), (), (0,), (5,), (2, 3, 2), (1, 1), (2, 1, 3, 1)],
    'around a block': [(1023,), (1024,), (1025,), (3000,)],
    'larger than a piece': [(130, 127), (3,)],
    '60 leaves': [(i % 4, 2) if i % 5 else () for i in range(60)],
}


def draw(kind: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A leaf: uniform between 0.5 and 1.5 for ``+``, so that a variance stays positive, else around zero."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x + 0.5 if kind == '+' else 1.2 * x - 0.6).to(dtype)


def columns(
    case: Case,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Any = torch.float64,
    *,
    layouts: Sequence[str] = ('contiguous',),
    seed: int = 0,
    params: bool = True,
) -> tuple[list[Tensor], list[list[Tensor]], list[Tensor] | None]:
    """Gradients, moments and parameters. ``dtypes`` is one dtype, or one each for gradient, moments and parameters."""
    kinds = '~' + case.moments + '~'
    if isinstance(dtypes, torch.dtype):
        dtypes = (dtypes,) * 3
    made = []
    for i, kind in enumerate(kinds):
        dtype = dtypes[0 if i == 0 else 2 if i == len(kinds) - 1 else 1]
        lay = LAYOUTS[layouts[i % len(layouts)]]
        made.append([lay(draw(kind, s, seed + 97 * i + j, dtype)) for j, s in enumerate(shapes)])
    g, *moments, p = made
    return g, moments, p if params else None


# --- the step natively, and in plain torch --------------------------------------------------------------------------


def native(
    partials: Any, g: Any, moments: Any, p: Any, *, active: Any = None, inplace: bool = False, onto: bool = False
):
    """A step that the engine must run."""
    flags = [None] * len(partials) if active is None else active
    moved = dispatch.step(partials, flags, g, moments, p, inplace=inplace, onto_params=onto)
    assert not isinstance(moved, dispatch.Unsupported), moved
    return moved


def plain(partials: Any, g: Any, moments: Any, p: Any, *, active: Any = None, onto: bool = False) -> list[list[Tensor]]:
    """The step in plain torch: leaf by leaf, rule by rule."""
    if onto:
        # An out-of-place step is differentiable also with respect to parameters that are leaves of autograd.
        p = [x.view_as(x) for x in p]
    results = []
    for i, x in enumerate(g):
        moved: list[Tensor] = []
        for k, rule in enumerate(partials):
            if active is not None and active[k] is not None and not active[k][i]:
                continue
            if rule.func is rules.scale:
                (x,) = rule(x)
            elif rule.func is rules.add_params:
                (x,) = rule(x, p[i])
            else:
                first = len(moved)
                x, *new = rule(x, *(m[i] for m in moments[first : first + rules.count_moments(rule.func)]))
                moved += new
        results.append((p[i] + x if onto else x, *moved))
    return [list(column) for column in zip(*results)] if results else [[] for _ in range(len(moments) + 1)]


def flat(moved: Any) -> list[Any]:
    return [x for column in moved for x in column]


def assert_same(actual: Any, wanted: Any, tolerance: float) -> None:
    """Compare flat lists of tensors (or None), relative to the size of each tensor."""
    assert len(actual) == len(wanted) > 0
    for x, y in zip(actual, wanted):
        assert (x is None) == (y is None)
        if x is not None and x.numel():
            size = max(1.0, y.detach().abs().max().item())
            torch.testing.assert_close(x.detach(), y.detach(), rtol=tolerance, atol=tolerance * size)


# --- the engine on, off, and watched --------------------------------------------------------------------------------


@contextlib.contextmanager
def door(run: Any) -> Iterator[None]:
    before = fused._run
    fused.bind_kernels(run)
    try:
        yield
    finally:
        fused.bind_kernels(before)


def no_kernels() -> contextlib.AbstractContextManager[None]:
    """Disable the kernels: the same autograd Functions, computed in plain torch."""
    return door(None)


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Disable the engine: everything is computed in plain torch, leaf by leaf."""
    before = dispatch.step, dispatch.step_in_place
    dispatch.step = lambda *args, **options: dispatch.Unsupported('a test wants plain torch')
    dispatch.step_in_place = lambda *args: False
    try:
        yield
    finally:
        dispatch.step, dispatch.step_in_place = before


class Watch:
    """The derivative orders of the kernels that ran, and the reasons why others did not."""

    def __init__(self) -> None:
        self.orders: list[int] = []
        self.refusals: list[str] = []

    def ran(self, *orders: int) -> None:
        assert not self.refusals, self.refusals
        assert set(orders) <= set(self.orders), (orders, self.orders)


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """Record which kernels run."""
    watch, run = Watch(), fused._run
    assert run is not None

    def spy(kernel: int, order: int, *rest: Any) -> Any:
        result = run(kernel, order, *rest)
        if isinstance(result, str):
            watch.refusals.append(result)
        else:
            watch.orders.append(int(order))
        return result

    with door(spy):
        yield watch
