# SPDX-License-Identifier: Apache-2.0
"""Second derivatives, as ``optax.second_order`` has them."""

from torchopt.second_order import fisher_diag, hessian_diag, hvp

__all__ = [
    'fisher_diag',
    'hessian_diag',
    'hvp',
]
