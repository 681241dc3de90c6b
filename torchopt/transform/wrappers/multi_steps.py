# SPDX-License-Identifier: Apache-2.0
"""Gradient accumulation: one step of an optimizer for several small steps."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    TransformationLike,
    with_extra_args_support,
)
from torchopt.dtypes import DTypeLike, widened
from torchopt.elementwise import ranges
from torchopt.graphs import zeros_of
from torchopt.kinds import kind_of
from torchopt.loop.branches import branch
from torchopt.numerics import abs_sq, as_python_scalar, as_scalar_like, increment, zero_count
from torchopt.preconditions import check_preconditions, required_by, wrong_state


class ShouldSkipUpdateFunction(Protocol):
    """``skip(updates, gradient_step, params)``: whether to skip a small step, and a tree to store in the state."""

    def __call__(self, updates: Any, gradient_step: Any, params: Any) -> tuple[Any, Any]:
        """Return a bool or a 0-d bool tensor, and any tree, which is stored in the state."""


def skip_not_finite(updates: Any, gradient_step: Any, params: Any) -> tuple[Tensor, Any]:
    """Skip small steps whose gradients are not all finite; for :class:`MultiSteps`.

    Args:
        updates: The gradients.
        gradient_step: The number of full steps so far; not used.
        params: The parameters; not used.

    Returns:
        Whether to skip, and a dict with this value (``'should_skip'``) and the number of elements that are not finite
        (``'num_not_finite'``).

    Example:
        >>> import torch, torchopt
        >>> torchopt.transform.skip_not_finite([torch.tensor([1.0, float('inf')])], 0, None)
        (tensor(True), {'should_skip': tensor(True), 'num_not_finite': tensor(1)})
    """
    total = _sum([g.isfinite().logical_not().sum() for g in tree.leaves(updates)], torch.int64)
    skip = total > 0
    return skip, {'should_skip': skip, 'num_not_finite': total}


def skip_large_updates(updates: Any, gradient_step: Any, params: Any, max_squared_norm: Any) -> tuple[Tensor, Any]:
    r"""Skip small steps with :math:`\lVert g \rVert^2 \ge c` or NaN; for :class:`MultiSteps`.

    Args:
        updates: The gradients.
        gradient_step: The number of full steps so far; not used.
        params: The parameters; not used.
        max_squared_norm: The bound :math:`c`.  Set it with ``functools.partial``.

    Returns:
        Whether to skip, and a dict with this value (``'should_skip'``) and the squared norm (``'norm_squared'``).

    Example:
        >>> import torch, torchopt
        >>> torchopt.transform.skip_large_updates([torch.tensor([3.0, 4.0])], 0, None, 20.0)[0]
        tensor(True)
    """
    square = _sum([abs_sq(widened(g)).sum() for g in tree.leaves(updates)], torch.get_default_dtype())
    skip = (square < as_scalar_like(max_squared_norm, square)).logical_not()
    return skip, {'should_skip': skip, 'norm_squared': square}


def _sum(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    if not parts:
        return torch.zeros((), dtype=dtype)
    return torch.stack([x.to(parts[0].device) for x in parts]).sum()


@tree.safe_to_load
class MultiStepsState(NamedTuple):
    """State of :class:`MultiSteps`.

    Attributes:
        mini_step: The number of small steps since the last full step.
        gradient_step: The number of full steps.
        inner_opt_state: The state of the optimizer.
        acc_grads: The mean or the sum of the gradients since the last full step.
        skip_state: The second result of ``should_skip_update_fn`` in the last step.
    """

    mini_step: Any
    gradient_step: Any
    inner_opt_state: Any
    acc_grads: Any
    skip_state: Any = ()


class MultiSteps:
    r"""Accumulate gradients over :math:`k` small steps for each step of an optimizer.

    The gradients are averaged, :math:`a_{n+1} = a_n + (g_n - a_n) / (n + 1)`, or summed.  In every :math:`k`-th small
    step, the full step, the optimizer receives the mean.  In all other steps, updates are zero and its state stays.

    If a small step has no gradient (``None``) for a parameter, nothing is added for it.  In the :math:`k`-th small
    step, the parameter is omitted from the full step, and its accumulated gradient is kept for the next one.

    Args:
        opt: The optimizer.
        every_k_schedule: :math:`k \ge 1`, or a function from the number of full steps so far to :math:`k`.
        use_grad_mean: False sums the gradients instead.
        should_skip_update_fn: A function that chooses small steps to skip, such as :func:`skip_not_finite`.  Their
            updates are zero, and they are not counted.
        accumulator_dtype: Real dtype of the accumulated gradients, by default float32, also for gradients in float64;
            None means that of each parameter.

    Raises:
        TypeError: If ``opt`` is not a transformation.
        ValueError: If ``every_k_schedule`` is less than 1; in ``update``, if ``should_skip_update_fn`` does not return
            one bool, or the state belongs to another optimizer.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.transform.MultiSteps(torchopt.sgd(0.5), every_k_schedule=2)
        >>> state = optimizer.init([torch.zeros(())])
        >>> for g in (1.0, 3.0):
        ...     updates, state = optimizer.update([torch.tensor(g)], state)
        ...     print(updates, bool(optimizer.has_updated(state)))
        [tensor(0.)] False
        [tensor(-1.)] True
    """

    def __init__(
        self,
        opt: TransformationLike,
        every_k_schedule: Any,
        use_grad_mean: bool = True,
        should_skip_update_fn: ShouldSkipUpdateFunction | None = None,
        accumulator_dtype: DTypeLike | None = torch.float32,
    ) -> None:
        self._opt = with_extra_args_support(opt)
        if not checks.is_schedule(every_k_schedule):
            checks.at_least('every_k_schedule value', every_k_schedule, 1)
        self._dtype = ranges.moment_dtype(accumulator_dtype, 'accumulator_dtype')
        self._call = opt, every_k_schedule, use_grad_mean, should_skip_update_fn, accumulator_dtype

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the arguments."""
        return type(self), self._call

    def __repr__(self) -> str:
        """The call that creates it, without arguments that have their default."""
        return tree.as_text(self)

    def _spelled(self) -> tree.Spelled:
        given = zip(inspect.signature(type(self)).parameters.values(), self._call)
        return tree.Spelled(type(self).__name__, (), {p.name: x for p, x in given if x is not p.default})

    @property
    def inner_opt(self) -> GradientTransformation:
        """The optimizer."""
        return self._opt

    def init(self, params: Any) -> MultiStepsState:
        """The first state for these parameters."""
        skip, dtype = self._call[3], self._dtype

        def zeros(p: Tensor) -> Tensor:
            return torch.zeros_like(p, dtype=dtype.to_complex() if dtype is not None and p.is_complex() else dtype)

        count = zero_count()
        skip_state = () if skip is None else skip(tree.zeros_like(params), count, params)[1]
        return MultiStepsState(zero_count(), count, self._opt.init(params), tree.map(zeros, params), skip_state)

    def update(
        self, updates: Any, state: MultiStepsState, params: Any = None, *, inplace: bool = False, **extra_args: Any
    ) -> tuple[Any, MultiStepsState]:
        """Take a small step; the updates of every :math:`k`-th one are those of the optimizer, all others are zero."""
        if not isinstance(state, MultiStepsState):
            problem = f'The state is {kind_of(state)}; expected a MultiStepsState.'
            raise wrong_state(state, problem, of='MultiSteps')
        if inplace:
            check_preconditions(self._opt, state.inner_opt_state, params)
        skip = self._call[3]
        if skip is None:
            return self._accumulate(updates, state, params, inplace, extra_args)
        skipped, skip_state = skip(updates, state.gradient_step, params)
        if not isinstance(skipped, bool) and (getattr(skipped, 'dtype', None), skipped.shape) != (torch.bool, ()):
            raise ValueError(
                f'Invalid should_skip_update_fn: it returned {skipped!r}; expected a bool or a 0-d bool tensor first. '
                f'Reduce it with all() or any().'
            )
        new, state = branch(
            skipped,
            lambda inplace: (tree.map(zeros_of, updates), state),
            lambda inplace: self._accumulate(updates, state, params, inplace, extra_args),
            inplace=inplace,
        )
        return new, state._replace(skip_state=skip_state)

    def _accumulate(
        self, updates: Any, state: MultiStepsState, params: Any, inplace: bool, extra: dict[str, Any]
    ) -> tuple[Any, MultiStepsState]:
        _, k, use_mean, *_ = self._call
        if checks.is_schedule(k):
            k = k(state.gradient_step)
        known = as_python_scalar(state.mini_step)
        n = state.mini_step if known is None else known

        def add(g: Tensor, acc: Tensor) -> tuple[Tensor, Tensor]:
            acc = acc + (g - acc) / as_scalar_like(n + 1, g) if use_mean else acc + g
            return acc, acc

        gathered, acc = elementwise.apply_rule(add, updates, state.acc_grads, inplace=inplace)
        gathered = tree.cast_like(gathered, updates)

        def step(inplace: bool) -> tuple[Any, ...]:
            new, inner = self._opt.update(gathered, state.inner_opt_state, params, inplace=inplace, **extra)
            _, empty = elementwise.apply_rule(lambda g, a: (g, torch.zeros_like(a)), updates, acc)
            return new, inner, empty, increment(state.gradient_step)

        def wait(inplace: bool) -> tuple[Any, ...]:
            return tree.map(zeros_of, gathered), state.inner_opt_state, acc, state.gradient_step

        new, inner, acc, full = branch(state.mini_step == k - 1, step, wait, inplace=inplace)
        return new, MultiStepsState(increment(state.mini_step) % k, full, inner, acc, state.skip_state)

    def has_updated(self, state: Any) -> Any:
        """Whether the last step was a full step, a 0-d bool tensor."""
        return (state.mini_step == 0) & (state.gradient_step > 0)

    def gradient_transformation(self) -> GradientTransformation:
        """The same as a transformation; chains and wrappers call this themselves."""
        tx = GradientTransformationExtraArgs(self.init, self.update)
        tx.requires = (required_by(self._opt, 'inner_opt_state'),)
        return tx
