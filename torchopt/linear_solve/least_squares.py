# SPDX-License-Identifier: Apache-2.0
r"""The derivative of least squares, for matrices of any shape and rank.

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
from torchopt.autodiff.tape import Leaves
from torchopt.levels import in_transform
from torchopt.linear_solve.operators import Operator, per_system

__all__ = ['LeastSquares']


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

        def size(leaves: Leaves) -> Any:
            return sum(x.abs().square().reshape(*x.shape[:dims], -1).sum(-1) for x in _scaled(leaves, whole))

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


def _scaled(leaves: Leaves, like: Leaves) -> list[Tensor]:
    """Leaves divided by the largest element of ``like``, so that squares do not overflow."""
    largest = max((float(x.abs().max()) for x in like if x.numel()), default=0.0)
    return [x / largest for x in leaves] if largest else list(leaves)
