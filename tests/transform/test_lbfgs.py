# SPDX-License-Identifier: Apache-2.0
"""L-BFGS: against Optax and a matrix that is written out, convergence, derivatives, and what it remembers."""

from __future__ import annotations

import inspect
import io
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
RNG = np.random.default_rng(5)
ROOT = RNG.standard_normal((6, 6))
HESSIAN, LINEAR = torch.as_tensor(ROOT @ ROOT.T + 0.5 * np.eye(6)), torch.as_tensor(RNG.standard_normal(6))


def rosenbrock(x: Any) -> Any:
    return (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum()


def quadratic(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x @ (HESSIAN @ x) - LINEAR @ x


def solve(tx: Any, fun: Any, p: Any, steps: int) -> tuple[Any, Any]:
    state, value_and_grad = tx.init(p), transform.value_and_grad_from_state(fun)
    for _ in range(steps):
        value, grad = value_and_grad(p, state=state)
        updates, state = tx.update(grad, state, p, value=value, grad=grad, value_fn=fun)
        p = torchopt.apply_updates(p, updates, inplace=False)
    return p, state


@pytest.mark.parametrize(
    'options', [{}, {'memory_size': 3}, {'scale_init_precond': False, 'memory_size': 1, 'learning_rate': 0.7}], ids=str
)
def test_equals_optax_with_its_line_search(options: dict[str, Any]) -> None:
    """20 steps of the alias: parameters and the states of all three members."""
    p = torch.tensor([-1.2, 1.0, 0.7, -0.3], dtype=F64)
    q = jnp.asarray(p.numpy())
    ours, theirs = torchopt.lbfgs(**options), optax.lbfgs(**options)
    state, their_state = ours.init(p), theirs.init(q)

    @jax.jit
    def step(q: Any, state: Any) -> Any:
        value, grad = jax.value_and_grad(rosenbrock)(q)
        updates, state = theirs.update(grad, state, q, value=value, grad=grad, value_fn=rosenbrock)
        return q + updates, state

    for _ in range(20):
        grad, value = torch.func.grad_and_value(rosenbrock)(p)
        updates, state = ours.update(grad, state, p, value=value, grad=grad, value_fn=rosenbrock)
        p = p + updates
        q, their_state = step(q, their_state)
        assert_trees_close(p, q, 1e-8)
        for x, y in zip(tree.leaves(state), jax.tree.leaves(their_state), strict=True):
            np.testing.assert_allclose(x.numpy(), np.asarray(y), rtol=1e-6, atol=1e-8)
    assert state[0]._fields == their_state[0]._fields


def test_equals_optax_in_complex_parameters() -> None:
    """Without a line search; gradients are PyTorch's in both, the directions of ascent."""
    p = torch.tensor([1.0 + 2.0j, -0.5j, 0.3], dtype=torch.complex128)
    scales = torch.tensor([1.0, 3.0, 0.2], dtype=F64)
    q, weights = jnp.asarray(p.numpy()), jnp.asarray(scales.numpy())
    ours, theirs = torchopt.lbfgs(linesearch=None), optax.lbfgs(linesearch=None)
    state, their_state = ours.init(p), theirs.init(q)
    for _ in range(6):
        updates, state = ours.update(scales * p, state, p)
        their_updates, their_state = theirs.update(weights * q, their_state, q)
        p, q = p + updates, q + their_updates
        np.testing.assert_allclose(p.numpy(), np.asarray(q), rtol=1e-8, atol=1e-10)
    assert not state[0].weights_memory.is_complex()


def test_arguments_are_optaxs() -> None:
    ours, theirs = (inspect.signature(x.lbfgs).parameters for x in (torchopt, optax))
    assert list(ours) == list(theirs)
    for name in list(ours)[:3]:
        assert ours[name].default == theirs[name].default
    assert repr(ours['linesearch'].default) == (
        "scale_by_zoom_linesearch(max_linesearch_steps=20, initial_guess_strategy='one')"
    )


@pytest.mark.parametrize('memory_size', [1, 2, 4, 10])
@pytest.mark.parametrize('scaled', [True, False])
def test_the_direction_is_that_of_the_matrix(memory_size: int, scaled: bool) -> None:
    """The recursion of the docstring with matrices that are written out, on a tree of two leaves."""
    tx = transform.scale_by_lbfgs(memory_size, scaled)
    points = [torch.as_tensor(RNG.standard_normal(6)) for _ in range(8)]
    gradients = [HESSIAN @ p - LINEAR + 0.1 * p**3 for p in points]
    split = lambda x: {'a': x[:4].reshape(2, 2), 'b': [x[4], x[5:]]}  # noqa: E731
    state = tx.init(split(points[0]))
    for k, (p, g) in enumerate(zip(points, gradients)):
        direction, state = tx.update(split(g), state, split(p))
        identity = torch.eye(6, dtype=F64)
        pairs = [
            (points[j + 1] - points[j], gradients[j + 1] - gradients[j]) for j in range(max(0, k - memory_size), k)
        ]
        gamma = 1.0
        if scaled:
            gamma = (pairs[-1][0] @ pairs[-1][1] / pairs[-1][1].square().sum()) if pairs else min(1.0, 1.0 / g.norm())
        h = gamma * identity
        for s, y in pairs:
            rho = 1.0 / (y @ s)
            v = identity - rho * torch.outer(y, s)
            h = v.T @ h @ v + rho * torch.outer(s, s)
        found = torch.cat([x.reshape(-1) for x in tree.leaves(direction)])
        torch.testing.assert_close(found, h @ g, rtol=1e-9, atol=1e-10)


def test_converges() -> None:
    p, state = solve(torchopt.lbfgs(), rosenbrock, torch.tensor([-1.2, 1.0] * 5, dtype=F64), 120)
    torch.testing.assert_close(p, torch.ones(10, dtype=F64), rtol=1e-7, atol=1e-7)
    assert state[-1].info.decrease_error == 0.0
    p, _ = solve(torchopt.lbfgs(), quadratic, torch.zeros(6, dtype=F64), 25)
    torch.testing.assert_close(p, torch.linalg.solve(HESSIAN, LINEAR), rtol=1e-7, atol=1e-8)
    p, _ = solve(torchopt.lbfgs(), rosenbrock, torch.tensor([-1.2, 1.0]), 60)
    torch.testing.assert_close(p, torch.ones(2), rtol=1e-3, atol=1e-3)
    backtracking = transform.scale_by_backtracking_linesearch(30, store_grad=True)
    p, _ = solve(torchopt.lbfgs(linesearch=backtracking), quadratic, torch.zeros(6, dtype=F64), 40)
    torch.testing.assert_close(p, torch.linalg.solve(HESSIAN, LINEAR), rtol=1e-6, atol=1e-7)


def test_a_schedule_and_masks() -> None:
    tx = torchopt.lbfgs(lambda t: 0.5 / (t + 1), linesearch=None, scale_init_precond=False)
    p = torch.tensor([2.0])
    state = tx.init(p)
    updates, state = tx.update(p, state, p)
    torch.testing.assert_close(updates, -0.5 * p)
    updates, _ = tx.update(p + updates, state, p + updates)
    torch.testing.assert_close(updates, -0.25 * torch.tensor([1.0]))
    masked = torchopt.masked(torchopt.lbfgs(linesearch=None), {'a': True, 'b': False})
    params = {'a': torch.tensor(0.5), 'b': torch.tensor(3.0)}
    updates, _ = masked.update(params, masked.init(params), params)
    assert updates == {'a': torch.tensor(-0.5), 'b': torch.tensor(3.0)}


def test_derivatives_are_those_of_jax() -> None:
    """Of four steps in where they start: in Optax too, the scale of the first step counts as a constant."""
    start = np.array([0.5, -1.0, 2.0])

    def ours(p: torch.Tensor) -> torch.Tensor:
        tx = torchopt.lbfgs(0.3, memory_size=2, linesearch=None)
        state = tx.init(p)
        for _ in range(4):
            updates, state = tx.update(4 * p**3 + p, state, p)
            p = p + updates
        return (p**2).sum()

    def theirs(p: Any) -> Any:
        tx = optax.lbfgs(0.3, memory_size=2, linesearch=None)
        state = tx.init(p)
        for _ in range(4):
            updates, state = tx.update(4 * p**3 + p, state, p)
            p = p + updates
        return (p**2).sum()

    wanted = np.asarray(jax.jit(jax.grad(theirs))(jnp.asarray(start)))
    x = torch.as_tensor(start)
    np.testing.assert_allclose(torch.func.grad(ours)(x).numpy(), wanted, rtol=1e-9)
    leaf = x.clone().requires_grad_()
    np.testing.assert_allclose(torch.autograd.grad(ours(leaf * 1.0), leaf)[0].numpy(), wanted, rtol=1e-9)
    np.testing.assert_allclose(torch.func.vmap(torch.func.grad(ours))(x[None].expand(2, -1))[1], wanted, rtol=1e-9)


def test_derivatives_with_the_line_search_are_finite_differences() -> None:
    def final(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        tx = torchopt.lbfgs(scale_init_precond=False)
        return solve(tx, lambda p: (weight * p**4 + p**2).sum() + (p[0] * p[1]).sin(), x, 3)[0].square().sum()

    x, weight, h = torch.tensor([0.9, -0.4], dtype=F64), torch.tensor(0.7, dtype=F64), 1e-6
    by_x, by_weight = torch.func.grad(final, argnums=(0, 1))(x, weight)
    torch.testing.assert_close(by_weight, (final(x, weight + h) - final(x, weight - h)) / (2 * h), rtol=1e-5, atol=1e-9)
    for unit, found in zip(torch.eye(2, dtype=F64), by_x):
        exact = (final(x + h * unit, weight) - final(x - h * unit, weight)) / (2 * h)
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-9)


def test_vmap_over_problems_with_the_line_search() -> None:
    starts = torch.tensor([[-1.2, 1.0], [0.5, 0.5], [2.0, -1.0], [1.0, 1.0]], dtype=F64)
    together = torch.func.vmap(lambda p: solve(torchopt.lbfgs(), rosenbrock, p, 8)[0])(starts)
    for found, start in zip(together, starts):
        torch.testing.assert_close(found, solve(torchopt.lbfgs(), rosenbrock, start, 8)[0], rtol=1e-7, atol=1e-9)


def test_training_a_module_in_place() -> None:
    """The parameters that are remembered are not those that are written to, and carry no graph."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    x = torch.as_tensor(RNG.standard_normal((30, 3)))
    params = dict(net.named_parameters())

    def fun(p: Any) -> torch.Tensor:
        return (torch.func.functional_call(net, p, (x,)) - x.prod(dim=1, keepdim=True)).square().mean()

    for inplace in (False, True):
        tx = torchopt.lbfgs()
        before = fun(params).item()
        state = tx.init(params)
        for _ in range(15):
            loss = fun(params)
            grads = dict(zip(params, torch.autograd.grad(loss, list(params.values()))))
            updates, state = tx.update(grads, state, params, value=loss, grad=grads, value_fn=fun, inplace=inplace)
            torchopt.apply_updates(params, updates)
        assert fun(params).item() < 0.5 * before
        assert not any(s.requires_grad for s in tree.leaves(state))
        assert state[0].count == 15


def test_in_place_reuses_the_memories() -> None:
    tx = transform.scale_by_lbfgs(3)
    p = [torch.tensor([1.0, 2.0], dtype=F64)]
    own, state = tx.init(p), tx.init(p)
    places = [x.data_ptr() for x in tree.leaves(state[1:])]
    for t in range(7):
        g = [torch.cos(p[0] + t)]
        kept = g[0].clone()
        wanted, own = tx.update(g, own, p)
        found, state = tx.update(g, state, p, inplace=True)
        assert torch.equal(found[0], wanted[0]) and torch.equal(g[0], kept)
        assert_trees_close(tree.leaves(state), tree.leaves(own), 1e-15)
        p = [p[0] - 0.1 * wanted[0]]
    assert places == [x.data_ptr() for x in tree.leaves(state[1:])]


def test_a_leaf_that_rests_has_no_part_in_the_pairs() -> None:
    """Not while it rests, nor by what it did not remember when it is first seen."""
    tx = transform.scale_by_lbfgs(2)
    points = [torch.as_tensor(RNG.standard_normal(3)) for _ in range(6)]
    b = torch.tensor([5.0], dtype=F64)
    state, own = tx.init({'a': points[0], 'b': b}), tx.init({'a': points[0]})
    for k, a in enumerate(points[:3]):
        found, state = tx.update({'a': 2 * a, 'b': None}, state, {'a': a, 'b': b})
        wanted, own = tx.update({'a': 2 * a}, own, {'a': a})
        torch.testing.assert_close(found['a'], wanted['a'])
        assert found['b'] is None, k
        assert not any(x['b'].any() for x in state[1:5])
    found, state = tx.update({'a': 2 * points[3], 'b': 2 * b}, state, {'a': points[3], 'b': b})
    assert not state.diff_params_memory['b'].any() and not state.diff_updates_memory['b'].any()
    found, state = tx.update({'a': 2 * points[4], 'b': 2 * b - 4}, state, {'a': points[4], 'b': b - 2})
    assert state.diff_params_memory['b'].flatten().tolist() in ([-2.0, 0.0], [0.0, -2.0])
    # Then it rests again, and the oldest pair, which it had no part in, is replaced.
    _, state = tx.update({'a': 2 * points[5], 'b': None}, state, {'a': points[5], 'b': b - 2})
    _, state = tx.update({'a': 3 * points[5], 'b': None}, state, {'a': 2 * points[5], 'b': b - 2})
    assert not state.diff_params_memory['b'].any()
    assert state.params['b'] == 3.0


def test_a_pair_without_curvature_has_no_weight() -> None:
    tx = transform.scale_by_lbfgs(2)
    p, g = torch.tensor([1.0, 2.0]), torch.tensor([0.3, -0.4])
    _, state = tx.update(g, tx.init(p), p)
    for _ in range(3):  # no move; a move without a change of gradient
        updates, state = tx.update(g, state, p)
        torch.testing.assert_close(updates, g)
        assert not state.weights_memory.any()
        p = p + 1.0
    zero, _ = tx.update(torch.zeros(2), tx.init(p), p)
    assert zero.tolist() == [0.0, 0.0]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_dtypes_and_shapes(dtype: torch.dtype) -> None:
    tx = torchopt.lbfgs(0.1, linesearch=None)
    params = {'m': torch.ones(2, 3, dtype=dtype), 's': torch.ones((), dtype=dtype), 'e': torch.ones(0, dtype=dtype)}
    params['none'] = None
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update(tree.map(lambda p: p * abs(p) ** 2, params), state, params)
        params = torchopt.apply_updates(params, updates)
    assert {x.dtype for x in tree.leaves([params, state[0][1:5]])} == {dtype}
    assert all(x.isfinite().all() for x in tree.leaves(params))
    assert abs(params['s']) < 1.0
    assert tx.update({}, tx.init({}), {})[0] == {}


def test_messages() -> None:
    for size in (0, -3, 2.0, True):
        with pytest.raises(ValueError, match=rf'Invalid memory_size: {size!r}; expected an int >= 1'):
            transform.scale_by_lbfgs(size)
    tx, p = transform.scale_by_lbfgs(), torch.ones(2)
    state = tx.init(p)
    with pytest.raises(ValueError, match='Parameters are required for L-BFGS'):
        tx.update(p, state)
    with pytest.raises(ValueError, match='The state is an EmptyState; expected a ScaleByLBFGSState'):
        tx.update(p, torchopt.base.EmptyState(), p)
    with pytest.raises(ValueError, match=r'updates has shape \(3,\)'):
        tx.update(torch.ones(3), state, p)
    with pytest.raises(TypeError, match=r'has dtype torch\.int64'):
        tx.init(torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="'value' is missing"):
        torchopt.lbfgs().update(p, torchopt.lbfgs().init(p), p)


def test_pickle_and_save() -> None:
    tx = torchopt.lbfgs(memory_size=4)
    p, state = solve(tx, rosenbrock, torch.tensor([-1.2, 1.0], dtype=F64), 6)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    again = pickle.loads(pickle.dumps(tx))
    grad, value = torch.func.grad_and_value(rosenbrock)(p)
    found, wanted = (
        x.update(grad, s, p, value=value, grad=grad, value_fn=rosenbrock)[0] for x, s in ((again, loaded), (tx, state))
    )
    assert torch.equal(found, wanted)


def test_compile_inside_of_the_alias() -> None:
    """Search and all, without a graph break."""
    torch.compiler.reset()
    tx = torchopt.lbfgs(memory_size=2, linesearch=transform.scale_by_zoom_linesearch(2, initial_guess_strategy='one'))

    @torch.compile(fullgraph=True, backend='eager')
    def step(p: Any, state: Any) -> Any:
        grad, value = torch.func.grad_and_value(rosenbrock)(p)
        updates, state = tx.update(grad, state, p, value=value, grad=grad, value_fn=rosenbrock)
        return p + updates, state

    p = torch.tensor([-1.2, 1.0], dtype=F64)
    state = tx.init(p)
    q, own = p, state
    for _ in range(3):
        p, state = step(p, state)
        grad, value = torch.func.grad_and_value(rosenbrock)(q)
        updates, own = tx.update(grad, own, q, value=value, grad=grad, value_fn=rosenbrock)
        q = q + updates
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)
