# SPDX-License-Identifier: Apache-2.0
"""Parity: run the same optimization here, in torch.optim, in Optax, and by the equations of the papers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import torchopt
from tests.cases import Case
from torchopt import tree

jax.config.update('jax_enable_x64', True)


def noise(params: Any, step: int) -> Any:
    """A fixed perturbation of the gradients at each step, equal for all libraries."""
    rng = np.random.default_rng(step)
    return tree.map(lambda p: rng.standard_normal(tuple(p.shape)), params)


def gradient(p: Any, disturbance: Any) -> Any:
    """The perturbed gradient of a function with its minimum at 1, in plain arithmetic for tensors and arrays."""
    return 0.5 * (p - 1.0) + disturbance


def run_torchopt(tx: Any, params: Any, steps: int, *, inplace: bool = False) -> tuple[Any, Any]:
    """Parameters and state after some steps of the functional API."""
    state = tx.init(params)
    for step in range(steps):
        disturbance = tree.map(lambda p, n: torch.as_tensor(n).to(p.dtype), params, noise(params, step))
        grads = tree.map(gradient, params, disturbance)
        updates, state = tx.update(grads, state, params, inplace=inplace)
        params = torchopt.apply_updates(params, updates)
    return params, state


def run_torch(case: Case, params: Any, steps: int, **options: Any) -> Any:
    """Parameters after some steps of ``torch.optim``."""
    leaves, spec = tree.flatten(params)
    leaves = [p.clone().requires_grad_() for p in leaves]
    options = {**case.options, **dict(case.torch_options), **options}
    optimizer = case.torch(leaves, **options)
    for step in range(steps):
        for p, n in zip(leaves, tree.leaves(noise(params, step))):
            p.grad = gradient(p.detach(), torch.as_tensor(n).to(p.dtype))
        optimizer.step()
    return tree.unflatten(spec, [p.detach() for p in leaves])


def to_jax(params: Any) -> Any:
    """A tree of tensors as a tree of JAX arrays."""
    return tree.map(lambda p: jnp.asarray(p.numpy()), params)


def run_optax(tx: Any, params: Any, steps: int) -> tuple[Any, Any]:
    """Parameters and state after some steps of an Optax transformation."""
    ours, params = params, to_jax(params)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(steps):
        disturbance = jax.tree.map(lambda p, n: jnp.asarray(n).astype(p.dtype), params, noise(ours, step))
        grads = jax.tree.map(gradient, params, disturbance)
        updates, state = update(grads, state, params)
        params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
    return params, state


def named_entries(state: Any) -> dict[str, Any]:
    """All entries of the named tuples in a state, by their field names."""
    found: dict[str, Any] = {}
    if isinstance(state, tuple) and hasattr(state, '_fields'):
        for name in state._fields:
            value = getattr(state, name)
            found.update(named_entries(value) or {name: value})
    elif isinstance(state, tuple):
        for member in state:
            found.update(named_entries(member))
    return found


def assert_trees_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Compare leaf by leaf, relative to the size of each leaf."""
    values, wanted = (
        [np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, dtype=np.float64) for x in tree.leaves(given)]
        for given in (actual, expected)
    )
    assert len(values) == len(wanted) > 0
    for x, y in zip(values, wanted):
        assert x.shape == y.shape
        scale = max(float(np.abs(y).max(initial=0.0)), 1e-3)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * scale)


def assert_close_by_dtype(actual: Any, expected: Any, rounded: bool = False) -> None:
    """Compare leaf by leaf with the tree of an oracle, to 1e-5 in float32 and to 1e-8 in float64."""
    leaves, theirs = tree.leaves(actual), jax.tree.leaves(expected)
    assert len(leaves) == len(theirs) > 0
    for x, y in zip(leaves, theirs):
        assert_trees_close(x, y, 1e-5 if rounded or x.dtype == torch.float32 else 1e-8)


# --- the equations of the papers, as plain torch code that autograd differentiates ---


# Optimizers with decoupled weight decay.
DECOUPLED = {'adamw', 'nadamw', 'lion'}


def unrolled(name: str, gradient_of: Any, p: torch.Tensor, lr: Any, steps: int, **o: Any) -> torch.Tensor:
    """An optimizer for one tensor, by the equations of its paper."""
    state: dict[str, Any] = {}
    for t in range(1, steps + 1):
        g = gradient_of(p)
        decay = o.get('weight_decay', 0.0)
        if name not in DECOUPLED:
            g = g + decay * p
        p = p - lr * _EQUATIONS[name](g, p, t, state, o)
    return p


def _sgd(g, p, t, s, o):
    mu, tau = o.get('momentum', 0.0), o.get('dampening', 0.0)
    s['b'] = g if t == 1 else mu * s['b'] + (1 - tau) * g
    return g + mu * s['b'] if o.get('nesterov') else s['b']


def _moments(g, t, s, b1, b2):
    s['m'] = b1 * s.get('m', 0.0) + (1 - b1) * g
    s['v'] = b2 * s.get('v', 0.0) + (1 - b2) * g**2
    return s['m'] / (1 - b1**t), s['v'] / (1 - b2**t)


def _betas(o):
    return o.get('betas', (o.get('b1', 0.9), o.get('b2', 0.999)))


def _adam(g, p, t, s, o):
    b1, b2 = _betas(o)
    m, v = _moments(g, t, s, b1, b2)
    if o.get('nesterov'):
        m = b1 * s['m'] / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
    return m / ((v + o.get('eps_root', 0.0)).sqrt() + o.get('eps', 1e-8))


def _adamw(g, p, t, s, o):
    return _adam(g, p, t, s, o) + o.get('weight_decay', 1e-2) * p


def _adamax(g, p, t, s, o):
    b1, b2 = o.get('betas', (0.9, 0.999))
    s['m'] = b1 * s.get('m', 0.0) + (1 - b1) * g
    s['n'] = torch.maximum(b2 * s.get('n', torch.zeros_like(g)), g.abs() + o.get('eps', 1e-6))
    return s['m'] / s['n'] / (1 - b1**t)


def _radam(g, p, t, s, o):
    b1, b2 = o.get('betas', (0.9, 0.999))
    m, _ = _moments(g, t, s, b1, b2)
    top = 2 / (1 - b2) - 1
    rho = top - 2 * t * b2**t / (1 - b2**t)
    if rho <= 5:
        return m
    r = ((rho - 4) * (rho - 2) * top / ((top - 4) * (top - 2) * rho)) ** 0.5
    return m * r * (1 - b2**t) ** 0.5 / (s['v'].sqrt() + o.get('eps', 1e-6))


def _adadelta(g, p, t, s, o):
    rho, eps = o.get('rho', 0.9), o.get('eps', 1e-6)
    s['v'] = rho * s.get('v', 0.0) + (1 - rho) * g**2
    u = ((s.get('x', 0.0) + eps) / (s['v'] + eps)) ** 0.5 * g
    s['x'] = rho * s.get('x', 0.0) + (1 - rho) * u**2
    return u


def _adagrad(g, p, t, s, o):
    s['s'] = s.get('s', o.get('initial_accumulator_value', 0.0)) + g**2
    return g / (s['s'].sqrt() + o.get('eps', 1e-10)) / (1 + (t - 1) * o.get('lr_decay', 0.0))


def _rmsprop(g, p, t, s, o):
    a = o.get('alpha', 0.99)
    s['v'] = a * s.get('v', o.get('initial_scale', 0.0)) + (1 - a) * g**2
    s['m'] = a * s.get('m', 0.0) + (1 - a) * g
    variance = s['v'] - s['m'] ** 2 if o.get('centered') else s['v']
    eps = o.get('eps', 1e-8)
    d = g / ((variance + eps).sqrt() if o.get('eps_in_sqrt') else variance.sqrt() + eps)
    mu = o.get('momentum', 0.0)
    s['b'] = mu * s.get('b', 0.0) + d
    return d + mu * s['b'] if o.get('nesterov') else s['b']


def _nadam(g, p, t, s, o):
    return _adam(g, p, t, s, {'nesterov': True, **o})


def _nadamw(g, p, t, s, o):
    return _nadam(g, p, t, s, o) + o.get('weight_decay', 1e-4) * p


def _amsgrad(g, p, t, s, o):
    m, v = _moments(g, t, s, *_betas(o))
    m = m if o.get('bias_correction_mu', True) else s['m']
    v = v if o.get('bias_correction_nu', True) else s['v']
    s['n'] = torch.maximum(s['n'], v) if t > 1 else v
    return m / ((s['n'] + o.get('eps_root', 0.0)).sqrt() + o.get('eps', 1e-8))


def _lion(g, p, t, s, o):
    b1, b2, m = o.get('b1', 0.9), o.get('b2', 0.99), s.get('m', torch.zeros_like(g))
    s['m'] = b2 * m + (1 - b2) * g
    return (b1 * m + (1 - b1) * g).sign() + o.get('weight_decay', 1e-3) * p


def _yogi(g, p, t, s, o):
    b1, b2 = _betas(o)
    first = torch.full_like(g, 1e-6)
    s['m'] = b1 * s.get('m', first) + (1 - b1) * g
    v = s.get('v', first)
    s['v'] = v - (1 - b2) * (v - g**2).sign() * g**2
    return s['m'] / (1 - b1**t) / ((s['v'] / (1 - b2**t)).sqrt() + o.get('eps', 1e-3))


def _adabelief(g, p, t, s, o):
    b1, b2 = _betas(o)
    s['m'] = b1 * s.get('m', 0.0) + (1 - b1) * g
    s['v'] = b2 * s.get('v', 0.0) + (1 - b2) * (g - s['m']) ** 2 + o.get('eps_root', 1e-16)
    m = s['m'] / (1 - b1**t)
    if o.get('nesterov'):
        m = b1 * s['m'] / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
    return m / ((s['v'] / (1 - b2**t)).sqrt() + o.get('eps', 1e-16))


_EQUATIONS = {
    'sgd': _sgd,
    'adam': _adam,
    'adamw': _adamw,
    'adamax': _adamax,
    'radam': _radam,
    'adadelta': _adadelta,
    'adagrad': _adagrad,
    'rmsprop': _rmsprop,
    'nadam': _nadam,
    'nadamw': _nadamw,
    'amsgrad': _amsgrad,
    'lion': _lion,
    'yogi': _yogi,
    'adabelief': _adabelief,
}
