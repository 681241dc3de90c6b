# SPDX-License-Identifier: Apache-2.0
"""Programs written for Optax, run as they are with Optax and with ``torchopt.compat.optax``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax as theirs
import pytest
import torch

from tests.oracle import assert_trees_close
from torchopt.compat import optax as ours


class Frame(NamedTuple):
    """What the two array libraries call differently: an array of double precision, and what is made of functions."""

    optax: Any
    xp: Any
    array: Callable[[Any], Any]
    grad: Callable[[Any], Any]
    vmap: Callable[[Any], Any]
    jit: Callable[[Any], Any]


def one_by_one(function: Any) -> Any:
    """What ``jax.vmap`` computes, without compiling every operation once more."""
    return lambda xs: jnp.stack([function(x) for x in xs])


JAX = Frame(theirs, jnp, jnp.array, jax.grad, one_by_one, jax.jit)
TORCH = Frame(
    ours, torch, lambda x: torch.tensor(x, dtype=torch.float64), torch.func.grad, torch.vmap, lambda step: step
)


def start(f: Frame) -> Any:
    return {'w': f.array([[0.5, -1.0], [2.0, 0.25]]), 'b': f.array([0.1, -0.2])}


def loss(f: Frame, params: Any) -> Any:
    x = f.array([[1.0, -0.5], [0.3, 2.0], [-1.2, 0.4]])
    return f.optax.losses.log_cosh(x @ params['w'] + params['b'], 1.0 + 0.5 * x).sum()


def descend(f: Frame, optimizer: Any, steps: int = 8, *, jit: bool = False) -> Any:
    """Parameters and state after some steps."""
    params = start(f)
    state = optimizer.init(params)
    update = f.jit(optimizer.update) if jit else optimizer.update
    for _ in range(steps):
        grads = f.grad(lambda p: loss(f, p))(params)
        updates, state = update(grads, state, params)
        params = f.optax.apply_updates(params, updates)
    return params, state


def clipped_adamw(f: Frame) -> Any:
    schedule = f.optax.warmup_cosine_decay_schedule(0.0, 0.3, 3, 10, exponent=2.0)
    decay_mask = lambda params: {k: k != 'b' for k in params}  # noqa: E731
    optimizer = f.optax.chain(
        f.optax.clip_by_global_norm(1.0), f.optax.adamw(schedule, weight_decay=0.1, mask=decay_mask)
    )
    params, state = descend(f, optimizer)
    return params, state[1][0].mu, state[1][0].nu, f.array(float(state[1][2].count)), f.optax.global_norm(params)


def labelled(f: Frame) -> Any:
    optimizer = f.optax.multi_transform(
        {'fast': f.optax.rmsprop(0.1, momentum=0.5), 'slow': f.optax.chain(f.optax.sgd(0.01), f.optax.identity())},
        {'w': 'fast', 'b': 'slow'},
    )
    params, state = descend(f, optimizer)
    assert isinstance(state, f.optax.MultiTransformState)
    assert isinstance(state.inner_states['slow'].inner_state[0][0], f.optax.EmptyState)
    return (
        params,
        state.inner_states['fast'].inner_state[0].nu['w'],
        state.inner_states['fast'].inner_state[2].trace['w'],
    )


def injected(f: Frame) -> Any:
    optimizer = f.optax.inject_hyperparams(f.optax.radam)(
        learning_rate=f.optax.exponential_decay(0.1, 2, 0.9), b2=0.9, eps_root=1e-3
    )
    params, state = descend(f, optimizer)
    rate = state.hyperparams['learning_rate']
    state.hyperparams['learning_rate'] = 0.5 * rate
    updates, state = optimizer.update(start(f), state, params)
    return params, updates, rate, state.inner_state[0].mu


def accumulated(f: Frame) -> Any:
    optimizer = f.optax.MultiSteps(f.optax.adam(0.1), every_k_schedule=3)
    params, state = descend(f, optimizer, 5, jit=True)
    assert not optimizer.has_updated(state)
    return params, state.inner_opt_state[0].mu


def wrapped(f: Frame) -> Any:
    inner = f.optax.apply_if_finite(f.optax.masked(f.optax.adagrad(0.3), {'w': True, 'b': False}), 2)
    optimizer = f.optax.chain(f.optax.centralize(), inner, f.optax.flatten(f.optax.trace(0.5)), f.optax.scale(0.1))
    params, state = descend(f, optimizer)
    return params, state[1].inner_state.inner_state[0].sum_of_squares['w'], state[2].trace


def looked_ahead(f: Frame) -> Any:
    optimizer = f.optax.lookahead(f.optax.sgd(0.1, momentum=0.9, nesterov=True), sync_period=2, slow_step_size=0.5)
    params = f.optax.LookaheadParams.init_synced(start(f))
    state = optimizer.init(params)
    for _ in range(5):
        grads = f.grad(lambda p: loss(f, p))(params.fast)
        updates, state = optimizer.update(grads, state, params)
        params = f.optax.apply_updates(params, updates)
    return params.fast, params.slow, state.fast_state[0].trace


def by_hand(f: Frame) -> Any:
    """A transformation of one's own, from the verbs of trees, with other names for them."""

    def init(params: Any) -> Any:
        return f.optax.TraceState(f.optax.tree.zeros_like(params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        trace = f.optax.tree_utils.tree_add_scale(updates, 0.9, state.trace)
        return f.optax.tree.scale(-0.1, trace), f.optax.TraceState(trace)

    mine = f.optax.GradientTransformation(init, update)
    weight = f.optax.stateless(lambda updates, params: f.optax.tree_utils.tree_add_scale(updates, 0.01, params))
    params, state = descend(f, f.optax.chain(weight, mine))
    moment = f.optax.update_moment(params, state[1].trace, 0.9, 2)
    return params, moment, f.optax.bias_correction(moment, 0.9, 3), f.optax.tree.vdot(params, moment)


def named(f: Frame) -> Any:
    optimizer = f.optax.named_chain(('noise', f.optax.scale_by_rms()), ('step', f.optax.sgd(0.05, 0.9)))
    params, state = descend(f, optimizer)
    assert list(state) == ['noise', 'step']
    return params, f.optax.tree.get(state, 'nu'), state['step'][0].trace


def on_the_simplex(f: Frame) -> Any:
    weights, optimizer = f.array([0.2, 0.5, 0.3]), f.optax.adagrad(0.5)
    state = optimizer.init(weights)
    for _ in range(5):
        grads = f.grad(lambda w: f.optax.softmax_cross_entropy(w, f.array([0.1, 0.2, 0.7])))(weights)
        updates, state = optimizer.update(grads, state)
        weights = f.optax.projections.projection_simplex(f.optax.apply_updates(weights, updates))
    return weights, state


def learned_rate(f: Frame) -> Any:
    def final(rate: Any) -> Any:
        return loss(f, descend(f, f.optax.rmsprop(rate, momentum=0.5), 2)[0])

    return f.grad(final)(f.array(0.1)), f.vmap(final)(f.array([0.01, 0.1, 0.2]))


def edited_state(f: Frame) -> Any:
    optimizer = f.optax.chain(f.optax.clip(0.5), f.optax.adamax(0.1))
    params, state = descend(f, optimizer)
    state = f.optax.tree.set(state, nu=f.optax.tree.ones_like(params))
    doubled = f.optax.tree_map_params(optimizer, lambda x: 2.0 * x, state)
    updates, _ = optimizer.update(start(f), doubled, params)
    return updates, doubled[1][0].mu


PROGRAMS = [
    accumulated,
    by_hand,
    clipped_adamw,
    edited_state,
    injected,
    labelled,
    learned_rate,
    looked_ahead,
    named,
    on_the_simplex,
    wrapped,
]


@pytest.mark.parametrize('program', PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.filterwarnings('ignore:optax.global_norm is deprecated')
def test_program(program: Callable[[Frame], Any]) -> None:
    found, wanted = program(TORCH), program(JAX)
    assert len(jax.tree.leaves(wanted)) > 0
    # Optax's schedules and accumulators compute in float32.
    single = program in {accumulated, clipped_adamw, injected}
    assert_trees_close(found, wanted, 1e-6 if single else 1e-8)


@pytest.mark.parametrize('state', [(), ((),), [(), ()], ((), (), ()), ((), ((),))])
def test_the_state_of_another_chain_is_refused(state: Any) -> None:
    tx = ours.chain(ours.scale(1.0), ours.sgd(0.1, 0.9))
    with pytest.raises(ValueError, match='has to be the same in chain'):
        tx.update([torch.ones(1)], state)
    with pytest.raises(ValueError, match='has to be the same in chain'):
        tx.update([torch.ones(1)], state, inplace=True)


def test_a_chain_refuses_before_it_changes_anything() -> None:
    tx = ours.chain(ours.trace(0.9), ours.chain(ours.identity(), ours.add_decayed_weights(0.1)))
    state = tx.init([torch.zeros(2)])
    with pytest.raises(ValueError, match='Parameters are required'):
        tx.update([torch.ones(2)], state, inplace=True)
    assert not state[0].trace[0].any()
    with pytest.raises(TypeError, match='not a GradientTransformation'):
        ours.chain(ours.scale(1.0), ours.scale)


def test_a_chain_of_nothing() -> None:
    for tx in (ours.chain(), ours.chain(ours.identity()), ours.chain(ours.chain(), ours.identity())):
        g = [torch.ones(2)]
        updates, state = tx.update(g, tx.init(g))
        assert torch.equal(updates[0], g[0])
        assert state == tx.init(g)
    assert ours.chain(ours.chain(), ours.identity()).init([]) == ((), ours.EmptyState())


def test_a_step_is_compiled_whole() -> None:
    """Optimizers made inside of the compiled function, too."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        optimizer = ours.chain(ours.clip(0.5), ours.rmsprop(0.1, momentum=0.9))
        updates, state = optimizer.update(grads, state, params)
        return ours.apply_updates(params, updates), state

    params, grads = start(TORCH), {'w': torch.ones(2, 2).double(), 'b': torch.ones(2).double()}
    state = ours.chain(ours.clip(0.5), ours.rmsprop(0.1, momentum=0.9)).init(params)
    wanted, wanted_state = step(params, state, grads)
    found, found_state = torch.compile(step, fullgraph=True, backend='eager')(params, state, grads)
    assert_trees_close(found, wanted, 1e-12)
    assert_trees_close(found_state[1][2].trace, wanted_state[1][2].trace, 1e-12)
