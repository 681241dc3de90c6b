# SPDX-License-Identifier: Apache-2.0
"""Plots of schedules, and of losses of two parameters with the paths of optimizers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torchopt.kinds import described

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def pyplot() -> Any:
    """The module ``matplotlib.pyplot``."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('Plots require matplotlib. Run `pip install torchopt[visual]`.') from error
    return plt


def _axes(ax: Axes | None) -> Axes:
    plt = pyplot()
    return plt.subplots(layout='constrained')[1] if ax is None else ax


def _positive(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f'{name}: {described(value)}. Pass a positive integer.') from None
    if number < 1:
        raise ValueError(f'{name}: {number} is not positive. Pass at least 1.')
    return number


def plot_schedule(schedules: Any, steps: int, *, ax: Axes | None = None, log: bool = False) -> Axes:
    """Plot the values of schedules at each step.

    Args:
        schedules: A schedule (a function from the step count to a number), a number, or a mapping of labels to these.
        steps: The number of steps, from 0 on; at least 1.
        ax: The axes; by default new ones in a new figure.
        log: Whether the scale of the values is logarithmic.

    Returns:
        The axes, with one line for each schedule.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If an entry is neither a schedule nor a number, or ``steps`` is not an integer.
        ValueError: If ``steps`` is not positive, or there is no schedule.

    Example:
        >>> import torchopt
        >>> from torchopt.visual import plot_schedule
        >>> ax = plot_schedule({'cosine': torchopt.schedule.cosine_decay_schedule(0.1, 100)}, steps=101)
        >>> [len(line.get_xdata()) for line in ax.lines]
        [101]
    """
    count = _positive('steps', steps)
    rows = dict(schedules) if isinstance(schedules, Mapping) else {'': schedules}
    if not rows:
        raise ValueError('schedules: the mapping is empty. Pass at least one schedule.')
    values = {}
    for label, schedule in rows.items():
        name = f'schedules[{label!r}]' if label else 'schedules'
        if isinstance(schedule, (int, float, Tensor)):
            values[label] = [float(schedule)] * count
        elif callable(schedule):
            values[label] = [float(schedule(t)) for t in range(count)]
        else:
            raise TypeError(f'{name}: {described(schedule)}. Pass a function from the step count to a number.')
    ax = _axes(ax)
    for label, row in values.items():
        ax.plot(range(count), row, label=str(label) or None)
    ax.set_xlabel('step')
    ax.set_ylabel('value')
    if log:
        ax.set_yscale('log')
    if any(map(str, values)):
        ax.legend(frameon=False)
    ax.grid(alpha=0.25)
    return ax


def plot_landscape(
    function: Callable[[Tensor], Tensor],
    paths: Mapping[str, Any] | Sequence[Any] | Any = (),
    *,
    start: Sequence[float] | Tensor | None = None,
    steps: int = 100,
    bounds: tuple[tuple[float, float], tuple[float, float]] | None = None,
    resolution: int = 121,
    levels: int = 24,
    log: bool = False,
    minima: Sequence[Sequence[float]] = (),
    ax: Axes | None = None,
) -> Axes:
    """Plot a loss of two parameters as a contour map, with the paths of optimizers.

    Args:
        function: The loss, from a tensor of shape (2,) to a scalar tensor.
        paths: A gradient transformation, such as ``torchopt.adam(0.1)``, which is run from ``start``; or points of
            shape (n, 2); or a mapping of labels to these, or a list of them.
        start: The point at which gradient transformations start: two numbers.
        steps: The number of steps; a path ends at the first point that is not finite.
        bounds: ``((x_low, x_high), (y_low, y_high))``; by default they contain all paths and minima.
        resolution: The number of points in each direction; at least 2.
        levels: The number of contour levels.
        log: Whether to show the logarithm of the loss minus its minimum on the map.
        minima: Points to mark with a star.
        ax: The axes; by default new ones in a new figure.

    Returns:
        The axes, with one line for each path.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If a path is neither points nor a gradient transformation.
        ValueError: If a path has not the shape (n, 2), a required start is missing, or the map would be empty.

    Example:
        >>> import torchopt
        >>> from torchopt.visual import plot_landscape
        >>> ax = plot_landscape(
        ...     lambda p: p[0] ** 2 + 10 * p[1] ** 2,
        ...     {'Adam': torchopt.adam(0.1), 'SGD': torchopt.sgd(0.02)},
        ...     start=(2.0, 1.0),
        ...     steps=20,
        ...     resolution=21,
        ... )
        >>> [line.get_label() for line in ax.lines]
        ['Adam', 'SGD']
    """
    _positive('levels', levels)
    if _positive('resolution', resolution) < 2:
        raise ValueError('resolution: 1 point is not enough for a map. Pass at least 2.')
    points = {
        label: _path(function, f'paths[{label!r}]', path, start, steps) for label, path in _labelled(paths).items()
    }
    known = [row for row in points.values() if len(row)] + [np.asarray(minima, dtype=float).reshape(-1, 2)]
    (x_low, x_high), (y_low, y_high) = _bounds(np.concatenate(known)) if bounds is None else bounds
    if not (x_low < x_high and y_low < y_high):
        raise ValueError(f'bounds: {bounds} is empty. Pass ((x_low, x_high), (y_low, y_high)), low before high.')
    x, y = np.linspace(x_low, x_high, resolution), np.linspace(y_low, y_high, resolution)
    heights = _heights(function, x, y)
    ax = _axes(ax)
    _draw_map(ax, x, y, heights, levels, log)
    for label, row in points.items():
        (line,) = ax.plot(row[:, 0], row[:, 1], '.-', markersize=4, linewidth=1.3, label=str(label))
        line.set_markevery(max(1, len(row) // 50))
        if len(row):
            ax.scatter(row[-1, :1], row[-1, 1:], s=36, color=line.get_color(), edgecolors='white', zorder=4)
    for place in minima:
        ax.scatter(place[0], place[1], marker='*', s=110, color='gold', edgecolors='black', linewidths=0.7, zorder=5)
    ax.set_xlim(x_low, x_high)
    ax.set_ylim(y_low, y_high)
    if any(points):
        ax.legend(loc='best', framealpha=0.9)
    return ax


def _labelled(paths: Any) -> dict[str, Any]:
    if isinstance(paths, Mapping):
        return {str(label): path for label, path in paths.items()}
    if _is_transformation(paths) or isinstance(paths, (Tensor, np.ndarray)):
        return {'path': paths}
    if not isinstance(paths, Sequence):
        raise TypeError(
            f'paths: {described(paths)}. Pass points of shape (n, 2), gradient transformations, '
            f'or a mapping of labels to these.'
        )
    return {f'path {i}': path for i, path in enumerate(paths)}


def _is_transformation(path: Any) -> bool:
    return callable(getattr(path, 'init', None)) and callable(getattr(path, 'update', None))


def _path(function: Callable[[Tensor], Tensor], name: str, path: Any, start: Any, steps: int) -> Any:
    if not _is_transformation(path):
        try:
            points = np.asarray(path.detach().cpu() if isinstance(path, Tensor) else path, dtype=float)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f'{name}: {path!r} is neither points of shape (n, 2) nor a gradient transformation.'
            ) from error
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f'{name}: its shape is {points.shape}. Pass points of shape (n, 2).')
        return points
    if start is None:
        raise ValueError(f'start: {name} is a gradient transformation, which requires a start. Pass two numbers.')
    here = torch.as_tensor(start, dtype=torch.float64).detach().clone()
    if here.shape != (2,):
        raise ValueError(f'start: its shape is {tuple(here.shape)}. Pass two numbers.')
    state = path.init(here)
    rows = [here.tolist()]
    for _ in range(_positive('steps', steps)):
        with torch.enable_grad():
            variable = here.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(function(variable), variable)
        updates, state = path.update(gradient, state, here)
        here = (here + updates).detach()
        if not bool(torch.isfinite(here).all()):
            break
        rows.append(here.tolist())
    return np.asarray(rows)


def _bounds(points: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    if not len(points):
        raise ValueError('bounds: required if there are no paths. Pass ((x_low, x_high), (y_low, y_high)).')
    low, high = points.min(axis=0), points.max(axis=0)
    margin = np.maximum(0.12 * (high - low), 0.05 * float((high - low).max()) or 0.5)
    (x_low, y_low), (x_high, y_high) = (low - margin).tolist(), (high + margin).tolist()
    return (x_low, x_high), (y_low, y_high)


def _heights(function: Callable[[Tensor], Tensor], x: Any, y: Any) -> Any:
    grid = torch.stack(torch.meshgrid(torch.from_numpy(x), torch.from_numpy(y), indexing='xy'), dim=-1).reshape(-1, 2)
    with torch.no_grad():
        try:
            heights = torch.vmap(function)(grid)
        except Exception:  # some functions do not support vmap: one that calls .item(), for example
            heights = torch.stack([torch.as_tensor(function(point)) for point in grid])
    return heights.reshape(len(y), len(x)).double().numpy()


def _draw_map(ax: Axes, x: Any, y: Any, heights: Any, levels: int, log: bool) -> None:
    from matplotlib import colormaps

    finite = np.isfinite(heights)
    if not finite.any():
        raise ValueError('function: no value within bounds is finite. Pass other bounds.')
    heights = np.where(finite, heights, heights[finite].max())
    low, high = float(heights.min()), float(heights.max())
    if high <= low:
        high = low + 1.0
    steps = np.linspace(0.0, 1.0, levels + 1)
    if log:  # levels that are equidistant in the logarithm
        steps = (np.geomspace(1.0, 1e4, levels + 1) - 1.0) / (1e4 - 1.0)
    marks = low + (high - low) * steps
    colours = np.linspace(0.0, 1.0, levels)
    ax.contourf(x, y, heights, levels=marks, colors=[colormaps['bone_r'](0.05 + 0.6 * c) for c in colours])
    ax.contour(x, y, heights, levels=marks, colors='white', linewidths=0.4)
