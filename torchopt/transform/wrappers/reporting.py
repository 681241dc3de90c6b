# SPDX-License-Identifier: Apache-2.0
"""Report measurements of a step to a logger, such as TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torchopt import checks, tree
from torchopt.base import GradientTransformationExtraArgs, factory
from torchopt.kinds import kind_of
from torchopt.levels import eager, is_readable
from torchopt.numerics import safe_increment, zero_count
from torchopt.preconditions import state_of
from torchopt.transform.wrappers.monitoring import monitor
from torchopt.tree.ops import detached


@tree.safe_to_load
class ReportState(NamedTuple):
    """State of :func:`report`: the step count, and the state of its :func:`monitor`."""

    count: Any
    inner_state: Any


@factory
def report(
    write: Callable[[str, Any, int], Any], measures: dict[str, Any], every: int = 1
) -> GradientTransformationExtraArgs:
    """Measure the updates, and call a function with the measurements; the updates do not change.

    ``write`` is any callable, such as the method ``add_scalar`` of a ``SummaryWriter`` of TensorBoard.  It receives
    tensors that are not yet synchronized with the host, so only ``write`` may wait for a device.

    Under ``torch.compile`` the call breaks the graph, and ``fullgraph=True`` is an error.  Under ``torch.vmap`` there
    is a batch of values instead of one, which is an error.  Inside ``torch.func.grad`` it is called as usual.

    Args:
        write: Called as ``write(name, value, step)`` for each measure.  The value is a tensor without a graph, or a
            tree of them if the measure returns a tree; the step is the number of previous steps.
        measures: See :func:`monitor`.
        every: Call it at steps 0, ``every``, ``2 * every``, ...; a positive integer.

    Returns:
        A transformation with state :class:`ReportState`, which always contains the last measurements.

    Raises:
        TypeError: If ``write`` or a measure is not callable, or ``every`` is not an integer.
        ValueError: If ``every`` is not positive.
        RuntimeError: In ``update``, under ``torch.vmap``.

    Example:
        >>> import torch, torchopt
        >>> def write(name, value, step):
        ...     print(f'{step}: {name} = {value:.1f}')
        >>> tx = torchopt.chain(torchopt.transform.report(write, {'norm': torchopt.tree.norm}), torchopt.sgd(0.1))
        >>> state = tx.init([torch.zeros(2)])
        >>> for scale in (1.0, 2.0):
        ...     updates, state = tx.update([scale * torch.tensor([3.0, 4.0])], state)
        0: norm = 5.0
        1: norm = 10.0
    """
    if not callable(write):
        raise TypeError(f'write is {kind_of(write)}; expected a function of a name, a value and a step.')
    if isinstance(every, bool) or not isinstance(every, int):
        raise TypeError(f'every is {every!r}; expected a positive integer.')
    checks.positive('every', every)
    inner = monitor(measures)

    @eager
    def call(measured: Any, count: Any) -> None:
        if not all(map(is_readable, [count, *tree.leaves(measured)])):
            raise RuntimeError(
                'report does not support torch.vmap, where each measurement is a batch of values. Use monitor instead, '
                'and read its measurements from the state.'
            )
        step = int(count)
        if step % every == 0:
            for name, value in measured.items():
                write(name, detached(value), step)

    def init(params: Any) -> ReportState:
        return ReportState(zero_count(), inner.init(params))

    def update(
        updates: Any, state: ReportState, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, ReportState]:
        updates, new = inner.update(updates, state.inner_state, params, inplace=inplace, **extra)
        call(new.measurements, state.count)
        return updates, ReportState(safe_increment(state.count), new)

    return GradientTransformationExtraArgs.requiring(init, update, state_of(ReportState))
