# SPDX-License-Identifier: Apache-2.0
r"""The step of L-BFGS-B: the minimum of a quadratic model within bounds, found in two stages.

The model has the Hessian :math:`B = \theta I - W M W^\mathsf{T}`, the direct compact form.  First, the *Cauchy point*:
the first minimum along the path :math:`x(t) = P(x - t g)`, which bends at each bound that it meets.  Then, the minimum
over the variables that have not met a bound.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt.solver.memory import Rows


class Model(NamedTuple):
    r"""The Hessian :math:`\theta I - W M W^\mathsf{T}` of the model; :math:`W` has a row for each variable.

    With the pairs as rows of :math:`S` and :math:`Y`, :math:`W = [Y^\mathsf{T}, \theta S^\mathsf{T}]` and

    .. math::
        M = \begin{bmatrix} -D & L^\mathsf{T} \\ L & \theta S S^\mathsf{T} \end{bmatrix}^{-1},

    where :math:`D` and :math:`L` are the diagonal and the strict lower triangle of :math:`S Y^\mathsf{T}`.
    """

    theta: Any
    w: Tensor
    m: Tensor

    @classmethod
    def of(cls, rows: Rows, theta: Any) -> Model:
        """The model that the pairs of a memory define; rows of zeros have no part in it."""
        s, y = rows.s, rows.y
        sy = s @ y.mT
        lower, d = torch.tril(sy, -1), torch.diag_embed(torch.diagonal(sy))
        # Where there is no pair, any regular matrix will do.
        empty = torch.diag_embed((rows.weights == 0).to(sy.dtype))
        above = torch.cat([-d - empty, lower.mT], -1)
        below = torch.cat([lower, theta * (s @ s.mT) + empty], -1)
        return cls(theta, torch.cat([y, theta * s]).mT, torch.linalg.inv(torch.cat([above, below], -2)))


def finite_slopes(g: Tensor) -> Tensor:
    """A gradient with large numbers for infinities, as of a root at its bound, which would make sums NaN."""
    return torch.where(torch.isinf(g), torch.sign(g) * 1e-3 * torch.finfo(g.dtype).max ** 0.5, g)


def box_step(x: Tensor, g: Tensor, lower: Tensor, upper: Tensor, model: Model) -> Tensor:
    """The point within the bounds, which may be infinite, at which the model of the objective at ``x`` is about least.

    The minimum over the free variables is projected onto the bounds; if the way to it does not descend, the way from
    the Cauchy point to the minimum is cut where it meets a bound.

    References:
        Byrd, Lu, Nocedal and Zhu, `A limited memory algorithm for bound constrained optimization
        <https://doi.org/10.1137/0916069>`_, 1995.  Morales and Nocedal, `Remark on Algorithm 778
        <https://doi.org/10.1145/2049662.2049669>`_, 2011.
    """
    g = finite_slopes(g)
    cauchy, c, free = _cauchy_point(x, g, lower, upper, model)
    way = _minimum_of_free(x, g, cauchy, c, free, model)
    way = torch.where(torch.isfinite(way), way, 0.0)
    projected = torch.clamp(cauchy + way, lower, upper)
    descends = (projected - x) @ g < 0.0
    # The longest part of the way that stays within the bounds.
    bound = torch.where(way > 0.0, upper, lower)
    meets = free & (way != 0.0) & torch.isfinite(bound)
    part = torch.where(meets, (torch.where(meets, bound, cauchy) - cauchy) / torch.where(meets, way, 1.0), 1.0)
    cut = torch.clamp(cauchy + torch.clamp(part.min(), 0.0, 1.0) * way, lower, upper)
    return torch.where(descends, projected, cut)


def _cauchy_point(x: Tensor, g: Tensor, lower: Tensor, upper: Tensor, model: Model) -> tuple[Tensor, Tensor, Tensor]:
    r"""The Cauchy point :math:`x_c`, the vector :math:`W^\mathsf{T} (x_c - x)`, and which variables met no bound.

    Variable :math:`i` meets its bound at :math:`t_i`.  Between the sorted :math:`t_i`, the path is straight, and the
    model a parabola in :math:`t`.  With the sums over the variables that still move, :math:`G = \sum g_i^2` and
    :math:`p = -\sum g_i w_i`, and :math:`c = W^\mathsf{T}(x(t) - x)`, its derivatives at the beginning of a segment are

    .. math::
        -G + \theta t G - p^\mathsf{T} M c, \qquad \theta G - p^\mathsf{T} M p.

    All segments are computed at once, by cumulative sums; the minimum is in the first one where the parabola rises
    before its end.
    """
    theta, w, m = model
    bound = torch.where(g > 0.0, lower, upper)
    stops = torch.isfinite(bound) & (g != 0.0)
    at_bound = torch.where(stops, bound, x)
    t = torch.where(stops, torch.clamp((x - at_bound) / torch.where(stops, g, 1.0), min=0.0), torch.inf)
    ends, order = torch.sort(t)
    g_sorted, w_sorted = g.index_select(0, order), w.index_select(0, order)

    def still_moving(v: Tensor) -> Tensor:
        """The sums from each place to the end, and zero at last."""
        return torch.cat([v.flip(0).cumsum(0).flip(0), torch.zeros_like(v[:1])])

    size = still_moving(g_sorted * g_sorted)
    p = -still_moving(g_sorted[:, None] * w_sorted)
    begins = torch.cat([torch.zeros_like(ends[:1]), ends])
    exists = torch.isfinite(begins)
    begins = torch.where(exists, begins, 0.0)
    lengths = torch.where(exists, torch.cat([ends, torch.full_like(ends[:1], torch.inf)]) - begins, torch.inf)
    travelled = torch.where(torch.isfinite(lengths), lengths, 0.0)[:-1, None] * p[:-1]
    c = torch.cat([torch.zeros_like(p[:1]), travelled.cumsum(0)])
    pm = p @ m
    slope = theta * begins * size - size - (pm * c).sum(-1)
    curvature = theta * size - (pm * p).sum(-1)
    least = torch.finfo(x.dtype).eps * theta * size
    curvature = torch.where(curvature > least, curvature, torch.where(size > 0.0, least, 1.0))
    step = -slope / curvature
    here = ~exists | (slope >= 0.0) | (step < lengths)
    first = (~here).to(torch.int64).cumprod(0).sum(0, keepdim=True)
    begin, way, c_begin, p_begin = (v.index_select(0, first).squeeze(0) for v in (begins, step, c, p))
    way = torch.clamp(way, min=0.0)
    fixed = t <= begin
    point = torch.clamp(torch.where(fixed, at_bound, x - (begin + way) * g), lower, upper)
    return point, c_begin + way * p_begin, ~fixed


def _minimum_of_free(x: Tensor, g: Tensor, cauchy: Tensor, c: Tensor, free: Tensor, model: Model) -> Tensor:
    r"""The way from the Cauchy point to the minimum over the free variables.

    There the gradient of the model is :math:`r = g + \theta (x_c - x) - W M c`.  With :math:`W_F`, the rows of
    :math:`W` that belong to free variables, the formula of Sherman, Morrison and Woodbury gives

    .. math::
        (\theta I - W_F M W_F^\mathsf{T})^{-1} r
        = r / \theta + W_F\, (I - M W_F^\mathsf{T} W_F / \theta)^{-1} M W_F^\mathsf{T} r / \theta^2 .
    """
    theta, w, m = model
    w_free = torch.where(free[:, None], w, 0.0)
    r = torch.where(free, g + theta * (cauchy - x) - w @ (m @ c), 0.0)
    inner = torch.eye(len(m), dtype=m.dtype, device=m.device) - m @ (w_free.mT @ w_free) / theta
    return -r / theta - w_free @ torch.linalg.solve_ex(inner, m @ (w_free.mT @ r))[0] / theta**2
