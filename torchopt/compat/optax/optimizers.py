# SPDX-License-Identifier: Apache-2.0
"""Optimizers that have arguments or defaults of TorchOpt in torchopt, here with those of Optax."""

from __future__ import annotations

from typing import Any

from torchopt import alias
from torchopt.base import GradientTransformation, GradientTransformationExtraArgs, identity
from torchopt.compat.optax.chains import chain, with_every_stage
from torchopt.compat.optax.rules import (
    masked,
    scale_by_adadelta,
    scale_by_adam,
    scale_by_adamax,
    scale_by_learning_rate,
    scale_by_radam,
    scale_by_rms,
    scale_by_rss,
    scale_by_stddev,
    trace,
)
from torchopt.dtypes import DTypeLike
from torchopt.transform import add_decayed_weights, scale_by_polyak, scale_by_trust_ratio

__all__ = [
    'adabelief',
    'adadelta',
    'adagrad',
    'adam',
    'adamax',
    'adamaxw',
    'adamw',
    'adan',
    'lamb',
    'lars',
    'lion',
    'momentum_stage',
    'nadamw',
    'polyak_sgd',
    'radam',
    'rmsprop',
    'sgd',
]

# These differ only in their states without weight decay.
adan = with_every_stage(alias.adan, 3, 1, __name__)
lamb = with_every_stage(alias.lamb, 4, 1, __name__)
lion = with_every_stage(alias.lion, 3, 1, __name__)
nadamw = with_every_stage(alias.nadamw, 3, 1, __name__)


def adabelief(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-16,
    eps_root: Any = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """:func:`torchopt.adabelief` without weight decay, which Optax 0.2.8 does not have.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer = optax.adabelief(0.5, b1=0.5)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-1.)]
    """
    return alias.adabelief(learning_rate, b1, b2, eps, eps_root, nesterov=nesterov)


def adadelta(
    learning_rate: Any = None, rho: Any = 0.9, eps: Any = 1e-6, weight_decay: Any = 0.0, weight_decay_mask: Any = None
) -> GradientTransformationExtraArgs:
    """:func:`torchopt.adadelta`; without a learning rate the updates are ascent directions, and the decay has a mask.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer = optax.adadelta(1.0, rho=0.0, eps=9.0)
        >>> optimizer.update([torch.tensor(4.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-2.4000)]
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(learning_rate),
    )


def adagrad(
    learning_rate: Any, initial_accumulator_value: float = 0.1, eps: Any = 1e-7
) -> GradientTransformationExtraArgs:
    """:func:`torchopt.adagrad` with epsilon inside the root, and a nonzero initial sum of squares.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer = optax.adagrad(1.0, initial_accumulator_value=6.0, eps=1.0)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-0.7500)]
    """
    return chain(scale_by_rss(initial_accumulator_value, eps), scale_by_learning_rate(learning_rate))


def adam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransformationExtraArgs:
    """:func:`torchopt.adam`.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer = optax.adam(0.1, 0.9, 0.99)
        >>> optimizer.update([torch.tensor(4.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-0.1000)]
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov), scale_by_learning_rate(learning_rate)
    )


def adamax(learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8) -> GradientTransformationExtraArgs:
    """:func:`torchopt.adamax` with a smaller epsilon, and Adam's state.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer = optax.adamax(0.5)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-0.5000)]
    """
    return chain(scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


def adamaxw(
    learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, weight_decay: Any = 1e-4, mask: Any = None
) -> GradientTransformationExtraArgs:
    """:func:`torchopt.adamaxw` with Adam's state.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer, params = optax.adamaxw(0.5, weight_decay=0.5), [torch.tensor(2.0)]
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init(params), params)[0]
        [tensor(-1.)]
    """
    return chain(
        scale_by_adamax(b1, b2, eps), add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate)
    )


def adamw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Any = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
) -> GradientTransformationExtraArgs:
    """:func:`torchopt.adamw` with a smaller default decay.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer, params = optax.adamw(0.5, weight_decay=0.5), [torch.tensor(2.0)]
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init(params), params)[0]
        [tensor(-1.)]
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def lars(
    learning_rate: Any,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = True,
    trust_coefficient: Any = 0.001,
    eps: Any = 0.0,
    trust_ratio_mask: Any = True,
    momentum: Any = 0.9,
    nesterov: bool = False,
) -> GradientTransformationExtraArgs:
    """:func:`torchopt.lars`; a momentum of zero has a state, too.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer, params = optax.lars(0.5, trust_coefficient=0.1, momentum=0.0), [torch.tensor([3.0, 4.0])]
        >>> optimizer.update([torch.tensor([6.0, 8.0])], optimizer.init(params), params)[0]
        [tensor([-0.1500, -0.2000])]
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        masked(scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps), trust_ratio_mask),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov),
    )


def polyak_sgd(
    max_learning_rate: Any = 1.0, scaling: Any = 1.0, f_min: Any = 0.0, eps: Any = 0.0, variant: str = 'sps'
) -> GradientTransformationExtraArgs:
    """:func:`torchopt.polyak_sgd`; its gradient descent is an inner chain.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer, params = optax.polyak_sgd(), [torch.tensor(1.0)]
        >>> optimizer.update([torch.tensor(4.0)], optimizer.init(params), params, value=torch.tensor(8.0))
        ([tensor(-2.)], ((EmptyState(), EmptyState()), EmptyState()))
    """
    return chain(sgd(scaling), scale_by_polyak(f_min, max_learning_rate, eps, variant))


def radam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    threshold: float = 5.0,
    *,
    nesterov: bool = False,
) -> GradientTransformationExtraArgs:
    """:func:`torchopt.radam` with epsilon after the correction, and Adam's state.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer = optax.radam(0.5)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-1.5000)]
    """
    return chain(
        scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov), scale_by_learning_rate(learning_rate)
    )


def rmsprop(
    learning_rate: Any,
    decay: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Any = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> GradientTransformationExtraArgs:
    """:func:`torchopt.rmsprop` with epsilon inside the root, and momentum applied after the learning rate.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer = optax.rmsprop(1.0, decay=0.75, eps=1.75)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-1.5000)]
    """
    rescale = scale_by_stddev if centered else scale_by_rms
    return chain(
        rescale(decay, eps, initial_scale, eps_in_sqrt, bias_correction),
        scale_by_learning_rate(learning_rate),
        momentum_stage(momentum, nesterov),
    )


def sgd(
    learning_rate: Any, momentum: Any = None, nesterov: bool = False, accumulator_dtype: DTypeLike | None = None
) -> GradientTransformationExtraArgs:
    """:func:`torchopt.sgd`; a momentum of zero has a state, too, and None has no state.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer = optax.sgd(0.5)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))
        ([tensor(-1.5000)], (EmptyState(), EmptyState()))
    """
    return chain(momentum_stage(momentum, nesterov, accumulator_dtype), scale_by_learning_rate(learning_rate))


def momentum_stage(decay: Any, nesterov: bool, accumulator_dtype: DTypeLike | None = None) -> GradientTransformation:
    """:func:`trace`, or the identity if there is no decay rate."""
    return identity() if decay is None else trace(decay, nesterov, accumulator_dtype)
