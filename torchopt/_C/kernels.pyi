# SPDX-License-Identifier: Apache-2.0
"""The types of the compiled module; its C++ is in ``src/``."""

from collections.abc import Sequence
from typing import Any

def build_info() -> dict[str, object]: ...
def open(torch: Any, exchange: bool = True) -> None: ...
def run(
    rule: int,
    order: int,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    coefs: Any,
    rows: Sequence[int] | None,
    threads: int,
) -> tuple[tuple[Any, ...], Any] | str: ...
def catalogue() -> dict[str, list[tuple[int, int, int, int]]]: ...
def use_instruction_set(name: str) -> bool: ...
def cuda_devices() -> int: ...
