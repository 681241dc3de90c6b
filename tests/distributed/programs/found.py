# SPDX-License-Identifier: Apache-2.0
"""Helpers of the programs: save results and errors for the test."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import torchopt.distributed as todist

torch.set_num_threads(1)


def save(found: dict[str, Any]) -> None:
    """Save the results of this process for the test."""
    path = Path(os.environ['FOUND']) / f'found.{todist.get_rank()}'
    part = path.with_name(f'{path.name}.part')
    torch.save(found, part)
    part.rename(path)


def error_of(call: Callable[[], Any]) -> dict[str, Any]:
    """The error of a call: its type and base classes, its text, the text of its cause, and the time of the call."""
    start = time.monotonic()
    try:
        call()
    except Exception as error:
        return {
            'type': type(error).__name__,
            'bases': [base.__name__ for base in type(error).__mro__],
            'text': str(error),
            'cause': str(error.__cause__),
            'worker': getattr(error, 'worker', None),
            'seconds': time.monotonic() - start,
        }
    return {'type': None}
