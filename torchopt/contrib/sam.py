# SPDX-License-Identifier: Apache-2.0
"""Sharpness-aware minimization (SAM)."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from torchopt import checks, tree
from torchopt.base import GradientTransformationExtraArgs, TransformationLike, factory, with_extra_args_support
from torchopt.contrib.constants import kept_copy, without_graphs
from torchopt.elementwise import as_constant
from torchopt.graphs import carries_no_graph, detach_graph
from torchopt.loop.branches import branch
from torchopt.numerics import zero_count
from torchopt.preconditions import params_for, required_by, state_of


@tree.safe_to_load
class SAMState(NamedTuple):
    """State of :func:`sam`.

    Attributes:
        steps_since_sync: The number of steps since the last step of the outer optimizer.
        opt_state: The state of the outer optimizer.
        adv_state: The state of the adversary.
        cache: The parameters after the last step of the outer optimizer; None in opaque mode.
    """

    steps_since_sync: Any
    opt_state: Any
    adv_state: Any
    cache: Any


@factory
def sam(
    optimizer: TransformationLike,
    adv_optimizer: TransformationLike,
    sync_period: int = 2,
    reset_state: bool = True,
    opaque_mode: bool = False,
    batch_axis_name: str | None = None,
) -> GradientTransformationExtraArgs:
    r"""SAM (sharpness-aware minimization): steps with the gradient at a nearby point with a larger loss.

    From the parameters :math:`x` the adversary takes :math:`k - 1` ascent steps to :math:`x'`, and the outer optimizer
    takes a step from :math:`x` with the gradient at :math:`x'`.  Usually :math:`k = 2` and the adversary is
    ``chain(normalize(), sgd(rho))``: :math:`x' = x + \rho\, g / \lVert g \rVert`.

    *Transparent mode*: every ``update`` is one of these :math:`k` steps, with the gradient at the current parameters.
    The parameters are those of the outer optimizer only after every :math:`k`-th step.

    *Opaque mode*: every ``update`` takes all :math:`k` steps.  It calls ``grad_fn(params, i)``, an extra argument, for
    the gradients at the ascent steps :math:`i = 0, \dots, k - 2`.

    Args:
        optimizer: The outer optimizer.
        adv_optimizer: The adversary, an ordinary optimizer; its updates are subtracted.
        sync_period: :math:`k \ge 1`.
        reset_state: Whether to reset the state of the adversary after each step of the outer optimizer.
        opaque_mode: Whether to use the opaque mode.
        batch_axis_name: None, since torch has no named axes.  Let ``grad_fn`` average the gradients of several devices.

    Returns:
        A transformation with state :class:`SAMState`.  It passes extra arguments of ``update`` to both optimizers.

    Raises:
        ValueError: If ``sync_period`` is less than 1, or a ``batch_axis_name`` is given; in ``update``, if the
            parameters are not given, or ``grad_fn`` in opaque mode.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.contrib import normalize, sam
        >>> climb = torchopt.chain(normalize(), torchopt.sgd(0.5))
        >>> optimizer = sam(torchopt.sgd(0.1), climb, opaque_mode=True)
        >>> p = [torch.tensor(1.0)]
        >>> def gradient(params, i):
        ...     return [2 * params[0]]
        >>> optimizer.update(gradient(p, 0), optimizer.init(p), p, grad_fn=gradient)[0]
        [tensor(-0.3000)]

    References:
        Foret et al., `Sharpness-aware minimization for efficiently improving generalization
        <https://arxiv.org/abs/2010.01412>`_, ICLR 2021.
    """
    checks.at_least('sync_period value', sync_period, 1)
    if batch_axis_name is not None:
        raise ValueError(
            f'Invalid batch_axis_name: {batch_axis_name!r}; torch has no named axes. Omit it, and let grad_fn '
            f'return gradients averaged over devices.'
        )
    outer, adversary = with_extra_args_support(optimizer), with_extra_args_support(adv_optimizer)

    def init(params: Any) -> SAMState:
        cache = None if opaque_mode else kept_copy(params)
        return SAMState(zero_count(), outer.init(params), adversary.init(params), cache)

    def transparent(
        updates: Any, state: SAMState, params: Any = None, *, grad_fn: Any = None, inplace: bool = False, **extra: Any
    ) -> tuple[Any, SAMState]:
        g, x = without_graphs(updates, params, inplace=inplace)
        since = state.steps_since_sync
        # Update the cache before reading it, so that k = 1 gives steps of the outer optimizer.
        cache = branch(since == 0, lambda inplace: tree.map(_copy, params, x), lambda inplace: state.cache)

        def descend(inplace: bool) -> tuple[Any, Any, Any]:
            u, opt_state = outer.update(g, state.opt_state, cache, inplace=inplace, **extra)
            back = tree.map(lambda u, c, x: c - x + u, u, cache, x)
            return back, opt_state, adversary.init(params) if reset_state else state.adv_state

        def climb(inplace: bool) -> tuple[Any, Any, Any]:
            u, adv_state = adversary.update(g, state.adv_state, params, inplace=inplace, **extra)
            return tree.map(Tensor.neg, u), state.opt_state, adv_state

        u, opt_state, adv_state = branch(since == sync_period - 1, descend, climb, inplace=inplace)
        return u, SAMState((since + 1) % sync_period, opt_state, adv_state, cache)

    def opaque(
        updates: Any, state: SAMState, params: Any = None, *, grad_fn: Any = None, inplace: bool = False, **extra: Any
    ) -> tuple[Any, SAMState]:
        if grad_fn is None:
            raise ValueError(
                "The extra argument 'grad_fn' is missing: opaque_mode=True requires it. Call `update(updates, state, "
                'params, grad_fn=f)`, where f(params, i) returns the gradients.'
            )
        g, x, adv_state = updates, params, state.adv_state
        for i in range(sync_period - 1):
            u, adv_state = adversary.update(g, adv_state, x, inplace=inplace, **extra)
            # In plain training, grad_fn also receives leaves that require grad.
            x = tree.map(_climb, x, u)
            x = tree.map(lambda p, y: y.requires_grad_() if carries_no_graph(p, y) else y, params, x)
            g = grad_fn(x, i)
        if reset_state:
            adv_state = adversary.init(params)
        u, opt_state = outer.update(g, state.opt_state, params, inplace=inplace, **extra)
        return u, SAMState(zero_count(), opt_state, adv_state, None)

    return GradientTransformationExtraArgs.requiring(
        init,
        opaque if opaque_mode else transparent,
        state_of(SAMState),
        params_for('sam'),
        required_by(outer, 'opt_state'),
        required_by(adversary, 'adv_state'),
    )


def _copy(p: Tensor, constant: Any) -> Tensor:
    return detach_graph(p).clone() if constant is None else constant.clone()


def _climb(x: Tensor, u: Any) -> Tensor:
    return x if u is None else (as_constant(x, u) - u).to(x.dtype)
