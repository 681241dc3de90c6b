# SPDX-License-Identifier: Apache-2.0
"""Transformations of other transformations (masks, conditions, accumulation), and transformations for monitoring."""

__all__: list[str] = []
