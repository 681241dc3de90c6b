# SPDX-License-Identifier: Apache-2.0
"""Assignment problems, as ``optax.assignment`` has them."""

from torchopt.assignment import base_hungarian_algorithm, hungarian_algorithm

__all__ = [
    'base_hungarian_algorithm',
    'hungarian_algorithm',
]
