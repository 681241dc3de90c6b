# SPDX-License-Identifier: Apache-2.0
"""Failures of remote calls, one case for each run: `faults.py CASE`."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from typing import Any

import torch
from found import error_of, save
from torch import Tensor

import torchopt.distributed as todist

CASE = sys.argv[1]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def square(w: Tensor, x: Tensor) -> Tensor:
    return (w * x).square().sum()


def square_by_rref(reference: Any, x: Tensor) -> Tensor:
    return square(reference.to_here(), x)


def square_or_die(w: Tensor, x: Tensor) -> Tensor:
    """Fail on worker 1 only."""
    if todist.get_rank() == 1:
        time.sleep(0.2)  # until the call has been sent
        die()
    return square(w, x)


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def endless_on_one(w: Tensor, x: Tensor) -> Tensor:
    if todist.get_rank() == 1:
        time.sleep(1e6)
    return square(w, x)


calls = itertools.count(1)


def endless_when_repeated(w: Tensor, x: Tensor) -> Tensor:
    """Two rows are for each worker; the next call never ends."""
    if next(calls) > 2:
        time.sleep(1e6)
    return square(w, x)


def kill(worker: int) -> None:
    """Kill a worker, and wait until the broken connection is detected."""
    error = error_of(lambda: todist.remote_sync_call(die, partitioner=worker, timeout=20))
    assert error['type'] == 'WorkerDiedError', error


def parts(w: Any, x: Tensor) -> list[tuple[int, tuple[Any, Tensor], dict[str, Tensor]]]:
    """One row for each worker."""
    return [(i % todist.get_world_size(), (w, row), {}) for i, row in enumerate(x)]


def everything(function: object, w: Any = None, **options: object) -> Tensor:
    args = (W if w is None else w, X)
    return todist.remote_sync_call(function, args=args, partitioner=parts, reducer=todist.sum_reducer, **options)


W = torch.tensor([2.0, 3.0], requires_grad=True)
X = torch.arange(12.0).reshape(6, 2)


def gradient(loss: Tensor) -> tuple[Tensor, Tensor]:
    (g,) = torch.autograd.grad(loss, W)
    return loss.detach(), g


EXPECTED = gradient(square(W, X))


def on_rank_0() -> dict[str, object]:
    if CASE == 'killed in a call':
        return {'error': error_of(lambda: everything(square_or_die)), 'later': error_of(lambda: everything(square))}
    if CASE == 'killed before backward':
        loss = everything(square)
        kill(1)
        return {'error': error_of(loss.backward), 'grad': W.grad}
    if CASE == 'killed before backward, within a context':
        with todist.autograd.context() as context:
            loss = everything(square)
            kill(1)
            return {'error': error_of(lambda: todist.autograd.backward(context, loss))}
    if CASE == 'killed in a call, repeated':
        return {'pair': (gradient(everything(square_or_die, retries=1)), EXPECTED)}
    if CASE == 'killed before backward, repeated':
        loss, by_rref = everything(square, retries=1), everything(square_by_rref, todist.rpc.RRef(W), retries=1)
        kill(1)
        return {
            'pair': (gradient(loss), EXPECTED),
            'by an RRef': (gradient(by_rref), EXPECTED),
            'again': (gradient(everything(square, retries=1)), EXPECTED),
        }
    if CASE == 'all others killed, repeated here':
        kill(1)
        kill(2)
        return {'pair': (gradient(everything(square, retries=1)), EXPECTED)}
    if CASE == 'late':
        return {'error': error_of(lambda: todist.remote_sync_call(sleep, args=(3.0,), partitioner=1, timeout=0.3))}
    if CASE == 'late, repeated':
        return {'pair': (gradient(everything(endless_on_one, timeout=10.0, retries=1)), EXPECTED)}
    if CASE == 'killed before backward, late when repeated':
        loss = everything(endless_when_repeated, timeout=10.0, retries=1)
        kill(1)
        return {'error': error_of(loss.backward), 'grad': W.grad}
    if CASE == 'a call that never ends':
        return {'error': error_of(lambda: todist.remote_sync_call(sleep, args=(1e6,), partitioner=1, timeout=0.3))}
    if CASE == 'rank 0 fails':
        save({'reached': True})
        raise ValueError('rank 0 fails')
    if CASE == 'rank 0 dies':
        die()
    if CASE == 'a main function that does not return':
        return {'reached': True}
    raise ValueError(CASE)


@todist.auto_init_rpc(shutdown_timeout=3.0)
def main() -> None:
    if todist.get_rank() == 0:
        save(on_rank_0())
    elif CASE == 'a main function that does not return' and todist.get_rank() == 1:
        time.sleep(8)


if __name__ == '__main__':
    main()
