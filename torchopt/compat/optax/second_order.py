# SPDX-License-Identifier: Apache-2.0
"""The names of ``optax.second_order``."""

from torchopt.second_order import fisher_diag, hessian_diag, hvp

__all__ = ['fisher_diag', 'hessian_diag', 'hvp']
