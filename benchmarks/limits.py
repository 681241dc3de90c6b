# SPDX-License-Identifier: Apache-2.0
"""A limit of CPU time for each problem of a benchmark."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

__all__ = ['cpu_limit']


@contextlib.contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds of CPU time of this process.

    A call into native code is not interrupted, only followed by the error.
    """

    def stop(*_: Any) -> None:
        raise TimeoutError(f'cut after {seconds:g} s of CPU time')

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)
