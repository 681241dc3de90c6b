# SPDX-License-Identifier: Apache-2.0
r"""A linear system in the form that methods solve: real vectors and products, rescaled to order one.

Let :math:`A x = b`, and let :math:`\beta` and :math:`\alpha` be powers of two close to the largest elements of
:math:`b` and of :math:`A`.  With

.. math:: A' = A / \alpha, \qquad b' = b / \beta, \qquad x' = x\, \alpha / \beta

the system is :math:`A' x' = b'`: its inner products do not overflow or underflow, so methods need no special care.
The first product gives the scale of :math:`A`.  Powers of two cause no rounding, and systems of order one do not
change.

Normal equations, :math:`(A^\mathsf{H} A + \lambda I)\, x = A^\mathsf{H} b + c`, square the scale of :math:`A`; so
:math:`A` itself is rescaled: :math:`\lambda' = \lambda / \alpha^2` and :math:`c' = c / (\alpha \beta)`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt.autodiff.products import map_product
from torchopt.autodiff.tape import Leaves, Product
from torchopt.linear_solve.status import Outcome, SolveStatus
from torchopt.linear_solve.vectors import Layout, Scalar, divide, exponent, norm, times_power

__all__ = ['NormalProblem', 'Problem', 'Products', 'Result']


class Result(NamedTuple):
    """The result of a method: vectors ``(*batch, n)``, and the status of each system."""

    x: Tensor
    iterations: int | Tensor
    residual: Any
    outcome: int | Tensor


class Products(NamedTuple):
    """The products of a problem.

    Attributes:
        apply: The product with the matrix.
        adjoint: The product with its transpose.
        approximate: The product with the preconditioner, if there is one.
        known: The product of the matrix with the right-hand side, if it is known.
        many: The products with several vectors, along a new first dimension, if that is better than one at a time.
    """

    apply: Product
    adjoint: Product
    approximate: Product | None = None
    known: Leaves | None = None
    many: Product | None = None


class Problem:
    """A square system.

    Args:
        layout: The layout of the leaves of the unknown in a vector.
        products: The products.
        b: The right-hand side.
        x0: The initial guess.
        power: The power of the scale of the matrix by which the preconditioner is multiplied.

    Attributes:
        is_preconditioned: Whether there is a preconditioner.
        rhs: The right-hand side, of order one.
        norm: Its norm.
        x0: The initial guess, in the scale of the solution.
        floor: The residual norm that rounding alone can cause.
    """

    rhs: Tensor
    norm: Scalar
    floor: Scalar

    drift = 10
    """The true residual may exceed the tolerance by this factor if the recursive residual meets the tolerance."""

    def __init__(self, layout: Layout, products: Products, b: Leaves, x0: Leaves | None = None, power: int = 1) -> None:
        self.layout, self._products, self._power = layout, products, power
        self.is_preconditioned = products.approximate is not None
        self.x0 = None if x0 is None else layout.ravel(x0)
        # Products are rounded to the dtypes of the leaves.
        self._eps = max((torch.finfo(d).eps for d in layout.dtypes), default=0.0)
        # The exponents of alpha and beta.
        self._matrix_scale: int | Tensor = 0
        self._scale: int | Tensor = 0
        # A vector and the product of the unscaled matrix with it.
        self._known: tuple[Tensor | None, Tensor | None] = (None, None)
        self._begin(b)

    def _begin(self, b: Leaves) -> None:
        raw = self.layout.ravel(b)
        self.rhs, self.norm = raw, norm(raw)
        self._scale = exponent(raw, self.norm)
        if isinstance(self._scale, Tensor) or self._scale != 0:
            self.rhs = times_power(raw, -self._scale)
            self.norm = norm(self.rhs)
        elif self._products.known is not None:
            self._known = (self.rhs, self.layout.ravel(self._products.known))
        self.floor = 10 * self._eps * self.norm

    @property
    def residual_scale(self) -> int | Tensor:
        """The exponent of the power of two by which residuals have been divided."""
        return self._scale

    def normalize(self) -> None:
        """Rescale the matrix to order one, by the size of its product with the right-hand side."""
        product = self.matvec(self.rhs)
        self._known = (self.rhs, product)
        self._matrix_scale = exponent(product, norm(product))
        if self.x0 is not None:
            self.x0 = self._scaled_start(self.x0)

    def _scaled_start(self, x0: Tensor) -> Tensor:
        """The initial guess in the scale of the problem; the solution zero if the right-hand side is zero."""
        x0 = times_power(x0, self._matrix_scale - self._scale)
        return torch.where(self.norm == 0, 0.0, x0) if isinstance(self.norm, Tensor) else x0 * (self.norm != 0)

    def _raw(self, x: Tensor) -> Tensor:
        return self.layout.ravel(self._products.apply(self.layout.unravel(x)))

    def matvec(self, x: Tensor) -> Tensor:
        """The product with a vector of each system."""
        vector, product = self._known
        if x is not vector or product is None:
            product = self._products.apply([x])[0] if self.layout.is_vector else self._raw(x)
        scale = self._matrix_scale
        return product if isinstance(scale, int) and scale == 0 else times_power(product, -scale)

    @property
    def apply(self) -> Product:
        """The product with a list of one vector, for many calls."""
        is_direct = self.layout.is_vector and isinstance(self._matrix_scale, int) and self._matrix_scale == 0
        return self._products.apply if is_direct else lambda x: [self.matvec(*x)]

    def residual(self, x: Tensor) -> Tensor:
        """The residual of ``x``."""
        return self.rhs - self.matvec(x)

    def check(self, x: Tensor, limit: Scalar, tol: float) -> tuple[Tensor, Scalar, Scalar]:
        """The residual of ``x``, its norm, and the norm at which to stop from now on."""
        r = self.residual(x)
        return r, norm(r), limit

    def judged(self, outcome: int | Tensor, tol: float) -> int | Tensor:
        """The outcome for the system as it was given."""
        return outcome

    def precondition(self, r: Tensor) -> Tensor:
        """An approximate solution for the right-hand side ``r``; ``r`` itself without a preconditioner."""
        if self._products.approximate is None:
            return r
        z = self.layout.ravel(self._products.approximate(self.layout.unravel(r)))
        return times_power(z, self._power * self._matrix_scale)

    @property
    def is_exact(self) -> bool:
        """Whether the leaves represent every element of a solution exactly."""
        scale = self._scale - self._matrix_scale
        return not isinstance(scale, Tensor) and scale == 0 and all(d.itemsize >= 4 for d in self.layout.dtypes)

    def in_original_scale(self, result: Result) -> tuple[list[Tensor], SolveStatus]:
        """The leaves of the solution of the original system, and the status, with a tensor of the batch's shape each.

        A solution that overflows or underflows the dtype of its leaves has diverged.
        """
        layout, scale = self.layout, self._scale - self._matrix_scale
        of_residual = self.residual_scale
        x = layout.unravel(times_power(result.x, scale))
        residual = times_power(result.residual, of_residual)
        outcome = self._of_systems(result.outcome, torch.int64)
        if not self.is_exact:
            held = times_power(layout.ravel(x), -scale)
            lost = torch.linalg.vector_norm(held - result.x, dim=-1)
            is_lost = ~(lost <= 4 * self._eps * torch.linalg.vector_norm(result.x, dim=-1))
            outcome = torch.where(is_lost.reshape(layout.batch), int(Outcome.DIVERGED), outcome)
        iterations = self._of_systems(result.iterations, torch.int64)
        return x, SolveStatus(iterations, self._of_systems(residual, layout.dtype), outcome)

    def _of_systems(self, value: Any, dtype: torch.dtype) -> Tensor:
        batch = self.layout.batch
        if not isinstance(value, Tensor):
            wide = torch.float64 if dtype.is_floating_point else dtype
            return torch.full(batch, value, dtype=wide, device=self.layout.device).to(dtype)
        return value.to(dtype).broadcast_to((*batch, 1) if batch else value.shape).reshape(batch).clone()

    def refuse_if_not_finite(self, name: str) -> None:
        """Raise if the right-hand side or the matrix is not finite, as opposed to a method that diverged.

        In a batch, do so only if this holds for all systems; otherwise it makes the solutions of some NaN.
        """
        if not self._some_finite(*self._given):
            raise ValueError(
                f'{name}: the right-hand side (in a derivative: the incoming gradient) has values that are not '
                f'finite. Find the operation that computes them.'
            )
        if not self._some_finite(self._raw(self.rhs.new_ones(self.rhs.shape))):
            raise ValueError(
                f'{name}: matvec returns values that are not finite. Find the operation that computes them; in a '
                f'derivative, the optimality function or its derivatives are not finite at the solution.'
            )

    def _some_finite(self, *vectors: Tensor) -> bool:
        """Whether vectors have only finite values in at least one system."""
        return bool(torch.stack([torch.isfinite(x).all(-1) for x in vectors]).all(0).any())

    @property
    def _given(self) -> list[Tensor]:
        return [self.rhs]

    def matrix(self) -> Tensor:
        """The matrix of each system, of shape ``(*batch, n, n)``, rescaled to order one."""
        n, batch = self.layout.size, self.layout.batch
        identity = torch.eye(n, dtype=self.layout.dtype, device=self.layout.device)
        basis = identity.view(n, *(1 for _ in batch), n).expand(n, *batch, n)
        if self._products.many is None:
            columns = map_product(lambda x: [self._raw(*x)])([basis])[0]
        else:
            columns = torch.vmap(lambda *x: self.layout.ravel(x))(*self._products.many(self.layout.unravel(basis)))
        matrix = columns.movedim(0, -1)
        flat = matrix.reshape(*batch, n * n)
        self._matrix_scale = exponent(flat, norm(flat))
        scale = self._matrix_scale
        return times_power(matrix, -(scale.unsqueeze(-1) if isinstance(scale, Tensor) else scale))


class NormalProblem(Problem):
    r"""The normal equations of a system that need not be square.

    Args:
        layout: The layout of the leaves of the unknown in a vector.
        products: The products.
        b: The right-hand side.
        x0: The initial guess.
        range_: The layout of the leaves of ``b`` in a vector.
        source: The right-hand side :math:`c` of the normal equations themselves, zero if None.
        ridge: The number :math:`\lambda` of each system, zero if None.
        has_solution: Whether :math:`A x = b` itself must be solved, as opposed to the least-squares problem.
    """

    drift = 100  # the condition number, and with it the rounding error, is squared

    def __init__(
        self,
        layout: Layout,
        products: Products,
        b: Leaves,
        x0: Leaves | None,
        range_: Layout,
        source: Leaves | None,
        ridge: Scalar | None,
        has_solution: bool = False,
    ) -> None:
        self._range, self._ridge = range_, ridge
        self._has_solution = has_solution and ridge is None and source is None
        self._relative: Scalar = 0.0  # the relative residual of the system itself, if that must be solved
        self._source = None if source is None else layout.ravel(source)
        super().__init__(layout, products, b, x0, 2)

    def _begin(self, b: Leaves) -> None:
        raw = self._range.ravel(b)
        b_size = norm(raw)
        e = exponent(raw, b_size)
        v = self._adjoint(times_power(raw, -e))
        direction = v if self._source is None else self._direction(v)
        size = norm(direction)
        d = exponent(direction, size)
        product = self._raw(times_power(direction, -d))
        of_product = norm(product)
        self._matrix_scale = a = self._scale_of(product, of_product)
        if self._source is None:
            self._scale = e
            self.rhs = times_power(v, -a)
            self._known = (self.rhs, times_power(product, d - a - a))
        else:
            self._scale = self._common_scale(b_size, e)
            self._source = times_power(self._source, -(self._scale + a))
            self.rhs = times_power(v, e - self._scale - a) + self._source
        self._b = times_power(raw, -self._scale)
        if self._ridge is not None:
            self._ridge = times_power(self._ridge, -2 * a)
            if isinstance(self._ridge, Tensor):
                self._ridge = self._ridge.to(self.layout.dtype)
        self.norm = norm(self.rhs) if self.rhs is not direction else size
        of_matrix = divide(times_power(of_product, -a), times_power(size, -d))
        self.floor = 10 * self._eps * (self.norm + of_matrix * times_power(b_size, -self._scale))

    def _direction(self, v: Tensor) -> Tensor:
        """A vector to estimate the scale of the matrix; ``b`` may be zero, or orthogonal to the range."""
        assert self._source is not None
        size = norm(v)
        return torch.where(size == 0, self._source, v) if isinstance(size, Tensor) else v if size else self._source

    def _scale_of(self, product: Tensor, size: Scalar) -> int | Tensor:
        a = exponent(product, size)
        if self._ridge is None:
            return a
        ridge = torch.as_tensor(self._ridge, dtype=torch.float64, device=product.device)
        of_ridge = torch.where(ridge == 0, -(2**20), torch.frexp(ridge).exponent) // 2
        if isinstance(self._ridge, Tensor) or isinstance(a, Tensor):
            return torch.maximum(torch.as_tensor(a, device=product.device), of_ridge)
        return max(a, int(of_ridge)) if abs(int(of_ridge)) > 12 else a

    def _common_scale(self, b_size: Scalar, b_scale: int | Tensor) -> int | Tensor:
        """The larger scale of the two right-hand sides, in terms of ``b``."""
        assert self._source is not None
        c_size = norm(self._source)
        c_scale = exponent(self._source, c_size) - self._matrix_scale
        if isinstance(c_size, Tensor):
            scales = torch.broadcast_tensors(  # type: ignore[no-untyped-call]
                *(torch.as_tensor(e, device=c_size.device) for e in (b_scale, c_scale)), c_size
            )
            larger = torch.where(b_size == 0, scales[1], torch.maximum(scales[0], scales[1]))
            return torch.where(c_size == 0, scales[0], larger)
        if not b_size or not c_size:
            return c_scale if c_size else b_scale
        return max(b_scale, c_scale)

    @property
    def residual_scale(self) -> int | Tensor:
        """The exponent of the power of two by which residuals have been divided."""
        return self._scale + self._matrix_scale

    def normalize(self) -> None:
        """Do nothing: the matrix is already of order one."""
        if self.x0 is not None:
            self.x0 = self._scaled_start(self.x0)

    def _raw(self, x: Tensor) -> Tensor:
        return self._range.ravel(self._products.apply(self.layout.unravel(x)))

    def _adjoint(self, u: Tensor) -> Tensor:
        return self.layout.ravel(self._products.adjoint(self._range.unravel(u)))

    def _normal(self, x: Tensor, u: Tensor) -> Tensor:
        """The product of the transpose with ``u``, plus the ridge times ``x``."""
        product = times_power(self._adjoint(u), -self._matrix_scale)
        return product if self._ridge is None else product + self._ridge * x

    def matvec(self, x: Tensor) -> Tensor:
        """The product of the normal equations with a vector of each system."""
        vector, product = self._known
        if x is not vector or product is None:
            product = times_power(self._raw(x), -self._matrix_scale)
        return self._normal(x, product)

    @property
    def apply(self) -> Product:
        """The product with a list of one vector, for many calls."""
        return lambda x: [self.matvec(*x)]

    def residual(self, x: Tensor) -> Tensor:
        """The residual of ``x``."""
        left = self._b - times_power(self._raw(x), -self._matrix_scale)
        if self._has_solution:
            self._relative = divide(norm(left), norm(self._b))
        residual = self._normal(-x, left)
        return residual if self._source is None else residual + self._source

    def check(self, x: Tensor, limit: Scalar, tol: float) -> tuple[Tensor, Scalar, Scalar]:
        """The residual, its norm, and a smaller limit while that of the system itself is relatively above ``tol``."""
        r, size, _ = super().check(x, limit, tol)
        excess = self._relative / tol if tol else 0.0
        if isinstance(excess, Tensor):
            smaller = torch.maximum(0.5 * size / excess, torch.as_tensor(self.floor))
            return r, size, torch.where(excess > 1, torch.minimum(smaller, torch.as_tensor(limit)), limit)
        return r, size, min(max(0.5 * size / excess, self.floor), limit) if excess > 1 else limit

    def judged(self, outcome: int | Tensor, tol: float) -> int | Tensor:
        """The outcome, if the normal equations are solved, but the system itself is not."""
        missed = self._relative > max(Problem.drift * tol, 10 * self._eps, 0.0 if tol else _RELIABLE)
        if not isinstance(missed, Tensor):
            return Outcome.INCONSISTENT if missed and outcome == Outcome.CONVERGED else outcome
        solved = torch.as_tensor(outcome, device=missed.device)
        return torch.where(missed & (solved == Outcome.CONVERGED), int(Outcome.INCONSISTENT), solved)

    @property
    def _given(self) -> list[Tensor]:
        return [self._b, *([] if self._source is None else [self._source])]


_RELIABLE = 1e-3
"""The relative residual up to which the solution of normal equations solves the system, if there is no tolerance."""
