# SPDX-License-Identifier: Apache-2.0
"""Differentially private gradients and SGD."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import GradientTransformation, factory, identity
from torchopt.clip import per_example_global_norm_clip
from torchopt.combine import chain
from torchopt.numerics import as_scalar_like
from torchopt.preconditions import state_of
from torchopt.spelling import suggesting
from torchopt.transform import scale_by_learning_rate, trace
from torchopt.transform.scaling.noise import source_of_keys
from torchopt.tree.counter_noise import make_key, normal_like, split_key
from torchopt.tree.random import Key


@tree.safe_to_load
class DifferentiallyPrivateAggregateState(NamedTuple):
    """State of :func:`differentially_private_aggregate`: the key of the next noise, a 0-d int64 tensor."""

    rng_key: Any


@factory
def differentially_private_aggregate(
    l2_norm_clip: Any, noise_multiplier: Any, key: Key | None = None, *, seed: Key | None = None
) -> GradientTransformation:
    r"""Clip the gradients of single examples, average them, and add noise, for differential privacy.

    With the gradients :math:`g_1, \dots, g_n` of :math:`n` examples and the bound :math:`C`,

    .. math::
        u = \frac1n \Bigl( \sum_i g_i \min\bigl(1, C / \lVert g_i \rVert\bigr) + \sigma C \varepsilon \Bigr), \qquad
        \varepsilon \sim \mathcal N(0, 1).

    Unlike in other transformations, the gradients have an additional first dimension, that of the examples, which the
    result does not have, so put it first in a chain.  The noise depends only on the key in the state, on every device,
    under ``torch.func.vmap`` and under compilation.  It is computed by a hash that is not cryptographically secure: if
    an adversary may know earlier random numbers, use a secure generator.

    Args:
        l2_norm_clip: The bound :math:`C > 0` of the norm over all leaves.
        noise_multiplier: :math:`\sigma \ge 0`, the standard deviation of the noise relative to the bound.
        key: A seed, or a generator from which a seed is drawn at each ``init``.  None means the seed 0.
        seed: The deprecated name of ``key``.

    Returns:
        A transformation with state :class:`DifferentiallyPrivateAggregateState`.

    Raises:
        ValueError: If a hyper-parameter is out of its range, or both ``key`` and ``seed`` are given; in ``update``, if
            the number of examples differs between leaves.
        TypeError: If the key is neither an int nor a generator.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.contrib.differentially_private_aggregate(1.0, 0.0, key=0)
        >>> g = [torch.tensor([[3.0, 4.0], [0.0, 0.6]])]
        >>> tx.update(g, tx.init([torch.zeros(2)]))[0]
        [tensor([0.3000, 0.7000])]

    References:
        Abadi et al., `Deep learning with differential privacy <https://arxiv.org/abs/1607.00133>`_, 2016.
    """
    checks.positive('l2_norm_clip value', l2_norm_clip)
    checks.at_least('noise_multiplier value', noise_multiplier)
    source = source_of_keys('differentially_private_aggregate', key, seed)
    deviation = l2_norm_clip * noise_multiplier

    def init(params: Any) -> DifferentiallyPrivateAggregateState:
        return DifferentiallyPrivateAggregateState(make_key(source))

    def update(
        updates: Any, state: DifferentiallyPrivateAggregateState, params: Any = None, *, inplace: bool = False
    ) -> tuple[Any, DifferentiallyPrivateAggregateState]:
        elementwise.check_inexact(updates, name='updates')
        examples = next((g.shape[0] for g in tree.leaves(updates) if g.dim()), 1)
        sums, _ = per_example_global_norm_clip(updates, l2_norm_clip)
        following, now = split_key(state.rng_key)

        def average(g: Tensor, noise: Tensor) -> Tensor:
            return (g + noise * as_scalar_like(deviation, g)) / examples

        return tree.map(average, sums, normal_like(now, sums)), DifferentiallyPrivateAggregateState(following)

    return GradientTransformation.requiring(init, update, state_of(DifferentiallyPrivateAggregateState))


@suggesting
def dpsgd(
    learning_rate: Any,
    l2_norm_clip: Any,
    noise_multiplier: Any,
    key: Key | None = None,
    momentum: Any = None,
    nesterov: bool = False,
    *,
    seed: Key | None = None,
) -> GradientTransformation:
    r"""Differentially private SGD: :func:`differentially_private_aggregate`, momentum, learning rate.

    Args:
        learning_rate: :math:`\eta`; see :func:`torchopt.transform.scale_by_learning_rate`.
        l2_norm_clip: The bound :math:`C > 0` of the gradient norm of one example.
        noise_multiplier: :math:`\sigma \ge 0`, the standard deviation of the noise relative to the bound.
        key: A seed, or a generator from which a seed is drawn at each ``init``.
        momentum: :math:`\mu \ge 0`; None means no momentum.
        nesterov: Use Nesterov momentum.
        seed: Another name of ``key``.

    Returns:
        A transformation whose ``update`` takes the gradients of single examples, along their first dimension.

    Raises:
        TypeError: If neither or both of ``key`` and ``seed`` are given.
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.dpsgd(0.5, l2_norm_clip=1.0, noise_multiplier=0.0, key=0)
        >>> g = [torch.tensor([[3.0, 4.0], [0.0, 0.6]])]
        >>> optimizer.update(g, optimizer.init([torch.zeros(2)]))[0]
        [tensor([-0.1500, -0.3500])]

    References:
        Abadi et al., `Deep learning with differential privacy <https://arxiv.org/abs/1607.00133>`_, 2016.
    """
    if (key is None) == (seed is None):
        raise TypeError(f'dpsgd got key={key!r} and seed={seed!r}, which mean the same. Pass key only.')
    return chain(
        differentially_private_aggregate(l2_norm_clip, noise_multiplier, key=seed if key is None else key),
        identity() if momentum is None else trace(momentum, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )
