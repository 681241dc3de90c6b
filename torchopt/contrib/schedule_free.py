# SPDX-License-Identifier: Apache-2.0
"""Schedule-free optimization: averaging of the iterates instead of a learning rate schedule."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import GradientTransformationExtraArgs, TransformationLike, factory, with_extra_args_support
from torchopt.combine import chain
from torchopt.contrib.constants import kept_copy, without_graphs
from torchopt.contrib.scalars import check_rate, rate_at, scalar_beside
from torchopt.dtypes import DTypeLike, as_dtype
from torchopt.kinds import kind_of
from torchopt.numerics import as_python_scalar, as_scalar_like, increment, positive_ratio, tensor_like, zero_count
from torchopt.preconditions import Precondition, params_for, required_by, state_of
from torchopt.rules import average
from torchopt.schedule import warmup_constant_schedule
from torchopt.spelling import suggesting
from torchopt.transform import add_decayed_weights, scale_by_learning_rate, scale_by_rms


@tree.safe_to_load
class ScheduleFreeState(NamedTuple):
    """State of :func:`schedule_free`.

    Attributes:
        b1: The weight of the average in the parameters.
        weight_sum: The sum of the weights of all iterates.
        step_count: The step count plus one.
        max_lr: The largest learning rate so far.
        base_optimizer_state: The state of the optimizer.
        z: The iterates of the optimizer.
    """

    b1: Any
    weight_sum: Any
    step_count: Any
    max_lr: Any
    base_optimizer_state: Any
    z: Any


def schedule_free_eval_params(state: Any, params: Any) -> Any:
    r"""The parameters to evaluate with: the average :math:`x = (y - (1 - \beta) z) / \beta` of the iterates.

    Args:
        state: The state of :func:`schedule_free`.
        params: The parameters :math:`y` of training.

    Raises:
        ValueError: If ``state`` is another kind of state.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.contrib import schedule_free_eval_params, schedule_free_sgd
        >>> optimizer = schedule_free_sgd(0.1)
        >>> y = [torch.tensor(1.0)]
        >>> schedule_free_eval_params(optimizer.init(y), y)
        [tensor(1.)]
    """
    b1, z = getattr(state, 'b1', None), getattr(state, 'z', None)
    if b1 is None or z is None:
        raise ValueError(
            f'The state is {kind_of(state)}; expected a ScheduleFreeState. Pass the state of schedule_free; '
            f'in a chain it is a member of the tuple.'
        )

    def average_of(y: Tensor, z: Tensor) -> Tensor:
        beta = as_scalar_like(b1, y)
        return (y - (1.0 - beta) * z) / beta

    return tree.map(average_of, params, z)


@factory
def schedule_free(
    base_optimizer: TransformationLike,
    learning_rate: Any,
    b1: Any = 0.9,
    weight_lr_power: Any = 2.0,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformationExtraArgs:
    r"""Schedule-free optimization: averaging of the iterates instead of a learning rate schedule.

    The parameters :math:`y` for training are an average of the iterates :math:`z` of an optimizer without momentum and
    of their weighted average :math:`x`, the result (:func:`schedule_free_eval_params`):

    .. math::
        z_{t+1} = z_t + u(\nabla f(y_t)), \qquad
        x_{t+1} = (1 - c_t)\, x_t + c_t z_{t+1}, \qquad
        y_{t+1} = \beta x_{t+1} + (1 - \beta) z_{t+1}, \qquad
        c_t = \frac{w_t}{\sum_{s \le t} w_s}, \quad w_t = \bigl( \max_{s \le t} \eta_s \bigr)^r.

    :math:`x` is not stored, but computed from the two others.

    Args:
        base_optimizer: The optimizer that computes the updates :math:`u`; :math:`\beta` replaces its momentum.
        learning_rate: The learning rate :math:`\eta` of the optimizer, or its schedule, which is first evaluated at 1.
        b1: :math:`\beta`, in (0, 1].
        weight_lr_power: The power :math:`r`.
        state_dtype: The dtype of :math:`z`; None means the dtype of each parameter.

    Returns:
        A transformation with state :class:`ScheduleFreeState`.  The optimizer receives extra arguments.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.schedule_free(torchopt.sgd(0.5), 0.5)
        >>> p = [torch.tensor(1.0)]
        >>> optimizer.update([torch.tensor(2.0)], optimizer.init(p), p)[0]
        [tensor(-1.)]

    References:
        Defazio et al., `The road less scheduled <https://arxiv.org/abs/2405.15682>`_, NeurIPS 2024.
    """
    check_rate(learning_rate)
    known = as_python_scalar(b1)
    if known is not None and not 0.0 < known <= 1.0:
        raise ValueError(f'Invalid b1: {b1}; expected a number in (0, 1].')
    checks.number('weight_lr_power', weight_lr_power)
    dtype = None if state_dtype is None else as_dtype(state_dtype, 'state_dtype')
    wide = with_extra_args_support(base_optimizer)

    def init(params: Any) -> ScheduleFreeState:
        zero = scalar_beside(params, 0.0)
        z = tree.cast(kept_copy(params), dtype)
        return ScheduleFreeState(
            scalar_beside(params, b1), zero, increment(zero_count()), zero.clone(), wide.init(params), z
        )

    def schedule(state: ScheduleFreeState) -> Any:
        return rate_at(learning_rate, state.step_count)

    def update(
        updates: Any, state: ScheduleFreeState, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, ScheduleFreeState]:
        rate = schedule(state)
        _, y, z = without_graphs(updates, params, state.z, inplace=inplace)
        largest = torch.maximum(state.max_lr, tensor_like(rate, state.max_lr))
        weight = largest ** as_scalar_like(weight_lr_power, largest)
        total = state.weight_sum + weight
        part = positive_ratio(weight, total)
        steps, base_state = wide.update(updates, state.base_optimizer_state, params, inplace=inplace, **extra)

        def rule(u: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            c, beta = as_scalar_like(part, y), as_scalar_like(b1, y)
            x = (y - (1.0 - beta) * z) / beta
            z = (z + u).to(z.dtype)
            x = average(1.0 - c, x, c, z)
            return beta * x + (1.0 - beta) * z - y, z

        moved, z = elementwise.apply_rule(rule, steps, z, reads=(y,), inplace=inplace)
        count = increment(state.step_count)
        return moved, ScheduleFreeState(state.b1, total, count, largest, base_state, z)

    return GradientTransformationExtraArgs.requiring(
        init,
        update,
        state_of(ScheduleFreeState),
        params_for('schedule_free, which averages them'),
        Precondition(lambda state, params: schedule(state)),
        required_by(wide, 'base_optimizer_state'),
    )


@suggesting
def schedule_free_sgd(
    learning_rate: Any = 1.0,
    warmup_steps: int | None = None,
    b1: Any = 0.9,
    weight_decay: Any = None,
    weight_lr_power: Any = 2.0,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformationExtraArgs:
    r"""Schedule-free SGD: :func:`schedule_free` of plain gradient descent.

    Args:
        learning_rate: :math:`\eta`.
        warmup_steps: The number of steps in which the learning rate rises from 0; None means no warmup.
        b1: The weight :math:`\beta` of the average in the parameters, in (0, 1].
        weight_decay: :math:`\lambda \ge 0`, an l2 penalty; None means no penalty.
        weight_lr_power: The power :math:`r` of the learning rate in the weights of the average.
        state_dtype: The dtype of :math:`z`; None means the dtype of each parameter.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.schedule_free_sgd(0.5)
        >>> p = [torch.tensor(1.0)]
        >>> optimizer.update([torch.tensor(2.0)], optimizer.init(p), p)[0]
        [tensor(-1.)]

    References:
        Defazio et al., `The road less scheduled <https://arxiv.org/abs/2405.15682>`_, NeurIPS 2024.
    """
    rate = warmed_up(learning_rate, warmup_steps)
    steps = scale_by_learning_rate(rate)
    if weight_decay is not None:
        steps = chain(add_decayed_weights(weight_decay), steps)
    return schedule_free(steps, rate, b1, weight_lr_power, state_dtype)


@suggesting
def schedule_free_adamw(
    learning_rate: Any = 0.0025,
    warmup_steps: int | None = None,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    weight_lr_power: Any = 2.0,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformationExtraArgs:
    r"""Schedule-free AdamW: :func:`schedule_free` of AdamW without momentum.

    The arguments are those of :func:`schedule_free_sgd`, with the decay rate ``b2`` of the mean square, in [0, 1), and
    ``eps``, at least 0.  The weight decay is decoupled.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.schedule_free_adamw(0.5)
        >>> p = [torch.tensor(1.0)]
        >>> optimizer.update([torch.tensor(2.0)], optimizer.init(p), p)[0]
        [tensor(-0.5000)]

    References:
        Defazio et al., `The road less scheduled <https://arxiv.org/abs/2405.15682>`_, NeurIPS 2024.
    """
    rate = warmed_up(learning_rate, warmup_steps)
    steps = chain(
        scale_by_rms(b2, eps, bias_correction=True), add_decayed_weights(weight_decay), scale_by_learning_rate(rate)
    )
    return schedule_free(steps, rate, b1, weight_lr_power, state_dtype)


def warmed_up(learning_rate: Any, warmup_steps: int | None) -> Any:
    """The learning rate, or the schedule that rises to it from zero."""
    if warmup_steps is None:
        return learning_rate
    return warmup_constant_schedule(0.0, learning_rate, warmup_steps)
