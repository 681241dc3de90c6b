# SPDX-License-Identifier: Apache-2.0
"""Sophia: the mean gradient divided by an estimate of the diagonal of the Hessian, with elementwise clipping."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import GradientTransformationExtraArgs, TransformationLike, factory, with_extra_args_support
from torchopt.combine import chain
from torchopt.contrib.hutchinson import hutchinson_estimator_diag_hessian
from torchopt.dtypes import DTypeLike
from torchopt.elementwise import ranges, require_real
from torchopt.levels import is_tracing
from torchopt.loop.branches import branch
from torchopt.numerics import advance, as_python_scalar, as_scalar_like, bias_correction, tensor_like, zero_count
from torchopt.preconditions import params_for, required_by, state_of
from torchopt.rules import moving_average
from torchopt.spelling import suggesting
from torchopt.transform import add_decayed_weights, scale_by_learning_rate


@tree.safe_to_load
class SophiaState(NamedTuple):
    """State of :func:`sophia`: step count, mean gradient, mean estimate of the diagonal, state of the estimator."""

    count: Any
    mu: Any
    nu: Any
    hessian_fn_state: Any


_HUTCHINSON = hutchinson_estimator_diag_hessian()


@factory
def scale_by_sophia(
    b1: Any = 0.965,
    b2: Any = 0.99,
    eps: Any = 1e-8,
    gamma: Any = 0.01,
    clip_threshold: Any = 1.0,
    update_interval: int = 10,
    hessian_diagonal_fn: TransformationLike = _HUTCHINSON,
    mu_dtype: DTypeLike | None = None,
    verbose: bool = False,
    print_win_rate_every_n_steps: int = 0,
) -> GradientTransformationExtraArgs:
    """Rescale updates with the rule of :func:`sophia`, which describes the arguments."""
    checks.unit_interval('beta parameter at index 0', b1)
    checks.unit_interval('beta parameter at index 1', b2)
    checks.at_least('epsilon value', eps)
    checks.number('gamma value', gamma)
    if clip_threshold is not None:
        checks.at_least('clip_threshold value', clip_threshold)
    checks.at_least('update_interval value', update_interval, 1)
    checks.at_least('print_win_rate_every_n_steps value', print_win_rate_every_n_steps, 1 if verbose else 0)
    dtype = ranges.moment_dtype(mu_dtype)
    estimator = with_extra_args_support(hessian_diagonal_fn)

    def init(params: Any) -> SophiaState:
        elementwise.check_inexact(params, name='params')
        require_real(params, 'Sophia')
        return SophiaState(
            zero_count(),
            elementwise.zero_moment(params, dtype=dtype),
            elementwise.zero_moment(params),
            estimator.init(params),
        )

    def update(
        updates: Any, state: SophiaState, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, SophiaState]:
        count, t = advance(state.count)
        correction = bias_correction(b1, t)

        def rule(g: Tensor, m: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            m = moving_average(b1, m, g)
            least = tensor_like(eps, h)
            below = torch.maximum(h * as_scalar_like(gamma, h), least)
            return m / as_scalar_like(correction, m) / below, m

        def clip(u: Tensor) -> Tensor:
            bound = as_scalar_like(clip_threshold, u)
            return u.clamp(-bound, bound)

        def estimate(inplace: bool) -> tuple[Any, Any]:
            diagonal, new = estimator.update(updates, state.hessian_fn_state, params, inplace=inplace, **extra)
            _, nu = elementwise.apply_rule(lambda d, h: (d, moving_average(b2, h, d)), diagonal, state.nu)
            return nu, new

        # Estimate before writing anything, since the estimator may raise. The old diagonal is still needed.
        due = state.count % update_interval == 0
        nu, estimator_state = branch(due, estimate, lambda inplace: (state.nu, state.hessian_fn_state), inplace=inplace)
        u, mu = elementwise.apply_rule(rule, updates, state.mu, reads=(state.nu,), inplace=inplace)
        if clip_threshold is not None:
            if verbose and (as_python_scalar(count) or 1) % print_win_rate_every_n_steps == 0:
                _print_win_rate(u, clip_threshold)
            u = tree.map(clip, u)
        return u, SophiaState(count, mu, nu, estimator_state)

    return GradientTransformationExtraArgs.requiring(
        init,
        update,
        state_of(SophiaState),
        params_for('Sophia, which estimates the Hessian'),
        required_by(estimator, 'hessian_fn_state'),
    )


def _print_win_rate(u: Any, bound: Any) -> None:
    free = tree.sum(tree.map(lambda u: (u.abs() < as_scalar_like(bound, u)).sum(), u))
    if not is_tracing() and as_python_scalar(free) is not None:
        print(f'Sophia: {float(free) / max(tree.size(u), 1):.4f} of the elements are not clipped')


@suggesting
def sophia(
    learning_rate: Any,
    b1: Any = 0.965,
    b2: Any = 0.99,
    eps: Any = 1e-8,
    weight_decay: Any = 1e-4,
    weight_decay_mask: Any = None,
    gamma: Any = 0.01,
    clip_threshold: Any = 1.0,
    update_interval: int = 10,
    hessian_diagonal_fn: TransformationLike = _HUTCHINSON,
    mu_dtype: DTypeLike | None = None,
    verbose: bool = False,
    print_win_rate_every_n_steps: int = 0,
) -> GradientTransformationExtraArgs:
    r"""Sophia: the mean gradient divided by an estimate of the diagonal of the Hessian, with elementwise clipping.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        p_t = p_{t-1} - \eta \Bigl( \operatorname{clip}\Bigl(
        \frac{m_t / (1 - \beta_1^t)}{\max(\gamma h_{t-1}, \epsilon)},\ \pm c \Bigr) + \lambda p_{t-1} \Bigr)

    In every :math:`k`-th step, beginning with the first, :math:`h_t = \beta_2 h_{t-1} + (1 - \beta_2) \hat h(p_{t-1})`
    with a new estimate :math:`\hat h` of the diagonal; in all other steps :math:`h_t = h_{t-1}`.  Without a previous
    estimate, the first updates are signs.

    Args:
        learning_rate: :math:`\eta`; see :func:`torchopt.transform.scale_by_learning_rate`.
        b1: Decay rate :math:`\beta_1` of the mean, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the diagonal, in [0, 1).
        eps: :math:`\epsilon \ge 0`, the lower bound of the divisor.
        weight_decay: :math:`\lambda \ge 0`.
        weight_decay_mask: Which parameters decay; see :func:`torchopt.transform.add_decayed_weights`.
        gamma: The factor :math:`\gamma` of the diagonal.
        clip_threshold: The bound :math:`c`; None does not clip.
        update_interval: The number :math:`k` of steps between two estimates of the diagonal.
        hessian_diagonal_fn: The estimator, a transformation whose updates are the estimate; it receives the extra
            arguments of ``update``.  :func:`hutchinson_estimator_diag_hessian`, the default, requires ``obj_fn``.
        mu_dtype: Real dtype of the mean; None means the dtype of each parameter.
        verbose: Print the fraction of elements that are not clipped from time to time, which synchronizes.
        print_win_rate_every_n_steps: The number of steps between two prints; at least 1 with ``verbose``.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.sophia(0.1, weight_decay=0.0)
        >>> p = [torch.tensor([1.0, -2.0])]
        >>> optimizer.update(p, optimizer.init(p), p, obj_fn=lambda p: (p[0] ** 2).sum())[0]
        [tensor([-0.1000,  0.1000])]

    References:
        Liu et al., `Sophia: a scalable stochastic second-order optimizer for language model pre-training
        <https://arxiv.org/abs/2305.14342>`_, ICLR 2024.
    """
    rule = scale_by_sophia(
        b1,
        b2,
        eps,
        gamma,
        clip_threshold,
        update_interval,
        hessian_diagonal_fn,
        mu_dtype,
        verbose,
        print_win_rate_every_n_steps,
    )
    return with_extra_args_support(
        chain(rule, add_decayed_weights(weight_decay, weight_decay_mask), scale_by_learning_rate(learning_rate))
    )
