# SPDX-License-Identifier: Apache-2.0
"""Update rules, which act on elements, on leaves, or on the whole tree."""

__all__: list[str] = []
