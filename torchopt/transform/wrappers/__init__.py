# SPDX-License-Identifier: Apache-2.0
"""Transformations around others: masks, conditions, accumulation, what a run is watched with."""

__all__: list[str] = []
