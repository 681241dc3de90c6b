# SPDX-License-Identifier: Apache-2.0
"""Runs that began under TorchOpt 0.7.3: its states, built here as its specification has them, go on with ours."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import torchopt
from torchopt import interop, tree
from torchopt.base import EmptyState, UninitializedState
from torchopt.schedule import polynomial_schedule

f64 = torch.float64


class ScaleByAdamState(NamedTuple):
    mu: Any
    nu: Any
    count: Any


class ScaleByAdadeltaState(NamedTuple):
    mu: Any
    nu: Any


class ScaleByAdamaxState(NamedTuple):
    mu: Any
    nu: Any
    t: Any


class ScaleByRAdamState(NamedTuple):
    mu: Any
    nu: Any
    t: Any


class ScaleByRmsState(NamedTuple):
    nu: Any


class ScaleByRStdDevState(NamedTuple):
    mu: Any
    nu: Any


class ScaleByRssState(NamedTuple):
    sum_of_squares: Any


class ScaleByScheduleState(NamedTuple):
    count: Any


class TraceState(NamedTuple):
    trace: Any


class MaskedState(NamedTuple):
    inner_state: Any


class MaskedNode(NamedTuple):
    pass


def leaves(x: Any) -> list[torch.Tensor]:
    return [leaf.detach().clone() for leaf in tree.leaves(x)]


def counts(x: Any, n: int) -> list[torch.Tensor]:
    return [torch.tensor(int(x)) for _ in range(n)]


def old(state: Any, n: int) -> Any:
    """A state of ours as 0.7.3 had it: flat lists, a count for each of the n parameters."""
    if type(state) is tuple:
        return tuple(old(s, n) for s in state)
    makers: dict[str, Callable[[Any], Any]] = {
        'ScaleByAdamState': lambda s: ScaleByAdamState(leaves(s.mu), leaves(s.nu), counts(s.count, n)),
        'ScaleByAdaDeltaState': lambda s: ScaleByAdadeltaState(leaves(s.e_g), leaves(s.e_x)),
        'ScaleByAdamaxState': lambda s: ScaleByAdamaxState(leaves(s.mu), leaves(s.nu), int(s.count) + 1),
        'ScaleByRadamState': lambda s: ScaleByRAdamState(leaves(s.mu), leaves(s.nu), int(s.count) + 1),
        'ScaleByRmsState': lambda s: ScaleByRmsState(leaves(s.nu)),
        'ScaleByRStdDevState': lambda s: ScaleByRStdDevState(leaves(s.mu), leaves(s.nu)),
        'ScaleByRssState': lambda s: ScaleByRssState(leaves(s.sum_of_squares)),
        'ScaleByScheduleState': lambda s: ScaleByScheduleState(counts(s.count, n)),
        'TraceState': lambda s: TraceState(leaves(s.trace)),
        'DampedTraceState': lambda s: TraceState(leaves(s.trace)),
        'EmptyState': lambda s: s,
        'MaskedState': lambda s: MaskedState(old(s.inner_state, n)),
    }
    return makers[type(state).__name__](state)


RULES: dict[str, Callable[[], torchopt.base.GradientTransformation]] = {
    'sgd': lambda: torchopt.sgd(0.1),
    'momentum': lambda: torchopt.sgd(0.1, momentum=0.9, weight_decay=0.1),
    'damped': lambda: torchopt.sgd(0.1, momentum=0.9, dampening=0.3),
    'adam': lambda: torchopt.adam(0.1),
    'adam on a schedule': lambda: torchopt.adam(polynomial_schedule(0.1, 0.01, 1.0, 5)),
    'adamw': lambda: torchopt.adamw(0.1, mask=lambda params: tree.map(lambda p: True, params)),
    'adamax': lambda: torchopt.adamax(0.1),
    'radam': lambda: torchopt.radam(0.1),
    'adadelta': lambda: torchopt.adadelta(0.1),
    'adagrad': lambda: torchopt.adagrad(0.1, lr_decay=0.1),
    'rmsprop': lambda: torchopt.rmsprop(0.01),
    'rmsprop centered': lambda: torchopt.rmsprop(0.01, centered=True, momentum=0.5),
}
PARAMS = {'w': torch.linspace(0, 1, 3, dtype=f64), 'b': [torch.ones(2, 2, dtype=f64), torch.tensor(2.0, dtype=f64)]}


def go(tx: Any, params: Any, state: Any, first: int, last: int) -> Any:
    for step in range(first, last):
        grads = tree.map(lambda p, k=step: torch.cos(p * (k + 1)), params)
        updates, state = tx.update(grads, state, params)
        params = torchopt.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize('nested', [False, True], ids=['alone', 'in a chain'])
@pytest.mark.parametrize('steps', [0, 1, 4])
@pytest.mark.parametrize('rule', RULES)
def test_runs_go_on(rule: str, steps: int, nested: bool) -> None:
    alone = RULES[rule]()
    tx = torchopt.chain(torchopt.clip_grad_norm(1.0), alone) if nested else alone
    params, state = go(tx, PARAMS, tx.init(PARAMS), 0, steps)
    saved = (EmptyState(), old(state[1:], 3)) if nested else old(state, 3)
    held = str(saved)
    found = interop.from_torchopt_state(saved, tx, params)
    assert tree.structure(found) == tree.structure(state)
    if rule != 'damped':  # its count was not saved; it is known to have begun
        assert str(found) == str(state)
    torch.testing.assert_close(go(tx, params, found, steps, 7)[0], go(tx, params, state, steps, 7)[0], rtol=0, atol=0)
    assert str(saved) == held


def test_against_the_formula_of_each_parameter() -> None:
    """Adam as 0.7.3 computed it, each parameter with a count of its own."""
    mu, nu = [torch.tensor([0.5, -1.0], dtype=f64)], [torch.tensor([0.3, 2.0], dtype=f64)]
    state = (ScaleByAdamState(mu, nu, [torch.tensor(6)]), EmptyState())
    tx, params, g = torchopt.adam(0.1), (torch.zeros(2, dtype=f64),), torch.tensor([1.0, 2.0], dtype=f64)
    updates, new = tx.update((g,), interop.from_torchopt_state(state, tx, params), params)
    m, v = 0.9 * mu[0] + 0.1 * g, 0.999 * nu[0] + 0.001 * g * g
    expected = -0.1 * (m / (1 - 0.9**7)) / ((v / (1 - 0.999**7)).sqrt() + 1e-8)
    torch.testing.assert_close(updates[0], expected, rtol=1e-12, atol=0)
    assert int(new[0].count) == 7


def test_states_like_the_tree_and_masked_ones() -> None:
    """As of chains of transformations, which did not flatten; masked places hold nothing there and here."""
    params = {'w': torch.ones(2), 'b': torch.ones(1)}
    tx = torchopt.transform.masked(torchopt.transform.scale_by_adam(), {'w': True, 'b': False})
    there = MaskedState(
        ScaleByAdamState(
            {'w': torch.full((2,), 3.0), 'b': MaskedNode()},
            {'w': torch.full((2,), 4.0), 'b': MaskedNode()},
            {'w': torch.tensor(5), 'b': MaskedNode()},
        )
    )
    found = interop.from_torchopt_state(there, tx, params)
    assert tree.structure(found) == tree.structure(tx.init(params))
    assert found.inner_state.mu['w'].tolist() == [3.0, 3.0] and int(found.inner_state.count) == 5


def test_parameters_without_gradients() -> None:
    """Their counts stayed at zero; some rules then had None in the place of a moment."""
    params = [torch.ones(2), torch.ones(1)]
    there = (
        ScaleByAdamState([torch.ones(2), torch.zeros(1)], [torch.ones(2), torch.zeros(1)], counts(4, 1) + counts(0, 1)),
        EmptyState(),
    )
    assert int(interop.from_torchopt_state(there, torchopt.adam(), params)[0].count) == 4
    there = (ScaleByAdamaxState([torch.ones(2), torch.zeros(1)], [torch.ones(2), None], 3), EmptyState())
    found = interop.from_torchopt_state(there, torchopt.adamax(), params)[0]
    assert found.nu[1].tolist() == [0.0] and found.nu[0].tolist() == [1.0, 1.0] and int(found.count) == 2
    there = (TraceState([None, torch.ones(1)]), EmptyState())
    assert interop.from_torchopt_state(there, torchopt.sgd(0.1, 0.9), params)[0].trace[0].tolist() == [0.0, 0.0]


# -- optimizers --------------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()


X = torch.linspace(-1, 1, 15, dtype=f64).reshape(5, 3)


def train(net: nn.Module, optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        loss = net(X).square().mean()
        if isinstance(optimizer, torchopt.MetaOptimizer):
            optimizer.step(loss)
        else:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_optimizers() -> None:
    """With two groups, one of which has not yet taken a step."""
    net = network()
    optimizer = torchopt.Adam(net.parameters(), lr=0.1)
    train(net, optimizer, 3)
    extra = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({'params': [extra]})
    saved = (old(optimizer.state_groups[0], 6), UninitializedState())
    twin = copy.deepcopy(net)
    other = torchopt.Adam([{'params': twin.parameters()}, {'params': [extra]}], lr=0.1)
    other.load_state_dict(interop.from_torchopt_state(saved, other))
    assert isinstance(other.state_groups[1], UninitializedState)
    train(net, optimizer, 3)
    train(twin, other, 3)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


def permuted(state: Any, order: list[int]) -> Any:
    """The flat lists in another order."""
    return tree.map(
        lambda x: [x[i] for i in order] if isinstance(x, list) else x, state, is_leaf=lambda x: isinstance(x, list)
    )


# From our order (weight, bias, ...) to that of sorted names in each submodule (bias, weight, ...).
SORTED = [1, 0, 3, 2, 5, 4]


@pytest.mark.parametrize(('order', 'hint'), [(SORTED, None), (list(range(6)), None), (SORTED, True), (range(6), False)])
def test_meta_optimizers(order: list[int], hint: bool | None) -> None:
    net = network()
    optimizer = torchopt.MetaAdam(net, lr=0.1)
    train(net, optimizer, 3)
    saved = (permuted(old(optimizer.state_groups[0], 6), list(order)),)
    twin = network()
    torchopt.recover_state_dict(twin, torchopt.extract_state_dict(net, by='deepcopy'))
    other = torchopt.MetaAdam(twin, lr=0.1)
    other.load_state_dict(interop.from_torchopt_state(saved, other, sorted_names=hint))
    train(net, optimizer, 2)
    train(twin, other, 2)
    for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0, msg=name)


def test_when_shapes_do_not_tell_the_order() -> None:
    net = nn.BatchNorm1d(2)
    optimizer = torchopt.MetaAdam(net)
    there = (
        (
            ScaleByAdamState([torch.ones(2), torch.zeros(2)], [torch.ones(2), torch.zeros(2)], counts(1, 2)),
            EmptyState(),
        ),
    )
    with pytest.raises(ValueError, match='sorted_names=True'):
        interop.from_torchopt_state(there, optimizer)
    for hint, name in ((True, 'bias'), (False, 'weight')):
        (found,) = interop.from_torchopt_state(there, optimizer, sorted_names=hint)
        assert found[0].mu[name].tolist() == [1.0, 1.0]


# -- files -------------------------------------------------------------------------------------------------------------

# Where 0.7.3 has its classes; any module of it would do.
HOMES = {
    'ScaleByAdamState': 'torchopt.transform.scale_by_adam',
    'ScaleByScheduleState': 'torchopt.transform.scale_by_schedule',
    'MaskedState': 'torchopt.transform.add_decayed_weights',
    'MaskedNode': 'torchopt.transform.add_decayed_weights',
}


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Classes in the modules of 0.7.3, which exist only while a file is written."""
    made = {}
    for name, home in HOMES.items():
        kind = type(name, (globals()[name],), {'__module__': home, '__slots__': ()})
        module = sys.modules.get(home) or types.ModuleType(home)
        monkeypatch.setitem(sys.modules, home, module)
        monkeypatch.setattr(module, name, kind, raising=False)
        made[name] = kind
    return made


def test_files(there: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    tx = torchopt.adamw(polynomial_schedule(0.1, 0.01, 1.0, 5), mask={'w': True, 'b': True})
    params, state = go(tx, PARAMS, tx.init(PARAMS), 0, 3)
    saved = old(state, 3)
    saved = (
        there['ScaleByAdamState'](*saved[0]),
        there['MaskedState'](EmptyState()),
        there['ScaleByScheduleState'](*saved[2]),
    )
    file = tmp_path / 'old.pt'
    torch.save({'epoch': 3, 'optimizer': saved, 'masked': there['MaskedNode']()}, file)
    monkeypatch.undo()
    assert not any(hasattr(sys.modules[home], name) for name, home in HOMES.items())
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    for source in (file, str(file), io.BytesIO(file.read_bytes())):
        loaded = interop.load_torchopt_state(source)
        assert loaded['epoch'] == 3
        assert loaded['optimizer'][0]._fields == ('mu', 'nu', 'count')
        assert str(interop.from_torchopt_state(loaded['optimizer'], tx, params)) == str(state)
    with pytest.raises(pickle.UnpicklingError):  # nothing was allowed for good
        torch.load(file, weights_only=True)


def test_files_with_other_classes_are_refused(tmp_path: Any) -> None:
    file = tmp_path / 'other.pt'
    torch.save({'state': ScaleByAdamState([], [], [])}, file)  # of this module, which is not of torchopt
    with pytest.raises(pickle.UnpicklingError):
        interop.load_torchopt_state(file)
    with pytest.raises(FileNotFoundError):
        interop.load_torchopt_state(tmp_path / 'absent')


# -- errors ------------------------------------------------------------------------------------------------------------

TWO = [torch.ones(2), torch.ones(1)]


def adam_state(mu: Any = TWO, nu: Any = TWO, count: Any = None) -> Any:
    return ScaleByAdamState(mu, nu, counts(2, 2) if count is None else count), EmptyState()


ERRORS: dict[str, tuple[Any, Any, type[Exception], list[str]]] = {
    'other rule': (
        (TraceState(TWO), EmptyState()),
        torchopt.adam(),
        ValueError,
        ['state[0]', 'TraceState', 'ScaleByAdam'],
    ),
    'too few states': ((EmptyState(),), torchopt.adam(), ValueError, ['ends before', 'ScaleByAdamState', 'Load']),
    'too many states': (
        (*adam_state(), TraceState(TWO)),
        torchopt.adam(),
        ValueError,
        ['state[2]', 'TraceState', 'no state'],
    ),
    'fewer parameters': (adam_state(mu=TWO[:1]), torchopt.adam(), ValueError, ['state[0].mu', '1 tensors', '2 param']),
    'shape': (adam_state(nu=TWO[::-1]), torchopt.adam(), ValueError, ['state[0].nu', '(1,)', '[0]', '(2,)']),
    'complex': (adam_state(nu=[x * 1j for x in TWO]), torchopt.adam(), ValueError, ['state[0].nu', 'complex64']),
    'counts': (
        adam_state(count=[torch.tensor(2), torch.tensor(3)]),
        torchopt.adam(),
        ValueError,
        ['state[0].count', '[2, 3]', 'their own group'],
    ),
    't': ((ScaleByAdamaxState(TWO, TWO, 0), EmptyState()), torchopt.adamax(), ValueError, ['state[0].t', 'from 1']),
    'no state': (({'mu': TWO},), torchopt.adam(), ValueError, ['state[0]', 'dict', 'not a state of 0.7.3']),
    'of ours': (
        torchopt.lion(0.1).init(TWO),
        torchopt.adam(),
        ValueError,
        ['ScaleByLionState', 'not a state of 0.7.3'],
    ),
}


@pytest.mark.parametrize('case', ERRORS)
def test_errors(case: str) -> None:
    state, tx, error, words = ERRORS[case]
    with pytest.raises(error) as caught:
        interop.from_torchopt_state(state, tx, TWO)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_errors_of_targets() -> None:
    net = nn.Linear(2, 1)
    optimizer = torchopt.Adam(net.parameters())
    with pytest.raises(TypeError, match='params is None'):
        interop.from_torchopt_state(adam_state(), torchopt.adam())
    with pytest.raises(TypeError, match='Leave it out'):
        interop.from_torchopt_state((adam_state(),), optimizer, TWO)
    with pytest.raises(TypeError, match='target is a Linear'):
        interop.from_torchopt_state(adam_state(), net)  # type: ignore[arg-type]
    for state in (adam_state(), adam_state()[0], 3, ()):
        with pytest.raises(ValueError, match='each of the 1 groups'):
            interop.from_torchopt_state(state, optimizer)
    with pytest.raises(ValueError, match='2 tensors, but there are 1 parameters'):
        interop.from_torchopt_state((adam_state(),), torchopt.MetaAdam(nn.Linear(2, 1, bias=False)), sorted_names=True)
