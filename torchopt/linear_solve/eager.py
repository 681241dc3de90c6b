# SPDX-License-Identifier: Apache-2.0
"""What cannot be compiled, since the number of its steps depends on data, runs between two compiled graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import torch

__all__ = ['eager']

_P = ParamSpec('_P')


def eager(fun: Callable[_P, Any]) -> Callable[_P, Any]:
    """Let a function be one graph break under ``torch.compile``, instead of many small graphs.

    ``torch.compiler.disable`` does it, but loads the compiler; so it is asked only once something is compiled.
    """

    @functools.wraps(fun)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(fun)(*args, **kwargs)  # type: ignore[no-untyped-call]
        return fun(*args, **kwargs)

    return run
