# SPDX-License-Identifier: Apache-2.0
r"""The one derivative of all linear solvers.

Let :math:`A(\theta)\, x = b`.  Differentiating both sides,

.. math::

    \mathrm{d}A\; x + A\, \mathrm{d}x = \mathrm{d}b
    \qquad\Longrightarrow\qquad
    \mathrm{d}x = A^{-1} (\mathrm{d}b - \mathrm{d}A\; x).

Forward mode is that solve.  For reverse mode let :math:`\bar x` be the cotangent of :math:`x` and

.. math:: u = A^{-\mathsf{H}}\, \bar x;

then :math:`\langle \bar x, \mathrm{d}x \rangle = \langle u, \mathrm{d}b \rangle - \langle u, \mathrm{d}A\; x \rangle`,
so the cotangent of :math:`b` is :math:`u`, and that of :math:`\theta` is the vector-Jacobian product of :math:`\theta
\mapsto -A(\theta)\, x` with :math:`u`.  Either way a derivative is one more solve, by the same method, and as many
products as it takes; nothing of the iteration is kept.  The solve inside a derivative goes through the same door, so
that derivatives of every order follow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._C import _functorch
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from torchopt.autodiff.products import jvp, map_product, replacing, vjp
from torchopt.autodiff.tape import Leaves
from torchopt.linear_solve.operators import Adjoint, Operator
from torchopt.linear_solve.status import Outcome, SolveStatus, warn_unless_solved
from torchopt.linear_solve.vectors import Layout
from torchopt.numerics import apply_function, forward_mode, is_inexact, saved_tensors

__all__ = ['Method', 'Problem', 'Result', 'System', 'solve_system']


class Result(NamedTuple):
    """What a method found: vectors ``(*batch, n)``, and for each system how the solve went."""

    x: Tensor
    iterations: int | Tensor
    residual: Any
    outcome: int | Tensor


class Problem:
    r"""What a method sees: real vectors, and products with :math:`A`, with its transpose, and with a preconditioner."""

    def __init__(self, system: System, consts: Leaves, preconditioner: Leaves, b: Leaves, x0: Leaves | None) -> None:
        self.layout = layout = Layout.of(b, system.batch)
        self.b = layout.ravel(b)
        self.x0 = None if x0 is None else layout.ravel(x0)
        self._product = None if system.product is None else layout.ravel(system.product)
        self._apply, self._adjoint = system.operator.prepare(consts, b)
        self._precondition = None
        if system.preconditioner is not None:
            self._precondition = system.preconditioner.prepare(preconditioner, b)[0]

    def matvec(self, x: Tensor) -> Tensor:
        """The product with a vector of each system."""
        if x is self.b and self._product is not None:
            return self._product
        return self.layout.ravel(self._apply(self.layout.unravel(x)))

    def rmatvec(self, x: Tensor) -> Tensor:
        """The product of the transpose with a vector of each system."""
        return self.layout.ravel(self._adjoint(self.layout.unravel(x)))

    def precondition(self, r: Tensor) -> Tensor:
        """An approximate solution for the right-hand side ``r``; ``r`` itself without a preconditioner."""
        if self._precondition is None:
            return r
        return self.layout.ravel(self._precondition(self.layout.unravel(r)))

    @property
    def is_preconditioned(self) -> bool:
        """Whether there is a preconditioner."""
        return self._precondition is not None

    def refuse_if_not_finite(self, name: str) -> None:
        """Raise where the method was given values that are not finite, rather than made them."""
        if not bool(torch.isfinite(self.b).all()):
            raise ValueError(
                f'{name}: the right-hand side (in a derivative: the gradient that comes in) has values that are not '
                f'finite. Find where they come from; no solver can go on from them.'
            )
        if not bool(torch.isfinite(self.matvec(torch.ones_like(self.b))).all()):
            raise ValueError(
                f'{name}: matvec gives values that are not finite. Find where they come from; in a derivative, the '
                f'optimality function or its derivatives are not finite at the solution.'
            )

    def matrix(self) -> Tensor:
        """The matrix of each system, ``(*batch, n, n)``, column by column."""
        n, batch = self.layout.size, self.layout.batch
        identity = torch.eye(n, dtype=self.layout.dtype, device=self.layout.device)
        basis = identity.view(n, *(1 for _ in batch), n).expand(n, *batch, n)
        columns = map_product(lambda x: [self.matvec(*x)])([basis])[0]
        return columns.movedim(0, -1)


class Method(Protocol):
    """A way to solve a problem: options, and an algorithm."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    @property
    def symmetric(self) -> bool:
        """Whether it takes the matrix for its own transpose."""

    def run(self, problem: Problem) -> Result:
        """Solve."""


class System(NamedTuple):
    """All of a linear system that is not a tensor.

    Attributes:
        method: How it is to be solved.
        operator: The map.
        preconditioner: An approximation of its inverse.
        leaves: How many leaves the right-hand side has.
        consts: How many tensors the map depends on.
        has_init: Whether an initial guess is given.
        warns: Whether to warn if the method fails, rather than leave it to the status.
        product: The product with the right-hand side, if it is known; many methods begin with it.
        batch: The first dimensions of all vectors, which count independent systems.
    """

    method: Method
    operator: Operator
    preconditioner: Operator | None
    leaves: int
    consts: int
    has_init: bool
    warns: bool
    product: Leaves | None = None
    batch: tuple[int, ...] = ()

    def split(self, tensors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any], Sequence[Any]]:
        """Cut ``[*b, *init, *consts, *preconditioner]`` into the four."""
        n = self.leaves
        m = n + n * self.has_init
        k = m + self.consts
        return tensors[:n], tensors[n:m], tensors[m:k], tensors[k:]


def solve_system(
    method: Method,
    operator: Operator,
    consts: Leaves,
    b: Leaves,
    init: Leaves | None = None,
    preconditioner: tuple[Operator, Leaves] | None = None,
    *,
    warns: bool = True,
    product: Leaves | None = None,
) -> tuple[list[Tensor], SolveStatus]:
    """Solve a linear system, differentiably in the right-hand side and in the tensors that the matrix depends on.

    Args:
        method: How to solve.
        operator: The map.
        consts: The tensors that it depends on.
        b: The right-hand side.
        init: The initial guess; the solution does not depend on it, so it has no derivative.
        preconditioner: An approximation of the inverse with the tensors that it depends on; no derivative either.
        warns: Whether to warn if the method fails.
        product: The product with the right-hand side, if it is known.
    """
    approximate, its_consts = preconditioner or (None, [])
    system = System(method, operator, approximate, len(b), len(consts), init is not None, warns, product)
    tensors = [*b, *(init or ()), *consts, *its_consts]
    *x, iterations, residual, outcome = apply_function(_Solve, system, *tensors)
    return x, SolveStatus(iterations, residual, outcome)


class _Solve(torch.autograd.Function):
    """``apply(system, *b, *init, *consts, *preconditioner) -> (*x, iterations, residual, outcome)``."""

    @staticmethod
    def forward(system: System, *tensors: Tensor) -> tuple[Tensor, ...]:
        _refuse_legacy_batches(tensors)
        b, init, consts, approximate = system.split([x.detach() for x in tensors])
        problem = Problem(system, consts, approximate, b, init if system.has_init else None)
        result = _run(system.method, problem)
        device, batch = problem.layout.device, system.batch
        status = SolveStatus(
            _per_system(result.iterations, batch, torch.int64, device),
            _per_system(result.residual, batch, problem.layout.dtype, device),
            _per_system(result.outcome, batch, torch.int64, device),
        )
        if system.warns and result.outcome is not Outcome.CONVERGED:
            warn_unless_solved(system.method.name, status)
        return *(x.clone() for x in problem.layout.unravel(result.x)), *status

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        system, *tensors = inputs
        ctx.system, ctx.inputs = system, len(tensors)
        _, _, consts, approximate = system.split(tensors)
        x, status = output[: system.leaves], output[system.leaves :]
        ctx.mark_non_differentiable(*status)
        ctx.save_for_backward(*x, *consts, *approximate)
        ctx.save_for_forward(*x, *consts, *approximate)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        system = ctx.system
        x, consts, approximate = _cut(system, saved_tensors(ctx))
        if all(g is None for g in cotangents[: system.leaves]):
            return (None,) * (1 + ctx.inputs)
        x_bar = [torch.zeros_like(z) if g is None else g for g, z in zip(cotangents, x)]
        # u = A^-H x_bar
        u, _ = _solve_again(system, consts, approximate, x_bar, transposed=not system.method.symmetric)
        needs_b, _, needs_consts, _ = system.split(ctx.needs_input_grad[1:])
        b_bar = [g if needed else None for g, needed in zip(u, needs_b)]
        # theta_bar = -(d/dtheta A(theta) x)^H u
        wanted = [i for i, (needed, c) in enumerate(zip(needs_consts, consts)) if needed and is_inexact(c)]
        consts_bar: list[Tensor | None] = [None] * len(consts)
        if wanted:
            product = replacing(system.operator.matvec, consts, wanted, x)
            for i, g in zip(wanted, vjp(product, [consts[i] for i in wanted], [-g for g in u])):
                consts_bar[i] = g
        rest = ctx.inputs - len(b_bar) - system.leaves * system.has_init - len(consts)
        return None, *b_bar, *[None] * (system.leaves * system.has_init), *consts_bar, *[None] * rest

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        with forward_mode(ctx) as saved:
            return _Solve._jvp(ctx.system, saved, tangents)

    @staticmethod
    def _jvp(system: System, saved: list[Tensor], tangents: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        x, consts, approximate = _cut(system, saved)
        b_dot, _, consts_dot, _ = system.split(tangents)
        rhs = [torch.zeros_like(z) if t is None else t for t, z in zip(b_dot, x)]
        # x_dot = A^-1 (b_dot - A_dot x)
        moving = [i for i, t in enumerate(consts_dot) if t is not None]
        if moving:
            product = replacing(system.operator.matvec, consts, moving, x)
            A_dot_x = jvp(product, [consts[i] for i in moving], [t for t in consts_dot if t is not None])
            rhs = [r - t for r, t in zip(rhs, A_dot_x)]
        x_dot, _ = _solve_again(system, consts, approximate, rhs, transposed=False)
        return *x_dot, None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], system: System, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        size = info.batch_size
        dims = [None if d is None else 0 for d in in_dims[1:]]
        moved = [x if d is None else x.movedim(d, 0) for x, d in zip(tensors, in_dims[1:])]
        b, init, consts, approximate = system.split(moved)
        b_dims, init_dims, const_dims, approximate_dims = system.split(dims)
        operator, consts = system.operator.batched(consts, const_dims, size)
        preconditioner = system.preconditioner
        if preconditioner is not None:
            preconditioner, approximate = preconditioner.batched(approximate, approximate_dims, size)
        batched = system._replace(operator=operator, preconditioner=preconditioner, batch=(size, *system.batch))
        vectors = [x if d == 0 else x.expand(size, *x.shape) for x, d in zip([*b, *init], [*b_dims, *init_dims])]
        output = apply_function(_Solve, batched, *vectors, *consts, *approximate)
        return output, (0,) * len(output)


def _refuse_legacy_batches(tensors: Sequence[Tensor]) -> None:
    if any(_functorch.is_legacy_batchedtensor(x) for x in tensors):
        raise RuntimeError(
            'A linear system cannot be solved inside of torch.autograd.grad(is_grads_batched=True) or '
            'torch.autograd.functional.jacobian(vectorize=True). Use torch.func.jacrev, jacfwd or vmap.'
        )


def _solve_again(
    system: System, consts: Leaves, approximate: Leaves, b: Leaves, *, transposed: bool
) -> tuple[list[Tensor], SolveStatus]:
    operator, preconditioner = system.operator, system.preconditioner
    if transposed:
        operator = operator.of if isinstance(operator, Adjoint) else Adjoint(operator)
        if preconditioner is not None:
            preconditioner = preconditioner.of if isinstance(preconditioner, Adjoint) else Adjoint(preconditioner)
    again = system._replace(operator=operator, preconditioner=preconditioner, has_init=False, warns=True, product=None)
    *x, iterations, residual, outcome = apply_function(_Solve, again, *b, *consts, *approximate)
    return x, SolveStatus(iterations, residual, outcome)


def _cut(system: System, saved: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    n, m = system.leaves, system.leaves + system.consts
    return saved[:n], saved[n:m], saved[m:]


def _run(method: Method, problem: Problem) -> Result:
    """Solve; and where that failed, tell whether the values were to blame."""
    if not problem.b.numel():
        return Result(problem.b, 0, 0.0, Outcome.CONVERGED)
    try:
        result = method.run(problem)
    except LinAlgError:
        problem.refuse_if_not_finite(method.name)
        raise
    certain = result.outcome is Outcome.CONVERGED and math.isfinite(result.residual)
    if not certain and not bool(
        torch.isfinite(result.x).all() & torch.isfinite(torch.as_tensor(result.residual)).all()
    ):
        problem.refuse_if_not_finite(method.name)
    return result


def _per_system(value: Any, batch: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.full(batch, value, dtype=dtype, device=device)
    return value.to(dtype).broadcast_to((*batch, 1) if batch else value.shape).reshape(batch).clone()
