# SPDX-License-Identifier: Apache-2.0
"""Progress of long loops: the argument `callback` of zero-order gradients and of `torchopt.distributed.map_tasks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

__all__ = ['Progress', 'bar', 'reporter']

#: A function of the number of steps that are done and of all steps, or ``'bar'`` for a progress bar of tqdm, or None.
Progress = Callable[[int, int], Any] | Literal['bar'] | None


def _tqdm() -> Any:
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise ImportError('A progress bar needs tqdm: run `pip install tqdm`, or do without the bar.') from None
    return tqdm


def bar(total: int, name: str) -> Any:
    """A progress bar.

    Returns:
        A bar of tqdm, for a terminal or a notebook.

    Raises:
        ImportError: If tqdm is not installed.

    Example:
        >>> from torchopt import progress
        >>> shown = progress.bar(3, 'tasks')
        >>> shown.close()
    """
    return _tqdm()(total=total, desc=name)


def reporter(callback: Progress, name: str) -> Callable[[int, int], Any] | None:
    """The function that a loop calls with the numbers of steps that are done and of all steps.

    Args:
        callback: A function, ``'bar'`` or None.
        name: What stands before the bar.

    Returns:
        A function, or None for None.

    Raises:
        TypeError: If ``callback`` is something else.
        ImportError: For ``'bar'``, if tqdm is not installed.

    Example:
        >>> from torchopt import progress
        >>> report = progress.reporter(lambda done, total: print(f'{done}/{total}'), 'tasks')
        >>> report(1, 3)
        1/3
    """
    if callback is None or (callable(callback) and not isinstance(callback, str)):
        return callback
    if callback != 'bar':
        raise TypeError(f"Invalid callback: {callback!r}; expected a function of (done, total), 'bar', or None.")
    _tqdm()  # raises now rather than in the loop, if it is missing
    shown: Any = None

    def report(done: int, total: int) -> None:
        nonlocal shown
        if shown is not None and done <= shown.n:  # an error ended the last loop
            shown.close()
            shown = None
        if shown is None:
            shown = bar(total, name)
        shown.update(done - shown.n)
        if done == total:
            shown.close()
            shown = None

    return report
