# SPDX-License-Identifier: Apache-2.0
"""Measure memory: the bytes allocated by a run, and the tensors saved for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def allocations(run: Callable[[], Any]) -> dict[str, float]:
    """The bytes that torch allocates in one run: the total and the peak."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == '[memory]']
    peak = now = total = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
        total += max(event.nbytes(), 0)
    return {'peak': peak, 'allocated': total}


class Saved:
    """The distinct tensors that autograd saved; they are kept alive, so that addresses are unique."""

    def __init__(self) -> None:
        self.tensors: dict[tuple[int, torch.Size], Tensor] = {}

    @contextmanager
    def counting(self) -> Iterator[None]:
        def pack(x: Tensor) -> Tensor:
            self.tensors[x.data_ptr(), x.shape] = x
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            yield

    def report(self, leaves: list[Tensor], steps: int) -> dict[str, float]:
        """The number of bytes, and this number per step relative to the bytes of all leaves."""
        saved = sum(x.nbytes for x in self.tensors.values())
        return {'saved': saved, 'leaf sets': saved / (steps * sum(x.nbytes for x in leaves))}
