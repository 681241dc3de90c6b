# SPDX-License-Identifier: Apache-2.0
"""Hutchinson's estimator of the diagonal of the Hessian."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import tree
from torchopt.base import GradientTransformationExtraArgs, factory
from torchopt.contrib.constants import without_graphs
from torchopt.preconditions import params_for, state_of
from torchopt.transform.scaling.noise import source_of_keys
from torchopt.tree.counter_noise import make_key, normal_like, split_key
from torchopt.tree.random import Key


@tree.safe_to_load
class HutchinsonState(NamedTuple):
    """State of :func:`hutchinson_estimator_diag_hessian`: the key of the next signs, a 0-d int64 tensor."""

    key: Any


@factory
def hutchinson_estimator_diag_hessian(random_seed: Key | None = None) -> GradientTransformationExtraArgs:
    r"""An unbiased estimate of the diagonal of the Hessian of the objective, at the cost of a few gradients.

    With independent signs :math:`r_i = \pm 1`, the expectation of :math:`r_i r_j` is 1 if :math:`i = j`, else 0.  So

    .. math::
        u = r \odot \nabla^2 f(p)\, r, \qquad \mathbb E\, u = \operatorname{diag} \nabla^2 f(p).

    The signs depend only on the key in the state, on every device, under ``torch.func.vmap`` and under compilation.

    Args:
        random_seed: A seed, or a generator from which a seed is drawn at each ``init``.  None means the seed 0.

    Returns:
        A transformation with state :class:`HutchinsonState`.  Its ``update`` requires ``params`` and the extra argument
        ``obj_fn``, a function of the parameters that returns a 0-d tensor.  Of the updates, only the Nones matter.

    Raises:
        TypeError: If the seed is neither an int nor a generator; in ``update``, if ``obj_fn`` is not given.
        ValueError: In ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.contrib.hutchinson_estimator_diag_hessian(0)
        >>> p = [torch.tensor([1.0, 2.0])]
        >>> tx.update(p, tx.init(p), p, obj_fn=lambda p: (p[0] ** 3).sum())[0]
        [tensor([ 6., 12.])]

    References:
        Hutchinson, `A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines
        <https://doi.org/10.1080/03610918908812806>`_, 1989.
        Liu et al., `Sophia: a scalable stochastic second-order optimizer for language model pre-training
        <https://arxiv.org/abs/2305.14342>`_, ICLR 2024.
    """
    source = source_of_keys('hutchinson_estimator_diag_hessian', random_seed)

    def init(params: Any) -> HutchinsonState:
        return HutchinsonState(make_key(source))

    def update(
        updates: Any,
        state: HutchinsonState,
        params: Any = None,
        obj_fn: Any = None,
        *,
        inplace: bool = False,
        **extra: Any,
    ) -> tuple[Any, HutchinsonState]:
        if obj_fn is None:
            raise TypeError(
                "The extra argument 'obj_fn' is missing. Call `update(updates, state, params, obj_fn=f)`, where "
                'f(params) is the objective.'
            )
        _, p = without_graphs(updates, params, inplace=inplace)
        following, now = split_key(state.key)
        signs = tree.map(lambda p, z: torch.where(z < 0, -1.0, 1.0).to(p.dtype), p, normal_like(now, p))

        def objective(xs: list[Tensor]) -> Any:
            supply = iter(xs)
            return obj_fn(tree.unflatten(spec, [old if x is None else next(supply) for old, x in zip(whole, leaves)]))

        def slope(xs: list[Tensor]) -> Any:
            # The Hessian-vector product is the gradient of this directional derivative.
            return tree.vdot(torch.func.grad(objective)(xs), shown)

        leaves, spec = tree.flatten(p)
        whole = tree.flatten_up_to(spec, params, name='params', like='updates')
        shown = tree.leaves(signs)
        products = iter(torch.func.grad(slope)(tree.leaves(p)))
        diagonal = [None if x is None else next(products) * r for x, r in zip(leaves, tree.flatten(signs)[0])]
        return tree.unflatten(spec, diagonal), HutchinsonState(following)

    return GradientTransformationExtraArgs.requiring(
        init, update, state_of(HutchinsonState), params_for('the diagonal of the Hessian')
    )
