# SPDX-License-Identifier: Apache-2.0
"""Transformations that choose the step size by evaluating the objective."""

__all__: list[str] = []
