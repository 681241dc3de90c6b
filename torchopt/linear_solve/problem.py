# SPDX-License-Identifier: Apache-2.0
r"""A linear system in the form that methods solve: real vectors and products, rescaled to order one.

A solver works on real vectors of shape ``(*batch, n)``: all leaves of the unknown side by side, complex leaves as pairs
of real numbers, half precision computed in float32.  Real pairs are necessary: the Jacobian of a function
that is not holomorphic is linear over the reals only.

Let :math:`A x = b`, and let :math:`\beta` and :math:`\alpha` be powers of two close to the largest elements of
:math:`b` and of :math:`A`.  With

.. math:: A' = A / \alpha, \qquad b' = b / \beta, \qquad x' = x\, \alpha / \beta

the system is :math:`A' x' = b'`: its inner products do not overflow or underflow, so methods need no special care.
The first product gives the scale of :math:`A`.  Scales are stored as exponents: powers of two cause no rounding, and
the product of two is the sum of their exponents, even if the dtype cannot represent it.  Systems of order one do not
change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt.autodiff.products import map_product
from torchopt.autodiff.tape import Leaves, Product
from torchopt.linear_solve.status import Outcome, SolveStatus

Scalar = Any
"""A Python number for a single system, a tensor of shape ``(*batch, 1)`` for a batch.

With numbers on the host an iteration has fewer tensor operations.  These dominate the time for small systems, and on a
GPU they would cost more than the synchronization."""


class Layout(NamedTuple):
    """The layout of leaves in a vector."""

    batch: tuple[int, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    is_vector: bool
    """Whether there is one leaf, which already is such a vector."""

    @classmethod
    def of(cls, leaves: Sequence[Tensor], batch: tuple[int, ...] = ()) -> Layout:
        """The layout of vectors like these leaves, whose first dimensions are those of the batch."""
        dtype = torch.float32
        for x in leaves:
            dtype = torch.promote_types(dtype, x.dtype.to_real() if x.is_complex() else x.dtype)
        shapes = tuple(x.shape[len(batch) :] for x in leaves)
        sizes = tuple(math.prod(s) * (2 if x.is_complex() else 1) for s, x in zip(shapes, leaves))
        device = leaves[0].device if leaves else torch.device('cpu')
        is_vector = len(shapes) == 1 and len(shapes[0]) == 1 and leaves[0].dtype == dtype
        return cls(batch, shapes, tuple(x.dtype for x in leaves), sizes, dtype, device, is_vector)

    @property
    def size(self) -> int:
        """The number of real unknowns of one system."""
        return sum(self.sizes)

    def ravel(self, leaves: Sequence[Tensor]) -> Tensor:
        """Concatenate leaves to a vector."""
        if self.is_vector:
            return leaves[0]
        parts = [
            (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).reshape((*self.batch, n)).to(self.dtype)
            for x, n in zip(leaves, self.sizes)
        ]
        if not parts:
            return torch.zeros((*self.batch, 0), dtype=self.dtype, device=self.device)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def unravel(self, vector: Tensor) -> list[Tensor]:
        """The leaves in a vector, as views where dtypes allow it.  Further leading dimensions are kept."""
        if self.is_vector:
            return [vector]
        lead = vector.shape[:-1]
        leaves = []
        for part, shape, dtype in zip(torch.split(vector, list(self.sizes), dim=-1), self.shapes, self.dtypes):
            if dtype.is_complex:
                # Not view_as_complex, which needs an even offset.
                leaves.append(torch.complex(*part.reshape((*lead, *shape, 2)).unbind(-1)).to(dtype))
            else:
                leaves.append(part.reshape((*lead, *shape)).to(dtype))
        return leaves


def inner(x: Tensor, y: Tensor) -> Scalar:
    """The inner product of each system."""
    if x.dim() == 1:
        return torch.dot(x, y).item()
    return torch.linalg.vecdot(x, y).unsqueeze(-1)


def norm(x: Tensor) -> Scalar:
    """The Euclidean norm of each system."""
    if x.dim() == 1:
        return torch.linalg.vector_norm(x).item()
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


_MODERATE = 12
"""Numbers from ``2**-k`` to ``2**k``, with this ``k``, are of order one: products do not overflow or underflow."""


def exponent(x: Tensor, size: Scalar) -> int | Tensor:
    """For each system the exponent of the power of two next to its largest element; zero for vectors of order one.

    Args:
        x: The vectors.
        size: Their norms, which may be wrong if they overflow or underflow.
    """
    if not isinstance(size, Tensor):
        if 2.0**-_MODERATE < size < 2.0**_MODERATE or not x.numel():
            return 0
        largest = torch.linalg.vector_norm(x, math.inf).item()
        return math.frexp(largest)[1] if 0 < largest < math.inf else 0
    if not x.numel():
        return 0
    largest = torch.linalg.vector_norm(x, math.inf, dim=-1, keepdim=True)
    found = torch.frexp(largest).exponent
    found = torch.where((largest > 0) & torch.isfinite(largest) & (found.abs() > _MODERATE), found, 0)
    return found if bool(found.any()) else 0


def times_power(x: Any, e: int | Tensor) -> Any:
    """``x * 2**e`` for a vector or a scalar; exact unless it leaves the range of the dtype."""
    if isinstance(e, Tensor):
        like = x if isinstance(x, Tensor) else torch.zeros((), dtype=torch.float64, device=e.device)
        first = torch.div(e, 2, rounding_mode='floor')
        return x * torch.exp2(first.to(like.dtype)) * torch.exp2((e - first).to(like.dtype))
    if e == 0:
        return x
    if -100 < e < 100:
        return x * 2.0**e
    half = e // 2
    return x * 2.0**half * 2.0 ** (e - half)


def divide(a: Scalar, b: Scalar) -> Scalar:
    """The quotient, or zero if the divisor is zero, so that a system that is solved or broke down does not change."""
    if isinstance(b, Tensor):
        return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))
    return a / b if b != 0 else 0.0


def any_above(x: Scalar, limit: Scalar) -> bool:
    """Whether some system's value exceeds its limit, or is NaN."""
    return bool((~(x <= limit)).any()) if isinstance(x, Tensor) else not x <= limit


def step_size(a: Scalar, b: Scalar, size: Scalar, limit: Scalar) -> Scalar:
    """:func:`divide`; zero for the solved systems of a batch, whose ``size`` is within the limit."""
    if isinstance(a, Tensor):
        a = torch.where(size <= limit, 0.0, a)
    elif b != 0:
        return a / b
    return divide(a, b)


def can_improve(size: Any, limit: Any, *steps: Any) -> bool:
    """Whether some system is not solved yet, is finite, and moved in at least one of the last steps."""
    if not isinstance(size, Tensor):
        return size > limit and math.isfinite(size) and any(step != 0 for step in steps)
    moved = torch.stack([step != 0 for step in steps]).any(dim=0)
    return bool(((size > limit) & torch.isfinite(size) & moved).any())


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

    def in_original_scale(self, result: Result, name: str) -> tuple[list[Tensor], Result]:
        """The leaves of the solution of the original system, and the result with its residual.

        A solution that overflows or underflows the dtype of its leaves has diverged.  Not finite data raise an error.
        """
        if isinstance(result.residual, Tensor):
            is_finite = bool(torch.isfinite(result.x).all() & torch.isfinite(result.residual).all())
        else:  # the norm may overflow, although all is finite
            is_finite = math.isfinite(result.residual) and (
                result.outcome is Outcome.CONVERGED or math.isfinite(norm(result.x.flatten()))
            )
        if not is_finite:
            self.refuse_if_not_finite(name)
        layout, scale = self.layout, self._scale - self._matrix_scale
        x = layout.unravel(times_power(result.x, scale))
        result = result._replace(residual=times_power(result.residual, self.residual_scale))
        if isinstance(scale, Tensor) or scale != 0 or any(d.itemsize < 4 for d in layout.dtypes):
            held = times_power(layout.ravel(x), -scale)
            is_batch = bool(layout.batch)
            lost, size = (torch.linalg.vector_norm(z, dim=-1, keepdim=is_batch) for z in (held - result.x, result.x))
            result = result._replace(
                outcome=torch.where(lost <= 4 * self._eps * size, result.outcome, int(Outcome.DIVERGED))
            )
        return x, result

    def status(self, result: Result) -> SolveStatus:
        """The status, with a tensor of the batch's shape each."""
        return SolveStatus(
            self._of_systems(result.iterations, torch.int64),
            self._of_systems(result.residual, self.layout.dtype),
            self._of_systems(result.outcome, torch.int64),
        )

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
