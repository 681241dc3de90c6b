# SPDX-License-Identifier: Apache-2.0
"""Transformations that choose the step size by a line search."""

__all__: list[str] = []
