# SPDX-License-Identifier: Apache-2.0
"""The differences between Optax and ``torchopt.compat.optax``: the intended ones, and the missing names."""

from __future__ import annotations

# Names whose signature differs, with the reason.
OTHER_SIGNATURES = {
    'optax.perturbations.Gumbel.sample': 'a tensor is on a device, and None is the default dtype of torch',
    'optax.perturbations.Normal.sample': 'the same',
    'optax.MultiSteps.update': 'every update can work in place',
    'optax.transforms.MultiSteps.update': 'the same',
    'optax.matrix_inverse_pth_root': 'the precision of products is a setting of torch, not of a function',
    'optax.power_iteration': 'the same',
}

# Functions whose derivative is finite if that of Optax is NaN, with the reason.
NUMBERS_FOR_NAN = {'radam': 'Optax differentiates the root of a negative number before it leaves it out'}
