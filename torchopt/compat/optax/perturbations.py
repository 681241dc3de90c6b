# SPDX-License-Identifier: Apache-2.0
"""The names of ``optax.perturbations``."""

from torchopt.perturbations import Gumbel, Normal, make_perturbed_fun

__all__ = ['Gumbel', 'Normal', 'make_perturbed_fun']
