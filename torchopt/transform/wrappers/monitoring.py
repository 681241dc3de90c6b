# SPDX-License-Identifier: Apache-2.0
"""Measure updates inside a chain, and store the measurements in the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torchopt import tree
from torchopt.base import (
    ChainedGradientTransformation,
    GradientTransformation,
    GradientTransformationExtraArgs,
    factory,
    with_extra_args_support,
)
from torchopt.dtypes import DTypeLike
from torchopt.kinds import kind_of
from torchopt.preconditions import state_of
from torchopt.transform.scaling.accumulation import ema
from torchopt.transform.scaling.stateless import stateless


@tree.safe_to_load
class SnapshotState(NamedTuple):
    """State of :func:`snapshot`: a dict from the name to the last measurement."""

    measurement: Any


@tree.safe_to_load
class MonitorState(NamedTuple):
    """State of :func:`monitor`: a dict from names to the last measurements, and the states of the measures."""

    measurements: Any
    measure_states: Any


@factory
def snapshot(measure_name: str, measure: Callable[[Any], Any]) -> GradientTransformation:
    """Store a measurement of the updates in the state; the updates do not change.

    Args:
        measure_name: The name with which :func:`torchopt.tree.get` finds the measurement in the state.
        measure: The measure, a function of the tree of updates.  ``init`` calls it with the parameters.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.chain(torchopt.transform.snapshot('norm', torchopt.tree.norm), torchopt.sgd(0.1))
        >>> params = [torch.zeros(2)]
        >>> _, state = tx.update([torch.tensor([3.0, 4.0])], tx.init(params))
        >>> torchopt.tree.get(state, 'norm')
        tensor(5.)
    """

    def init(params: Any) -> SnapshotState:
        return SnapshotState({measure_name: measure(params)})

    def update(
        updates: Any, state: SnapshotState, params: Any = None, *, inplace: bool = False
    ) -> tuple[Any, SnapshotState]:
        return updates, SnapshotState({measure_name: measure(updates)})

    return GradientTransformation(init, update)


def _measure(measure: Callable[[Any], Any], updates: Any, params: Any) -> Any:
    return measure(updates)


@factory
def monitor(measures: dict[str, Any]) -> GradientTransformationExtraArgs:
    """Store several measurements of the updates in the state; the updates do not change.

    Args:
        measures: A dict from names to measures: functions of the tree of updates, or transformations whose results are
            stored, such as :func:`measure_with_ema`.

    Returns:
        A transformation with state :class:`MonitorState`, whose measurements are empty before the first step.

    Raises:
        TypeError: If a measure is neither a function nor a transformation.

    Example:
        >>> import torch, torchopt
        >>> measures = {
        ...     'norm': torchopt.tree.norm,
        ...     'mean': torchopt.transform.measure_with_ema(torchopt.tree.norm, 0.9),
        ... }
        >>> tx = torchopt.transform.monitor(measures)
        >>> _, state = tx.update([torch.tensor([3.0, 4.0])], tx.init([torch.zeros(2)]))
        >>> state.measurements
        {'norm': tensor(5.), 'mean': tensor(5.)}
    """
    members: dict[str, GradientTransformationExtraArgs] = {}
    if not isinstance(measures, Mapping):
        raise TypeError(f'measures is {kind_of(measures)}; expected a dict from names to measures.')
    for name, measure in measures.items():
        if not (isinstance(measure, GradientTransformation) or callable(measure)):
            raise TypeError(
                f'measures[{name!r}] is {kind_of(measure)}; expected a function of the updates, or a '
                f'transformation such as measure_with_ema.'
            )
        if not isinstance(measure, GradientTransformation):
            measure = stateless(partial(_measure, measure))
        members[name] = with_extra_args_support(measure)

    def init(params: Any) -> MonitorState:
        return MonitorState({}, tuple(tx.init(params) for tx in members.values()))

    def update(
        updates: Any, state: MonitorState, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, MonitorState]:
        measured, states = {}, []
        for (name, tx), own in zip(members.items(), state.measure_states):
            measured[name], new = tx.update(updates, own, params, inplace=inplace, **extra)
            states.append(new)
        return updates, MonitorState(measured, tuple(states))

    return GradientTransformationExtraArgs.requiring(init, update, state_of(MonitorState))


@factory
def measure_with_ema(
    measure: Callable[[Any], Any], decay: Any, debias: bool = True, accumulator_dtype: DTypeLike | None = None
) -> GradientTransformationExtraArgs:
    """A measure for :func:`monitor`: the moving average of another measure.

    Args:
        measure: A function of the tree of updates, which returns a tree of floating tensors.
        decay: See :func:`ema`.
        debias: See :func:`ema`.
        accumulator_dtype: See :func:`ema`.

    Returns:
        A transformation that replaces updates by the average of the measurements.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.measure_with_ema(torchopt.tree.norm, 0.5)
        >>> state = tx.init([torch.zeros(2)])
        >>> for scale in (1.0, 4.0):
        ...     measured, state = tx.update([scale * torch.tensor([0.0, 1.0])], state)
        >>> measured
        tensor(3.)
    """
    average = _average_of(measure, decay, debias, accumulator_dtype)
    return ChainedGradientTransformation(stateless(partial(_measure, measure)), average)


@factory
def _average_of(measure: Callable[[Any], Any], *call: Any) -> GradientTransformation:
    """The moving average of measurements; its state begins with the measurement of the parameters."""
    average = ema(*call)
    return average._replace(init=lambda params: average.init(measure(params)))
