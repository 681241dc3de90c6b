# SPDX-License-Identifier: Apache-2.0
"""Isotonic regression, as ``jaxopt.isotonic`` has it."""

from torchopt.isotonic import isotonic_l2_pav

__all__ = ['isotonic_l2_pav']
