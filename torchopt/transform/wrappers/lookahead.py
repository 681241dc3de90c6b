# SPDX-License-Identifier: Apache-2.0
"""Lookahead: slow parameters that are updated every few steps of an optimizer of fast parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from torchopt import checks, tree
from torchopt.base import GradientTransformationExtraArgs, TransformationLike, factory, with_extra_args_support
from torchopt.elementwise import as_constant
from torchopt.graphs import carries_no_graph
from torchopt.kinds import kind_of
from torchopt.levels import has_tangent
from torchopt.loop.branches import branch
from torchopt.numerics import as_scalar_like, zero_count
from torchopt.preconditions import required_by_all, state_of


@tree.safe_to_load
class LookaheadState(NamedTuple):
    """State of :func:`lookahead`: the state of the fast optimizer, and the steps since the last synchronization."""

    fast_state: Any
    steps_since_sync: Any


@tree.safe_to_load
class LookaheadParams(NamedTuple):
    """The parameters of :func:`lookahead`: compute gradients at the fast ones; the slow ones are the result."""

    fast: Any
    slow: Any

    @classmethod
    def init_synced(cls, params: Any) -> LookaheadParams:
        """Make equal fast and slow parameters; the slow ones are differentiable copies.

        The first step of plain training, in which gradients have no graph, detaches the copies.
        """
        return cls(fast=params, slow=tree.map(Tensor.clone, params))


@factory
def lookahead(
    fast_optimizer: TransformationLike, sync_period: int, slow_step_size: Any, reset_state: bool = False
) -> GradientTransformationExtraArgs:
    r"""Update slow parameters :math:`\phi` every :math:`k` steps of an optimizer of fast parameters :math:`\theta`.

    The fast optimizer takes steps :math:`\theta \leftarrow \theta + u`.  After every :math:`k` of them,

    .. math::
        \phi \leftarrow \phi + \alpha (\theta - \phi), \qquad \theta \leftarrow \phi.

    ``params`` in ``update`` are :class:`LookaheadParams`, the gradients are those at ``params.fast``, and the updates
    are again :class:`LookaheadParams`, to be added to both.

    Args:
        fast_optimizer: The optimizer of the fast parameters.
        sync_period: :math:`k \ge 1`.
        slow_step_size: :math:`\alpha`, a number or a 0-d tensor.
        reset_state: Whether to reset the state of the fast optimizer at each synchronization.

    Returns:
        A transformation with state :class:`LookaheadState`.

    Raises:
        ValueError: If ``sync_period`` is less than 1.
        TypeError: In ``update``, if the parameters are not :class:`LookaheadParams`.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.transform import LookaheadParams, lookahead
        >>> tx = lookahead(torchopt.sgd(1.0), sync_period=2, slow_step_size=0.5)
        >>> params = LookaheadParams.init_synced([torch.zeros(())])
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update([torch.ones(())], state, params)
        ...     params = torchopt.apply_updates(params, updates)
        ...     print(params.fast, params.slow)
        [tensor(-1.)] [tensor(0.)]
        [tensor(-1.)] [tensor(-1.)]

    References:
        Zhang et al., `Lookahead optimizer: k steps forward, 1 step back <https://arxiv.org/abs/1907.08610>`_,
        NeurIPS 2019.
    """
    checks.at_least('sync_period value', sync_period, 1)
    checks.number('slow_step_size value', slow_step_size)
    wide = with_extra_args_support(fast_optimizer)

    def init(params: Any) -> LookaheadState:
        return LookaheadState(wide.init(getattr(params, 'fast', params)), zero_count())

    def update(
        updates: Any, state: LookaheadState, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[LookaheadParams, LookaheadState]:
        if not isinstance(params, LookaheadParams):
            raise TypeError(
                f'The parameters of lookahead are {kind_of(params)}; expected LookaheadParams. Begin with '
                f'LookaheadParams.init_synced(params), and pass gradients at its `fast`.'
            )
        if isinstance(updates, LookaheadParams):
            raise TypeError(
                'The gradients of lookahead are LookaheadParams; expected a tree like params.fast. Differentiate with '
                'respect to params.fast, or pass grads.fast.'
            )
        tree.map(_detach_copy, updates, params.fast, params.slow)
        updates, fast_state = wide.update(updates, state.fast_state, params.fast, inplace=inplace, **extra)

        def apart(u: Tensor, fast: Tensor, slow: Tensor) -> Tensor:
            return as_constant(fast, u) + u - as_constant(slow, u)

        def meet(inplace: bool) -> tuple[LookaheadParams, Any]:
            distance = tree.map(apart, updates, params.fast, params.slow)
            slow = tree.map(lambda d: d * as_scalar_like(slow_step_size, d), distance)
            fast = tree.map(lambda u, d: u - d * as_scalar_like(1 - slow_step_size, d), updates, distance)
            return LookaheadParams(fast, slow), wide.init(params.fast) if reset_state else fast_state

        def go_on(inplace: bool) -> tuple[LookaheadParams, Any]:
            return LookaheadParams(updates, tree.zeros_like(updates)), fast_state

        new, fast_state = branch(state.steps_since_sync == sync_period - 1, meet, go_on, inplace=inplace)
        return new, LookaheadState(fast_state, (state.steps_since_sync + 1) % sync_period)

    return GradientTransformationExtraArgs.requiring(
        init,
        update,
        state_of(LookaheadState),
        required_by_all(lambda state, params: [(state.fast_state, getattr(params, 'fast', None))], wide),
    )


def _detach_copy(g: Tensor, fast: Tensor, slow: Tensor) -> None:
    """In plain training, detach slow parameters in place if they are a copy of this leaf.

    Otherwise their graph would grow with every update.
    """
    if carries_no_graph(fast, g) and slow.grad_fn is not None and not has_tangent(slow):
        origins = [getattr(node, 'variable', None) for node, _ in slow.grad_fn.next_functions]
        if len(origins) == 1 and origins[0] is fast:
            slow.detach_()
