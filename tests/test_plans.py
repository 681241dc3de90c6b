# SPDX-License-Identifier: Apache-2.0
"""One transformation over steps that change what it is given: each step computes what a fresh transformation does.

The engine looks up the plan of a chain of rules in a cache.  Nothing of the tensors, flags or numbers of an earlier
step may survive in it.
"""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
from tests.snapshot import Snapshot
from torchopt import elementwise, transform, tree
from torchopt.base import ElementwiseTransformation, EmptyState, init_empty_state

F64 = torch.float64
SCHEDULE = torchopt.schedule.exponential_decay(0.1, 0.5)
RATE = torch.tensor(0.1, dtype=F64, requires_grad=True)

MAKE: dict[str, Callable[[], Any]] = {
    'sgd': lambda: torchopt.sgd(0.1),
    'momentum': lambda: torchopt.sgd(0.1, 0.9, nesterov=True, weight_decay=0.1),
    'dampening': lambda: torchopt.sgd(0.1, 0.9, dampening=0.3),
    'adam': lambda: torchopt.adam(0.1),
    'adamw, schedule': lambda: torchopt.adamw(SCHEDULE),
    'adamw, mask': lambda: torchopt.adamw(0.1, mask=lambda params: tree.map(lambda p: p.dim() > 1, params)),
    'rates of leaves': lambda: torchopt.adam({'w': 0.1, 'b': 0.01}),
    'learned rate': lambda: torchopt.sgd(RATE),
    'rmsprop with momentum': lambda: torchopt.rmsprop(0.01, momentum=0.9),
    'clipped': lambda: torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam(0.1)),
}


def draw(dtype: torch.dtype = F64, rows: int = 3, **where: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    shapes = {'w': (rows, 2), 'b': (2,)}
    return {k: torch.randn(s, generator=generator, dtype=F64).to(dtype=dtype, **where) for k, s in shapes.items()}


def nested() -> dict[str, torch.Tensor]:
    """Other leaves under the same names: one transposed, one strided."""
    return {'w': draw()['w'].t(), 'b': torch.arange(4.0, dtype=F64)[::2]}


def without_bias() -> tuple[Any, Any]:
    return draw(), {**draw(), 'b': None}


# What a step is given: parameters and gradients.
GIVEN: dict[str, Callable[[], tuple[Any, Any]]] = {
    'usual': lambda: (draw(), draw()),
    'other shapes': lambda: (draw(rows=5), draw(rows=5)),
    'no elements': lambda: (draw(rows=0), draw(rows=0)),
    'float32': lambda: (draw(torch.float32), draw(torch.float32)),
    'bfloat16': lambda: (draw(torch.bfloat16), draw(torch.bfloat16)),
    'mixed dtypes': lambda: (draw(torch.float32), draw(torch.bfloat16)),
    'complex': lambda: (draw(torch.complex64), draw(torch.complex64)),
    'other layouts': lambda: (nested(), nested()),
    'None': without_bias,
    'None everywhere': lambda: (draw(), {'w': None, 'b': None}),
    'requires grad': lambda: (tree.map(lambda x: x.requires_grad_() * 1, draw()), draw()),
    'gradients with a graph': lambda: (draw(), tree.map(lambda x: x.requires_grad_() * 1, draw())),
    'parameters': lambda: (tree.map(nn.Parameter, draw()), draw()),
    'meta': lambda: (draw(device='meta'), draw(device='meta')),
}


def step(tx: Any, given: str, inplace: bool) -> Any:
    params, grads = GIVEN[given]()
    if inplace:
        params = tree.map(lambda p: p.detach(), params)
    state = tx.init(params)
    for _ in range(2):
        params, state = torchopt.update_params(tx, grads, state, params, inplace=inplace)
    return params, state


def facts(results: Any) -> Any:
    leaves, spec = tree.flatten(results)
    return spec, [(x.dtype, x.shape, x.device, x.requires_grad) for x in leaves if x is not None]


def same(actual: Any, expected: Any) -> None:
    assert facts(actual) == facts(expected)
    for x, y in zip(tree.leaves(actual), tree.leaves(expected)):
        if x.device.type != 'meta':
            assert torch.equal(x, y)


@pytest.mark.parametrize('name', MAKE)
def test_a_step_depends_on_nothing_but_its_arguments(name: str) -> None:
    """All kinds of arguments in turns, in both orders, through one transformation and its copies."""
    shared = MAKE[name]()
    once = [*GIVEN, *reversed(GIVEN)]
    for i, given in enumerate(once):
        inplace = i % 3 == 1
        expected = step(MAKE[name](), given, inplace)
        same(step(shared, given, inplace), expected)
        if name not in ('adamw, mask', 'learned rate'):  # a lambda is not pickled; the copy of a rate is another leaf
            same(step(pickle.loads(pickle.dumps(shared)), given, inplace), expected)
        same(step(copy.deepcopy(shared), given, inplace), expected)


@pytest.mark.parametrize('name', MAKE)
def test_transforms_come_and_go(name: str) -> None:
    shared = MAKE[name]()

    def moved(tx: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(x: torch.Tensor) -> torch.Tensor:
            params = {'w': x, 'b': x[0]}
            new, _ = torchopt.update_params(tx, tree.map(lambda p: p**3, params), tx.init(params), params)
            return new['w'].sum() + new['b'].sum()

        return run

    points = torch.stack([draw()['w'], draw()['w'] * 2])
    for _ in range(2):
        step(shared, 'usual', False)
        expected = torch.stack([torch.func.grad(moved(MAKE[name]()))(x) for x in points])
        torch.testing.assert_close(torch.vmap(torch.func.grad(moved(shared)))(points), expected)
        _, tangent = torch.func.jvp(moved(shared), (points[0],), (torch.ones_like(points[0]),))
        torch.testing.assert_close(tangent, expected[0].sum())
        x = points[0].clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(moved(shared)(x), x)[0], expected[0])
        with torch.no_grad():
            assert not moved(shared)(x).requires_grad
        with torch.inference_mode():
            step(shared, 'usual', True)


def test_a_tensor_rate_is_read_in_each_step() -> None:
    rate = torch.tensor(0.5)
    tx, params = torchopt.sgd(rate), [torch.zeros(1)]
    for value in (0.5, 0.25):
        rate.fill_(value)
        (new,), _ = torchopt.update_params(tx, [torch.ones(1)], tx.init(params), params)
        assert new.item() == -value
    rate.requires_grad_()
    (new,), _ = torchopt.update_params(tx, [torch.ones(1)], tx.init(params), params)
    assert torch.autograd.grad(new.sum(), rate)[0] == -1.0


def test_masks_may_change_between_steps() -> None:
    flags = {'w': True, 'b': False}
    decay = transform.add_decayed_weights(0.5, lambda params: dict(flags))
    tx = torchopt.chain(transform.scale(0.0), decay)
    params = {'w': torch.ones(1), 'b': torch.ones(1)}
    state = tx.init(params)
    for w, b in [(True, False), (False, True), (True, True), (False, False)]:
        flags.update(w=w, b=b)
        new, state = torchopt.update_params(tx, params, state, params)
        assert (new['w'].item(), new['b'].item()) == (1.5 if w else 1.0, 1.5 if b else 1.0)


@pytest.mark.parametrize('kind', [torchopt.SGD, torchopt.Adam, torchopt.AdamW])
def test_classes_follow_changes_of_their_parameters(kind: Any) -> None:
    """Rates, groups, gradients that come and go, other dtypes in place of the data, copies of the optimizer."""
    theirs = {torchopt.SGD: torch.optim.SGD, torchopt.Adam: torch.optim.Adam, torchopt.AdamW: torch.optim.AdamW}[kind]

    def run(make: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        ps = [nn.Parameter(torch.randn(2, 3, dtype=F64)), nn.Parameter(torch.randn(3, dtype=F64))]
        late = nn.Parameter(torch.randn(2, dtype=F64))
        optimizer = make(ps, lr=0.1)
        for t in range(8):
            for p in (*ps, late):
                p.grad = p.detach() ** 2 + 0.1
            if t == 2:
                optimizer.param_groups[0]['lr'] = 0.01
            if t == 3:
                optimizer.add_param_group({'params': [late], 'lr': 0.2})
            if t == 5 and make is kind:
                optimizer = copy.deepcopy(optimizer)
                *ps, late = [p for group in optimizer.param_groups for p in group['params']]
                for p in (*ps, late):
                    p.grad = p.detach() ** 2 + 0.1
            if t >= 6:
                ps[0].requires_grad_(False)
            optimizer.step()
        return [*ps, late]

    for ours, expected in zip(run(kind), run(theirs)):
        torch.testing.assert_close(ours.detach(), expected.detach())


def test_a_missing_or_sparse_gradient_of_a_class() -> None:
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torchopt.Adam([p, q], lr=0.1)
    for p.grad, q.grad in [(torch.ones(2), torch.ones(2)), (torch.ones(2), None), (None, None), (None, torch.ones(2))]:
        before = [x.detach().clone() for x in (p, q)]
        optimizer.step()
        for x, old in zip((p, q), before):
            assert torch.equal(x.detach(), old) == (x.grad is None)
    p.grad = torch.ones(2).to_sparse()
    kept = Snapshot([p, q], optimizer.state_groups)
    with pytest.raises(RuntimeError, match='sparse'):
        optimizer.step()
    kept.check()


def test_in_place_the_containers_stay_and_others_are_untouched() -> None:
    tx = torchopt.adam(0.1)
    params, grads = draw(), draw()
    state = tx.init(params)
    new, after = torchopt.update_params(tx, grads, state, params, inplace=True)
    assert all(new[k] is params[k] for k in params)
    assert all(after[0].mu[k] is state[0].mu[k] for k in params)
    assert after[0].count is not state[0].count


def test_user_rules_do_not_enter_the_cache() -> None:
    """A rule of the user with the name and coefficients of one of ours is not taken for it."""

    def scale(g: torch.Tensor, *, factor: float) -> tuple[torch.Tensor]:
        return (g * factor + 1.0,)

    for rule in (functools.partial(scale, factor=2.0), functools.partial(torchopt.rules.scale, factor=2.0)):
        tx = ElementwiseTransformation(init_empty_state, elementwise.ElementwiseStep(rule, (), EmptyState))
        updates, _ = tx.update([torch.ones(1)], EmptyState())
        assert updates[0].item() == (3.0 if rule.func is scale else 2.0)
