# SPDX-License-Identifier: Apache-2.0
"""A record of a bilevel run, and a page of its curves: losses, gradient norms, step sizes, bytes of the inner steps."""

from __future__ import annotations

import html
import io
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchopt import tree
from torchopt.kinds import kind_of
from torchopt.levels import in_transform
from torchopt.visual.plots import pyplot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class StepRecord(NamedTuple):
    """What :class:`BilevelRecorder` knows of a step; NaN where nothing was recorded.

    Attributes:
        loss: The loss.
        gradient_norm: The Euclidean norm of the gradients.
        step_size: The step size, such as a learning rate.
        kept_bytes: The bytes of the tensors that were created in the step and were alive at its end.
    """

    loss: float
    gradient_norm: float
    step_size: float
    kept_bytes: float


class _CreatedStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The storages that operations create: weak references, so that they die as usual."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.created: dict[int, tuple[weakref.ref[Any], int]] = {}
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A view or an operation in place returns the storage of an argument, which need not be new.
        self.known.update(s._cdata for s in _storages((args, kwargs)) if s._cdata not in self.created)
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in self.known:
                self.created[storage._cdata] = weakref.ref(storage), storage.nbytes()
        return result

    def alive(self) -> int:
        """The bytes of those that are still alive."""
        return sum(size for storage, size in self.created.values() if storage() is not None)


def _storages(values: Any) -> Iterator[Any]:
    for leaf in tree.leaves(values):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
            yield leaf.untyped_storage()


class BilevelRecorder:
    """Records the steps of both levels of a bilevel run, and draws them.

    Call :meth:`inner` after each inner step and :meth:`outer` after each outer step. Do a step inside of ``with
    recorder.memory():`` to count the bytes that it leaves behind, for example the graph that a differentiable step
    keeps; every operation then takes some microseconds longer.

    Attributes:
        inner_steps: A list of the steps, :class:`StepRecord`, for each inner loop.
        outer_steps: A list of the outer steps.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.visual import BilevelRecorder
        >>> recorder = BilevelRecorder()
        >>> rate = torch.tensor(0.1, requires_grad=True)
        >>> for _ in range(2):
        ...     w = torch.tensor(1.0, requires_grad=True)
        ...     for _ in range(3):
        ...         with recorder.memory():
        ...             loss = w**4
        ...             (grad,) = torch.autograd.grad(loss, w, create_graph=True)
        ...             w = w - rate * grad
        ...         recorder.inner(loss, gradients=grad, step_size=rate)
        ...     (meta_grad,) = torch.autograd.grad(w**2, rate)
        ...     recorder.outer(w**2, gradients=meta_grad)
        >>> [len(steps) for steps in recorder.inner_steps], len(recorder.outer_steps)
        ([3, 3], 2)
        >>> round(recorder.inner_steps[0][0].gradient_norm, 3), recorder.inner_steps[0][0].kept_bytes > 0
        (4.0, True)
    """

    def __init__(self) -> None:
        self.inner_steps: list[list[StepRecord]] = []
        self.outer_steps: list[StepRecord] = []
        self._bytes = math.nan

    def inner(self, loss: Any, *, gradients: Any = None, step_size: Any = None) -> None:
        """Record an inner step.

        Args:
            loss: A number or a tensor of one element.
            gradients: A tensor or a tree of tensors; its norm is recorded.
            step_size: A number or a tensor of one element.

        Raises:
            TypeError: If ``loss`` or ``step_size`` is neither.
            RuntimeError: If called inside of a transform of ``torch.func``.
        """
        record = self._record(loss, gradients, step_size)
        self._open_loop().append(record)

    def outer(self, loss: Any, *, gradients: Any = None, step_size: Any = None) -> None:
        """Record an outer step, after its inner steps; the next inner step belongs to a new loop.

        Args:
            loss: As in :meth:`inner`, of the outer problem.
            gradients: The meta-gradients.
            step_size: The step size of the outer optimizer.

        Raises:
            TypeError: If ``loss`` or ``step_size`` is neither a number nor a tensor of one element.
            RuntimeError: If called inside of a transform of ``torch.func``.
        """
        record = self._record(loss, gradients, step_size)
        self._open_loop()
        self.outer_steps.append(record)

    def _open_loop(self) -> list[StepRecord]:
        """The inner steps since the last outer step."""
        if len(self.inner_steps) == len(self.outer_steps):
            self.inner_steps.append([])
        return self.inner_steps[-1]

    @contextmanager
    def memory(self) -> Iterator[None]:
        """Count the bytes of tensors that are created inside and alive at the end, for the next record."""
        with _CreatedStorages() as created:
            yield
        self._bytes = float(created.alive())

    def _record(self, loss: Any, gradients: Any, step_size: Any) -> StepRecord:
        if in_transform():
            raise RuntimeError(
                'A recorder cannot read values inside of a transform of torch.func. Return them, and record outside.'
            )
        with torch.no_grad():
            norm = math.nan if gradients is None else float(tree.norm(gradients))
        record = StepRecord(_number('loss', loss), norm, _number('step_size', step_size), self._bytes)
        self._bytes = math.nan
        return record

    def plot(self) -> Figure:
        """Draw four panels: losses, gradient norms, step sizes, and bytes; inner steps lie between the outer ones.

        Returns:
            A figure of matplotlib.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If nothing was recorded.
        """
        plt = pyplot()
        if not self.inner_steps:
            raise ValueError('Nothing was recorded. Call inner() after an inner step, and outer() after an outer one.')
        figure, panels = plt.subplots(2, 2, figsize=(10, 6), layout='constrained')
        titles = ('Losses', 'Gradient norms', 'Step sizes', 'Bytes kept by an inner step')
        for axis, field, title in zip(panels.flat, StepRecord._fields, titles):
            for number, steps in enumerate(self.inner_steps):
                places = [number + (i + 1) / (len(steps) + 1) for i in range(len(steps))]
                values = [getattr(step, field) for step in steps]
                axis.plot(places, values, '.-', ms=3, lw=1, color='tab:blue', label='inner' if number == 0 else None)
            if field != 'kept_bytes':
                values = [getattr(step, field) for step in self.outer_steps]
                axis.plot(range(1, len(values) + 1), values, 'o-', ms=4, color='tab:orange', label='outer')
            shown = [v for line in axis.lines for v in line.get_ydata() if math.isfinite(v)]
            if field in ('gradient_norm', 'step_size') and shown and min(shown) > 0:
                axis.set_yscale('log')
            elif field == 'kept_bytes' and shown:
                axis.set_ylim(0, 1.1 * max(shown) + 1)
            elif not shown:
                axis.text(0.5, 0.5, 'not recorded', ha='center', transform=axis.transAxes, color='gray')
            axis.set(xlabel='outer step', title=title)
        panels[0, 0].legend()
        return figure

    def save(self, path: str | Path) -> None:
        """Save the drawing: as a page of HTML with a table of the outer steps, or as an image (PNG, SVG, PDF).

        Args:
            path: The file; its suffix decides.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If nothing was recorded, or matplotlib does not know the suffix.
        """
        plt, figure = pyplot(), self.plot()
        try:
            if Path(path).suffix.lower() != '.html':
                figure.savefig(path, dpi=110)
                return
            drawing = io.StringIO()
            figure.savefig(drawing, format='svg', metadata={'Date': None})
        finally:
            plt.close(figure)
        Path(path).write_text(self._page(drawing.getvalue()), encoding='utf-8')

    def _page(self, drawing: str) -> str:
        names = ('outer step', 'inner steps', 'last inner loss', *(f.replace('_', ' ') for f in StepRecord._fields[:3]))
        rows = []
        for number, (step, inner) in enumerate(zip(self.outer_steps, self.inner_steps), 1):
            last = inner[-1].loss if inner else math.nan
            numbers = (last, step.loss, step.gradient_norm, step.step_size)
            shown = [str(number), str(len(inner)), *('' if math.isnan(x) else f'{x:.4g}' for x in numbers)]
            rows.append(''.join(f'<td>{html.escape(x)}</td>' for x in shown))
        head = ''.join(f'<th>{html.escape(name)}</th>' for name in names)
        body = '\n'.join(f'<tr>{row}</tr>' for row in rows)
        return _PAGE.format(drawing=drawing[drawing.index('<svg') :], head=head, body=body)


def _number(name: str, value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value.detach())
    if isinstance(value, (int, float)):
        return float(value)
    what = f'a tensor of shape {tuple(value.shape)}' if isinstance(value, Tensor) else kind_of(value)
    raise TypeError(f'{name}: {what}. Pass a number, or a real tensor of one element.')


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>A bilevel run</title>
<style>
body {{ font: 14px sans-serif; max-width: 60rem; margin: 2rem auto; background: #fff; color: #111; }}
svg {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: 0.2rem 0.8rem; text-align: right; border-bottom: 1px solid #ccc; }}
</style>
</head>
<body>
<h1>A bilevel run</h1>
{drawing}
<table>
<tr>{head}</tr>
{body}
</table>
</body>
</html>
"""
