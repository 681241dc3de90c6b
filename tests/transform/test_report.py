# SPDX-License-Identifier: Apache-2.0
"""What is measured on the way is told to somebody outside, and nothing else changes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torchopt
from torchopt import transform, tree

GRADS = [{'w': torch.tensor([3.0, 4.0]) * k} for k in (1.0, 2.0, 3.0, 4.0, 5.0)]
PARAMS = {'w': torch.zeros(2)}


class Log:
    """A function that can be pickled, and remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, int]] = []

    def __call__(self, name: str, value: Any, step: int) -> None:
        self.calls.append((name, value, step))

    def numbers(self) -> list[tuple[str, float, int]]:
        return [(name, value.item(), step) for name, value, step in self.calls]


def run(tx: torchopt.base.GradientTransformation, state: Any = None, grads: Any = GRADS) -> tuple[list[Any], Any]:
    state, made = tx.init(PARAMS) if state is None else state, []
    for g in grads:
        updates, state = tx.update(g, state, PARAMS)
        made.append(updates)
    return made, state


def test_calls_and_state() -> None:
    log = Log()
    measures = {'norm': tree.norm, 'mean': transform.measure_with_ema(tree.norm, 0.5)}
    tx = torchopt.chain(transform.report(log, measures), torchopt.sgd(0.1))
    made, state = run(tx)
    expected, plain = run(torchopt.chain(transform.monitor(measures), torchopt.sgd(0.1)))
    assert str(made) == str(expected)
    assert [(n, s) for n, _, s in log.calls] == [(n, s) for s in range(5) for n in ('norm', 'mean')]
    assert [v for n, v, _ in log.numbers() if n == 'norm'] == [5.0, 10.0, 15.0, 20.0, 25.0]
    assert all(type(step) is int for _, _, step in log.calls)
    assert int(state[0].count) == 5
    assert str(state[0].inner_state) == str(plain[0])
    assert tree.get(state, 'measurements')['norm'].item() == 25.0


@pytest.mark.parametrize(('every', 'steps'), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3]), (9, [0])])
def test_every(every: int, steps: list[int]) -> None:
    log = Log()
    _, state = run(transform.report(log, {'norm': tree.norm}, every=every))
    assert log.numbers() == [('norm', 5.0 * (step + 1), step) for step in steps]
    assert state.inner_state.measurements['norm'].item() == 25.0


def test_steps_go_on_where_the_state_was_saved() -> None:
    log = Log()
    tx = transform.report(log, {'norm': tree.norm}, every=2)
    _, state = run(tx, grads=GRADS[:3])
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    run(tx, torch.load(file, weights_only=True), GRADS[3:])
    assert [step for _, _, step in log.calls] == [0, 2, 4]
    again = pickle.loads(pickle.dumps(tx))
    run(again)
    assert len(log.calls) == 3


def test_the_graph_is_not_given_away() -> None:
    """Nor is it cut in the updates."""
    log = Log()
    g = torch.tensor([3.0, 4.0], requires_grad=True)
    tx = transform.report(log, {'parts': lambda u: {'w': u['w'] * 2, 'n': None, 'k': 3}})
    updates, state = tx.update({'w': 2 * g}, tx.init(PARAMS))
    value = log.calls[0][1]
    assert value['w'].grad_fn is None and not value['w'].requires_grad and value['n'] is None and value['k'] == 3
    assert updates['w'].grad_fn is not None and state.inner_state.measurements['parts']['w'].grad_fn is not None


def test_measures_of_more_than_updates() -> None:
    log = Log()
    loss = torchopt.base.GradientTransformationExtraArgs(
        lambda params: (), lambda u, s, p=None, *, value, **_: (value, s)
    )
    tx = torchopt.chain(transform.report(log, {'loss': loss}), torchopt.sgd(0.1))
    tx.update(GRADS[0], tx.init(PARAMS), PARAMS, value=torch.tensor(7.0))
    assert log.numbers() == [('loss', 7.0, 0)]


def test_faces() -> None:
    log = Log()
    net = torch.nn.Linear(2, 1)
    make: Callable[[], Any] = lambda: torchopt.chain(transform.report(log, {'n': tree.norm}), torchopt.sgd(0.1))  # noqa: E731
    optimizer = torchopt.Optimizer(net.parameters(), make())
    meta = torchopt.MetaOptimizer(net, make())
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.ones(2)).sum().backward()
        optimizer.step()
    meta.step(net(torch.ones(2)).sum())
    assert [step for _, _, step in log.calls] == [0, 1, 0]


def test_transforms() -> None:
    log = Log()
    tx = transform.report(log, {'norm': tree.norm})
    state = tx.init(PARAMS)

    def size(scale: torch.Tensor) -> torch.Tensor:
        updates, _ = tx.update({'w': scale * GRADS[0]['w']}, state)
        return updates['w'].square().sum()

    assert torch.func.grad(size)(torch.tensor(2.0)).item() == 100.0
    assert [name for name, _, _ in log.calls] == ['norm'] and float(log.calls[0][1]) == 10.0
    with pytest.raises(RuntimeError, match=r'torch\.vmap.*Use monitor'):
        torch.vmap(size)(torch.ones(3))
    assert len(log.calls) == 1


def test_compilation_breaks_the_graph() -> None:
    log = Log()
    tx = torchopt.chain(transform.report(log, {'norm': tree.norm}), torchopt.sgd(0.1))
    torch.compiler.reset()
    step = torch.compile(tx.update, backend='eager')
    state = tx.init(PARAMS)
    for g in GRADS[:3]:
        _, state = step(g, state)
    assert log.numbers() == [('norm', 5.0 * (i + 1), i) for i in range(3)]
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(tx.update, backend='eager', fullgraph=True)(GRADS[0], state)
    torch.compiler.reset()


REFUSED: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    'write': ((3, {}), TypeError, 'write is an int'),
    'measure': ((print, {'x': 1.0}), TypeError, r"measures\['x'\]"),
    'every float': ((print, {}, 1.5), TypeError, 'every is 1.5'),
    'every bool': ((print, {}, True), TypeError, 'every is True'),
    'every 0': ((print, {}, 0), ValueError, 'every'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refused(case: str) -> None:
    arguments, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        transform.report(*arguments)


def test_the_state_of_another() -> None:
    tx = transform.report(print, {})
    with pytest.raises(ValueError, match='expected a ReportState'):
        tx.update(PARAMS, torchopt.base.EmptyState())


def test_an_error_of_write_is_passed_on() -> None:
    def fail(name: str, value: Any, step: int) -> None:
        raise OSError('disk full')

    tx = transform.report(fail, {'norm': tree.norm})
    with pytest.raises(OSError, match='disk full'):
        run(tx)


def test_no_value_is_read() -> None:
    """Tensors on the meta device have none."""
    log = Log()
    tx = torchopt.chain(transform.report(log, {'norm': tree.norm}), torchopt.sgd(0.1))
    params = {'w': torch.zeros(2, device='meta')}
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(params, state)
    assert [(name, value.is_meta, step) for name, value, step in log.calls] == [('norm', True, 0), ('norm', True, 1)]
