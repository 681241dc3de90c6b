# SPDX-License-Identifier: Apache-2.0
"""Line searches as transformations: 20 steps against Optax, conditions, failures, transforms, messages."""

from __future__ import annotations

import functools
import inspect
import io
import math
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import torchopt
from tests.oracle import assert_trees_close
from torchopt import transform, tree

F64 = torch.float64
START = np.array([-0.4, 1.3, 0.2, -1.1, 0.6])
RNG = np.random.default_rng(3)
ROOT = RNG.standard_normal((5, 5))
QUADRATIC, LINEAR = ROOT @ ROOT.T + 0.1 * np.eye(5), RNG.standard_normal(5)


def rosenbrock(p: Any) -> Any:
    x = p['x']
    return (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum() + p['s'] ** 2


def quadratic(p: Any) -> Any:
    make = torch.as_tensor if isinstance(p['x'], torch.Tensor) else jnp.asarray
    x = p['x']
    return 0.5 * x @ (make(QUADRATIC) @ x) - make(LINEAR) @ x + (p['s'] - x[0]) ** 2


def bumpy(p: Any) -> Any:
    lib: Any = torch if isinstance(p['x'], torch.Tensor) else jnp
    return lib.cos(3.0 * p['x']).sum() + (p['x'] ** 4).sum() + lib.exp(2.0 * p['s'])


def steep(p: Any) -> Any:
    lib: Any = torch if isinstance(p['x'], torch.Tensor) else jnp
    return lib.exp(5.0 * p['x']).sum() + (p['x'] ** 4).sum() + p['s'] ** 2


OBJECTIVES = {f.__name__: f for f in (rosenbrock, quadratic, bumpy, steep)}


def start(dtype: torch.dtype = F64) -> Any:
    return {'x': torch.as_tensor(START, dtype=dtype), 's': torch.tensor(0.7, dtype=dtype)}


def run(tx: Any, fun: Any, params: Any, steps: int, **options: Any) -> tuple[Any, Any]:
    """Some steps, with what the state remembers where it remembers something."""
    value_and_grad = transform.value_and_grad_from_state(fun)
    state = tx.init(params)
    for _ in range(steps):
        if options.get('reuse'):
            value, grad = value_and_grad(params, state=state)
        else:
            grad, value = torch.func.grad_and_value(fun)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=fun)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return params, state


def numbered(p: Any, which: Any) -> Any:
    return jax.lax.switch(which, list(OBJECTIVES.values()), p)


@functools.partial(jax.jit, static_argnames=('kind', 'fixed'))
def optax_step(params: Any, state: Any, which: Any, kind: str, fixed: Any, options: Any) -> Any:
    """A step on one of the objectives.  Compiling takes long, so that as little as can be is fixed."""
    tx = make(optax, kind, {**dict(fixed), **options})
    if state is None:
        return tx.init(params)
    value, grad = jax.value_and_grad(numbered)(params, which)
    updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=numbered, which=which)
    return optax.apply_updates(params, updates), state


def steps_of_optax(kind: str, options: dict[str, Any], objective: str, params: Any, steps: int) -> Any:
    """Parameters and states after each step."""
    static = {k: v for k, v in options.items() if v is None or isinstance(v, (bool, str))}
    moving = {k: v for k, v in {**DEFAULTS[kind], **options}.items() if k not in static}
    which = list(OBJECTIVES).index(objective)
    fixed = tuple(sorted(static.items()))
    params = tree.map(lambda p: jnp.asarray(p.numpy()), params)
    state = optax_step(params, None, which, kind, fixed, moving)
    for _ in range(steps):
        params, state = optax_step(params, state, which, kind, fixed, moving)
        yield params, state


DEFAULTS: dict[str, dict[str, Any]] = {
    kind: {
        p.name: math.inf if p.default is None else p.default
        for p in inspect.signature(getattr(optax, f'scale_by_{kind}_linesearch')).parameters.values()
        if p.name not in ('verbose', 'store_grad', 'initial_guess_strategy') and p.default is not p.empty
    }
    for kind in ('backtracking', 'zoom')
}


# The arguments of a search, and those of them that only matter where searches fail.
SEARCHES: list[tuple[str, dict[str, Any]]] = [
    ('backtracking', {'max_backtracking_steps': 30}),
    ('backtracking', {'max_backtracking_steps': 30, 'store_grad': True}),
    (
        'backtracking',
        {
            'max_backtracking_steps': 20,
            'slope_rtol': 0.3,
            'decrease_factor': 0.5,
            'increase_factor': 4.0,
            'max_learning_rate': 2.0,
            'atol': 1e-3,
            'rtol': 1e-2,
            'store_grad': True,
        },
    ),
    ('backtracking', {'max_backtracking_steps': 3, 'store_grad': True}),
    ('backtracking', {'max_backtracking_steps': 60, 'increase_factor': math.inf}),
    ('zoom', {'max_linesearch_steps': 15}),
    ('zoom', {'max_linesearch_steps': 30, 'curv_rtol': 0.5, 'initial_guess_strategy': 'one'}),
    ('zoom', {'max_linesearch_steps': 20, 'approx_dec_rtol': None, 'slope_rtol': 0.3, 'increase_factor': 3.0}),
    ('zoom', {'max_linesearch_steps': 20, 'max_learning_rate': 1e-2, 'tol': 1e-3, 'stepsize_precision': 1e-3}),
    ('zoom', {'max_linesearch_steps': 20, 'curv_rtol': math.inf}),
    ('zoom', {'max_linesearch_steps': 3}),
    ('zoom', {'max_linesearch_steps': 1}),
]


def make(lib: Any, kind: str, options: dict[str, Any]) -> Any:
    search = getattr(transform if lib is torchopt else optax, f'scale_by_{kind}_linesearch')
    return lib.chain(lib.sgd(1.0), search(**options))


# Optax interpolates what is almost a parabola by dividing rounding errors; see test_interpolation_is_exact.
PARABOLAS = ('quadratic', 'steep')


@pytest.mark.parametrize(
    ('kind', 'options', 'objective'),
    [
        (kind, options, objective)
        for kind, options in SEARCHES
        for objective in OBJECTIVES
        if not (objective in PARABOLAS and options.get('initial_guess_strategy') == 'one')
    ],
    ids=str,
)
def test_equals_optax_in_parameters_and_state(kind: str, options: dict[str, Any], objective: str) -> None:
    fun, params = OBJECTIVES[objective], start()
    tx = make(torchopt, kind, options)
    state = tx.init(params)
    for wanted, their_state in steps_of_optax(kind, options, objective, params, 20):
        if not all(np.isfinite(x).all() and np.abs(x).max() < 1e50 for x in jax.tree.leaves(wanted)):
            break  # a search of too few evaluations, which lets parameters explode
        grad, value = torch.func.grad_and_value(fun)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=fun)
        params = torchopt.apply_updates(params, updates)
        assert_trees_close(params, wanted, 1e-8)
        leaves, theirs = tree.leaves(state), jax.tree.leaves(their_state)
        assert len(leaves) == len(theirs)
        for x, y in zip(leaves, theirs):
            np.testing.assert_allclose(x.numpy(), np.asarray(y), rtol=1e-8, atol=1e-8)
            assert x.dtype == F64 or x.dtype == torch.int64


@pytest.mark.parametrize('objective', OBJECTIVES)
@pytest.mark.parametrize(
    ('kind', 'options'),
    [('backtracking', {'max_backtracking_steps': 30, 'store_grad': True}), ('zoom', {'max_linesearch_steps': 20})],
)
def test_what_the_state_remembers_is_right(kind: str, options: dict[str, Any], objective: str) -> None:
    fun = OBJECTIVES[objective]
    tx = make(torchopt, kind, options)
    params, state = run(tx, fun, start(), 5, reuse=True)
    fresh, _ = run(tx, fun, start(), 5)
    assert_trees_close(params, fresh, 1e-9)
    grad, value = torch.func.grad_and_value(fun)(params)
    torch.testing.assert_close(state[-1].value, value)
    torch.testing.assert_close(state[-1].grad, grad)


def test_what_is_remembered_is_not_computed_again() -> None:
    calls = []

    def fun(p: Any) -> torch.Tensor:
        calls.append(p)
        return quadratic(p)

    value_and_grad = transform.value_and_grad_from_state(fun)
    params, tx = start(), make(torchopt, 'zoom', {'max_linesearch_steps': 20})
    state = tx.init(params)
    value_and_grad(params, state=state)
    assert len(calls) == 1
    for _ in range(3):
        calls.clear()
        value, grad = value_and_grad(params, state=state)
        before = len(calls)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=fun)
        assert len(calls) - before == state[-1].info.num_linesearch_steps.item()
        params = torchopt.apply_updates(params, updates)
    calls.clear()
    value_and_grad(params, state=state)
    assert not calls


def test_backtracking_looks_at_values_only() -> None:
    """Where no gradient is wanted the objective need not have one."""
    tx = transform.scale_by_backtracking_linesearch(10, decrease_factor=0.5)
    p = torch.tensor([3.0])

    def fun(p: torch.Tensor) -> torch.Tensor:
        assert not p.requires_grad
        return torch.tensor(float(p) ** 2)

    updates, state = tx.update(-2 * p, tx.init(p), p, value=p**2, grad=2 * p, value_fn=fun)
    assert updates == -3.0
    assert state.grad is None
    assert state.info.num_linesearch_steps == 2


def search_of(kind: str, limit: int = 8, **options: Any) -> Any:
    name = 'max_backtracking_steps' if kind == 'backtracking' else 'max_linesearch_steps'
    if kind == 'backtracking':
        options = {'store_grad': True, **options}
    return make(torchopt, kind, {name: limit, **options})


each_kind = pytest.mark.parametrize('kind', ['backtracking', 'zoom'])


@each_kind
def test_vmap(kind: str) -> None:
    """Many problems at once are each one alone, although their searches end at different times."""
    tx = search_of(kind, 12)
    starts = torch.stack([torch.as_tensor(START) * s for s in (0.1, 0.7, 1.3, 2.0)])
    scalars = torch.tensor([0.7, -0.3, 1.1, 0.0], dtype=F64)

    def solve(x: torch.Tensor, s: torch.Tensor) -> Any:
        params, state = run(tx, bumpy, {'x': x, 's': s}, 4, reuse=True)
        return params, state[-1].learning_rate, state[-1].info.num_linesearch_steps

    params, rates, steps = torch.func.vmap(solve)(starts, scalars)
    counts = set()
    for i in range(4):
        own, rate, count = solve(starts[i], scalars[i])
        assert_trees_close(tree.map(lambda p, i=i: p[i], params), own, 1e-9)
        torch.testing.assert_close(rates[i], rate)
        assert steps[i] == count
        counts.add(count.item())
    assert len(counts) > 1


@each_kind
def test_compile_without_graph_breaks(kind: str) -> None:
    torch.compiler.reset()
    tx = search_of(kind, 1 if kind == 'backtracking' else 2)  # two evaluations
    value_and_grad = transform.value_and_grad_from_state(bumpy)

    @torch.compile(fullgraph=True, backend='eager')
    def step(params: Any, state: Any) -> Any:
        value, grad = value_and_grad(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=bumpy)
        return torchopt.apply_updates(params, updates, inplace=False), state

    params = start()
    state = tx.init(params)
    for _ in range(3):
        params, state = step(params, state)
    wanted, own = run(tx, bumpy, start(), 3, reuse=True)
    assert_trees_close(params, wanted, 1e-9)
    assert_trees_close(tree.leaves(state), tree.leaves(own), 1e-9)


@each_kind
def test_meta_gradients(kind: str) -> None:
    """Of where steps lead in where they start, step sizes and all, and in what the objective depends on."""
    tx = search_of(kind, 12)
    x = torch.tensor([0.5, -0.8, 0.3], dtype=F64)

    def final(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        def fun(p: Any) -> torch.Tensor:
            return (weight * p['x'] ** 2).sum() + torch.cos(2.0 * p['x'] + weight).sum()

        return run(tx, fun, {'x': x}, 3, reuse=True)[0]['x'].square().sum()

    weight = torch.tensor(0.7, dtype=F64)
    by_func = torch.func.grad(final, argnums=(0, 1))(x, weight)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    by_autograd = torch.autograd.grad(final(leaves[0] * 1.0, leaves[1]), leaves)
    torch.testing.assert_close(by_func, by_autograd, rtol=1e-9, atol=1e-12)
    h, direction = 1e-6, torch.tensor([0.3, -0.2, 0.5], dtype=F64)
    exact = (final(x + h * direction, weight) - final(x - h * direction, weight)) / (2 * h)
    torch.testing.assert_close((by_func[0] * direction).sum(), exact, rtol=1e-6, atol=1e-8)
    exact = (final(x, weight + h) - final(x, weight - h)) / (2 * h)
    torch.testing.assert_close(by_func[1], exact, rtol=1e-6, atol=1e-8)


@each_kind
def test_plain_training_keeps_no_graph(kind: str) -> None:
    """Weights are trained, and nothing that is remembered has a graph, even where other tensors require grad."""
    layer = torch.nn.Linear(3, 1, dtype=F64)
    other = torch.ones(3, dtype=F64, requires_grad=True)
    inputs = torch.as_tensor(RNG.standard_normal((10, 3)))
    params = dict(layer.named_parameters())

    def fun(p: Any) -> torch.Tensor:
        return (torch.func.functional_call(layer, p, (inputs * other,)) - 1.0).square().mean()

    tx = search_of(kind, 20)
    state, value_and_grad = tx.init(params), transform.value_and_grad_from_state(fun)
    losses = []
    for _ in range(5):
        value, grad = value_and_grad(params, state=state)
        losses.append(value.item())
        loss = fun(params)  # which carries a graph, as it does where nobody thinks of it
        updates, state = tx.update(grad, state, params, value=loss, grad=grad, value_fn=fun)
        assert not any(x.requires_grad for x in [*tree.leaves(state), *tree.leaves(updates)])
        assert torchopt.apply_updates(params, updates)['weight'] is layer.weight
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[0]
    assert other.grad is None


@each_kind
def test_failed_searches_make_no_step(kind: str) -> None:
    p = torch.tensor([2.0, 1.0], dtype=F64)
    for fun in (lambda p: p.sum() * math.nan, lambda p: p.sum() + math.inf):
        tx = search_of(kind)
        updates, state = tx.update(torch.ones_like(p), tx.init(p), p, value=3.0, grad=torch.ones_like(p), value_fn=fun)
        assert updates.tolist() == [0.0, 0.0]
        assert state[-1].learning_rate == 0.0
        assert state[-1].info.decrease_error == math.inf
        # What is remembered belongs to where we are, or is not used.
        assert state[-1].value == 3.0 or not state[-1].value.isfinite()


@each_kind
def test_ascent_and_constants_end(kind: str) -> None:
    p = torch.tensor([2.0, 1.0], dtype=F64)
    tx = search_of(kind).transformations[-1]
    updates, state = tx.update(p, tx.init(p), p, value=(p**2).sum(), grad=2 * p, value_fn=lambda p: (p**2).sum())
    assert state.info.decrease_error > 0.0
    assert updates.isfinite().all()
    zero = torch.zeros_like(p)
    updates, state = tx.update(zero, tx.init(p), p, value=1.0, grad=zero, value_fn=lambda p: 0.0 * p.sum() + 1.0)
    assert updates.tolist() == [0.0, 0.0]
    assert state.info.decrease_error == 0.0


def test_an_infinite_increase_begins_at_the_top_even_after_a_failure() -> None:
    tx = transform.scale_by_backtracking_linesearch(3, increase_factor=math.inf)
    p = torch.tensor(1.0)
    broken = {'value': 1.0, 'grad': 2 * p}
    _, state = tx.update(-2 * p, tx.init(p), p, value_fn=lambda p: p * math.nan, **broken)
    assert state.learning_rate == 0.0
    _, state = tx.update(-0.2 * p, state, p, value_fn=lambda p: p**2, **broken)
    assert state.learning_rate == 1.0


def test_failures_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    p = torch.tensor(1.0)
    for kind in ('backtracking', 'zoom'):
        tx = search_of(kind, 2, verbose=True).transformations[-1]
        tx.update(-p, tx.init(p), p, value=p**2, grad=2 * p, value_fn=lambda p: p**2)
        assert capsys.readouterr().out == ''
        tx.update(p, tx.init(p), p, value=p**2, grad=2 * p, value_fn=lambda p: p**2)
        out = capsys.readouterr().out
        assert f'scale_by_{kind}_linesearch' in out and 'not a descent direction' in out
        tx.update(-p, tx.init(p), p, value=p**2, grad=2 * p, value_fn=lambda p: p * math.nan)
        assert 'NaN or infinite at all' in capsys.readouterr().out


@each_kind
def test_extra_arguments_reach_the_objective(kind: str) -> None:
    """Those that it names, or all if it takes all; others are refused, before anything happens."""
    tx = search_of(kind)
    p = torch.tensor([1.0, 2.0])

    def fun(p: torch.Tensor, x: torch.Tensor, *, y: float = 0.0) -> torch.Tensor:
        return (p @ x - y).square()

    x = torch.tensor([1.0, -1.0])
    grad, value = torch.func.grad_and_value(fun)(p, x, y=2.0)
    given = {'value': value, 'grad': grad, 'x': x, 'y': 2.0}
    state = tx.init(p)
    updates, new = tx.update(grad, state, p, value_fn=fun, **given)
    torch.testing.assert_close(new[-1].value, fun(p + updates, x, y=2.0))
    again, _ = tx.update(grad, state, p, value_fn=lambda p, **rest: fun(p, **rest), **given)  # noqa: PLW0108
    torch.testing.assert_close(again, updates)
    with pytest.raises(TypeError, match=r"value_fn does not accept the extra arguments \['z'\]"):
        tx.update(grad, state, p, value_fn=fun, z=1, **given)


@each_kind
def test_messages(kind: str) -> None:
    tx = search_of(kind)
    p = torch.tensor([1.0, 2.0])
    state = tx.init(p)
    given = {'value': p @ p, 'grad': 2 * p, 'value_fn': lambda p: p @ p}
    for name in given:
        with pytest.raises(TypeError, match=rf"'{name}' is missing.*value=loss"):
            tx.update(p, state, p, **{k: v for k, v in given.items() if k != name})
    with pytest.raises(ValueError, match='Parameters are required for line searches'):
        tx.update(p, state, **given)
    with pytest.raises(TypeError, match='value_fn is a float'):
        tx.update(p, state, p, **{**given, 'value_fn': 1.0})
    with pytest.raises(ValueError, match=r'grad has shape \(3,\), but params has shape \(2,\)'):
        tx.update(p, state, p, **{**given, 'grad': torch.ones(3)})
    with pytest.raises(ValueError, match='value_fn returned a tensor of shape'):
        tx.update(p, state, p, **{**given, 'value_fn': lambda p: p})
    member = tx.transformations[-1]
    with pytest.raises(ValueError, match='The state is an EmptyState'):
        member.update(p, torchopt.base.EmptyState(), p, **given)
    with pytest.raises(TypeError, match=r'params has dtype torch\.int64'):
        member.init(torch.tensor([1, 2]))


BAD: list[tuple[str, dict[str, Any], str]] = [
    ('backtracking', {'max_backtracking_steps': -1}, 'max_backtracking_steps: -1'),
    ('backtracking', {'max_backtracking_steps': 2.5}, 'max_backtracking_steps: 2.5'),
    ('backtracking', {'max_backtracking_steps': 2, 'decrease_factor': 1.0}, 'decrease_factor'),
    ('backtracking', {'max_backtracking_steps': 2, 'decrease_factor': 0.0}, 'decrease_factor'),
    ('backtracking', {'max_backtracking_steps': 2, 'increase_factor': math.nan}, 'increase_factor'),
    ('backtracking', {'max_backtracking_steps': 2, 'max_learning_rate': 0.0}, 'max_learning_rate'),
    ('backtracking', {'max_backtracking_steps': 2, 'atol': -1.0}, 'atol'),
    ('zoom', {'max_linesearch_steps': 0}, 'max_linesearch_steps: 0'),
    ('zoom', {'max_linesearch_steps': 2, 'tol': -1.0}, 'tol'),
    ('zoom', {'max_linesearch_steps': 2, 'increase_factor': 0.5}, 'increase_factor'),
    ('zoom', {'max_linesearch_steps': 2, 'max_learning_rate': -1.0}, 'max_learning_rate'),
    ('zoom', {'max_linesearch_steps': 2, 'approx_dec_rtol': -1.0}, 'approx_dec_rtol'),
    ('zoom', {'max_linesearch_steps': 2, 'initial_guess_strategy': 'two'}, "expected 'keep' or 'one'"),
]


@pytest.mark.parametrize(('kind', 'options', 'message'), BAD, ids=[message for *_, message in BAD])
def test_arguments_out_of_range(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(torchopt, kind, options)


def test_value_and_grad_from_state_says_what_is_missing() -> None:
    value_and_grad = transform.value_and_grad_from_state(quadratic)
    params = start()
    with pytest.raises(ValueError, match='The state has no value'):
        value_and_grad(params, state=torchopt.sgd(0.1).init(params))
    silent = transform.scale_by_backtracking_linesearch(3)
    with pytest.raises(ValueError, match=r'has no gradient.*store_grad=True'):
        value_and_grad(params, state=silent.init(params))
    both = torchopt.chain(*[transform.scale_by_zoom_linesearch(3)] * 2)
    with pytest.raises(KeyError, match='multiple values'):
        value_and_grad(params, state=both.init(params))


@each_kind
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.complex128, torch.complex64])
def test_dtypes(kind: str, dtype: torch.dtype) -> None:
    p = torch.tensor([1.0, -2.0]).to(dtype) * (1j if dtype.is_complex else 1)
    target = torch.tensor([0.5, 0.25]).to(dtype)

    def fun(p: torch.Tensor) -> torch.Tensor:
        return ((p - target).abs() ** 2).sum()

    tx = search_of(kind, 20, **({'decrease_factor': 0.5} if kind == 'backtracking' else {}))
    found, state = run(tx, fun, p, 3, reuse=True)
    assert found.dtype == dtype
    assert state[-1].learning_rate.dtype == state[-1].value.dtype == tx.init(p)[-1].value.dtype
    assert not state[-1].value.is_complex()
    torch.testing.assert_close(found, target, rtol=1e-2, atol=1e-2)


@each_kind
def test_trees_with_gaps_empty_trees_and_in_place(kind: str) -> None:
    tx = search_of(kind)
    params = {'w': torch.tensor(2.0), 'rests': torch.tensor(1.0), 'none': None, 'empty': torch.zeros(0)}

    def fun(p: Any) -> torch.Tensor:
        return p['w'] ** 2 + p['rests'] ** 2 + p['empty'].sum()

    grad = {'w': 2 * params['w'], 'rests': None, 'none': None, 'empty': torch.zeros(0)}
    for inplace in (False, True):
        updates, state = tx.update(
            tree.map(torch.clone, grad), tx.init(params), params, value=5.0, grad=grad, value_fn=fun, inplace=inplace
        )
        assert updates['rests'] is None and updates['none'] is None
        rate = state[-1].learning_rate
        torch.testing.assert_close(updates['w'], -rate * 4.0)
        torch.testing.assert_close(state[-1].value, fun({**params, 'w': params['w'] + updates['w']}))
    updates, state = tx.update({}, tx.init({}), {}, value=1.0, grad={}, value_fn=lambda p: torch.tensor(1.0))
    assert updates == {} and state[-1].value == 1.0


@each_kind
def test_pickle_and_save(kind: str) -> None:
    tx = search_of(kind)
    params, state = run(tx, quadratic, start(), 2)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    again = pickle.loads(pickle.dumps(tx))
    assert repr(again) == repr(tx)
    grad, value = torch.func.grad_and_value(quadratic)(params)
    given = {'value': value, 'grad': grad, 'value_fn': quadratic}
    assert_trees_close(
        again.update(grad, loaded, params, **given)[0], tx.update(grad, state, params, **given)[0], 1e-14
    )


@each_kind
@pytest.mark.parametrize('bad', [torch.inf, -torch.inf, torch.nan])
def test_no_step_in_a_direction_without_end(kind: str, bad: float) -> None:
    """Where every trial fails the parameters stay as they are: zero times infinity is zero here."""
    tx, params = search_of(kind), torch.ones(2, dtype=F64)
    fun = lambda p: (p**2).sum()  # noqa: E731

    def step(direction: torch.Tensor) -> Any:
        updates, state = tx.update(direction, tx.init(params), params, value=fun(params), grad=2 * params, value_fn=fun)
        return updates, state[-1].learning_rate, state[-1].info.decrease_error

    directions = torch.tensor([[bad, -1.0], [-1.0, -1.0]], dtype=F64)
    updates, rate, error = step(directions[0])
    assert updates.tolist() == [0.0, 0.0]
    assert rate == 0.0
    assert error == torch.inf
    together, _, _ = torch.func.vmap(step)(directions)
    torch.testing.assert_close(together, torch.stack([updates, step(directions[1])[0]]))
