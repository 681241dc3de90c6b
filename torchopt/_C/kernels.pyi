# SPDX-License-Identifier: Apache-2.0
"""The types of the compiled module; its C++ is in ``src/``."""

def build_info() -> dict[str, object]: ...
