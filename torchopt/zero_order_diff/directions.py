# SPDX-License-Identifier: Apache-2.0
"""Random directions: checks of their distribution, and sampling from a seed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from torchopt.kinds import kind_of
from torchopt.typing import Samplable, SampleFunc

_TOLERANCE = 1e-3  # accepts 1.732 as the square root of 3


class Directions:
    """A distribution of directions, and how its samples are arranged.

    Args:
        distribution: The argument of :func:`torchopt.zero_order_diff.zero_order`.
        arrange: The field of this name of the estimator.

    Raises:
        TypeError: If ``distribution`` cannot be sampled.
        ValueError: If its known shape, mean or variance is wrong.
    """

    def __init__(self, distribution: Samplable | SampleFunc, arrange: str) -> None:
        owner = getattr(distribution, '__self__', None)
        if isinstance(owner, Distribution) and distribution == owner.sample:
            distribution = owner
        if isinstance(distribution, Distribution):
            check_moments(distribution)
        elif not (isinstance(distribution, Samplable) or callable(distribution)):
            raise TypeError(
                '`distribution` must be a callable or an instance of `Samplable`. '
                f'It is {kind_of(distribution)}; pass, for example, torch.distributions.Normal(0.0, 1.0).'
            )
        self._sample: Any = distribution.sample if isinstance(distribution, Samplable) else distribution
        self._arrange = arrange
        self._normal = is_normal(distribution)

    @property
    def gaussian(self) -> bool:
        """Whether the directions are known to be standard normal, which second derivatives require."""
        return self._normal and self._arrange != 'signs'

    def draw(self, seed: int, count: int, like: list[Tensor]) -> list[Tensor]:
        """Draw directions; equal arguments give equal directions.

        The state of the global generators is neither used nor changed.

        Returns:
            For each real tensor of ``like`` a tensor of shape ``(count, *shape)`` on its device, in at least single
            precision.

        Raises:
            ValueError: If the shape of the samples differs from the requested shape.
        """
        shapes = [torch.Size((count, *x.shape)) for x in like]
        dtypes = [torch.promote_types(x.dtype, torch.float32) for x in like]
        if self._normal:
            generators = {device: torch.Generator(device).manual_seed(seed) for device in {x.device for x in like}}
            zs = [
                torch.randn(shape, generator=generators[x.device], dtype=dtype, device=x.device)
                for x, shape, dtype in zip(like, shapes, dtypes)
            ]
        else:
            with _seeded(seed):
                drawn = [torch.as_tensor(self._sample(shape)) for shape in shapes]
            zs = [z.detach().to(x.device, dtype) for z, x, dtype in zip(drawn, like, dtypes)]
        for z, shape in zip(zs, shapes):
            if z.shape != shape:
                raise ValueError(
                    f'The distribution drew a tensor of shape {tuple(z.shape)} where {tuple(shape)} was requested: the '
                    f'number of samples and the shape of the tensor to perturb. Return a tensor of the shape passed in.'
                )
        if self._arrange == 'signs':
            return [torch.where(z < 0, -1.0, 1.0).to(z.dtype) for z in zs]
        return orthogonalize(zs) if self._arrange == 'orthogonal' else zs


def check_moments(distribution: Distribution) -> None:
    """Raise for a distribution that is known not to be scalar with mean 0 and variance 1."""
    shape = (*distribution.batch_shape, *distribution.event_shape)
    if shape:
        raise ValueError(
            f'Invalid distribution: a sample of {distribution} has shape {shape}; expected a distribution of scalars, '
            f'which is sampled once for each element to perturb. Pass scalars as its parameters.'
        )
    try:
        mean, variance = float(distribution.mean), float(distribution.variance)
    except NotImplementedError:
        return
    if not abs(mean) <= _TOLERANCE:
        raise ValueError(
            f'Invalid distribution: {distribution} has mean {mean:g}; expected a symmetric distribution of mean 0. '
            f'Shift it.'
        )
    if not abs(variance - 1.0) <= _TOLERANCE:
        remedy = (
            f'Divide its scale by {math.sqrt(variance):g} and pass the scale of the perturbations as sigma'
            if math.isfinite(variance)
            else 'Use one whose variance is finite'
        )
        raise ValueError(f'Invalid distribution: {distribution} has variance {variance:g}; expected 1. {remedy}.')


def is_normal(distribution: Any) -> bool:
    """Whether a distribution with mean 0 and variance 1 is known to be normal."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return type(distribution) is Normal


def orthogonalize(zs: list[Tensor]) -> list[Tensor]:
    """Rotate directions so that each group of ``dimension`` directions is orthogonal, without changing lengths.

    The orthogonal frame is that of the Gram-Schmidt process, so it has the uniform distribution if that of the
    directions is spherically symmetric.  Then length and direction are independent, and the distribution of each
    single direction does not change.  The tensors ``zs``, of shape ``(n, ...)``, are the parts of ``n`` vectors.
    """
    parts = [z.flatten(1) if z.dim() > 1 else z[:, None] for z in zs]
    dimension = sum(part.shape[1] for part in parts)
    if dimension == 0:
        return zs
    dtype = max((z.dtype for z in zs), key=lambda d: torch.finfo(d).bits)
    joint = torch.cat([part.to(parts[0].device, dtype) for part in parts], 1)
    turned = []
    for block in torch.split(joint, dimension):
        frame, triangle = torch.linalg.qr(block.T)
        # In the Gram-Schmidt process the diagonal is positive; LAPACK does not determine its signs.
        signs = torch.where(triangle.diagonal() < 0, -1.0, 1.0).to(dtype)
        turned.append((frame * (signs * torch.linalg.vector_norm(block, dim=1))).T)
    columns = torch.split(torch.cat(turned), [part.shape[1] for part in parts], 1)
    return [column.reshape(z.shape).to(z) for column, z in zip(columns, zs)]


def real_view(x: Tensor) -> Tensor:
    """View a complex tensor as a real one; each part is perturbed with variance 1."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators temporarily."""
    generators = [torch.default_generator]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        generators += torch.cuda.default_generators
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states):
            generator.set_state(state)
