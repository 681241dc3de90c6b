# SPDX-License-Identifier: Apache-2.0
"""Multiply updates by a constant, a schedule, or the negative learning rate."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from torchopt import checks, elementwise, rules, tree
from torchopt.base import ElementwiseTransformation, EmptyState, GradientTransformation, factory, init_empty_state
from torchopt.elementwise import ranges
from torchopt.numerics import as_python_scalar, increment, zero_count
from torchopt.preconditions import Precondition, state_of


def _rule(sign: int, factor: Any) -> partial[Any]:
    """The rule that multiplies by a factor, a Python number if possible."""
    factor = factor if sign == 1 else sign * factor
    number = factor if type(factor) is float else as_python_scalar(factor)
    return partial(rules.scale, factor=factor if number is None else number)


def _constant(sign: int, name: str, value: Any) -> GradientTransformation:
    if type(value) is float:
        return ElementwiseTransformation(
            init_empty_state, elementwise.ElementwiseStep(_rule(sign, value), (), EmptyState)
        )
    hypers = elementwise.Hyperparams(lambda **named: _rule(sign, named[name]), **{name: value})

    def step(state: Any = None) -> elementwise.ElementwiseStep:
        return elementwise.ElementwiseStep(hypers.rule(), (), EmptyState)

    # A tensor may be learned, and requires a new graph in every step.
    return ElementwiseTransformation(init_empty_state, step if isinstance(value, Tensor) else step(), hypers=hypers)


@factory
def scale(step_size: Any) -> GradientTransformation:
    r"""Multiply every update by a constant: :math:`u = s\,g`.

    Args:
        step_size: The factor :math:`s`, a number or a 0-d tensor; or a tree of them with the structure of the updates
            or a prefix of it, whose tensors may also have the shapes of the updates.  Tensors that require grad get
            gradients.

    Raises:
        ValueError: If the factor is NaN, or a tensor of more than one element.
        TypeError: If it is neither a number nor a tensor.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale(2.0)
        >>> tx.update({'w': torch.tensor(3.0)}, tx.init({'w': torch.tensor(0.0)}))[0]
        {'w': tensor(6.)}
    """
    ranges.number('step_size value', step_size)
    return _constant(1, 'step_size', step_size)


@tree.safe_to_load
class ScaleByScheduleState(NamedTuple):
    """State of :func:`scale_by_schedule`: the step count."""

    count: Any


@factory
def scale_by_schedule(step_size_fn: Any) -> GradientTransformation:
    r"""Multiply every update by a schedule: :math:`u_t = s(t)\,g_t`, with :math:`t = 0` at the first step.

    Args:
        step_size_fn: The schedule, a function from the step count to a number or 0-d tensor.  The count is a 0-d int64
            tensor on the CPU, which works with functions of both ``math`` and torch.

    Raises:
        TypeError: If ``step_size_fn`` is not a function.
        ValueError: In ``update``, if the schedule returns NaN, infinity or several numbers, before any change.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_schedule(lambda count: 0.5**count)
        >>> state = tx.init([torch.tensor(1.0)])
        >>> for _ in range(3):
        ...     u, state = tx.update([torch.tensor(1.0)], state)
        >>> u
        [tensor(0.2500)]
    """
    checks.schedule('step_size_fn', step_size_fn)
    return _scheduled(step_size_fn, 1)


def _scheduled(schedule: Any, sign: int) -> GradientTransformation:
    def value(state: ScaleByScheduleState, params: Any = None) -> Any:
        return checks.schedule_value(schedule(state.count), state.count)

    def init(params: Any) -> ScaleByScheduleState:
        return ScaleByScheduleState(zero_count())

    def prepare(state: ScaleByScheduleState) -> elementwise.ElementwiseStep:
        return elementwise.ElementwiseStep(
            _rule(sign, value(state)), (), lambda: ScaleByScheduleState(increment(state.count))
        )

    return ElementwiseTransformation(init, prepare, state_of(ScaleByScheduleState), Precondition(value))


@factory
def scale_by_learning_rate(learning_rate: Any, *, flip_sign: bool = True) -> GradientTransformation:
    r"""Multiply every update by the negative learning rate: :math:`u = -\eta\,g`.

    This is the last stage of an optimizer; its results are added to the parameters.

    Args:
        learning_rate: :math:`\eta \ge 0`: a number, a 0-d tensor (learned if it requires grad) or a schedule; or a
            tree of numbers and tensors with the structure of the parameters or a prefix of it, for one rate per
            parameter.  Tensors in a tree may also have the shapes of their parameters, for one rate per element; such
            steps run in plain torch.
        flip_sign: False multiplies by :math:`+\eta`, for gradient ascent.

    Raises:
        ValueError: If the learning rate is negative, NaN or infinite.
        TypeError: If it is neither a number, a tensor nor callable.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_learning_rate(0.1)
        >>> tx.update([torch.tensor(2.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(-0.2000)]
        >>> tx = torchopt.transform.scale_by_learning_rate({'w': 0.1, 'b': torch.tensor(0.5)})
        >>> g = {'w': [torch.tensor(2.0), torch.tensor(4.0)], 'b': torch.tensor(2.0)}
        >>> tx.update(g, tx.init(g))[0]
        {'w': [tensor(-0.2000), tensor(-0.4000)], 'b': tensor(-1.)}

    References:
        Li et al., `Meta-SGD: learning to learn quickly for few-shot learning
        <https://arxiv.org/abs/1707.09835>`_, 2017, which learns a rate of each element.
        Antoniou et al., `How to train your MAML <https://arxiv.org/abs/1810.09502>`_, ICLR 2019, which learns a
        rate of each layer and step.
    """
    if isinstance(learning_rate, GradientTransformation):
        raise TypeError(
            'Invalid learning rate: a transformation; expected a number, a 0-d tensor or a schedule. To train with the '
            'transformation, use torchopt.Optimizer(params, transformation).'
        )
    ranges.learning_rate(learning_rate)
    sign = -1 if flip_sign else 1
    if type(learning_rate) is not float and checks.is_schedule(learning_rate):
        return _scheduled(learning_rate, sign)
    return _constant(sign, 'learning_rate', learning_rate)
