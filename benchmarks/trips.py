# SPDX-License-Identifier: Apache-2.0
"""Count how far a reader has to follow the code of a call: its function calls, files, and changes of file.

``python benchmarks/trips.py`` prints one row for each call.  ``python benchmarks/trips.py --list NAME`` also prints the
functions in the order of their calls.  Only functions of torchopt count, without comprehensions and generators; the
call is counted when it has run before, with warm caches.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

import torchopt
from torchopt.compat import optax
from torchopt.implicit_diff import custom_root
from torchopt.linear_solve import solve_cg

ROOT = os.path.dirname(torchopt.__file__) + os.sep

Prepared = Callable[[], Callable[[], Any]]
"""Prepares one call outside of the count, and returns it."""


def always(call: Callable[[], Any]) -> Prepared:
    """A call that needs no preparation."""
    return lambda: call


def calls() -> dict[str, Prepared]:
    """The calls by name."""
    params = {'w': torch.ones(3, 3), 'b': torch.ones(3)}
    adam, adamw = torchopt.adam(), optax.adamw(1e-3)
    state, adamw_state = adam.init(params), adamw.init(params)
    net, x = torch.nn.Linear(3, 3), torch.ones(2, 3)
    meta = torchopt.MetaAdam(net, lr=0.1)
    A, b = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 5.0]]), torch.ones(3)
    tracked = A.clone().requires_grad_()

    @custom_root(lambda x, theta: x**2 - theta)
    def root(init: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return theta.sqrt()

    def meta_step() -> Callable[[], Any]:
        loss = net(x).sum()
        return lambda: meta.step(loss)

    def backward(solution: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> Prepared:
        def prepared() -> Callable[[], Any]:
            total = solution(at).sum()
            return lambda: torch.autograd.grad(total, at)

        return prepared

    theta = torch.tensor([4.0, 9.0], requires_grad=True)
    return {
        'adam()': always(torchopt.adam),
        'adam.update': always(lambda: adam.update(params, state, params)),
        'MetaAdam.step': meta_step,
        'compat.optax.adamw()': always(lambda: optax.adamw(1e-3)),
        'compat.optax.adamw.update': always(lambda: adamw.update(params, adamw_state, params)),
        'solve_cg 3x3': always(lambda: solve_cg(A.matmul, b)),
        'solve_cg 3x3, backward': backward(lambda A: solve_cg(A.matmul, b), tracked),
        'custom_root, backward': backward(lambda theta: root(torch.ones(2), theta), theta),
    }


def trace(prepared: Prepared) -> list[tuple[str, str]]:
    """The file and the name of each function that a call enters, in order."""
    prepared()()
    call = prepared()
    entered: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == 'call' and code.co_filename.startswith(ROOT) and code.co_name not in COMPREHENSIONS:
            entered.append((code.co_filename.removeprefix(ROOT), code.co_name))

    # Backward passes run in a thread of their own, unless they begin in this one, as they do on a CPU.
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered


def changes_of_file(entered: list[tuple[str, str]]) -> int:
    """How often the next function lies in another file; entering the first file counts."""
    return sum(1 for _ in itertools.groupby(file for file, _ in entered))


COMPREHENSIONS = {'<genexpr>', '<listcomp>', '<dictcomp>', '<setcomp>'}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--list', metavar='NAME', help='print the functions of this call')
    chosen = parser.parse_args().list
    print(f'{"call":28} {"functions":>10} {"files":>6} {"changes of file":>16}')
    for name, prepared in calls().items():
        entered = trace(prepared)
        files = {file for file, _ in entered}
        print(f'{name:28} {len(entered):10} {len(files):6} {changes_of_file(entered):16}')
        if name == chosen:
            print(*(f'    {file} {function}' for file, function in entered), sep='\n')


if __name__ == '__main__':
    main()
