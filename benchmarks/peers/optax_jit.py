# SPDX-License-Identifier: Apache-2.0
"""Optax under jax.jit: the step with and without donated buffers, the meta-gradient, and jax.tree."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
from problems import Case, Cases
from workloads import ALIASES, BETAS, EPS, LR, META_EPS, META_LR, MOMENTUM, SECOND, WEIGHT_DECAY, Workload


def cases(work: Workload) -> Cases:
    if work.kind == 'step':
        return {'jit, donated': functools.partial(_step, work, True)}
    if work.kind == 'alias':
        return {'jit': functools.partial(_step, work, False)}
    if work.kind == 'functional':
        return {'jit': functools.partial(_step, work, False), 'jit, donated': functools.partial(_step, work, True)}
    if work.kind == 'meta':
        return {'jit': functools.partial(_meta, work)}
    if work.kind == 'tree':
        return {'jax.tree': functools.partial(_tree, work)}
    return {}


def _optimizer(work: Workload) -> optax.GradientTransformation:
    name = work.optimizer
    if work.kind == 'alias':
        return getattr(optax, name)(LR, **ALIASES[name])
    if name == 'adam':
        return optax.adam(LR, *BETAS, EPS)
    if name == 'adamw':
        return optax.adamw(LR, *BETAS, EPS, weight_decay=WEIGHT_DECAY)
    return optax.sgd(LR, MOMENTUM)


def _step(work: Workload, donate: bool) -> Case:
    tx = _optimizer(work)
    arrays, gradients = problems.params_and_grads(work.tree)
    grads = [jnp.array(g) for g in gradients]
    params = [jnp.array(p) for p in arrays]
    state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1) if donate else ())
    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def run() -> None:
        nonlocal params, state
        new, new_state = jax.block_until_ready(step(params, state, grads))
        if donate:
            params, state = new, new_state

    def check() -> list[Any]:
        new, new_state = step([jnp.array(p) for p in arrays], tx.init(params), grads)
        new, _ = step(new, new_state, [SECOND * g for g in grads])
        return [np.asarray(n) - p for n, p in zip(new, arrays)]

    return Case(run=run, check=check)


def _meta(work: Workload) -> Case:
    tx = optax.adam(META_LR, *BETAS, META_EPS)
    inner, outer = problems.batches()

    def loss(params: list[Any], batch: tuple[Any, Any]) -> Any:
        x, y = batch
        for i in range(0, len(params), 2):
            x = x @ params[i].T + params[i + 1]
            if i + 2 < len(params):
                x = jnp.tanh(x)
        return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()

    @jax.jit
    @jax.grad
    def meta_gradient(params: list[Any], inner: Any, outer: Any) -> Any:
        def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, inner), state, params)
            return (optax.apply_updates(params, updates), state), None

        # Unrolled, five steps would be an eighth faster, twenty more than twice as slow.
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, work.steps)
        return loss(params, outer)

    arguments = jax.tree.map(jnp.array, (problems.mlp_weights(), inner, outer))

    def memory() -> dict[str, float]:
        used = meta_gradient.lower(*arguments).compile().memory_analysis()
        return {'peak': used.temp_size_in_bytes + used.output_size_in_bytes}

    return Case(
        run=lambda: jax.block_until_ready(meta_gradient(*arguments)),
        check=lambda: [np.asarray(g) for g in meta_gradient(*arguments)],
        memory=memory,
    )


def _tree(work: Workload) -> Case:
    tree = problems.nested_dict(lambda: jnp.zeros(()))
    leaves, spec = jax.tree.flatten(tree)
    return Case(
        run={
            'flatten': lambda: jax.tree.flatten(tree),
            'map': lambda: jax.tree.map(lambda x: x, tree),
            'unflatten': lambda: jax.tree.unflatten(spec, leaves),
        }[work.part]
    )
