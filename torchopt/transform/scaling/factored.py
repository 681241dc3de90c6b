# SPDX-License-Identifier: Apache-2.0
"""Factored second moments (Adafactor): for a matrix, only the means over rows and columns are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import GradientTransformation, factory
from torchopt.dtypes import widened
from torchopt.numerics import abs_sq, as_python_scalar, as_scalar_like, increment, safe_sqrt, zero_count
from torchopt.preconditions import params_for, state_of


@tree.safe_to_load
class FactoredState(NamedTuple):
    """State of :func:`scale_by_factored_rms`; entries that a leaf does not use have one element, zero.

    Attributes:
        count: The step count.
        v_row: The mean squares of each leaf over its largest dimension.
        v_col: The mean squares of each leaf over its second largest dimension.
        v: The mean squares of leaves that are not factored.
    """

    count: Any
    v_row: Any
    v_col: Any
    v: Any


def _power_decay(step: Any, exponent: Any) -> Any:
    """The decay rate ``1 - (step + 1) ** -exponent`` of Adafactor."""
    return 1.0 - (step + 1.0) ** -exponent


@factory
def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: Any = 0.8,
    step_offset: int = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: Any = 1e-30,
    decay_rate_fn: Callable[[Any, Any], Any] = _power_decay,
) -> GradientTransformation:
    r"""Divide updates by the root of a running mean of their squares, stored in factored form.

    With :math:`\beta_t = 1 - t^{-c}`, a matrix has the means

    .. math::
        r_t = \beta_t r_{t-1} + (1 - \beta_t) \operatorname*{mean}_{j} (|g_{ij}|^2 + \epsilon), \qquad
        c_t = \beta_t c_{t-1} + (1 - \beta_t) \operatorname*{mean}_{i} (|g_{ij}|^2 + \epsilon), \qquad
        u_{ij} = g_{ij} \left( \frac{r_i\, c_j}{\operatorname{mean}(r)} \right)^{-1/2}.

    For a tensor with more dimensions, the two largest are factored.  For vectors, and if these dimensions are small,
    the mean :math:`v` of :math:`|g|^2 + \epsilon` is stored for each element, and :math:`u = g / \sqrt{v}`.

    Args:
        factored: Whether to factor second moments.
        decay_rate: The exponent :math:`c`.
        step_offset: The step count at which the decay rate starts again, for fine-tuning from an earlier state.
        min_dim_size_to_factor: Factor the leaves whose second largest dimension has at least this size.
        epsilon: :math:`\epsilon \ge 0`.
        decay_rate_fn: ``decay_rate_fn(step, decay_rate)`` returns :math:`\beta` for a step count, an int, or a 0-d
            float64 tensor in transforms and under compilation.

    Returns:
        A transformation whose ``update`` requires ``params``.

    Raises:
        ValueError: If an argument is out of its range; in ``update``, without parameters, or before ``step_offset``.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_factored_rms(min_dim_size_to_factor=2)
        >>> params = torch.zeros(2, 3)
        >>> grads = torch.tensor([[1.0], [2.0]]) * torch.tensor([1.0, -3.0, 5.0])
        >>> updates, state = tx.update(grads, tx.init(params), params)
        >>> updates, state.v_row.shape, state.v_col.shape
        (tensor([[ 1., -1.,  1.],
                [ 1., -1.,  1.]]), torch.Size([2]), torch.Size([3]))

    References:
        Shazeer and Stern, `Adafactor: adaptive learning rates with sublinear memory cost
        <https://arxiv.org/abs/1804.04235>`_, ICML 2018.
    """
    checks.number('decay_rate', decay_rate)
    checks.at_least('epsilon', epsilon)
    checks.at_least('min_dim_size_to_factor', min_dim_size_to_factor)

    def init(params: Any) -> FactoredState:
        whole = elementwise.zero_moment(params, real=True)
        parts = [
            tree.map(lambda p, k=k: _first(p, _factored_dims(p, factored, min_dim_size_to_factor))[k], whole)
            for k in range(3)
        ]
        return FactoredState(zero_count(), *parts)

    def update(
        updates: Any, state: FactoredState, params: Any = None, *, inplace: bool = False
    ) -> tuple[Any, FactoredState]:
        known = as_python_scalar(state.count)
        # Convert to double precision, since powers of an integer tensor are computed in single precision.
        step = (state.count if known is None else known) - step_offset
        step = step.to(torch.float64) if isinstance(step, Tensor) else step
        if known is not None and step < 0:
            raise ValueError(
                f'The step count of the state is {int(state.count)}, less than step_offset={step_offset}. Pass the '
                f'state of the previous run, or step_offset=0.'
            )
        beta = decay_rate_fn(step, decay_rate)

        def rule(g: Tensor, v_row: Tensor, v_col: Tensor, v: Tensor, p: Tensor) -> tuple[Tensor, ...]:
            dims = _factored_dims(p, factored, min_dim_size_to_factor)
            square = abs_sq(widened(g))
            square = square + as_scalar_like(epsilon, square)
            keep, take = as_scalar_like(beta, square), as_scalar_like(1.0 - beta, square)
            if dims is None:
                mean = keep * v + take * square
                return (g / safe_sqrt(mean)).to(g.dtype), v_row, v_col, mean.to(v.dtype)
            second, first = dims
            row = keep * v_row + take * square.mean(dim=first)
            col = keep * v_col + take * square.mean(dim=second)
            # Removing the largest dimension can shift the index of the second largest.
            of_rows = row.mean(dim=second - (second > first), keepdim=True)
            u = g / safe_sqrt(row / of_rows).unsqueeze(first) / safe_sqrt(col).unsqueeze(second)
            return u.to(g.dtype), row.to(v_row.dtype), col.to(v_col.dtype), v

        updates, v_row, v_col, v = elementwise.apply_rule(
            rule, updates, state.v_row, state.v_col, state.v, reads=(params,), whole=True
        )
        return updates, FactoredState(increment(state.count), v_row, v_col, v)

    return GradientTransformation.requiring(
        init, update, state_of(FactoredState), params_for('factored second moments')
    )


def _factored_dims(p: Tensor, factored: bool, least: int) -> tuple[int, int] | None:
    """The second largest and the largest dimension of a tensor (the last of equal ones); None if not factored."""
    if not factored or p.dim() < 2:
        return None
    *_, second, first = sorted(range(p.dim()), key=lambda d: p.shape[d])
    return (second, first) if p.shape[second] >= least else None


def _first(p: Tensor, dims: tuple[int, int] | None) -> tuple[Tensor, Tensor, Tensor]:
    """The initial moments of a leaf."""
    nothing = [p.new_zeros(1) for _ in range(2)]
    if dims is None:
        return nothing[0], nothing[1], p
    second, first = dims
    row, col = (p.new_zeros([n for d, n in enumerate(p.shape) if d != gone]) for gone in (first, second))
    return row, col, nothing[0]
