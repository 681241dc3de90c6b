# SPDX-License-Identifier: Apache-2.0
"""Transformations of the updates themselves: rules on elements, on leaves, or on the whole tree."""

__all__: list[str] = []
