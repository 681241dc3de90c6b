# SPDX-License-Identifier: Apache-2.0
"""Transformations that have arguments or defaults of TorchOpt in torchopt, here with those of Optax."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchopt import clip, elementwise, transform
from torchopt.base import (
    ElementwiseTransformation,
    GradientTransformation,
    GradientTransformationExtraArgs,
    TransformationLike,
    factory,
    identity,
)
from torchopt.dtypes import DTypeLike
from torchopt.elementwise import ranges
from torchopt.preconditions import state_of
from torchopt.transform import ScaleByAdamState
from torchopt.transform.scaling.trace import decaying_sum

__all__ = [
    'adaptive_grad_clip',
    'masked',
    'scale_by_adadelta',
    'scale_by_adam',
    'scale_by_adamax',
    'scale_by_learning_rate',
    'scale_by_radam',
    'scale_by_rms',
    'scale_by_rss',
    'scale_by_stddev',
    'trace',
    'unitwise_norm',
]


def adaptive_grad_clip(
    clipping: Any, eps: Any = 1e-3, axis: int | tuple[int, ...] | None = None
) -> GradientTransformation:
    """:func:`torchopt.clip.adaptive_grad_clip` with the columns of a matrix as units instead of the rows.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> tx, w = optax.adaptive_grad_clip(0.5), torch.tensor([[1.0, 0.2], [0.0, 0.0]])
        >>> tx.update([torch.tensor([[0.0, 8.0], [8.0, 0.0]])], tx.init([w]), [w])[0]
        [tensor([[0.0000, 0.1000],
                [0.5000, 0.0000]])]
    """
    return clip.adaptive_grad_clip(clipping, eps, _units if axis is None else axis)


def unitwise_norm(x: Tensor, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """:func:`torchopt.clip.unitwise_norm` with the columns of a matrix as units instead of the rows.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optax.transforms.unitwise_norm(torch.tensor([[3.0, 0.0], [4.0, 1.0]]))
        tensor([[5., 1.],
                [5., 1.]])
    """
    return clip.unitwise_norm(x, _units if axis is None else axis)


def _units(x: Tensor) -> tuple[int, ...]:
    """The dimensions of the norm of a unit."""
    if sum(size != 1 for size in x.shape) <= 1:
        return tuple(range(x.dim()))
    if x.dim() > 5:
        raise ValueError(f'There is no rule for the units of a parameter of shape {tuple(x.shape)}. Pass axis.')
    # With three dimensions, the second one is that of the heads, and every head has its own units.
    return tuple(range(x.dim() - 1)) if x.dim() > 3 else (0,)


def masked(
    inner: TransformationLike, mask: Any, *, mask_compatible_extra_args: bool = False
) -> GradientTransformationExtraArgs:
    """:func:`torchopt.transform.masked` with a required mask.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> tx = optax.masked(optax.scale(-1.0), {'w': True, 'b': False})
        >>> g = {'w': torch.tensor(1.0), 'b': torch.tensor(1.0)}
        >>> tx.update(g, tx.init(g))[0]
        {'w': tensor(-1.), 'b': tensor(1.)}
    """
    return transform.masked(inner, mask, mask_compatible_extra_args=mask_compatible_extra_args)


def scale_by_adadelta(rho: Any = 0.9, eps: Any = 1e-6) -> GradientTransformation:
    """:func:`torchopt.transform.scale_by_adadelta`.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> tx = optax.scale_by_adadelta(rho=0.0, eps=9.0)
        >>> tx.update([torch.tensor(4.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(2.4000)]
    """
    return transform.scale_by_adadelta(rho, eps)


def scale_by_adam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """:func:`torchopt.transform.scale_by_adam`.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> tx = optax.scale_by_adam(0.9, 0.999, 1e-8, 0.0, torch.bfloat16)
        >>> tx.init([torch.zeros(2)]).mu
        [tensor([0., 0.], dtype=torch.bfloat16)]
    """
    return transform.scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov, mu_dtype=mu_dtype)


@factory
def scale_by_adamax(b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8) -> GradientTransformation:
    """:func:`torchopt.transform.scale_by_adamax` with a smaller epsilon, and Adam's state.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> tx = optax.scale_by_adamax()
        >>> isinstance(tx.init([torch.zeros(2)]), optax.ScaleByAdamState)
        True
    """
    return _with_adam_state(transform.scale_by_adamax(b1, b2, eps))


def scale_by_learning_rate(learning_rate: Any = None, *, flip_sign: bool = True) -> GradientTransformation:
    """:func:`torchopt.transform.scale_by_learning_rate`; None gives the identity.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optax.scale_by_learning_rate()
        identity()
    """
    return identity() if learning_rate is None else transform.scale_by_learning_rate(learning_rate, flip_sign=flip_sign)


@factory
def scale_by_radam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    threshold: float = 5.0,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """:func:`torchopt.transform.scale_by_radam` with epsilon after the correction, and Adam's state.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> tx = optax.scale_by_radam(threshold=0.0)
        >>> tx.update([torch.tensor(-4.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(-0.0388)]
    """
    options: Any = {'eps_root': eps_root, 'threshold': threshold, 'nesterov': nesterov}
    return _with_adam_state(transform.scale_by_radam(b1, b2, eps, eps_after_correction=True, **options))


def scale_by_rms(
    decay: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransformation:
    """:func:`torchopt.transform.scale_by_rms` with epsilon inside the root.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> tx = optax.scale_by_rms(decay=0.75, eps=1.75)
        >>> tx.update([torch.tensor(3.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(1.5000)]
    """
    return transform.scale_by_rms(decay, eps, initial_scale, eps_in_sqrt=eps_in_sqrt, bias_correction=bias_correction)


def scale_by_rss(initial_accumulator_value: float = 0.1, eps: Any = 1e-7) -> GradientTransformation:
    """:func:`torchopt.transform.scale_by_rss` with epsilon inside the root.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> tx = optax.scale_by_rss(initial_accumulator_value=6.0, eps=1.0)
        >>> tx.update([torch.tensor(3.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(0.7500)]
    """
    return transform.scale_by_rss(initial_accumulator_value, eps, eps_in_sqrt=True)


def scale_by_stddev(
    decay: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransformation:
    """:func:`torchopt.transform.scale_by_stddev` with epsilon inside the root.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> tx = optax.scale_by_stddev(decay=0.5, eps=4.0)
        >>> tx.update([torch.tensor(3.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(1.2000)]
    """
    return transform.scale_by_stddev(
        decay, eps, initial_scale, eps_in_sqrt=eps_in_sqrt, bias_correction=bias_correction
    )


@factory
def trace(decay: Any, nesterov: bool = False, accumulator_dtype: DTypeLike | None = None) -> GradientTransformation:
    """:func:`torchopt.transform.trace`; a decay of zero has a state, too, and may be combined with ``nesterov``.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> tx = optax.trace(0.5, accumulator_dtype=torch.bfloat16)
        >>> _, state = tx.update([torch.tensor(2.0)], tx.init([torch.tensor(0.0)]))
        >>> tx.update([torch.tensor(2.0)], state)[0], state
        ([tensor(3.)], TraceState(trace=[tensor(2., dtype=torch.bfloat16)]))
    """
    ranges.at_least_zero('decay value', decay)
    dtype = ranges.moment_dtype(accumulator_dtype, 'accumulator_dtype')
    return decaying_sum(decay, 0.0, nesterov, False, dtype)


def _with_adam_state(tx: GradientTransformation) -> ElementwiseTransformation:
    """The same, with a state of Adam's class, whose fields are also the count and two moments."""
    assert isinstance(tx, ElementwiseTransformation)

    def prepare(state: Any) -> elementwise.ElementwiseStep:
        step = tx.prepare(state)
        return step._replace(make_state=lambda *moments: ScaleByAdamState(*step.make_state(*moments)))

    requires = (state_of(ScaleByAdamState), *tx.requires[1:])
    return ElementwiseTransformation(lambda params: ScaleByAdamState(*tx.init(params)), prepare, *requires)
