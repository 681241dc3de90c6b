# SPDX-License-Identifier: Apache-2.0
"""The rules that come from Optax: their options, learned hyper-parameters, moments in other dtypes, and the engine."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax
import pytest
import torch

import torchopt
from tests.cases import WITHOUT_KERNEL, mixed_tree
from tests.oracle import assert_trees_close, named_entries, run_optax, run_torchopt
from torchopt import transform, tree
from torchopt._C import dispatch, fused
from torchopt.compat import optax as compat

F64 = torch.float64


class Rule(NamedTuple):
    """A transformation with options; the options of its namesake in Optax, where they are called differently."""

    name: str
    options: dict[str, Any]
    theirs: dict[str, Any] | None = None
    native: bool = True

    def __str__(self) -> str:
        return f'{self.name}({",".join(f"{k}={v}" for k, v in self.options.items())})'

    def make(self) -> torchopt.base.GradientTransformation:
        return torchopt.chain(getattr(transform, self.name)(**self.options), transform.scale(-0.05))

    def make_theirs(self) -> Any:
        options = self.options if self.theirs is None else self.theirs
        return optax.chain(getattr(optax, self.name)(**options), optax.scale(-0.05))


RULES = [
    Rule('scale_by_adam', {'nesterov': True}),
    Rule('scale_by_adam', {'b1': 0.0, 'b2': 0.5, 'eps_root': 0.1, 'nesterov': True}),
    Rule('scale_by_amsgrad', {}),
    Rule('scale_by_amsgrad', {'b2': 0.5, 'bias_correction_mu': False, 'bias_correction_nu': False}),
    Rule('scale_by_amsgrad', {'b1': 0.5, 'b2': 0.7, 'eps': 1e-2, 'eps_root': 1e-1}),
    Rule('scale_by_lion', {}),
    Rule('scale_by_lion', {'b1': 0.3, 'b2': 0.5}),
    Rule('scale_by_lion', {'mode': 'smooth', 'smooth_beta': 3.0}, native=False),
    Rule('scale_by_lion', {'mode': 'refined', 'b1': 0.5}, native=False),
    Rule('scale_by_yogi', {}),
    Rule('scale_by_yogi', {'b2': 0.8, 'eps': 1e-4, 'eps_root': 1e-2, 'initial_accumulator_value': 0.3}),
    Rule('scale_by_yogi', {'initial_accumulator_value': 0.0}),
    Rule('scale_by_belief', {}),
    Rule('scale_by_belief', {'b1': 0.5, 'b2': 0.8, 'eps': 1e-3, 'eps_root': 0.0}),
    Rule('scale_by_belief', {'nesterov': True, 'eps_root': 1e-3}, native=False),
    Rule('scale_by_rms', {'eps': 0.1, 'eps_in_sqrt': True}, {'eps': 0.1}),
    Rule('scale_by_rms', {'alpha': 0.5, 'eps': 0.1}, {'decay': 0.5, 'eps': 0.1, 'eps_in_sqrt': False}),
    Rule(
        'scale_by_stddev', {'eps': 0.1, 'initial_scale': 0.5, 'eps_in_sqrt': True}, {'eps': 0.1, 'initial_scale': 0.5}
    ),
    Rule(
        'scale_by_rms',
        {'eps': 0.1, 'eps_in_sqrt': True, 'bias_correction': True},
        {'eps': 0.1, 'bias_correction': True},
        native=False,
    ),
    Rule(
        'scale_by_rms',
        {'alpha': 0.5, 'eps': 0.1, 'initial_scale': 0.3, 'bias_correction': True},
        {'decay': 0.5, 'eps': 0.1, 'initial_scale': 0.3, 'eps_in_sqrt': False, 'bias_correction': True},
        native=False,
    ),
    Rule(
        'scale_by_stddev',
        {'eps': 0.1, 'initial_scale': 0.5, 'eps_in_sqrt': True, 'bias_correction': True},
        {'eps': 0.1, 'initial_scale': 0.5, 'bias_correction': True},
        native=False,
    ),
]
each_rule = pytest.mark.parametrize('rule', RULES, ids=str)


@pytest.fixture(params=[True, False], ids=['engine', 'plain torch'])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The engine as it is, or switched off."""
    if not request.param:
        monkeypatch.setattr(fused, '_run', None)
    return request.param and fused._run is not None


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the engine answers to every step that has moments: the result, or the reason why it cannot."""
    seen: list[Any] = []
    step = dispatch.step

    def spy(rules: Any, active: Any, g: Any, moments: Any, p: Any, **options: Any) -> Any:
        answer = step(rules, active, g, moments, p, **options)
        if moments:  # apply_updates asks the engine too
            seen.append(answer)
        return answer

    monkeypatch.setattr(dispatch, 'step', spy)
    return seen


@each_rule
def test_equals_optax_in_parameters_and_state(rule: Rule, engine: bool, answers: list[Any]) -> None:
    params = mixed_tree(F64)
    ours, state = run_torchopt(rule.make(), params, 20)
    theirs, their_state = run_optax(rule.make_theirs(), params, 20)
    assert_trees_close(ours, theirs, 1e-12)
    entries, their_entries = named_entries(state), named_entries(their_state)
    assert entries.keys() == their_entries.keys()
    for name, entry in entries.items():
        assert_trees_close(entry, their_entries[name], 1e-12)
    refused = [answer for answer in answers if isinstance(answer, dispatch.Unsupported)]
    assert len(answers) == 20
    assert len(refused) == (0 if engine and rule.native else 20), refused


OPTIMIZERS = ['nadam', 'nadamw', 'amsgrad', 'lion', 'yogi', 'adabelief']


@pytest.mark.parametrize('name', [*OPTIMIZERS, *(f'scale_by_{rule}' for rule in ('amsgrad', 'lion', 'yogi', 'belief'))])
def test_arguments_are_optaxs(name: str) -> None:
    def arguments(function: Any) -> list[tuple[Any, ...]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    # The weight decay of Optax's development version is in torchopt alone.
    home = compat if name == 'adabelief' else torchopt
    assert arguments(getattr(home, name, None) or getattr(transform, name)) == arguments(getattr(optax, name))


@pytest.mark.parametrize('name', ['ScaleByAmsgradState', 'ScaleByBeliefState', 'ScaleByLionState'])
def test_states_have_optaxs_fields(name: str) -> None:
    assert getattr(transform, name)._fields == getattr(optax, name)._fields


@pytest.mark.parametrize(
    ('make', 'theirs'),
    [
        (lambda: transform.scale_by_rms(bias_correction=True), lambda: optax.scale_by_rms(bias_correction=True)),
        (lambda: transform.scale_by_stddev(bias_correction=True), lambda: optax.scale_by_stddev(bias_correction=True)),
        (transform.scale_by_rms, optax.scale_by_rms),
        (transform.scale_by_stddev, optax.scale_by_stddev),
        (lambda: transform.add_decayed_weights(lambda t: 0.1), lambda: optax.add_decayed_weights(lambda t: 0.1)),
    ],
    ids=['rms corrected', 'stddev corrected', 'rms', 'stddev', 'scheduled decay'],
)
def test_options_choose_optaxs_states(make: Any, theirs: Any) -> None:
    ours, wanted = make().init([torch.zeros(2)]), theirs().init([np.zeros(2)])
    assert (type(ours).__name__, ours._fields) == (type(wanted).__name__, wanted._fields)


def test_corrected_rms_is_adam_without_a_mean() -> None:
    params = mixed_tree(F64)
    rms = transform.scale_by_rms(0.7, bias_correction=True)
    ours, _ = run_torchopt(torchopt.chain(rms, transform.scale(-0.1)), params, 5)
    wanted, _ = run_torchopt(torchopt.adam(0.1, b1=0.0, b2=0.7), params, 5)
    assert_trees_close(ours, wanted, 1e-13)


def test_yogi_has_adams_state() -> None:
    state = transform.scale_by_yogi(initial_accumulator_value=0.5).init([torch.zeros(2, dtype=torch.complex64)])
    assert isinstance(state, transform.ScaleByAdamState)
    assert torch.equal(state.mu[0], torch.full((2,), 0.5, dtype=torch.complex64))
    assert torch.equal(state.nu[0], torch.full((2,), 0.5))


@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_an_optimizer_is_one_step_of_the_engine(name: str, inplace: bool, engine: bool, answers: list[Any]) -> None:
    """The whole chain goes to the engine at once, in a plain loop and in a differentiable one."""
    tx = getattr(torchopt, name)(0.1)
    params = [torch.tensor([1.0, -2.0], dtype=F64, requires_grad=not inplace)]
    state = tx.init(params)
    for _ in range(3):
        grads = [(p * p * p).sin() for p in params]
        updates, state = tx.update(grads, state, params, inplace=inplace)
        params = torchopt.apply_updates(params, updates, inplace=False)
    assert len(answers) == 3
    assert [isinstance(answer, dispatch.Unsupported) for answer in answers] == [not engine] * 3
    assert params[0].isfinite().all()


LEARNED: dict[str, tuple[Callable[..., Any], dict[str, float]]] = {
    'nadam': (transform.scale_by_adam, {'b1': 0.8, 'b2': 0.9, 'eps': 0.1, 'eps_root': 0.2}),
    'amsgrad': (transform.scale_by_amsgrad, {'b1': 0.8, 'b2': 0.7, 'eps': 0.1, 'eps_root': 0.2}),
    'yogi': (transform.scale_by_yogi, {'b1': 0.8, 'b2': 0.9, 'eps': 0.1, 'eps_root': 0.2}),
    'belief': (transform.scale_by_belief, {'b1': 0.8, 'b2': 0.9, 'eps': 0.1, 'eps_root': 0.2}),
    'belief, nesterov': (transform.scale_by_belief, {'b1': 0.8, 'b2': 0.9, 'eps': 0.1, 'eps_root': 0.2}),
    'smooth lion': (transform.scale_by_lion, {'b1': 0.8, 'b2': 0.9, 'smooth_beta': 1.5}),
    'rms': (transform.scale_by_rms, {'alpha': 0.8, 'eps': 0.1}),
    'stddev': (transform.scale_by_stddev, {'alpha': 0.8, 'eps': 0.1}),
}
FIXED = {
    'nadam': {'nesterov': True},
    'belief, nesterov': {'nesterov': True},
    'smooth lion': {'mode': 'smooth'},
    'rms': {'eps_in_sqrt': True},
    'stddev': {'eps_in_sqrt': True},
}


@pytest.mark.parametrize('name', LEARNED)
def test_hyper_parameters_can_be_learned(name: str, engine: bool) -> None:
    """Finite differences in the gradients and in all hyper-parameters, to the second order."""
    factory, values = LEARNED[name]
    hyper = [torch.tensor(value, dtype=F64, requires_grad=True) for value in values.values()]
    g = torch.tensor([0.7, -1.3, 0.4], dtype=F64, requires_grad=True)

    def final(g: torch.Tensor, *hyper: torch.Tensor) -> torch.Tensor:
        tx = factory(**dict(zip(values, hyper)), **FIXED.get(name, {}))
        state, total = tx.init([g]), torch.zeros_like(g)
        for step in range(3):
            (u,), state = tx.update([(g + 0.4 * step).sin()], state)
            total = total + (step + 1) * u
        return total

    assert torch.autograd.gradcheck(final, (g, *hyper))
    assert torch.autograd.gradgradcheck(final, (g, *hyper))
    numbers = final(g.detach(), *[h.item() for h in hyper])
    torch.testing.assert_close(final(g, *hyper).detach(), numbers, rtol=1e-12, atol=1e-14)


MU_DTYPES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    'adam': (lambda **o: torchopt.adam(0.05, **o), lambda **o: optax.adam(0.05, **o)),
    'adamw': (lambda **o: torchopt.adamw(0.05, **o), lambda **o: optax.adamw(0.05, weight_decay=1e-2, **o)),
    'nadam': (lambda **o: torchopt.nadam(0.05, **o), lambda **o: optax.nadam(0.05, **o)),
    'nadamw': (lambda **o: torchopt.nadamw(0.05, **o), lambda **o: optax.nadamw(0.05, **o)),
    'amsgrad': (lambda **o: torchopt.amsgrad(0.05, **o), lambda **o: optax.amsgrad(0.05, **o)),
    'lion': (lambda **o: torchopt.lion(0.05, **o), lambda **o: optax.lion(0.05, **o)),
}


@pytest.mark.parametrize('mu_dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', MU_DTYPES)
def test_mean_in_another_dtype(name: str, mu_dtype: str, engine: bool, answers: list[Any]) -> None:
    """The mean is rounded at every step, as in Optax; how it is rounded within a step is up to each library."""
    ours, theirs = MU_DTYPES[name]
    params = mixed_tree(F64)
    dtype, tolerance = getattr(torch, mu_dtype), {'float32': 1e-5, 'bfloat16': 5e-2}[mu_dtype]
    new, state = run_torchopt(ours(mu_dtype=dtype), params, 10)
    wanted, their_state = run_optax(theirs(mu_dtype=mu_dtype), params, 10)
    assert_trees_close(new, wanted, tolerance)
    entries, their_entries = named_entries(state), named_entries(their_state)
    assert {m.dtype for m in tree.leaves(entries['mu'])} == {dtype}
    assert all(m.dtype is F64 for key, entry in entries.items() if key != 'mu' for m in tree.leaves(entry) if m.dim())
    means = tree.map(lambda m: m.double(), entries['mu'])
    assert_trees_close(means, {k: tree.map(lambda p: p, v) for k, v in their_entries['mu'].items()}, tolerance)
    assert [isinstance(answer, dispatch.Unsupported) for answer in answers] == [not engine] * 10


def test_mean_of_complex_parameters_in_another_dtype(engine: bool) -> None:
    params = [torch.ones(2, dtype=torch.complex128), torch.ones(2, dtype=F64)]
    tx = torchopt.adam(0.1, mu_dtype=torch.float32)
    state = tx.init(params)
    updates, state = tx.update([(1 + 2j) * params[0], params[1]], state, params)
    means = tree.get(state, 'mu')
    assert [m.dtype for m in means] == [torch.complex64, torch.float32]
    assert [u.dtype for u in updates] == [torch.complex128, F64]
    torch.testing.assert_close(means[0], torch.full((2,), 0.1 + 0.2j, dtype=torch.complex64))


def test_mean_in_another_dtype_inside_of_transforms(engine: bool) -> None:
    """A state made and used under torch.func gives the meta-gradient that plain autograd gives."""
    tx = torchopt.nadam(0.1, eps=0.1, mu_dtype=torch.float32)
    start = torch.tensor([0.5, -1.0], dtype=F64)

    def final(p: torch.Tensor) -> torch.Tensor:
        params, state = [p], tx.init([p])
        for _ in range(3):
            updates, state = tx.update([params[0].sin()], state, params)
            params = torchopt.apply_updates(params, updates, inplace=False)
        assert tree.get(state, 'mu')[0].dtype is torch.float32
        return params[0].square().sum()

    leaf = start.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(final(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(final)(start), wanted, rtol=1e-6, atol=1e-8)
    exact = (final(start + 1e-3) - final(start - 1e-3)) / 2e-3
    torch.testing.assert_close(wanted.sum(), exact, rtol=1e-3, atol=1e-3)


def test_mean_that_is_learned_in_another_dtype() -> None:
    state = transform.scale_by_adam(moment_requires_grad=True, mu_dtype=torch.float32).init([torch.ones(2, dtype=F64)])
    assert state.mu[0].dtype is torch.float32
    assert state.mu[0].is_leaf
    assert state.mu[0].requires_grad


def test_amsgrad_never_raises_the_rate() -> None:
    """Large gradients once, small ones after: the largest second moment stays, and bounds the steps."""
    tx = torchopt.amsgrad(1.0, b1=0.0, b2=0.0, eps=0.0)
    state = tx.init([torch.zeros(1)])
    for g in (4.0, 1.0, 2.0):
        updates, state = tx.update([torch.tensor([g])], state)
        torch.testing.assert_close(updates[0], torch.tensor([-g / 4.0]))


def test_decay_is_masked() -> None:
    params = {'w': torch.tensor(2.0), 'b': torch.tensor(2.0)}
    zeros = tree.map(torch.zeros_like, params)
    for tx in (
        torchopt.lion(0.5, weight_decay=0.1, mask={'w': True, 'b': False}),
        torchopt.nadamw(0.5, weight_decay=0.1, mask=lambda p: {'w': True, 'b': False}),
    ):
        updates, _ = tx.update(zeros, tx.init(params), params)
        torch.testing.assert_close(updates, {'w': torch.tensor(-0.1), 'b': torch.tensor(-0.0)})


def test_nesterov_is_what_makes_nadam() -> None:
    params = mixed_tree(F64)
    for name, plain in (('nadam', torchopt.adam), ('nadamw', torchopt.adamw)):
        nadam = getattr(torchopt, name)
        decay = {'weight_decay': 0.1} if name == 'nadamw' else {}
        for nesterov in (True, False):
            ours, _ = run_torchopt(nadam(0.1, nesterov=nesterov, **decay), params, 5)
            same, _ = run_torchopt(plain(0.1, nesterov=nesterov, **decay), params, 5)
            assert all(torch.equal(x, y) for x, y in zip(tree.leaves(ours), tree.leaves(same)))


def test_what_has_no_kernel_runs_in_plain_torch(answers: list[Any]) -> None:
    for case in WITHOUT_KERNEL:
        run_torchopt(case.make(), mixed_tree(F64), 2)
    assert len(answers) == 2 * len(WITHOUT_KERNEL)
    assert all(isinstance(answer, dispatch.Unsupported) for answer in answers)
