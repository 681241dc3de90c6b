# SPDX-License-Identifier: Apache-2.0
"""How transformations, schedules and what they hold are printed."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import pytest
import torch

import torchopt
from torchopt import schedule, transform, tree

ADAM = 'scale_by_adam(0.9, 0.999, 1e-08, 0.0, False, nesterov=False, mu_dtype=None)'


class Pair(NamedTuple):
    mu: Any
    nu: Any


class Logger:
    def write(self) -> None:
        pass

    @classmethod
    def make(cls) -> None:
        pass

    def __call__(self) -> None:
        pass


def rule(updates: Any, state: Any, params: Any = None) -> Any:
    return updates, state


TEXTS: dict[str, tuple[Any, str]] = {
    'chain': (
        torchopt.chain(transform.scale(0.5), torchopt.sgd(0.1)),
        'chain(\n    scale(0.5),\n    scale_by_learning_rate(0.1),\n)',
    ),
    'identity': (torchopt.base.identity(), 'identity()'),
    'keywords': (transform.trace(0.9, nesterov=True), 'trace(0.9, nesterov=True)'),
    'masked chain': (
        torchopt.chain(
            torchopt.clip_grad_norm(1.0),
            transform.masked(torchopt.chain(torchopt.adam(0.1), transform.scale(-1.0)), {'a': True}),
        ),
        f"""\
chain(
    clip_grad_norm(1.0),
    masked(
        chain(
            {ADAM},
            scale_by_learning_rate(0.1),
            scale(-1.0),
        ),
        {{'a': True}},
    ),
)""",
    ),
    'partition': (
        transform.partition(
            {'slow': transform.scale(0.1), 'fast': torchopt.chain(torchopt.sgd(1.0), transform.scale(2.0))}, rule
        ),
        """\
partition(
    {
        'slow': scale(0.1),
        'fast': chain(
            scale_by_learning_rate(1.0),
            scale(2.0),
        ),
    },
    rule,
)""",
    ),
    'short partition': (
        transform.partition({'a': transform.scale(0.1), 'b': transform.set_to_zero()}, {'w': 'a'}),
        "partition({'a': scale(0.1), 'b': set_to_zero()}, {'w': 'a'})",
    ),
    'named chain': (
        torchopt.named_chain(('clip', torchopt.clip_grad_norm(1.0)), ('step', torchopt.sgd(0.1))),
        """\
named_chain(
    ('clip', clip_grad_norm(1.0)),
    (
        'step',
        chain(
            scale_by_learning_rate(0.1),
        ),
    ),
)""",
    ),
    'MultiSteps': (
        transform.MultiSteps(transform.scale(1.0), 4, use_grad_mean=False),
        'MultiSteps(opt=scale(1.0), every_k_schedule=4, use_grad_mean=False)',
    ),
    'injected': (schedule.inject_hyperparams(torchopt.adam)(lr=0.1), 'inject_hyperparams(adam)(lr=0.1)'),
    'injected, with options': (
        schedule.inject_hyperparams(torchopt.adam, 'eps', torch.float64)(0.1),
        "inject_hyperparams(adam, static_args=('eps',), hyperparam_dtype=torch.float64)(0.1)",
    ),
    'no factory': (torchopt.base.GradientTransformation(len, rule), 'GradientTransformation(init=len, update=rule)'),
    'schedule': (schedule.cosine_decay_schedule(0.1, 100), 'cosine_decay_schedule(init_value=0.1, decay_steps=100)'),
    'schedule, changed': (
        schedule.cosine_decay_schedule(0.1, 100, alpha=0.5),
        'cosine_decay_schedule(init_value=0.1, decay_steps=100, alpha=0.5)',
    ),
    'schedule in a rule': (
        transform.scale_by_learning_rate(schedule.inverse_time_decay(1.0, 0.5)),
        'scale_by_learning_rate(inverse_time_decay(init_value=1.0, decay_rate=0.5))',
    ),
    'joined': (
        schedule.join_schedules([schedule.linear_schedule(0.0, 1.0, 10), schedule.exponential_decay(1.0, 0.99)], [10]),
        """\
join_schedules(
    schedules=(
        polynomial_schedule(init_value=0.0, end_value=1.0, power=1, transition_steps=10),
        exponential_decay(init_value=1.0, decay_rate=0.99),
    ),
    boundaries=(10,),
)""",
    ),
    'function': (tree.norm, 'norm'),
    'builtin': (print, 'print'),
    'lambda': (lambda x: x, '<lambda>'),
    'class': (torch.nn.Linear, 'Linear'),
    'method': (Logger().write, 'Logger.write'),
    'class method': (Logger.make, 'Logger.make'),
    'object': (Logger(), '<Logger>'),
    'partial': (functools.partial(tree.norm, ord=1), 'partial(norm, ord=1)'),
    'named tuple': (Pair(1, [None]), 'Pair(mu=1, nu=[None])'),
    'one of a tuple': ((1,), '(1,)'),
    'empty': ([(), [], {}], '[(), [], {}]'),
    'scalar': (torch.tensor(0.5), 'tensor(0.5000)'),
    'learned': (torch.tensor(0.5, requires_grad=True), 'tensor(0.5000, requires_grad=True)'),
    'few': (torch.arange(3), 'tensor([0, 1, 2])'),
    'many': (torch.zeros(100, 7), 'tensor(..., shape=(100, 7), dtype=float32)'),
    'meta': (torch.zeros(2, device='meta'), "tensor(..., shape=(2,), dtype=float32, device='meta')"),
    'parameter': (
        torch.nn.Parameter(torch.zeros(9, dtype=torch.float64)),
        'tensor(..., shape=(9,), dtype=float64, requires_grad=True)',
    ),
    'string': ("it's", '"it\'s"'),
    'wide list': (['x' * 60, 'y' * 60], f"[\n    '{'x' * 60}',\n    '{'y' * 60}',\n]"),
}


@pytest.mark.parametrize('case', TEXTS)
def test_texts(case: str) -> None:
    value, text = TEXTS[case]
    assert tree.as_text(value) == text
    if isinstance(value, (torchopt.base.GradientTransformation, transform.MultiSteps)) or case.startswith(
        ('schedule', 'joined')
    ):
        assert repr(value) == text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_lines_are_full_before_they_break() -> None:
    """A line of exactly the width stays whole, with what stands before and after it."""
    for n in range(60, 110):
        text = repr(torchopt.chain(transform.scale(0.5), transform.snapshot('x' * n, tree.norm)))
        whole = f"    snapshot('{'x' * n}', norm),"
        assert (whole in text.splitlines()) == (len(whole) <= 100)


def test_of_values_with_many_lines() -> None:
    class Matrix:
        def __repr__(self) -> str:
            return '1 0\n0 1'

    assert tree.as_text({'m': Matrix()}) == "{\n    'm': 1 0\n    0 1,\n}"


def test_under_transforms() -> None:
    seen = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(repr(torchopt.sgd(x)))
        return x

    torch.vmap(look)(torch.ones(3))
    assert 'tensor(..., shape=(), dtype=float32)' in seen[0]


def test_optimizers_show_their_schedules() -> None:
    optimizer = torchopt.Adam([torch.zeros(1)], lr=schedule.constant_schedule(0.1))
    assert 'lr: constant_schedule(value=0.1)' in repr(optimizer)
