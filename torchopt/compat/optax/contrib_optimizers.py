# SPDX-License-Identifier: Apache-2.0
"""Optimizers of ``torchopt.contrib`` whose states are structured differently in Optax, here with those of Optax."""

from __future__ import annotations

from typing import Any

from torchopt import contrib
from torchopt.base import GradientTransformationExtraArgs
from torchopt.compat.optax.chains import chain, with_every_inner_stage, with_every_stage
from torchopt.compat.optax.optimizers import momentum_stage, sgd
from torchopt.compat.optax.rules import scale_by_learning_rate
from torchopt.contrib.schedule_free import schedule_free, warmed_up
from torchopt.dtypes import DTypeLike
from torchopt.transform import add_decayed_weights

__all__ = [
    'acprop',
    'ademamix',
    'cocob',
    'dog',
    'dowg',
    'dpsgd',
    'galore',
    'madgrad',
    'muon',
    'prodigy',
    'schedule_free_adamw',
    'schedule_free_sgd',
    'simplified_ademamix',
    'sophia',
]

# These differ only in their states without weight decay.
acprop = with_every_stage(contrib.acprop, 3, 1, __name__)
ademamix = with_every_stage(contrib.ademamix, 3, 1, __name__)
cocob = with_every_stage(contrib.cocob, 3, 0, __name__)
dog = with_every_stage(contrib.dog, 3, 0, __name__)
dowg = with_every_stage(contrib.dowg, 3, 0, __name__)
galore = with_every_stage(contrib.galore, 3, 1, __name__)
madgrad = with_every_stage(contrib.madgrad, 2, 0, __name__)
simplified_ademamix = with_every_stage(contrib.simplified_ademamix, 3, 1, __name__)
sophia = with_every_stage(contrib.sophia, 3, 1, __name__)
muon = with_every_inner_stage(contrib.muon, {'muon': (4, 2), 'adam': (3, 1)}, __name__)
schedule_free_adamw = with_every_inner_stage(contrib.schedule_free_adamw, (3, 1), __name__)


def dpsgd(
    learning_rate: Any,
    l2_norm_clip: Any,
    noise_multiplier: Any,
    seed: int,
    momentum: Any = None,
    nesterov: bool = False,
) -> GradientTransformationExtraArgs:
    """:func:`torchopt.contrib.dpsgd`; a momentum of zero has a state, too, and None has no state.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer = optax.contrib.dpsgd(0.5, l2_norm_clip=1.0, noise_multiplier=0.0, seed=0, momentum=0.0)
        >>> g = [torch.tensor([[3.0, 4.0], [0.0, 0.6]])]
        >>> optimizer.update(g, optimizer.init([torch.zeros(2)]))[0]
        [tensor([-0.1500, -0.3500])]
    """
    return chain(
        contrib.differentially_private_aggregate(l2_norm_clip, noise_multiplier, key=seed),
        momentum_stage(momentum, nesterov),
        scale_by_learning_rate(learning_rate),
    )


def prodigy(
    learning_rate: Any = 1.0,
    betas: tuple[Any, Any] = (0.9, 0.999),
    beta3: Any = None,
    eps: Any = 1e-8,
    estim_lr0: Any = 1e-6,
    estim_lr_coef: Any = 1.0,
    weight_decay: Any = 0.0,
    safeguard_warmup: bool = False,
) -> GradientTransformationExtraArgs:
    """:func:`torchopt.contrib.prodigy` without a mask of the weight decay, which Optax 0.2.8 does not have.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer, p = optax.contrib.prodigy(estim_lr0=0.1), [torch.tensor(1.0)]
        >>> optimizer.update([torch.tensor(2.0)], optimizer.init(p), p)[0]
        [tensor(-0.1000)]
    """
    return contrib.prodigy(learning_rate, betas, beta3, eps, estim_lr0, estim_lr_coef, weight_decay, safeguard_warmup)


def schedule_free_sgd(
    learning_rate: Any = 1.0,
    warmup_steps: int | None = None,
    b1: Any = 0.9,
    weight_decay: Any = None,
    weight_lr_power: Any = 2.0,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformationExtraArgs:
    """:func:`torchopt.contrib.schedule_free_sgd`; its gradient descent is an inner chain, next to the decay if any.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer, p = optax.contrib.schedule_free_sgd(0.5, weight_decay=0.0), [torch.tensor(1.0)]
        >>> updates, state = optimizer.update([torch.tensor(2.0)], optimizer.init(p), p)
        >>> updates, state.base_optimizer_state
        ([tensor(-1.)], (EmptyState(), (EmptyState(), EmptyState())))
    """
    rate = warmed_up(learning_rate, warmup_steps)
    steps = sgd(rate)
    if weight_decay is not None:
        steps = chain(add_decayed_weights(weight_decay), steps)
    return schedule_free(steps, rate, b1, weight_lr_power, state_dtype)
