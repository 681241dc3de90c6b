# SPDX-License-Identifier: Apache-2.0
"""Differentiation by perturbations, as ``jaxopt.perturbations`` has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchopt import perturbations
from torchopt.perturbations import Gumbel, Noise, Normal, make_perturbed_argmax, make_perturbed_max

__all__ = ['Gumbel', 'Normal', 'make_perturbed_argmax', 'make_perturbed_fun', 'make_perturbed_max']


def make_perturbed_fun(
    fun: Callable[[Any], Any],
    num_samples: int = 1000,
    sigma: float = 0.1,
    noise: Noise = Gumbel(),  # noqa: B008
    control_variate: bool = False,
) -> Callable[[Any, Any], Any]:
    """A smooth version of a function, ``smooth(x, key)``: see :func:`torchopt.perturbations.make_perturbed_fun`."""
    smooth = perturbations.make_perturbed_fun(fun, num_samples, sigma, noise, use_baseline=control_variate)
    return lambda inputs, rng: smooth(rng, inputs)
