# SPDX-License-Identifier: Apache-2.0
"""The tables of the tests: optimizers with their options and oracles, and trees of parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import optax
import torch

import torchopt


class Case(NamedTuple):
    """One optimizer with one set of options, and its counterparts elsewhere; the learning rate is always ``lr``."""

    alias: str
    options: dict[str, Any]
    torch: Callable[..., torch.optim.Optimizer] | None = None
    torch_options: tuple[tuple[str, Any], ...] = ()
    optax: Callable[[], Any] | None = None

    @property
    def name(self) -> str:
        shown = ','.join(f'{k}={type(v).__name__ if callable(v) else v}' for k, v in self.options.items())
        return f'{self.alias}({shown})'

    def make(self, **changes: Any) -> torchopt.base.GradientTransformation:
        factory = getattr(torchopt, self.alias)
        options = {**self.options, **changes}
        return factory(**{next(iter(inspect.signature(factory).parameters)): options.pop('lr')}, **options)


FALLING = torchopt.schedule.polynomial_schedule(0.05, 0.01, 2.0, 40, 3)


def optax_falling(count):
    """The schedule in Optax, converted to double precision, since Optax computes in float32 from its int32 count."""
    return optax.polynomial_schedule(0.05, 0.01, 2.0, 40, 3)(count.astype(float))


CASES = [
    Case('sgd', {'lr': 0.1}, torch.optim.SGD, optax=lambda: optax.sgd(0.1)),
    Case('sgd', {'lr': 0.1, 'momentum': 0.9, 'dampening': 0.3, 'weight_decay': 0.01}, torch.optim.SGD),
    Case('sgd', {'lr': 0.05, 'momentum': 0.9}, torch.optim.SGD, optax=lambda: optax.sgd(0.05, momentum=0.9)),
    Case(
        'sgd',
        {'lr': 0.05, 'momentum': 0.8, 'nesterov': True, 'weight_decay': 0.1},
        torch.optim.SGD,
        optax=lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.8, nesterov=True)),
    ),
    Case('adam', {'lr': 0.1}, torch.optim.Adam, optax=lambda: optax.adam(0.1)),
    Case(
        'adam',
        {'lr': 0.1, 'betas': (0.8, 0.95), 'eps': 1e-3, 'weight_decay': 0.1},
        torch.optim.Adam,
        optax=lambda: optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.1, 0.8, 0.95, eps=1e-3)),
    ),
    Case('adam', {'lr': 0.1, 'eps_root': 1e-2}, optax=lambda: optax.adam(0.1, eps_root=1e-2)),
    Case('adam', {'lr': FALLING}, optax=lambda: optax.adam(optax_falling)),
    Case('adamw', {'lr': 0.1}, torch.optim.AdamW, optax=lambda: optax.adamw(0.1, weight_decay=1e-2)),
    Case(
        'adamw',
        {'lr': FALLING, 'betas': (0.5, 0.9), 'weight_decay': 0.3},
        optax=lambda: optax.adamw(optax_falling, 0.5, 0.9, weight_decay=0.3),
    ),
    Case(
        'adamax',
        {'lr': 0.1, 'weight_decay': 0.1, 'eps': 1e-8},
        torch.optim.Adamax,
        optax=lambda: optax.chain(optax.add_decayed_weights(0.1), optax.adamax(0.1)),
    ),
    Case('adadelta', {'lr': 1.0, 'weight_decay': 0.1}, torch.optim.Adadelta),
    Case(
        'adadelta',
        {'lr': 0.7, 'rho': 0.8, 'eps': 1e-4},
        torch.optim.Adadelta,
        optax=lambda: optax.adadelta(0.7, 0.8, 1e-4),
    ),
    Case(
        'adagrad',
        {'lr': 0.1, 'lr_decay': 0.05, 'weight_decay': 0.1, 'initial_accumulator_value': 0.2},
        torch.optim.Adagrad,
    ),
    Case(
        'adagrad',
        {'lr': 0.1, 'initial_accumulator_value': 0.1, 'eps': 0.0},
        torch.optim.Adagrad,
        optax=lambda: optax.adagrad(0.1, 0.1, 0.0),
    ),
    Case('radam', {'lr': 0.1, 'weight_decay': 0.05}, torch.optim.RAdam, (('eps', 1e-6),)),
    Case(
        'radam',
        {'lr': 0.05, 'betas': (0.8, 0.9), 'eps': 0.0},
        torch.optim.RAdam,
        optax=lambda: optax.radam(0.05, 0.8, 0.9, eps=0.0),
    ),
    Case('rmsprop', {'lr': 0.01}, torch.optim.RMSprop, optax=lambda: optax.rmsprop(0.01, 0.99, eps_in_sqrt=False)),
    Case(
        'rmsprop',
        {'lr': 0.01, 'alpha': 0.9, 'momentum': 0.9, 'centered': True, 'weight_decay': 0.1},
        torch.optim.RMSprop,
        optax=lambda: optax.chain(
            optax.add_decayed_weights(0.1), optax.rmsprop(0.01, 0.9, eps_in_sqrt=False, centered=True, momentum=0.9)
        ),
    ),
    Case(
        'rmsprop',
        {'lr': 0.01, 'initial_scale': 0.5, 'momentum': 0.5, 'nesterov': True},
        optax=lambda: optax.rmsprop(0.01, 0.99, initial_scale=0.5, eps_in_sqrt=False, momentum=0.5, nesterov=True),
    ),
    Case(
        'rmsprop',
        {'lr': 0.01, 'alpha': 0.9, 'eps': 1e-3, 'eps_in_sqrt': True},
        optax=lambda: optax.rmsprop(0.01, 0.9, 1e-3),
    ),
    Case(
        'rmsprop',
        {'lr': 0.01, 'alpha': 0.9, 'eps': 1e-2, 'eps_in_sqrt': True, 'centered': True, 'momentum': 0.5},
        optax=lambda: optax.rmsprop(0.01, 0.9, 1e-2, centered=True, momentum=0.5),
    ),
    Case(
        'adam',
        {'lr': 0.1, 'betas': (0.8, 0.95), 'eps': 1e-3, 'nesterov': True},
        optax=lambda: optax.adam(0.1, 0.8, 0.95, eps=1e-3, nesterov=True),
    ),
    Case('nadam', {'lr': 0.1}, optax=lambda: optax.nadam(0.1)),
    Case(
        'nadam',
        {'lr': FALLING, 'b1': 0.5, 'eps_root': 1e-2},
        optax=lambda: optax.nadam(optax_falling, 0.5, eps_root=1e-2),
    ),
    Case('nadamw', {'lr': 0.1}, optax=lambda: optax.nadamw(0.1)),
    Case(
        'nadamw',
        {'lr': 0.1, 'b1': 0.7, 'b2': 0.9, 'eps': 1e-4, 'weight_decay': 0.3},
        optax=lambda: optax.nadamw(0.1, 0.7, 0.9, 1e-4, weight_decay=0.3),
    ),
    Case('amsgrad', {'lr': 0.1}, optax=lambda: optax.amsgrad(0.1)),
    Case(
        'amsgrad',
        {'lr': 0.1, 'b1': 0.8, 'b2': 0.6, 'eps': 1e-3, 'eps_root': 1e-2, 'bias_correction_mu': False},
        optax=lambda: optax.amsgrad(0.1, 0.8, 0.6, 1e-3, 1e-2, bias_correction_mu=False),
    ),
    Case(
        'amsgrad',
        {'lr': 0.05, 'b2': 0.9, 'bias_correction_nu': False},
        optax=lambda: optax.amsgrad(0.05, b2=0.9, bias_correction_nu=False),
    ),
    Case('lion', {'lr': 0.01}, optax=lambda: optax.lion(0.01)),
    Case(
        'lion',
        {'lr': 0.02, 'b1': 0.7, 'b2': 0.8, 'weight_decay': 0.0},
        optax=lambda: optax.lion(0.02, 0.7, 0.8, weight_decay=0.0),
    ),
    Case('yogi', {'lr': 0.1}, optax=lambda: optax.yogi(0.1)),
    Case('yogi', {'lr': 0.1, 'b1': 0.8, 'b2': 0.7, 'eps': 1e-2}, optax=lambda: optax.yogi(0.1, 0.8, 0.7, 1e-2)),
    Case('adabelief', {'lr': 0.1}, optax=lambda: optax.adabelief(0.1)),
    Case(
        'adabelief',
        {'lr': 0.1, 'b1': 0.8, 'b2': 0.95, 'eps': 1e-3, 'eps_root': 1e-4},
        optax=lambda: optax.adabelief(0.1, 0.8, 0.95, 1e-3, 1e-4),
    ),
]

# Optimizers that always run in plain torch.
WITHOUT_KERNEL = [
    Case(
        'adabelief',
        {'lr': 0.1, 'b1': 0.8, 'eps_root': 1e-4, 'nesterov': True},
        optax=lambda: optax.adabelief(0.1, 0.8, eps_root=1e-4, nesterov=True),
    )
]

# Optimizers of torch with the option `maximize`.
MAXIMIZING = {
    'sgd': torch.optim.SGD,
    'adam': torch.optim.Adam,
    'adamw': torch.optim.AdamW,
    'adagrad': torch.optim.Adagrad,
    'rmsprop': torch.optim.RMSprop,
}


def mixed_tree(dtype: torch.dtype, *, seed: int = 0) -> dict[str, Any]:
    """Parameters of many shapes: matrices, a vector, a 0-d and an empty tensor, a transposed one."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        'encoder': [draw(3, 4), draw(4)],
        'scale': draw(),
        'head': {'w': draw(2, 3, 2), 'b': draw(0), 't': draw(4, 3).t()},
    }
