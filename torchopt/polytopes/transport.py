# SPDX-License-Identifier: Apache-2.0
r"""Projections onto transportation polytopes: matrices with given row sums and column sums.

Both are solved through their semi-dual (Blondel, Seguy and Rolet, 2018), a smooth convex problem in one potential
:math:`\alpha_i` for each row.  Given the potentials, each column of the plan is

.. math::
    P_j = b_j \, \pi_\Delta\!\left((\alpha + S_j) / b_j\right)
    \qquad \text{or} \qquad
    P_j = b_j \operatorname{softmax}(\alpha + S_j),

with the projection onto the simplex or the softmax; its sum is :math:`b_j`.  The gradient with respect to the
potentials is the difference between the row sums and :math:`a`.  Newton's method computes the potentials; the plan is
differentiable by the implicit function theorem.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchopt.implicit_diff.custom_root import custom_root
from torchopt.levels import eager, host_values
from torchopt.loop import while_loop
from torchopt.projections import unit_simplex
from torchopt.solver.quadratic.kkt import solve_kkt

MakeSolver = Callable[[Callable[..., Any]], Any]


@eager
def projection_transport(
    sim_matrix: Tensor,
    marginals: tuple[Tensor, Tensor],
    make_solver: MakeSolver | None = None,
    use_semi_dual: bool = True,
) -> Tensor:
    r"""Project onto the transportation polytope.

    .. math::
        \min_{P \ge 0} \|P - S\|_2^2 \quad \text{subject to} \quad P \mathbf 1 = a, \; P^\top \mathbf 1 = b

    With the cost matrix :math:`-S`, this is optimal transport with quadratic regularization.

    Args:
        sim_matrix: The matrix :math:`S`, of shape ``[m, n]``.
        marginals: The row and column sums :math:`(a, b)`, of shapes ``[m]`` and ``[n]``, at least 0, of equal totals.
        make_solver: ``make_solver(fun)`` returns a solver that minimizes the dual objective
            ``fun(potentials, cost_matrix, marginals_a, marginals_b)``; Newton's method if None.
        use_semi_dual: Whether that solver minimizes over the potentials of the rows only.

    Returns:
        The plan :math:`P`, of shape ``[m, n]``.

    Raises:
        TypeError: If ``sim_matrix`` is not floating.
        ValueError: If shapes do not match, a sum is negative, or totals differ.

    Example:
        >>> import torch, torchopt
        >>> S, sums = torch.tensor([[1.0, 0.0], [0.2, 0.3]]), torch.tensor([0.5, 0.5])
        >>> torchopt.polytopes.projection_transport(S, (sums, sums)).round(decimals=3)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])

    References:
        Blondel, Seguy and Rolet, *Smooth and sparse optimal transport*, 2018 (arXiv 1710.06276).
    """
    return _Quadratic(sim_matrix, marginals).plan(make_solver, use_semi_dual)


@eager
def kl_projection_transport(
    sim_matrix: Tensor,
    marginals: tuple[Tensor, Tensor],
    make_solver: MakeSolver | None = None,
    use_semi_dual: bool = True,
) -> Tensor:
    r"""Project onto the transportation polytope in the Kullback-Leibler divergence.

    .. math::
        \min_{P > 0} \operatorname{KL}(P, \exp S) \quad \text{subject to} \quad P \mathbf 1 = a, \; P^\top \mathbf 1 = b

    With the cost matrix :math:`-S`, this is optimal transport with entropic regularization.

    The arguments, the result and the errors are those of :func:`projection_transport`; the sums must be positive.

    Example:
        >>> import torch, torchopt
        >>> S, sums = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.5, 0.5])
        >>> torchopt.polytopes.kl_projection_transport(S, (sums, sums)).round(decimals=3)
        tensor([[0.3660, 0.1340],
                [0.1340, 0.3660]])

    References:
        Cuturi, *Sinkhorn distances: lightspeed computation of optimal transport*, 2013 (arXiv 1306.0895).
    """
    return _Entropic(sim_matrix, marginals).plan(make_solver, use_semi_dual)


def projection_birkhoff(
    sim_matrix: Tensor, make_solver: MakeSolver | None = None, use_semi_dual: bool = True
) -> Tensor:
    """Project onto the Birkhoff polytope, the set of doubly stochastic matrices.

    Args:
        sim_matrix: A square matrix.
        make_solver: See :func:`projection_transport`.
        use_semi_dual: See :func:`projection_transport`.

    Returns:
        The projection, of the same shape.

    Example:
        >>> import torch, torchopt
        >>> torchopt.polytopes.projection_birkhoff(torch.tensor([[1.0, 0.0], [0.2, 0.3]])).round(decimals=3)
        tensor([[0.7750, 0.2250],
                [0.2250, 0.7750]])
    """
    return projection_transport(sim_matrix, _ones(sim_matrix), make_solver, use_semi_dual)


def kl_projection_birkhoff(
    sim_matrix: Tensor, make_solver: MakeSolver | None = None, use_semi_dual: bool = True
) -> Tensor:
    """Project onto the Birkhoff polytope in the Kullback-Leibler divergence.

    The arguments and the result are those of :func:`projection_birkhoff`.

    Example:
        >>> import torch, torchopt
        >>> torchopt.polytopes.kl_projection_birkhoff(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).round(decimals=3)
        tensor([[0.7310, 0.2690],
                [0.2690, 0.7310]])
    """
    return kl_projection_transport(sim_matrix, _ones(sim_matrix), make_solver, use_semi_dual)


def _ones(matrix: Tensor) -> tuple[Tensor, Tensor]:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f'sim_matrix has shape {tuple(matrix.shape)}; expected a square matrix.')
    ones = torch.ones_like(matrix[0])
    return ones, ones


class _Transport:
    """A transport problem; subclasses define the plan of potentials, and the objective and its curvature."""

    def __init__(self, S: Tensor, marginals: tuple[Tensor, Tensor]) -> None:
        if not S.is_floating_point():
            raise TypeError(f'sim_matrix has dtype {S.dtype}; expected a floating dtype.')
        a, b = (torch.as_tensor(v).to(S) for v in marginals)
        if S.ndim != 2 or a.shape != S.shape[:1] or b.shape != S.shape[1:]:
            raise ValueError(
                f'marginals have shapes {tuple(a.shape)} and {tuple(b.shape)}; expected those of the rows and columns '
                f'of sim_matrix, which has shape {tuple(S.shape)}.'
            )
        for name, sums in (('row', a), ('column', b)):
            known = host_values(sums)
            if known is not None and (negative := (known < 0).nonzero()).numel():
                raise ValueError(
                    f'marginals has the negative {name} sum {known[negative[0, 0]].item():g} at {int(negative[0, 0])}; '
                    f'expected sums >= 0.'
                )
        rows, columns = host_values(a.sum()), host_values(b.sum())
        rounding = 1e3 * torch.finfo(S.dtype).eps * len(a)
        if rows is not None and columns is not None and (rows - columns).abs() > rounding * (1.0 + rows):
            raise ValueError(
                f'marginals sum to {rows.item():g} and {columns.item():g}; expected the same sum. Normalize them.'
            )
        self.S, self.a, self.b = S, a, b

    @staticmethod
    def columns(alpha: Tensor, S: Tensor, b: Tensor) -> Tensor:
        """The plan of potentials."""
        raise NotImplementedError

    @staticmethod
    def conjugate(alpha: Tensor, S: Tensor, b: Tensor) -> Tensor:
        """The convex function whose gradient is the sums of the rows of the plan."""
        raise NotImplementedError

    @staticmethod
    def curvature(P: Tensor, b: Tensor) -> Tensor:
        """Its second derivative."""
        raise NotImplementedError

    @staticmethod
    def joint(alpha: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        """The plan of potentials of rows and columns, and the convex function whose gradient its sums are."""
        raise NotImplementedError

    def plan(self, make_solver: MakeSolver | None, use_semi_dual: bool) -> Tensor:
        """The plan, differentiable in all data."""
        if make_solver is None:
            return self.columns(self.potentials(), self.S, self.b)
        data = {'cost_matrix': -self.S, 'marginals_a': self.a, 'marginals_b': self.b}
        if use_semi_dual:

            def semi_dual(alpha: Tensor, cost_matrix: Tensor, marginals_a: Tensor, marginals_b: Tensor) -> Tensor:
                return self.conjugate(alpha, -cost_matrix, marginals_b) - alpha @ marginals_a

            alpha = make_solver(semi_dual).run(torch.zeros_like(self.a), **data).params
            return self.columns(alpha, self.S, self.b)

        def dual(potentials: Any, cost_matrix: Tensor, marginals_a: Tensor, marginals_b: Tensor) -> Tensor:
            alpha, beta = potentials
            return self.joint(alpha, beta, -cost_matrix)[1] - alpha @ marginals_a - beta @ marginals_b

        start = torch.zeros_like(self.a), torch.zeros_like(self.b)
        alpha, beta = make_solver(dual).run(start, **data).params
        return self.joint(alpha, beta, self.S)[0]

    def potentials(self) -> Tensor:
        """The potentials of the rows, whose mean is zero."""

        def residual(alpha: Tensor, S: Tensor, a: Tensor, b: Tensor) -> Tensor:
            # Potentials are determined up to a constant; the term of the mean makes them unique.
            return self.columns(alpha, S, b).sum(1) - a + alpha.mean()

        start = torch.zeros_like(self.a)
        found: Tensor = custom_root(residual, solve=solve_kkt)(self._newton)(start, self.S, self.a, self.b)
        return found

    def _newton(self, alpha: Tensor, S: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Newton's method; each step is halved until the objective decreases."""
        m, eps = len(alpha), torch.finfo(S.dtype).eps
        identity = torch.eye(m, dtype=S.dtype, device=S.device)
        enough = 4.0 * eps * m * (1.0 + a.abs().amax())
        # The largest useful step is of the scale of the potentials, which is that of the data.
        largest = 1.0 + (S.amax() - S.amin()) + b.amax()

        def value(alpha: Tensor) -> Tensor:
            return self.conjugate(alpha, S, b) - alpha @ a

        def step(now: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            alpha, miss, _ = now
            H = self.curvature(self.columns(alpha, S, b), b)
            ridge = torch.clamp(miss.norm() * 1e-2, min=10.0 * eps, max=1e-2) * H.diagonal().amax().clamp(min=1e-3)
            d = -torch.linalg.solve(H + ridge * identity + 1.0 / m, miss)
            d = d * (largest / d.abs().amax().clamp(min=1e-30)).clamp(max=1.0)
            start, slope = value(alpha), miss @ d
            slack = 10.0 * eps * (1.0 + start.abs())

            def too_far(size: Tensor) -> Tensor:
                return ~(value(alpha + size * d) <= start + 1e-4 * size * slope + slack)

            size = while_loop(too_far, lambda size: 0.5 * size, torch.ones_like(start), maxiter=40)
            alpha = alpha + size * d
            alpha = alpha - alpha.mean()
            return alpha, self.columns(alpha, S, b).sum(1) - a, miss.abs().amax()

        def goes_on(now: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            _, miss, before = now
            size = miss.abs().amax()
            # Near the precision of the dtype, stop if a step does not decrease the gradient.
            return (size > enough) & ((size < before) | (size > 1e3 * enough))

        start = alpha, self.columns(alpha, S, b).sum(1) - a, torch.full_like(alpha[0], torch.inf)
        found: Tensor = while_loop(goes_on, step, start, maxiter=200)[0]
        return found


class _Quadratic(_Transport):
    @staticmethod
    def columns(alpha: Tensor, S: Tensor, b: Tensor) -> Tensor:
        scale = torch.where(b > 0, b, 1.0)
        return torch.where(b > 0, b, 0.0) * unit_simplex(((alpha.unsqueeze(1) + S) / scale).mT).mT

    @staticmethod
    def conjugate(alpha: Tensor, S: Tensor, b: Tensor) -> Tensor:
        P = _Quadratic.columns(alpha, S, b)
        return ((alpha.unsqueeze(1) + S) * P - 0.5 * P * P).sum()

    @staticmethod
    def curvature(P: Tensor, b: Tensor) -> Tensor:
        support = (P > 0).to(P.dtype)
        return torch.diag(support.sum(1)) - (support / support.sum(0).clamp(min=1.0)) @ support.mT

    @staticmethod
    def joint(alpha: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        P = torch.relu(alpha.unsqueeze(1) + beta + S)
        return P, 0.5 * (P * P).sum()


class _Entropic(_Transport):
    @staticmethod
    def columns(alpha: Tensor, S: Tensor, b: Tensor) -> Tensor:
        return b * torch.softmax(alpha.unsqueeze(1) + S, 0)

    @staticmethod
    def conjugate(alpha: Tensor, S: Tensor, b: Tensor) -> Tensor:
        return b @ torch.logsumexp(alpha.unsqueeze(1) + S, 0)

    @staticmethod
    def curvature(P: Tensor, b: Tensor) -> Tensor:
        return torch.diag(P.sum(1)) - (P / torch.where(b > 0, b, 1.0)) @ P.mT

    @staticmethod
    def joint(alpha: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        P = torch.exp(alpha.unsqueeze(1) + beta + S - 1.0)
        return P, P.sum()
