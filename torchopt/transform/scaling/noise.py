# SPDX-License-Identifier: Apache-2.0
"""Gradient noise of decreasing variance."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.base import GradientTransformation, factory
from torchopt.numerics import advance, as_scalar_like, zero_count
from torchopt.preconditions import state_of
from torchopt.tree.counter_noise import make_key, normal_like, split_key
from torchopt.tree.random import Key


@tree.safe_to_load
class AddNoiseState(NamedTuple):
    """State of :func:`add_noise`: the step count, and the key of the next noise, a 0-d int64 tensor."""

    count: Any
    rng_key: Any


@factory
def add_noise(eta: Any, gamma: Any, key: Key | None = None, *, seed: Key | None = None) -> GradientTransformation:
    r"""Add Gaussian noise of decreasing variance to the gradients.

    .. math::
        u_t = g_t + \sigma_t \varepsilon_t, \qquad \varepsilon_t \sim \mathcal N(0, 1), \qquad
        \sigma_t^2 = \eta / t^\gamma

    The noise depends only on the key in the state: the same state gives the same noise, on every device, under
    ``torch.func.vmap`` and under compilation.  A batch of different keys under ``vmap`` gives independent noise.

    Args:
        eta: The initial variance :math:`\eta \ge 0`.
        gamma: The exponent :math:`\gamma` of the decay of the variance.
        key: A seed, or a generator from which a seed is drawn at each ``init``.  None means the seed 0.
        seed: The deprecated name of ``key``.

    Raises:
        ValueError: If ``eta`` is negative, or both ``key`` and ``seed`` are given.
        TypeError: If the key is neither an int nor a generator.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.add_noise(eta=0.01, gamma=0.55, key=0)
        >>> g = [torch.ones(3)]
        >>> once, again = tx.update(g, tx.init(g)), tx.update(g, tx.init(g))
        >>> torch.equal(once[0][0], again[0][0]), int(once[1].count)
        (True, 1)

    References:
        Neelakantan et al., `Adding gradient noise improves learning for very deep networks
        <https://arxiv.org/abs/1511.06807>`_, 2015.
    """
    checks.at_least('eta value', eta)
    checks.number('gamma value', gamma)
    source = source_of_keys('add_noise', key, seed)

    def init(params: Any) -> AddNoiseState:
        return AddNoiseState(zero_count(), make_key(source))

    def update(
        updates: Any, state: AddNoiseState, params: Any = None, *, inplace: bool = False
    ) -> tuple[Any, AddNoiseState]:
        count, t = advance(state.count)
        deviation = (eta / t**gamma) ** 0.5
        following, now = split_key(state.rng_key)

        def add(g: Tensor, noise: Tensor) -> Tensor:
            return g + noise * as_scalar_like(deviation, g)

        return tree.map(add, updates, normal_like(now, updates)), AddNoiseState(count, following)

    return GradientTransformation.requiring(init, update, state_of(AddNoiseState))


def source_of_keys(function: str, key: Key | None, seed: Key | None = None) -> Key:
    """The seed or the generator from which ``init`` makes keys: ``key``, or ``seed``, its deprecated name, or 0."""
    if seed is not None:
        if key is not None:
            raise ValueError(f'{function} got both key={key!r} and seed={seed!r}, which mean the same. Pass key only.')
        checks.deprecated(f'The argument seed of {function} is deprecated; use key.')
        key = seed
    source = 0 if key is None else key
    if not isinstance(source, torch.Generator):
        make_key(source)  # raises if it is not a seed
    return source
