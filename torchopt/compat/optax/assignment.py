# SPDX-License-Identifier: Apache-2.0
"""The names of ``optax.assignment``: the linear assignment problem."""

from torchopt.assignment import base_hungarian_algorithm, hungarian_algorithm

__all__ = ['base_hungarian_algorithm', 'hungarian_algorithm']
