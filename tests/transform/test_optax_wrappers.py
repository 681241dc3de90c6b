# SPDX-License-Identifier: Apache-2.0
"""Optax's wrappers, measures and noise: what a table of transformations cannot show."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import torchopt
from tests.cases import mixed_tree
from tests.oracle import assert_trees_close, gradient, noise, run_optax, run_torchopt
from tests.transform.optax_cases import OURS, ROWS
from torchopt import elementwise, transform, tree
from torchopt.compat import optax as compat

F64 = torch.float64


def gradients(params: Any, t: int) -> Any:
    return tree.map(lambda p, n: gradient(p, torch.as_tensor(n).to(p.dtype)), params, noise(params, t))


def test_lookahead_equals_optax() -> None:
    for reset in (False, True):
        start = mixed_tree(F64)
        ours = transform.lookahead(torchopt.sgd(0.1, 0.9), 3, 0.4, reset)
        theirs = optax.lookahead(optax.sgd(0.1, 0.9), 3, 0.4, reset)
        params = transform.LookaheadParams.init_synced(start)
        jax_params = optax.LookaheadParams.init_synced(tree.map(lambda p: jnp.asarray(p.numpy()), start))
        state, their_state = ours.init(params), theirs.init(jax_params)
        for t in range(20):
            grads = gradients(params.fast, t)
            updates, state = ours.update(grads, state, params)
            their_grads = tree.map(lambda g: jnp.asarray(g.numpy()), grads)
            their_updates, their_state = theirs.update(their_grads, their_state, jax_params)
            params = torchopt.apply_updates(params, updates)
            jax_params = optax.apply_updates(jax_params, their_updates)
        assert_trees_close(params.fast, jax_params.fast, 1e-10)
        assert_trees_close(params.slow, jax_params.slow, 1e-10)
        assert int(state.steps_since_sync) == int(their_state.steps_since_sync)
        assert_trees_close(tree.get(state, 'trace'), optax.tree_utils.tree_get(their_state, 'trace'), 1e-10)


def test_lookahead_trains_weights_in_place_and_keeps_the_slow_ones_apart() -> None:
    weights = torch.ones(2, requires_grad=True)
    params = transform.LookaheadParams.init_synced({'w': weights})
    tx = transform.lookahead(torchopt.sgd(0.5), 2, 0.5)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update({'w': torch.ones(2)}, state, params)
        params = torchopt.apply_updates(params, updates)
    assert params.fast['w'] is weights
    assert not params.slow['w'].requires_grad
    torch.testing.assert_close(params.slow['w'], torch.full((2,), 0.5))
    torch.testing.assert_close(weights.detach(), torch.full((2,), 0.5))
    with pytest.raises(TypeError, match='init_synced'):
        tx.update({'w': torch.ones(2)}, state, {'w': weights})
    vmapped = torch.func.vmap(lambda p: lookahead_run(tx, p))(torch.tensor([[1.0], [2.0]]))
    torch.testing.assert_close(vmapped[1], lookahead_run(tx, torch.tensor([2.0])))


def lookahead_run(tx: Any, p: torch.Tensor) -> torch.Tensor:
    params = transform.LookaheadParams.init_synced([p])
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update([params.fast[0].sin()], state, params)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return params.slow[0]


NAN = float('nan')
BAD = [0, 1, 0, 0, 1, 1, 1, 1, 1, 0, 0]


def test_steps_that_are_not_finite_equal_optax() -> None:
    ours, theirs = (x.apply_if_finite(x.trace(0.5), 2) for x in (OURS, optax))
    state, their_state = ours.init([torch.zeros(2, dtype=F64)]), theirs.init([jnp.zeros(2)])
    for t, bad in enumerate(BAD):
        g = torch.tensor([t + 1.0, NAN if bad else 1.0], dtype=F64)
        updates, state = ours.update([g], state)
        wanted, their_state = theirs.update([jnp.asarray(g.numpy())], their_state)
        np.testing.assert_allclose(updates[0].numpy(), wanted[0], rtol=1e-12)
        for name in ('notfinite_count', 'last_finite', 'total_notfinite'):
            assert int(getattr(state, name)) == int(getattr(their_state, name))


def test_a_skipped_step_does_not_poison_what_is_gathered() -> None:
    steps = transform.MultiSteps(torchopt.sgd(1.0), 2, should_skip_update_fn=transform.skip_not_finite)
    params = [torch.zeros(2)]
    state = steps.init(params)
    for g in (1.0, NAN, 3.0):
        updates, state = steps.update([torch.full((2,), g)], state, params)
    torch.testing.assert_close(updates[0], torch.full((2,), -2.0))
    assert bool(steps.has_updated(state))
    assert int(state.skip_state['num_not_finite']) == 0
    with pytest.raises(ValueError, match='should_skip_update_fn'):
        transform.MultiSteps(torchopt.sgd(1.0), 2, should_skip_update_fn=lambda *a: (torch.ones(1), ())).update(
            params, state
        )
    with pytest.raises(ValueError, match='MultiStepsState'):
        steps.update(params, state.inner_opt_state)


HOLDERS = {
    'chain': lambda x, steps: x.chain(x.scale(2.0), steps),
    'chain of one': lambda x, steps: x.chain(steps),
    'named_chain': lambda x, steps: x.named_chain(('scale', x.scale(2.0)), ('steps', steps)),
    'masked': lambda x, steps: x.masked(steps, True),
    'partition': lambda x, steps: x.partition({'a': steps}, 'a'),
    'apply_if_finite': lambda x, steps: x.apply_if_finite(steps, 3),
}


@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('library', ['torchopt', 'compat'])
@pytest.mark.parametrize('holder', HOLDERS)
def test_multi_steps_are_transformations_everywhere(holder: str, library: str, inplace: bool) -> None:
    x = {'torchopt': OURS, 'compat': compat}[library]
    given, called = x.MultiSteps(x.sgd(1.0), 2), x.MultiSteps(x.sgd(1.0), 2).gradient_transformation()
    params = {'w': torch.zeros(2)}
    moved = []
    for steps in (given, called):
        tx = HOLDERS[holder](x, steps)
        state = tx.init(params)
        for g in (1.0, 3.0):
            updates, state = tx.update({'w': torch.full((2,), g)}, state, params, inplace=inplace)
        moved.append(updates['w'])
        tx = pickle.loads(pickle.dumps(tx))
    factor = 2.0 if holder in ('chain', 'named_chain') else 1.0
    assert torch.equal(moved[0], torch.full((2,), -2.0 * factor)) and torch.equal(moved[0], moved[1])


def test_multi_steps_in_the_classes() -> None:
    p = torch.nn.Parameter(torch.zeros(2))
    for optimizer in (
        torchopt.Optimizer([p], transform.MultiSteps(torchopt.sgd(1.0), 2)),
        torchopt.Optimizer([p], compat.MultiSteps(compat.sgd(1.0), 2)),
    ):
        start = p.detach().clone()
        for g in (1.0, 3.0):
            p.grad = torch.full((2,), g)
            optimizer.step()
        assert torch.equal(p.detach(), start - 2.0)
    new, _ = torchopt.update_params(
        steps := transform.MultiSteps(torchopt.sgd(1.0), 1), [torch.ones(2)], steps.init([p]), [p.detach()]
    )
    assert torch.equal(new[0], p.detach() - 1.0)


def test_multi_steps_prints_as_the_call_that_made_it() -> None:
    steps = transform.MultiSteps(transform.scale(2.0), 3)
    assert repr(steps) == repr(steps.gradient_transformation()) == 'MultiSteps(opt=scale(2.0), every_k_schedule=3)'


def test_zero_nans_tells_where() -> None:
    tx = transform.zero_nans()
    g = {'a': torch.tensor([NAN, 1.0]), 'b': torch.tensor([float('inf')]), 'c': None}
    updates, state = tx.update(g, tx.init({'a': g['a'], 'b': g['b'], 'c': g['b']}))
    assert updates['a'].tolist() == [0.0, 1.0]
    assert updates['b'].isinf().all()
    assert [bool(state.found_nan[k]) for k in 'abc'] == [True, False, False]


def test_conditions_see_extra_arguments() -> None:
    def falls(step: Any, *, value: Any, **extra: Any) -> Any:
        return value < 1.0

    for make, otherwise in ((transform.conditionally_transform, 1.0), (transform.conditionally_mask, 0.0)):
        tx = make(transform.scale(5.0), falls, forward_extra_args=True)
        state = tx.init([torch.zeros(())])
        for value, wanted in ((0.5, 5.0), (2.0, otherwise)):
            assert tx.update([torch.ones(())], state, value=torch.tensor(value))[0][0] == wanted
            assert torchopt.chain(tx).update([torch.ones(())], state, value=value)[0][0] == wanted


@pytest.mark.parametrize('options', [{}, {'f_min': 0.3, 'eps': 0.1}, {'f_min': 0.5, 'variant': 'sps+'}], ids=str)
def test_polyak_equals_optax(options: Any) -> None:
    p = torch.tensor([1.0, -2.0], dtype=F64)
    q = jnp.asarray(p.numpy())
    ours, theirs = transform.scale_by_polyak(**options), optax.scale_by_polyak(**options)
    state, their_state = ours.init([p]), theirs.init([q])
    for _ in range(20):
        (u,), state = ours.update([p * 0.5], state, [p], value=0.25 * p.square().sum())
        (v,), their_state = theirs.update([q * 0.5], their_state, [q], value=0.25 * (q**2).sum())
        p, q = p - u, q - v
    np.testing.assert_allclose(p.numpy(), q, rtol=1e-10)
    zero, _ = ours.update([torch.zeros(2)], state, value=1.0)
    assert not zero[0].any()
    with pytest.raises(TypeError, match='value'):
        ours.update([p], state)
    with pytest.raises(ValueError, match='variant'):
        transform.scale_by_polyak(variant='best')


@pytest.mark.parametrize('scale', [1e-3, 1e18, 1e20, 1e30])
@pytest.mark.parametrize('dtype', [torch.float32, torch.complex64])
def test_polyak_of_huge_gradients(scale: float, dtype: torch.dtype) -> None:
    """Their squared norm is more than single precision holds."""
    p = torch.tensor([3.0, -4.0]).to(dtype)
    (u,), _ = transform.scale_by_polyak(max_learning_rate=1e8).update([p * scale], (), value=torch.tensor(scale))
    torch.testing.assert_close(u, p / 25.0)


def measures(x: Any) -> dict[str, Any]:
    norm = x.tree.norm if x is optax else tree.norm
    return {'norm': norm, 'mean': x.measure_with_ema(norm, 0.8), 'raw': x.measure_with_ema(norm, 0.5, debias=False)}


def test_measurements_equal_optaxs() -> None:
    params = mixed_tree(F64)
    make = lambda x: x.chain(x.snapshot('size', measures(x)['norm']), x.monitor(measures(x)), x.sgd(0.1))  # noqa: E731
    ours, state = run_torchopt(make(OURS), params, 20)
    theirs, their_state = run_optax(make(optax), params, 20)
    assert_trees_close(ours, theirs, 1e-10)
    for i, name in ((0, 'measurement'), (1, 'measurements')):
        found, wanted = getattr(state[i], name), getattr(their_state[i], name)
        assert set(found) == set(wanted)
        assert_trees_close(found, wanted, 1e-10)
    assert_trees_close(tree.leaves(state[1].measure_states), jax.tree.leaves(their_state[1].measure_states), 1e-10)
    with pytest.raises(TypeError, match='measures'):
        transform.monitor({'x': 1.0})


def test_noise_is_gaussian_falls_and_follows_from_the_key() -> None:
    tx = transform.add_noise(0.04, 0.5, 3)
    g = {'w': torch.zeros(40_000), 'v': torch.zeros(40_000), 'c': torch.zeros(20_000, dtype=torch.complex64), 'n': None}
    state = tx.init(g)
    first, state = tx.update(g, state)
    second, state = tx.update(g, state)
    assert int(state.count) == 2
    for updates, t in ((first, 1), (second, 2)):
        deviation = (0.04 / t**0.5) ** 0.5
        for x in (updates['w'], updates['v'], torch.view_as_real(updates['c']).flatten() * 2**0.5):
            z = (x / deviation).double()
            moments = [z.mean(), z.square().mean() - 1.0, z.pow(3).mean(), z.pow(4).mean() - 3.0]
            assert max(abs(float(m)) for m in moments) < 0.12
            assert abs(float((z[1:] * z[:-1]).mean())) < 0.03
    pairs = [(first['w'], first['v']), (first['w'], second['w']), (first['v'], second['v'])]
    assert all(abs(float(torch.corrcoef(torch.stack(pair))[0, 1])) < 0.03 for pair in pairs)
    assert first['n'] is None
    again, _ = tx.update(g, tx.init(g))
    assert torch.equal(first['w'], again['w'])
    other, _ = transform.add_noise(0.04, 0.5, 4).update(g, tx.init(g)._replace(rng_key=torch.tensor(4)))
    assert not torch.equal(first['w'], other['w'])


def test_noise_under_transforms() -> None:
    tx = transform.add_noise(1.0, 0.0, 0)
    g = [torch.zeros(5)]
    count = tx.init(g).count
    keys = torch.arange(3)

    def draw(key: torch.Tensor) -> torch.Tensor:
        return tx.update(g, transform.AddNoiseState(count, key))[0][0]

    alone = torch.stack([draw(key) for key in keys])
    torch.testing.assert_close(torch.func.vmap(draw)(keys), alone)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(draw, fullgraph=True, backend='aot_eager')(keys[1]), alone[1])
    before = torch.get_rng_state()
    draw(keys[0])
    assert torch.equal(before, torch.get_rng_state())
    generator = torch.Generator().manual_seed(1)
    stream = transform.add_noise(1.0, 0.0, generator)
    assert not torch.equal(stream.init(g).rng_key, stream.init(g).rng_key)


def test_bad_keys() -> None:
    with pytest.warns(DeprecationWarning, match='seed'):
        transform.add_noise(1.0, 0.0, seed=1)
    with pytest.raises(ValueError, match='both'):
        transform.add_noise(1.0, 0.0, 1, seed=1)
    with pytest.raises(TypeError, match='key'):
        transform.add_noise(1.0, 0.0, 'one')


def test_distance_over_gradients_trains_weights_without_a_graph() -> None:
    weights = torch.ones(3, requires_grad=True)
    tx = transform.scale_by_distance_over_gradients()
    state = tx.init([weights])
    updates, state = tx.update([torch.ones(3)], state, [weights])
    assert not any(x.requires_grad for x in [*updates, *tree.leaves(state)])
    torchopt.apply_updates([weights], updates)
    assert torch.equal(state.init_params[0], torch.ones(3))


def test_units_are_rows() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    norms = torchopt.clip.unitwise_norm(x)
    torch.testing.assert_close(norms, x.flatten(1).norm(dim=1).reshape(2, 1, 1).expand(2, 3, 4))
    theirs = optax.transforms.unitwise_norm(jnp.asarray(x.numpy()), axis=(1, 2))
    np.testing.assert_allclose(norms.numpy(), theirs, rtol=1e-6)
    for shape in ((5,), (), (1, 5), (5, 1)):
        g = torch.ones(shape) * 3.0
        ours = torchopt.clip.unitwise_clip(torchopt.clip.unitwise_norm(g), torch.full(shape, 0.5), g)
        wanted = (
            optax.transforms.unitwise_clip(optax.transforms.unitwise_norm(g.numpy()), np.full(shape, 0.5), g.numpy())
            if shape
            else ours
        )
        np.testing.assert_allclose(ours.numpy(), wanted, rtol=1e-6)


REFUSED = [
    (lambda: transform.ema(1.0), 'decay'),
    (lambda: transform.apply_every(0), 'k value'),
    (lambda: transform.lookahead(torchopt.sgd(0.1), 0, 0.5), 'sync_period'),
    (lambda: transform.MultiSteps(torchopt.sgd(0.1), 0), 'every_k_schedule'),
    (lambda: transform.scale_by_sm3(b2=1.5), 'b2'),
    (lambda: transform.scale_by_novograd(b1=-1.0), 'b1'),
    (lambda: transform.scale_by_adan(b3=1.0), 'b3'),
    (lambda: transform.scale_by_rprop(-1.0), 'learning_rate'),
    (lambda: transform.apply_if_finite(torchopt.sgd(0.1), -1), 'max_consecutive_errors'),
    (lambda: transform.scale_by_trust_ratio(eps=-1.0), 'epsilon'),
]


@pytest.mark.parametrize(('make', 'word'), REFUSED, ids=[word for _, word in REFUSED])
def test_bad_hyper_parameters(make: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_what_needs_parameters_says_so() -> None:
    g = [torch.ones(2)]
    for tx in (
        transform.keep_params_nonnegative(),
        transform.scale_by_trust_ratio(),
        transform.scale_by_param_block_norm(),
        transform.scale_by_param_block_rms(),
        transform.scale_by_distance_over_gradients(),
        transform.scale_by_novograd(weight_decay=0.1),
    ):
        with pytest.raises(ValueError, match='Parameters are required'):
            tx.update(g, tx.init(g))
    with pytest.raises(TypeError, match='complex'):
        transform.scale_by_sm3().init([torch.ones(2, dtype=torch.complex64)])
    with pytest.raises(ValueError, match='flatten'):
        tx = transform.flatten(torchopt.sgd(0.1))
        tx.update([None, g[0]], tx.init([g[0], g[0]]), [g[0], g[0]])
    with pytest.raises(TypeError, match='should_transform_fn'):
        transform.conditionally_mask(torchopt.sgd(0.1), 3)


def test_neighbours_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is elementwise goes over the leaves once with its neighbours in a chain."""
    calls: list[int] = []
    run = elementwise.run_steps
    monkeypatch.setattr(
        elementwise, 'run_steps', lambda passes, *a, **k: (calls.append(len(passes)), run(passes, *a, **k))[1]
    )
    tx = torchopt.chain(
        transform.ema(0.9),
        transform.scale_by_sign(),
        transform.scale_by_rprop(0.1),
        transform.scale_by_adan(),
        transform.scale_by_optimistic_gradient(),
        transform.apply_every(2),
        transform.keep_params_nonnegative(),
        torchopt.sgd(0.1),
    )
    params = [torch.ones(2)]
    tx.update(params, tx.init(params), params)
    assert calls == [8]


def test_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for row in ROWS[:6]:
            run_torchopt(row.make(OURS), mixed_tree(torch.float32), 1)
