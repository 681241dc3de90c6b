# SPDX-License-Identifier: Apache-2.0
"""Smoothing by perturbation, as ``optax.perturbations`` has it."""

from torchopt.perturbations import Gumbel, Normal, make_perturbed_fun

__all__ = [
    'Gumbel',
    'Normal',
    'make_perturbed_fun',
]
