# SPDX-License-Identifier: Apache-2.0
"""Transformations of Optax, each defined for both libraries."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

import torchopt
from torchopt import transform

F64 = torch.float64


class Row(NamedTuple):
    """A transformation, as a function that builds it from the names of either library."""

    name: str
    make: Any
    scalars: bool = True  # whether Optax supports 0-d leaves
    alone: bool = True  # whether the leaves are independent
    any_tree: bool = True  # whether it accepts every tree, not only `mixed_tree`
    complete: bool = True  # whether a leaf may have no gradient
    rounded: bool = False  # whether its state is float32 for parameters of any dtype
    smooth: bool = True  # whether it is differentiable with respect to the gradients
    stable: bool = True  # whether rounding errors do not grow, so that float32 can be compared
    pickles: bool = True  # whether it has no lambdas

    @property
    def first(self) -> bool:
        """Whether it has its usual options; slow tests run only for these."""
        return ', ' not in self.name

    @property
    def tolerance(self) -> float:
        return 1e-6 if self.rounded else 1e-12

    def __str__(self) -> str:
        return self.name


class Ours:
    """The names of torchopt, all at the root as in Optax."""

    def __getattr__(self, name: str) -> Any:
        for room in (torchopt, transform, torchopt.clip):
            if name in room.__all__:
                return getattr(room, name)
        raise AttributeError(name)

    sgd = staticmethod(lambda rate, momentum=0.0: torchopt.sgd(rate, momentum))
    trace = staticmethod(transform.trace)


OURS = Ours()


def step(x: Any, *args: Any) -> Any:
    """Multiply the direction of a transformation by a negative step size."""
    return x.chain(*args, x.scale(-0.05))


def factored(x: Any, decay_rate: float, step_offset: int) -> Any:
    """Factored second moments, with decay rates in double precision; Optax computes them in single precision."""
    return x.scale_by_factored_rms(True, decay_rate, step_offset, 2, 1e-3, lambda t, c: 1.0 - (t + 1.0) ** -c)


def odd(step: Any, **extra: Any) -> Any:
    return step % 3 != 1


ROWS = [
    Row('ema', lambda x: step(x, x.ema(0.9))),
    Row('ema, biased', lambda x: step(x, x.ema(0.5, debias=False))),
    Row('apply_every', lambda x: step(x, x.apply_every(3))),
    Row('apply_every 1', lambda x: step(x, x.apply_every())),
    Row('apply_every 7', lambda x: x.chain(x.sgd(0.1, 0.5), x.apply_every(7))),
    Row('keep_params_nonnegative', lambda x: x.chain(x.sgd(0.3), x.keep_params_nonnegative())),
    Row('zero_nans', lambda x: step(x, x.zero_nans())),
    Row('set_to_zero', lambda x: x.set_to_zero(), smooth=False),
    Row('stateless', lambda x: x.stateless_with_tree_map(lambda u, p: -0.1 * u + 0.01 * p), pickles=False),
    Row('scale_by_sign', lambda x: step(x, x.scale_by_sign()), smooth=False),
    Row('normalize_by_update_norm', lambda x: step(x, x.normalize_by_update_norm()), alone=False),
    Row('normalize_by_update_norm, scaled', lambda x: step(x, x.normalize_by_update_norm(3.0, 0.1))),
    Row('centralize', lambda x: step(x, x.centralize())),
    Row('scale_by_param_block_norm', lambda x: step(x, x.scale_by_param_block_norm())),
    Row('scale_by_param_block_norm, large', lambda x: step(x, x.scale_by_param_block_norm(1.5))),
    Row('scale_by_param_block_rms', lambda x: step(x, x.scale_by_param_block_rms())),
    Row('scale_by_param_block_rms, large', lambda x: step(x, x.scale_by_param_block_rms(0.7))),
    Row('scale_by_trust_ratio', lambda x: step(x, x.scale_by_trust_ratio())),
    Row('scale_by_trust_ratio, options', lambda x: step(x, x.scale_by_trust_ratio(0.9, 0.5, 0.1))),
    Row('scale_by_rprop', lambda x: x.chain(x.scale_by_rprop(0.1), x.scale(-1.0))),
    Row('scale_by_rprop, bounded', lambda x: x.chain(x.scale_by_rprop(0.1, 0.3, 1.5, 0.05, 0.2), x.scale(-1.0))),
    Row('scale_by_sm3', lambda x: step(x, x.scale_by_sm3()), scalars=False),
    Row('scale_by_sm3, decaying', lambda x: step(x, x.scale_by_sm3(0.5, 0.8, 1e-3)), scalars=False),
    Row('scale_by_novograd', lambda x: step(x, x.scale_by_novograd())),
    Row('scale_by_novograd, options', lambda x: step(x, x.scale_by_novograd(0.5, 0.7, 0.1, 0.2, 0.3))),
    Row('scale_by_adan', lambda x: step(x, x.scale_by_adan())),
    Row('scale_by_adan, options', lambda x: step(x, x.scale_by_adan(0.5, 0.6, 0.7, 0.1, 0.2))),
    Row('scale_by_optimistic_gradient', lambda x: step(x, x.scale_by_optimistic_gradient())),
    Row('scale_by_optimistic_gradient, options', lambda x: step(x, x.scale_by_optimistic_gradient(0.5, -0.3))),
    Row(
        'scale_by_distance_over_gradients',
        lambda x: x.chain(x.scale_by_distance_over_gradients(1e-2), x.scale(-1.0)),
        scalars=False,
        rounded=True,
        smooth=False,
    ),
    Row(
        'freeze',
        lambda x: x.chain(x.sgd(0.1, 0.9), x.freeze({'encoder': True, 'scale': False, 'head': True})),
        any_tree=False,
        alone=False,
    ),
    Row(
        'selective_transform',
        lambda x: x.selective_transform(
            x.sgd(0.1, 0.9), freeze_mask={'encoder': [True, False], 'scale': False, 'head': True}
        ),
        any_tree=False,
        alone=False,
    ),
    Row('conditionally_transform', lambda x: x.chain(x.scale(-0.1), x.conditionally_transform(x.trace(0.9), odd))),
    Row('conditionally_mask', lambda x: x.conditionally_mask(x.adam(0.1), odd)),
    Row('apply_if_finite', lambda x: x.apply_if_finite(x.adam(0.1), 3)),
    Row(
        'flatten', lambda x: x.flatten(x.chain(x.normalize_by_update_norm(), x.adam(0.1))), complete=False, alone=False
    ),
    Row('MultiSteps', lambda x: x.MultiSteps(x.adam(0.1), 3).gradient_transformation(), rounded=True, smooth=False),
    Row(
        'MultiSteps, sums',
        lambda x: x.MultiSteps(x.sgd(0.1, 0.5), 2, use_grad_mean=False).gradient_transformation(),
        rounded=True,
        smooth=False,
    ),
    Row(
        'MultiSteps, scheduled',
        lambda x: x.MultiSteps(x.adam(0.1), lambda t: t % 3 + 1).gradient_transformation(),
        rounded=True,
        smooth=False,
        pickles=False,
    ),
    Row(
        'MultiSteps, skipping',
        lambda x: x.MultiSteps(
            x.adam(0.1), 2, should_skip_update_fn=functools.partial(x.skip_large_updates, max_squared_norm=35.0)
        ).gradient_transformation(),
        rounded=True,
        smooth=False,
        alone=False,
    ),
    Row(
        'MultiSteps, finite',
        lambda x: x.MultiSteps(x.adam(0.1), 2, should_skip_update_fn=x.skip_not_finite).gradient_transformation(),
        rounded=True,
        smooth=False,
    ),
    Row('clip_by_block_rms', lambda x: step(x, x.clip_by_block_rms(0.3))),
    Row('scale_by_lbfgs', lambda x: step(x, x.scale_by_lbfgs()), alone=False, smooth=False, stable=False),
    Row('scale_by_lbfgs, unscaled', lambda x: step(x, x.scale_by_lbfgs(3, False)), alone=False, stable=False),
    Row('scale_by_factored_rms', lambda x: step(x, x.scale_by_factored_rms()), rounded=True),
    Row('scale_by_factored_rms, factored', lambda x: step(x, factored(x, 0.8, 0)), pickles=False),
    Row('scale_by_factored_rms, options', lambda x: step(x, factored(x, 0.5, -3)), pickles=False),
]
