# SPDX-License-Identifier: Apache-2.0
r"""Normal equations: the problem that methods solve, and its derivative, for matrices of any shape and rank.

:math:`(A^\mathsf{H} A + \lambda I)\, x = A^\mathsf{H} b + c` squares the scale of :math:`A`; so :math:`A` itself is
rescaled (see :mod:`torchopt.linear_solve.problem`): :math:`\lambda' = \lambda / \alpha^2` and
:math:`c' = c / (\alpha \beta)`.

**Without a ridge** the solution is :math:`x = A^+ b`, the minimizer of :math:`\|A x - b\|` with the least norm.  (With
the initial guess :math:`x_0` it is :math:`x = x_0 + A^+ (b - A x_0)`.)  If the rank does not change,

.. math::

    \mathrm{d}A^+ = -A^+\, \mathrm{d}A\, A^+ + A^+ A^{+\mathsf{H}}\, \mathrm{d}A^\mathsf{H}\, (I - A A^+)
                    + (I - A^+ A)\, \mathrm{d}A^\mathsf{H}\, A^{+\mathsf{H}} A^+ ,

by Golub and Pereyra (*The Differentiation of Pseudo-Inverses and Nonlinear Least Squares Problems Whose Variables
Separate*, 1973).  With the residual :math:`r = b - A x` and :math:`y = A^{+\mathsf{H}} (x - x_0)` that is

.. math::

    \mathrm{d}x = w + A^+ \bigl(\mathrm{d}b - \mathrm{d}A\, x + A^{+\mathsf{H}}\, \mathrm{d}A^\mathsf{H} r - A w\bigr),
    \qquad w = \mathrm{d}A^\mathsf{H} y .

For reverse mode let :math:`\bar x` be the cotangent of :math:`x`, and

.. math:: u = A^{+\mathsf{H}}\, \bar x, \qquad q = \bar x - A^\mathsf{H} u, \qquad z = A^+ u ;

then :math:`\langle \bar x, \mathrm{d}x \rangle = \langle u, \mathrm{d}b \rangle - \langle u, \mathrm{d}A\, x \rangle +
\langle \mathrm{d}A\, z, r \rangle + \langle \mathrm{d}A\, q, y \rangle`.  Every application of :math:`A^+` or of
:math:`A^{+\mathsf{H}}` is a least-squares problem of the same kind, so derivatives of every order follow.

For a nonsingular matrix :math:`r = 0` and :math:`q = 0`, and one solve suffices, as for other solvers.  But it is not
known beforehand whether a square matrix is nonsingular.  A plain gradient omits the term of :math:`z` or :math:`y` if
:math:`r` or :math:`q` is zero to the tolerance of the solver.  A term that is zero may have a nonzero derivative, so
all terms are computed if a further derivative may follow.

**With a ridge** :math:`\lambda`, or if a preconditioner implies that the matrix of the normal equations is nonsingular,

.. math:: (A^\mathsf{H} A + \lambda I)\, x = A^\mathsf{H} b + c

(where :math:`c = 0` except in derivatives), and differentiating both sides gives

.. math::

    (A^\mathsf{H} A + \lambda I)\, \mathrm{d}x
    = A^\mathsf{H} (\mathrm{d}b - \mathrm{d}A\, x) + \mathrm{d}A^\mathsf{H} r + \mathrm{d}c - \mathrm{d}\lambda\, x .

With :math:`(A^\mathsf{H} A + \lambda I)\, z = \bar x` and :math:`u = A z` the cotangents are :math:`\bar b = u`,
:math:`\bar c = z`, :math:`\bar\lambda = -\langle z, x \rangle`, and that of :math:`A` as above, without :math:`q`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt.autodiff.products import jvp, put, vjp
from torchopt.autodiff.tape import Leaves, Product
from torchopt.levels import in_transform
from torchopt.linear_solve.operators import Operator, per_system
from torchopt.linear_solve.problem import Layout, Problem, Products, Scalar, divide, exponent, norm, times_power
from torchopt.linear_solve.status import Outcome


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


class LeastSquares(NamedTuple):
    """A solved least-squares problem, for differentiation.

    Attributes:
        solve: ``solve(b)``, ``solve(b, source=c)`` and ``solve(x, transposed=True)``, to the tolerance ``tol``.
        operator: The map.
        theta: The tensors that it depends on.
        ridge: The ridge of each system, if there is one.
        is_regular: Whether the matrix of the normal equations, with the ridge, is known to be nonsingular.
        tol: The tolerance.
        batch: The number of batch dimensions.
        x: The solution.
        x0: The initial guess, if not zero.
        b: The right-hand side, without ``c``.
    """

    solve: Callable[..., Leaves]
    operator: Operator
    theta: Leaves
    ridge: Tensor | None
    is_regular: bool
    tol: float
    batch: int
    x: Leaves
    x0: Leaves | None
    b: Leaves

    def pull(
        self, x_bar: Leaves, wanted: Sequence[int], *, needs_source: bool, needs_ridge: bool
    ) -> tuple[Leaves, list[Tensor], Tensor | None]:
        """The cotangents of ``b`` (and ``c``), of the wanted tensors of ``theta``, and of the ridge."""
        if self.is_regular:
            z = self.solve([torch.zeros_like(y) for y in self.b], source=x_bar)
            u = self._product(z)
            terms: list[tuple[Leaves, Leaves]] = [(self.x, [-g for g in u])]
            if wanted:
                terms.append((z, self._residual()))
            ridge_bar = self._ridge_bar(z) if needs_ridge else None
            return [*u, *(z if needs_source else ())], self._theta_bar(terms, wanted), ridge_bar
        u = self.solve(x_bar, transposed=True)
        if not wanted:
            return u, [], None
        q = _minus(x_bar, self.operator.rmatvec(self.theta, u))
        r = self._residual()
        rows, columns = _size(self.b, self.batch), _size(self.x, self.batch)
        certain = in_transform() or torch.is_grad_enabled()
        deficient = certain or (rows <= columns and self._is_large(r, self.b)) or self._is_large(q, x_bar)
        terms = [(self.x, [-g for g in u])]
        if deficient or rows > columns:
            terms.append((self.solve(u), r))
        if deficient or rows < columns:
            terms.append((q, self._dual()))
        return u, self._theta_bar(terms, wanted), None

    def push(
        self, b_dot: Leaves, c_dot: Leaves | None, moving: Sequence[int], theta_dot: Leaves, ridge_dot: Tensor | None
    ) -> Leaves:
        """The tangent of the solution."""
        if moving:
            b_dot = _minus(b_dot, self._moved(self.operator.matvec, moving, theta_dot, self.x))
            of_residual = self._moved(self.operator.rmatvec, moving, theta_dot, self._residual())
        if self.is_regular:
            source = [torch.zeros_like(z) for z in self.x] if c_dot is None else c_dot
            if moving:
                source = [c + d for c, d in zip(source, of_residual)]
            if ridge_dot is not None:
                source = [c - per_system(ridge_dot, z) * z for c, z in zip(source, self.x)]
            return self.solve(b_dot, source=source)
        if not moving:
            return self.solve(b_dot)
        w = self._moved(self.operator.rmatvec, moving, theta_dot, self._dual())
        v = self.solve(of_residual, transposed=True)
        rest = [b + c for b, c in zip(_minus(b_dot, self._product(w)), v)]
        return [a + b for a, b in zip(w, self.solve(rest))]

    def _product(self, x: Leaves) -> Leaves:
        return self.operator.matvec(self.theta, x)

    def _residual(self) -> Leaves:
        return _minus(self.b, self._product(self.x))

    def _dual(self) -> Leaves:
        return self.solve(self.x if self.x0 is None else _minus(self.x, self.x0), transposed=True)

    def _is_large(self, part: Leaves, whole: Leaves) -> bool:
        """Whether a part that is zero for a nonsingular matrix is larger than the error of the solver."""
        dims = self.batch
        # So that squares do not overflow.
        largest = max((float(x.abs().max()) for x in whole if x.numel()), default=0.0) or 1.0

        def size(leaves: Leaves) -> Any:
            return sum((x / largest).abs().square().reshape(*x.shape[:dims], -1).sum(-1) for x in leaves)

        return bool((size(part) > (100 * self.tol) ** 2 * size(whole)).any())

    def _theta_bar(self, terms: list[tuple[Leaves, Leaves]], wanted: Sequence[int]) -> list[Tensor]:
        """The vector-Jacobian product of all products at once."""
        if not wanted:
            return []

        def products(*values: Tensor) -> list[Tensor]:
            theta = put(self.theta, wanted, values)
            return [y for x, _ in terms for y in self.operator.matvec(theta, x)]

        return list(vjp(products, [self.theta[i] for i in wanted], [g for _, gs in terms for g in gs]))

    def _moved(
        self, product: Callable[[Leaves, Leaves], Leaves], moving: Sequence[int], theta_dot: Leaves, x: Leaves
    ) -> Leaves:
        """The derivative of the product with a constant vector."""
        return jvp(
            lambda *values: product(put(self.theta, moving, values), x), [self.theta[i] for i in moving], theta_dot
        )

    def _ridge_bar(self, z: Leaves) -> Tensor:
        assert self.ridge is not None
        dims = self.batch
        parts = [(a.conj() * b).real if a.is_complex() else a * b for a, b in zip(z, self.x)]
        return -sum((p.reshape(*p.shape[:dims], -1).sum(-1).to(self.ridge.dtype) for p in parts), self.ridge * 0)


def _minus(a: Leaves, b: Leaves) -> list[Tensor]:
    return [x - y for x, y in zip(a, b)]


def _size(leaves: Leaves, batch: int) -> int:
    """The number of real unknowns of one system."""
    return sum(x[(0,) * batch].numel() * (2 if x.is_complex() else 1) for x in leaves)
