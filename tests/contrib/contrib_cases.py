# SPDX-License-Identifier: Apache-2.0
"""The methods of ``optax.contrib``, each defined for both libraries, and a loop that runs them."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import torch

import torchopt
from tests.cases import FALLING, mixed_tree, optax_falling
from tests.oracle import gradient, noise, to_jax
from torchopt import transform, tree

F64 = torch.float64
EACH = [torch.tensor([0.5, -1.0, 2.0], dtype=F64), torch.tensor([[0.3], [-0.8]], dtype=F64)]


LEAF_BY_LEAF = {
    'acprop',
    'ademamix',
    'adopt',
    'cocob',
    'galore',
    'madgrad',
    'muon',
    'simplified_ademamix',
    'split_real_and_imaginary',
}


class Row(NamedTuple):
    """A method, as a function that builds it from the names of either library."""

    name: str
    make: Any
    shape: str = 'any'  # 'matrices': it requires a tree of matrices
    value: bool = False  # whether it needs the value of the loss
    double: float = 1e-8  # the tolerance in float64
    single: float = 1e-5  # the tolerance in float32
    by_jax: bool = True  # whether jax.grad of Optax's method is finite; a norm of zero gives NaN
    twin: bool = True  # whether Optax has it
    local: bool = True  # whether a leaf without a gradient has no effect on the other leaves

    @property
    def first(self) -> bool:
        """Whether it has its usual options; slow tests run only for these."""
        return ', ' not in self.name

    @property
    def whole(self) -> bool:
        """Whether it accepts every tree of matrices."""
        return not any(word in self.name for word in ('axes', 'function', 'scale_by_muon'))

    @property
    def alone(self) -> bool:
        """Whether the leaves are independent, so that a tree may have leaves of two dtypes."""
        return self.whole and self.name.partition(',')[0].removeprefix('scale_by_') in LEAF_BY_LEAF

    def params(self, dtype: torch.dtype) -> Any:
        if self.shape == 'any':
            return mixed_tree(dtype)
        generator = torch.Generator().manual_seed(1)
        shapes = {'w': (3, 4), 'v': (5, 2), 'u': (3, 3)}
        return {k: torch.randn(s, generator=generator, dtype=F64).to(dtype) for k, s in shapes.items()}

    def __str__(self) -> str:
        return self.name


class Ours:
    """The names of torchopt, at the places where Optax has them."""

    c = torchopt.contrib
    falling = staticmethod(FALLING)

    def __getattr__(self, name: str) -> Any:
        return getattr(torchopt if name in torchopt.__all__ else transform, name)


class Theirs:
    """The names of Optax; those of contrib are under ``c``."""

    c = optax.contrib
    falling = staticmethod(optax_falling)

    def __getattr__(self, name: str) -> Any:
        return getattr(optax, name)


OURS, THEIRS = Ours(), Theirs()


def rising(step: Any) -> Any:
    """A schedule in double precision for any dtype of the count."""
    return 0.5 + 0.01 * (step.double() if isinstance(step, torch.Tensor) else step.astype(float))


def matrix_axes(kind: Any) -> Any:
    """Dimension numbers for ``mixed_tree``: a prefix, a tensor with three axes, leaves that are not matrices."""
    return {'encoder': [kind(1, 0), None], 'scale': None, 'head': {'w': kind((0, 2), 1), 'b': None, 't': None}}


def axes_by_rank(kind: Any, params: Any) -> Any:
    """Dimension numbers by a function, which both libraries call."""
    axes = {2: kind(0, 1), 3: kind(0, (1, 2))}
    return jax.tree.map(lambda p: axes.get(p.ndim), params)


def descend(x: Any, *rules: Any, rate: float = 0.05) -> Any:
    """Multiply the direction of a transformation by a negative step size."""
    return x.chain(*rules, x.scale(-rate))


# Optax computes roots and warmups of its 32-bit count in float32, for parameters of any dtype.
ROUNDED = 1e-6

ROWS = [
    Row('acprop', lambda x: x.c.acprop(0.1)),
    Row('acprop, options', lambda x: x.c.acprop(x.falling, 0.5, 0.8, 1e-2, 1e-3, 0.3)),
    Row('scale_by_acprop', lambda x: descend(x, x.c.scale_by_acprop())),
    Row('ademamix', lambda x: x.c.ademamix(0.1)),
    Row('ademamix, options', lambda x: x.c.ademamix(x.falling, 0.5, 0.8, 0.9, 3.0, 1e-2, 1e-3, weight_decay=0.3)),
    Row('ademamix, scheduled', lambda x: x.c.ademamix(0.1, b3=rising, alpha=rising)),
    Row('scale_by_ademamix', lambda x: descend(x, x.c.scale_by_ademamix())),
    Row('simplified_ademamix', lambda x: x.c.simplified_ademamix(0.01)),
    Row('simplified_ademamix, options', lambda x: x.c.simplified_ademamix(x.falling, 0.5, 0.8, 3.0, 1e-2, 1e-3, 0.3)),
    Row('simplified_ademamix, scheduled', lambda x: x.c.simplified_ademamix(0.1, alpha=rising)),
    Row('scale_by_simplified_ademamix', lambda x: descend(x, x.c.scale_by_simplified_ademamix())),
    Row('adopt', lambda x: x.c.adopt(0.1)),
    Row('adopt, options', lambda x: x.c.adopt(x.falling, 0.5, 0.8, 1e-2, nesterov=True, use_clipping=False)),
    Row('adopt, clipped', lambda x: x.c.adopt(0.1, clip_value_fn=rising)),
    Row('scale_by_adopt', lambda x: descend(x, x.c.scale_by_adopt(nesterov=True))),
    Row('cocob', lambda x: x.c.cocob()),
    Row('cocob, options', lambda x: x.c.cocob(x.falling, 5.0, 1e-2, 0.3)),
    Row('scale_by_cocob', lambda x: x.c.scale_by_cocob(10.0)),
    Row('dadapt_adamw', lambda x: x.c.dadapt_adamw()),
    Row('dadapt_adamw, options', lambda x: x.c.dadapt_adamw(rising, (0.5, 0.8), 1e-2, 1e-2, 0.3)),
    Row('dog', lambda x: x.c.dog(), by_jax=False, local=False),
    Row('dog, distance', lambda x: x.c.dog(x.falling, ('distance', 0.3), 1e-2, 0.3)),
    Row('dog, learning_rate', lambda x: x.c.dog(0.5, ('learning_rate', 0.1))),
    Row('dowg', lambda x: x.c.dowg()),
    Row('dowg, options', lambda x: x.c.dowg(0.5, 0.2, 1e-2, 0.3)),
    # The sign of singular vectors is arbitrary.  After a change of the subspace, first moments depend on the signs that
    # a library chooses.
    Row('galore', lambda x: x.c.galore(0.1, rank=2), 'matrices', double=1e-5, single=1e-4),
    Row(
        'galore, options',
        lambda x: x.c.galore(x.falling, 1, 5, 0.5, x.scale_by_rms(0.9, 0.0), 0.3),
        'matrices',
        double=1e-5,
        single=1e-4,
    ),
    Row(
        'galore, axes',
        lambda x: x.c.galore(0.1, 2, 40, weight_dimension_numbers=matrix_axes(x.c.GaLoreDimensionNumbers)),
        double=1e-5,
        single=1e-4,
    ),
    Row('scale_by_galore', lambda x: descend(x, x.c.scale_by_galore(2, 40)), double=1e-5, single=1e-4),
    Row('madgrad', lambda x: x.c.madgrad(0.1), double=ROUNDED),
    Row('madgrad, options', lambda x: x.c.madgrad(x.falling, 0.5, 0.3, 1e-3), double=ROUNDED),
    Row('scale_by_madgrad', lambda x: x.c.scale_by_madgrad(0.1, 0.0), double=ROUNDED),
    Row('mechanize', lambda x: x.c.mechanize(x.sgd(0.1)), by_jax=False),
    Row('mechanize, options', lambda x: x.c.mechanize(x.adam(0.1), 0.3, 1e-3, 1e-2, 3)),
    Row('momo', lambda x: x.c.momo(), value=True),
    Row('momo, options', lambda x: x.c.momo(rising, 0.5, -1.0, 0.3), value=True),
    Row('momo, adapted', lambda x: x.c.momo(0.3, 0.5, 3.0, 0.1, adapt_lower_bound=True), value=True),
    Row('momo_adam', lambda x: x.c.momo_adam(), value=True),
    Row('momo_adam, options', lambda x: x.c.momo_adam(rising, 0.5, 0.8, 1e-2, -1.0, 0.3), value=True),
    Row(
        'momo_adam, adapted',
        lambda x: x.c.momo_adam(0.3, 0.5, lower_bound=9.0, weight_decay=0.1, adapt_lower_bound=True),
        value=True,
    ),
    Row('muon', lambda x: x.c.muon(0.1), single=1e-4),
    Row(
        'muon, options',
        lambda x: x.c.muon(
            x.falling, ns_steps=3, beta=0.5, weight_decay=0.3, nesterov=False, adaptive=True, consistent_rms=0.2
        ),
        single=1e-4,
    ),
    Row(
        'muon, adam',
        lambda x: x.c.muon(
            0.1,
            'dion',
            adam_b1=0.5,
            adam_b2=0.8,
            adam_eps_root=1e-2,
            adam_weight_decay=0.1,
            adam_learning_rate=0.3,
            preconditioning='spectral',
        ),
        single=1e-4,
    ),
    Row(
        'muon, axes',
        lambda x: x.c.muon(0.1, muon_weight_dimension_numbers=matrix_axes(x.c.MuonDimensionNumbers)),
        single=1e-4,
    ),
    Row(
        'muon, function',
        lambda x: x.c.muon(0.1, muon_weight_dimension_numbers=partial(axes_by_rank, x.c.MuonDimensionNumbers)),
        single=1e-4,
    ),
    Row(
        'galore, function',
        lambda x: x.c.galore(0.1, 2, 40, weight_dimension_numbers=partial(axes_by_rank, x.c.GaLoreDimensionNumbers)),
        double=1e-5,
        single=1e-4,
    ),
    Row('muon, aol', lambda x: x.c.muon(0.1, ns_steps=6, preconditioning='aol'), 'matrices', single=1e-4),
    Row('muon, schatten', lambda x: x.c.muon(0.1, preconditioning='schatten'), 'matrices', single=1e-4),
    Row(
        'scale_by_muon',
        lambda x: descend(
            x, x.c.scale_by_muon(weight_dimension_numbers={k: x.c.MuonDimensionNumbers() for k in 'uvw'})
        ),
        'matrices',
        single=1e-4,
    ),
    Row('normalize', lambda x: descend(x, x.c.normalize())),
    Row('prodigy', lambda x: x.c.prodigy()),
    Row('prodigy, options', lambda x: x.c.prodigy(rising, (0.5, 0.8), 0.7, 1e-2, 1e-2, 2.0, 0.3)),
    Row('prodigy, warmup', lambda x: x.c.prodigy(rising, estim_lr0=1e-2, safeguard_warmup=True)),
    Row('reduce_on_plateau', lambda x: x.chain(x.sgd(0.1), x.c.reduce_on_plateau(patience=2)), value=True),
    Row(
        'reduce_on_plateau, options',
        lambda x: x.chain(x.sgd(0.1), x.c.reduce_on_plateau(0.5, 2, 0.3, 0.1, 1, 2, 0.2)),
        value=True,
    ),
    Row('sam', lambda x: x.c.sam(x.sgd(0.1), x.chain(x.c.normalize(), x.sgd(0.05)))),
    Row('sam, options', lambda x: x.c.sam(x.adam(0.1), x.sgd(0.05, 0.9), sync_period=3, reset_state=False)),
    Row('sam, adam', lambda x: x.c.sam(x.adam(0.1), x.adam(0.05), sync_period=4)),
    Row('schedule_free', lambda x: x.c.schedule_free(x.adam(0.1, b1=0.0), 0.1)),
    Row('schedule_free, options', lambda x: x.c.schedule_free(x.sgd(rising), rising, 0.7, 1.0)),
    Row('schedule_free_sgd', lambda x: x.c.schedule_free_sgd(0.1)),
    Row('schedule_free_sgd, options', lambda x: x.c.schedule_free_sgd(0.1, 5, 0.7, 0.3, 1.0), double=ROUNDED),
    Row('schedule_free_adamw', lambda x: x.c.schedule_free_adamw(0.1)),
    Row(
        'schedule_free_adamw, options',
        lambda x: x.c.schedule_free_adamw(0.1, 5, 0.7, 0.8, 1e-2, 0.3, 1.0),
        double=ROUNDED,
    ),
    Row('split_real_and_imaginary', lambda x: x.c.split_real_and_imaginary(x.adam(0.1))),
    Row('cautious', lambda x: x.c.cautious(x.adam(0.1)), twin=False),
]


def run_ours(tx: Any, params: Any, steps: int, *, value: bool = False, inplace: bool = False) -> tuple[Any, Any]:
    """Parameters and state after some steps."""
    state = tx.init(params)
    for step in range(steps):
        disturbance = tree.map(lambda p, n: torch.as_tensor(n).to(p.dtype), params, noise(params, step))
        grads = tree.map(gradient, params, disturbance)
        extra = {'value': tree.norm(params, squared=True) + 1.0} if value else {}
        updates, state = tx.update(grads, state, params, inplace=inplace, **extra)
        params = torchopt.apply_updates(params, updates)
    return params, state


def run_theirs(tx: Any, params: Any, steps: int, *, value: bool = False) -> tuple[Any, Any]:
    """Parameters and state after some steps in Optax."""
    ours, params = params, to_jax(params)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(steps):
        disturbance = jax.tree.map(lambda p, n: jnp.asarray(n).astype(p.dtype), params, noise(ours, step))
        grads = jax.tree.map(gradient, params, disturbance)
        extra = {'value': optax.tree.norm(params, squared=True) + 1.0} if value else {}
        updates, state = update(grads, state, params, **extra)
        params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
    return params, state


def entries(state: Any, prefix: str = '') -> dict[str, Any]:
    """All entries of the named tuples in a state by name, except those without leaves.

    Chains of torchopt omit identities, so members are identified by the names of their entries only.
    """
    found: dict[str, Any] = {}
    if isinstance(state, tuple) and hasattr(state, '_fields'):
        for name in state._fields:
            x = getattr(state, name)
            inner = entries(x, f'{prefix}{name}.')
            found |= inner if inner or isinstance(x, tuple) else {prefix + name: x}
    elif isinstance(state, tuple):
        for member in state:
            found |= entries(member, prefix)
    elif isinstance(state, dict) and set(state) == {'muon', 'adam'}:
        for label, member in state.items():
            found |= entries(member, f'{prefix}{label}.')
    return {name: x for name, x in found.items() if jax.tree.leaves(x)}


def quartic(p: Any) -> Any:
    """A function with a diagonal Hessian, in plain arithmetic for tensors and arrays."""
    return sum(((x**4).sum() + (x**2).sum()) / (i + 2) for i, x in enumerate(p))


def quartic_gradient(p: Any) -> list[Any]:
    return [(4 * x**3 + 2 * x) / (i + 2) for i, x in enumerate(p)]
