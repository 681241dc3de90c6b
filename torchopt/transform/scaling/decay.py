# SPDX-License-Identifier: Apache-2.0
"""Weight decay."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from torchopt import checks, elementwise, rules, tree
from torchopt.base import (
    ElementwiseTransformation,
    EmptyState,
    GradientTransformation,
    factory,
    identity,
    init_empty_state,
)
from torchopt.elementwise import ranges
from torchopt.numerics import increment, zero_count
from torchopt.preconditions import Precondition, params_for, required_by, state_of
from torchopt.transform.wrappers.masking import MaskedState, masked, resolve_mask


@tree.safe_to_load
class WeightDecaySchedule(NamedTuple):
    """State of :func:`add_decayed_weights` with a schedule: the step count."""

    count: Any


def check_decay(weight_decay: Any) -> None:
    """Require a schedule, or numbers >= 0."""
    if not checks.is_schedule(weight_decay):
        ranges.at_least_zero('weight_decay value', weight_decay)


@factory
def add_decayed_weights(weight_decay: Any = 0.0, mask: Any = None) -> GradientTransformation:
    r"""Add a multiple of the parameters to the updates: :math:`u = g + \lambda p`.

    Before an update rule this is an l2 penalty; after an adaptive rule it is decoupled weight decay (AdamW).

    In a step of plain training (the parameter is a leaf that requires grad; gradient, moments and hyper-parameters have
    no graph) the parameter is treated as a constant, so no graph grows from step to step.

    Args:
        weight_decay: :math:`\lambda \ge 0`: a number or a 0-d tensor, a tree of them with the structure of the
            parameters or a prefix of it, or a schedule.  Zero, without a mask, gives the identity.
        mask: Which parameters decay: a tree of booleans with the structure of the parameters or a prefix of it, or a
            function that makes one from the parameters.  None decays all.

    Returns:
        A transformation whose state is empty, or :class:`WeightDecaySchedule` for a schedule; with a mask, this state
        is inside a :class:`MaskedState`.

    Raises:
        ValueError: If the decay is negative; in ``update``, if the parameters are not given, or a schedule returns NaN.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.add_decayed_weights(0.1)
        >>> params = {'w': torch.tensor(5.0)}
        >>> tx.update({'w': torch.tensor(1.0)}, tx.init(params), params)[0]
        {'w': tensor(1.5000)}

    References:
        Loshchilov and Hutter, `Decoupled weight decay regularization <https://arxiv.org/abs/1711.05101>`_, 2017.
    """
    check_decay(weight_decay)
    if not checks.nonzero(weight_decay):
        return identity() if mask is None else masked(identity(), mask)
    everywhere = add_params(weight_decay, 'weight decay')
    if mask is None:
        return everywhere

    # The state is that of `masked`, but the mask is part of the elementwise step, so that a chain needs only one pass.
    def prepare_masked(state: MaskedState) -> elementwise.ElementwiseStep:
        step = everywhere.prepare(state.inner_state)
        return step._replace(make_state=lambda: MaskedState(step.make_state()), where=partial(resolve_mask, mask))

    return ElementwiseTransformation(
        masked(everywhere, mask).init,
        prepare_masked,
        state_of(MaskedState),
        params_for('weight decay'),
        required_by(everywhere, 'inner_state'),
        hypers=elementwise.Hyperparams(_rule, weight_decay=weight_decay),
    )


def add_params(weight: Any, purpose: str) -> ElementwiseTransformation:
    """Add a multiple of the parameters to the updates, or a schedule of multiples, for a purpose named in errors."""
    hypers = elementwise.Hyperparams(_rule, weight_decay=weight)
    if checks.is_schedule(weight):

        def value(state: WeightDecaySchedule, params: Any = None) -> Any:
            return checks.schedule_value(weight(state.count), state.count)

        def scheduled(state: WeightDecaySchedule) -> elementwise.ElementwiseStep:
            return elementwise.ElementwiseStep(
                hypers.make(weight_decay=value(state)),
                (),
                lambda: WeightDecaySchedule(increment(state.count)),
                reads_params=True,
            )

        return ElementwiseTransformation(
            lambda params: WeightDecaySchedule(zero_count()),
            scheduled,
            state_of(WeightDecaySchedule),
            params_for(purpose),
            Precondition(value),
            hypers=hypers,
        )

    def constant(state: Any = None) -> elementwise.ElementwiseStep:
        return elementwise.ElementwiseStep(hypers.rule(), (), EmptyState, reads_params=True)

    # A tensor may change between steps, and requires a new graph in every step.
    step = constant if isinstance(weight, Tensor) else constant()
    return ElementwiseTransformation(init_empty_state, step, params_for(purpose), hypers=hypers)


def _rule(*, weight_decay: Any) -> partial[Any]:
    return partial(rules.add_params, weight=weight_decay)
