# SPDX-License-Identifier: Apache-2.0
"""Apply a transformation only in some steps: if a condition holds, or if all gradients are finite."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

from torchopt import checks, tree
from torchopt.base import GradientTransformationExtraArgs, TransformationLike, factory, with_extra_args_support
from torchopt.graphs import zeros_of
from torchopt.kinds import kind_of
from torchopt.loop.branches import branch
from torchopt.numerics import increment, safe_increment, zero_count
from torchopt.preconditions import required_by, state_of


class ConditionFn(Protocol):
    """``condition(step, **extra)``: whether to transform in this step, a bool or a 0-d tensor."""

    def __call__(self, step: Any, **extra_args: Any) -> Any:
        """Return whether to transform in this step."""


@tree.safe_to_load
class ConditionallyTransformState(NamedTuple):
    """State of :func:`conditionally_transform`: the state of the inner transformation, and the step count."""

    inner_state: Any
    step: Any


@tree.safe_to_load
class ConditionallyMaskState(NamedTuple):
    """State of :func:`conditionally_mask`: the step count, and the state of the inner transformation."""

    step: Any
    inner_state: Any


@tree.safe_to_load
class ApplyIfFiniteState(NamedTuple):
    """State of :func:`apply_if_finite`.

    Attributes:
        notfinite_count: The number of consecutive steps until now with gradients that are not finite.
        last_finite: Whether the gradients of the last step were finite.
        total_notfinite: The total number of steps with gradients that are not finite.
        inner_state: The state of the inner transformation.
    """

    notfinite_count: Any
    last_finite: Any
    total_notfinite: Any
    inner_state: Any


@factory
def conditionally_transform(
    inner: TransformationLike, should_transform_fn: Any, forward_extra_args: bool = False
) -> GradientTransformationExtraArgs:
    """Apply a transformation in steps in which a condition holds; in all other steps updates do not change.

    Args:
        inner: The transformation.  Its state does not change in steps in which the condition does not hold.
        should_transform_fn: The condition, ``condition(step)`` with the step count, a 0-d int64 tensor.
        forward_extra_args: Whether to pass the extra arguments of ``update`` to the condition, too.

    Returns:
        A transformation with state :class:`ConditionallyTransformState`.

    Raises:
        TypeError: If ``inner`` is not a transformation, or the condition is not callable.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.conditionally_transform(torchopt.transform.scale(10.0), lambda step: step >= 1)
        >>> state = tx.init([torch.zeros(())])
        >>> for _ in range(2):
        ...     updates, state = tx.update([torch.ones(())], state)
        ...     print(updates)
        [tensor(1.)]
        [tensor(10.)]
    """
    return _conditionally(inner, should_transform_fn, forward_extra_args, ConditionallyTransformState, lambda u: u)


@factory
def conditionally_mask(
    inner: TransformationLike, should_transform_fn: Any, forward_extra_args: bool = False
) -> GradientTransformationExtraArgs:
    """Apply a transformation in steps in which a condition holds; in all other steps updates are zero.

    The arguments and errors are those of :func:`conditionally_transform`.

    Returns:
        A transformation with state :class:`ConditionallyMaskState`.

    Example:
        >>> import torch, torchopt
        >>> def falls(step, *, value):
        ...     return value < 1.0
        >>> tx = torchopt.transform.conditionally_mask(torchopt.sgd(0.5), falls, forward_extra_args=True)
        >>> tx.update([torch.ones(())], tx.init([torch.zeros(())]), value=torch.tensor(2.0))[0]
        [tensor(0.)]
    """
    return _conditionally(inner, should_transform_fn, forward_extra_args, ConditionallyMaskState, _zeros)


def _conditionally(
    inner: TransformationLike, condition: Any, forward_extra_args: bool, kind: Any, otherwise: Any
) -> GradientTransformationExtraArgs:
    wide = with_extra_args_support(inner)
    if not callable(condition):
        raise TypeError(
            f'Invalid should_transform_fn: {kind_of(condition)}; expected a function from the step count to a bool.'
        )

    def init(params: Any) -> Any:
        return kind(inner_state=wide.init(params), step=zero_count())

    def update(updates: Any, state: Any, params: Any = None, *, inplace: bool = False, **extra: Any) -> tuple[Any, Any]:
        new, inner_state = branch(
            condition(state.step, **extra) if forward_extra_args else condition(state.step),
            lambda inplace: wide.update(updates, state.inner_state, params, inplace=inplace, **extra),
            lambda inplace: (otherwise(updates), state.inner_state),
            inplace=inplace,
        )
        return new, kind(inner_state=inner_state, step=increment(state.step))

    return GradientTransformationExtraArgs.requiring(init, update, state_of(kind), required_by(wide, 'inner_state'))


@factory
def apply_if_finite(inner: TransformationLike, max_consecutive_errors: int) -> GradientTransformationExtraArgs:
    """Apply a transformation if all gradients are finite; otherwise skip the step, up to a limit.

    If a gradient has NaN or infinity, the updates are zero and the inner state does not change.  After
    ``max_consecutive_errors`` such steps in a row, the next step is taken anyway, so that the error becomes visible.

    Args:
        inner: The transformation.
        max_consecutive_errors: The maximum number of consecutive steps to skip.

    Returns:
        A transformation with state :class:`ApplyIfFiniteState`.

    Raises:
        TypeError: If ``inner`` is not a transformation.
        ValueError: If ``max_consecutive_errors`` is negative.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.apply_if_finite(torchopt.sgd(0.5), max_consecutive_errors=5)
        >>> updates, state = tx.update([torch.tensor(float('nan'))], tx.init([torch.zeros(())]))
        >>> updates, int(state.notfinite_count)
        ([tensor(0.)], 1)
    """
    checks.at_least('max_consecutive_errors value', max_consecutive_errors)
    wide = with_extra_args_support(inner)

    def init(params: Any) -> ApplyIfFiniteState:
        return ApplyIfFiniteState(zero_count(), torch.tensor(True, device='cpu'), zero_count(), wide.init(params))

    def update(
        updates: Any, state: ApplyIfFiniteState, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, ApplyIfFiniteState]:
        finite = _all_finite(updates)
        consecutive, total = state.notfinite_count.to(finite.device), state.total_notfinite.to(finite.device)
        consecutive = torch.where(finite, torch.zeros_like(consecutive), safe_increment(consecutive))
        new, inner_state = branch(
            finite | (consecutive > max_consecutive_errors),
            lambda inplace: wide.update(updates, state.inner_state, params, inplace=inplace, **extra),
            lambda inplace: (_zeros(updates), state.inner_state),
            inplace=inplace,
        )
        total = torch.where(finite, total, safe_increment(total))
        return new, ApplyIfFiniteState(consecutive, finite, total, inner_state)

    return GradientTransformationExtraArgs.requiring(
        init, update, state_of(ApplyIfFiniteState), required_by(wide, 'inner_state')
    )


def _all_finite(updates: Any) -> torch.Tensor:
    flags = [g.isfinite().all() for g in tree.leaves(updates)]
    if not flags:
        return torch.tensor(True, device='cpu')
    return torch.stack([flag.to(flags[0].device) for flag in flags]).all()


def _zeros(updates: Any) -> Any:
    return tree.map(zeros_of, updates)
