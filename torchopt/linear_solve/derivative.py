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
\mapsto -A(\theta)\, x` with :math:`u`.  In both modes a derivative takes one more solve by the same method, and the
matrix-vector products of that solve; the iterations are not stored.  The solve inside a derivative uses the same
function, so derivatives of every order follow.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._C import _functorch
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from torchopt.autodiff.closure import Converted
from torchopt.autodiff.products import jvp, replacing
from torchopt.autodiff.tape import Leaves
from torchopt.dtypes import is_inexact
from torchopt.graphs import detach_graph
from torchopt.levels import apply_function, forward_mode, in_transform, runs_untracked, saved_tensors
from torchopt.linear_solve.normal_equations import LeastSquares, NormalProblem
from torchopt.linear_solve.operators import Adjoint, Closure, Operator
from torchopt.linear_solve.problem import Layout, Problem, Products, Result
from torchopt.linear_solve.status import Outcome, SolveStatus, warn_unless_solved


class Method(Protocol):
    """A solution method: an algorithm with its options."""

    @property
    def name(self) -> str:
        """The name for error messages."""

    @property
    def symmetric(self) -> bool:
        """Whether it assumes a symmetric matrix."""

    @property
    def power(self) -> int:
        """The power of the scale of the matrix by which its preconditioner must be multiplied."""

    @property
    def truncates(self) -> bool:
        """Whether the number of iterations is limited on purpose."""

    def run(self, problem: Problem) -> Result:
        """Solve."""


class Normal(NamedTuple):
    r"""The additional data of normal equations :math:`(A^\mathsf{H} A + \lambda I)\, x = A^\mathsf{H} b + c`.

    Attributes:
        domain: Shapes and dtypes of the leaves of :math:`x`, without the dimensions of a batch.
        has_ridge: Whether there is a :math:`\lambda`, the last of the tensors that the map depends on.
        has_source: Whether there is a :math:`c`, whose leaves follow those of :math:`b`.
        has_solution: Whether :math:`A x = b` itself must be solved, as opposed to the least-squares problem.
    """

    domain: tuple[tuple[torch.Size, torch.dtype], ...]
    has_ridge: bool = False
    has_source: bool = False
    has_solution: bool = False


class System(NamedTuple):
    """The data of a linear system that are not tensors.

    Attributes:
        method: The method of solution.
        operator: The map.
        preconditioner: An approximation of its inverse.
        leaves: The number of leaves of the right-hand side.
        consts: The number of tensors that the map depends on.
        has_init: Whether an initial guess is given.
        warns: Whether to warn if the method fails, instead of returning a status.
        product: The product with the right-hand side if it is known, which is the first step of many methods.
        batch: The first dimensions of all vectors, which index independent systems.
        normal: The data of the normal equations, if the system consists of these.
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
    normal: Normal | None = None

    @property
    def unknowns(self) -> int:
        """The number of leaves of the solution."""
        return self.leaves if self.normal is None else len(self.normal.domain)

    def split(self, tensors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any], Sequence[Any]]:
        """Split ``[*b, *init, *consts, *preconditioner]`` into its four parts."""
        n = self.leaves
        m = n + self.unknowns if self.has_init else n
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
    normal: Normal | None = None,
) -> tuple[list[Tensor], SolveStatus | None]:
    """Solve a linear system, differentiably in the right-hand side and in the tensors of the matrix.

    Args:
        method: The method.
        operator: The map.
        consts: The tensors that it depends on.
        b: The right-hand side.
        init: The initial guess; the solution does not depend on it, so it gets no derivative.
        preconditioner: An approximation of the inverse with the tensors that it depends on; it gets no derivative.
        warns: Whether to warn if the method fails, instead of returning a status.
        product: The product with the right-hand side, if it is known.
        normal: The data of the normal equations, if these are to be solved.
    """
    approximate, its_consts = preconditioner or (None, [])
    system = System(method, operator, approximate, len(b), len(consts), init is not None, warns, product, normal=normal)
    found = _solved(system, *b, *(init or ()), *consts, *its_consts)
    return (list(found), None) if warns else (list(found[:-3]), SolveStatus(*found[-3:]))


def _solved(system: System, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The outputs of :class:`_Solve`, without its node where nothing is differentiated."""
    if not runs_untracked(tensors):
        preconditioner = None if system.preconditioner is None else system.preconditioner.lasting()
        system = system._replace(operator=system.operator.lasting(), preconditioner=preconditioner)
        outputs: tuple[Tensor, ...] = apply_function(_Solve, system, *tensors)
        return outputs
    with torch.no_grad():
        return _Solve.forward(system, *tensors)


class _Solve(torch.autograd.Function):
    """``apply(system, *b, *init, *consts, *preconditioner) -> (*x, *status)``; a system that warns has no status."""

    @staticmethod
    def forward(system: System, *tensors: Tensor) -> tuple[Tensor, ...]:
        if True in map(_functorch.is_legacy_batchedtensor, tensors):
            raise RuntimeError(
                'A linear system cannot be solved inside torch.autograd.grad(is_grads_batched=True) or '
                'torch.autograd.functional.jacobian(vectorize=True). Use torch.func.jacrev, jacfwd or vmap.'
            )
        b, init, consts, approximate = system.split([x.detach() for x in tensors])
        if 0 in system.batch:
            dims, number = len(system.batch), torch.Size()
            kinds = [(x.shape[dims:], x.dtype) for x in b] if system.normal is None else list(system.normal.domain)
            if not system.warns:
                kinds += [(number, torch.int64), (number, kinds[0][1].to_real()), (number, torch.int64)]
            return tuple(b[0].new_empty((*system.batch, *shape), dtype=dtype) for shape, dtype in kinds)
        problem, method = _problem(system, consts, approximate, b, init if system.has_init else None), system.method
        try:
            result = method.run(problem) if problem.rhs.numel() else Result(problem.rhs, 0, 0.0, Outcome.CONVERGED)
        except LinAlgError as error:
            problem.refuse_if_not_finite(method.name)
            raise LinAlgError(f'{method.name}: {error}') from None
        x, result = problem.in_original_scale(result, method.name)
        if system.warns and result.outcome is not Outcome.CONVERGED:
            status = functools.partial(problem.status, result)
            warn_unless_solved(method.name, result.outcome, status, truncates=method.truncates)
        return *(z.clone() for z in x), *(() if system.warns else problem.status(result))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        system, *tensors = inputs
        ctx.system, ctx.inputs = system, len(tensors)
        b, init, consts, approximate = system.split(tensors)
        x = output[: system.unknowns]
        ctx.mark_non_differentiable(*output[len(x) :])
        given = () if system.normal is None else (*b, *init)
        ctx.save_for_backward(*x, *consts, *approximate, *given)
        ctx.save_for_forward(*x, *consts, *approximate, *given)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        system, operator = ctx.system, ctx.system.operator
        if all(g is None for g in cotangents[: system.unknowns]):
            return (None,) * (1 + ctx.inputs)
        saved = saved_tensors(ctx)
        if isinstance(operator, Closure) and torch.is_grad_enabled() and not operator.is_replaceable:
            with torch.no_grad():
                found = _Solve.backward(ctx, *cotangents)
            some = [g for g in found if g is not None]
            inputs = [*saved, *(g for g in cotangents if g is not None)]
            once = iter(apply_function(_Once, system.method.name, len(some), *some, *inputs))
            return tuple(None if g is None else next(once) for g in found)
        x, consts, approximate = _cut(system, saved)
        x_bar = [torch.zeros_like(z) if g is None else g for g, z in zip(cotangents, x)]
        needs_b, init, needs_consts, _ = system.split(ctx.needs_input_grad[1:])
        wanted = [i for i, (needed, c) in enumerate(zip(needs_consts, consts)) if needed and is_inexact(c)]
        consts_bar: list[Tensor | None] = [None] * len(consts)
        if system.normal is None:
            # u = A^-H x_bar
            u: Leaves = solve_again(system, consts, approximate, x_bar, transposed=not system.method.symmetric)
            if wanted:
                if not torch.is_grad_enabled():
                    x = [detach_graph(z) for z in x]  # so that no graph leads to the solution
                # theta_bar = -(d/dtheta A(theta) x)^H u
                theta_bar: Leaves = system.operator.pull(consts, wanted, x, [-g for g in u])
        else:
            solved = _least_squares(system, saved)
            has_ridge = system.normal.has_ridge
            needs_ridge = has_ridge and len(consts) - 1 in wanted
            wanted = wanted[: len(wanted) - needs_ridge]
            u, theta_bar, ridge_bar = solved.pull(
                x_bar, wanted, needs_source=system.normal.has_source, needs_ridge=needs_ridge
            )
            if needs_ridge:
                consts_bar[-1] = ridge_bar
        if wanted:
            for i, g in zip(wanted, theta_bar):
                consts_bar[i] = g
        b_bar = [g if needed else None for g, needed in zip(u, needs_b)]
        rest = ctx.inputs - len(b_bar) - len(init) - len(consts)
        return None, *b_bar, *[None] * len(init), *consts_bar, *[None] * rest

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        with forward_mode(ctx) as saved:
            return _Solve._jvp(ctx.system, saved, tangents)

    @staticmethod
    def _jvp(system: System, saved: list[Tensor], tangents: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        x, consts, approximate = _cut(system, saved)
        b_dot, _, consts_dot, _ = system.split(tangents)
        moving = [i for i, t in enumerate(consts_dot) if t is not None]
        status_dot = () if system.warns else (None, None, None)
        if system.normal is not None:
            return *_push_normal(system, saved, b_dot, consts_dot, moving), *status_dot
        rhs = [torch.zeros_like(z) if t is None else t for t, z in zip(b_dot, x)]
        # x_dot = A^-1 (b_dot - A_dot x)
        if moving:
            product = replacing(system.operator.matvec, consts, moving, x)
            A_dot_x = jvp(product, [consts[i] for i in moving], [t for t in consts_dot if t is not None])
            rhs = [r - t for r, t in zip(rhs, A_dot_x)]
        return *solve_again(system, consts, approximate, rhs, transposed=False), *status_dot

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], system: System, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        size = info.batch_size
        dims = [None if d is None else 0 for d in in_dims[1:]]
        moved = [x if d is None else x.movedim(d, 0) for x, d in zip(tensors, in_dims[1:])]
        b, init, consts, approximate = system.split(moved)
        b_dims, init_dims, const_dims, approximate_dims = system.split(dims)
        theta = len(consts) - (system.normal is not None and system.normal.has_ridge)
        ridge = [c if d == 0 else c.expand(size, *c.shape) for c, d in zip(consts[theta:], const_dims[theta:])]
        operator, consts = system.operator.batched(consts[:theta], const_dims[:theta], size)
        consts = [*consts, *ridge]
        preconditioner = system.preconditioner
        if preconditioner is not None:
            preconditioner, approximate = preconditioner.batched(approximate, approximate_dims, size)
        batched = system._replace(operator=operator, preconditioner=preconditioner, batch=(size, *system.batch))
        vectors = [x if d == 0 else x.expand(size, *x.shape) for x, d in zip([*b, *init], [*b_dims, *init_dims])]
        output = _solved(batched, *vectors, *consts, *approximate)
        return output, (0,) * len(output)


def solve_again(
    system: System,
    consts: Leaves,
    approximate: Leaves,
    b: Leaves,
    *,
    transposed: bool = False,
    source: Leaves | None = None,
) -> list[Tensor]:
    """Solve for another right-hand side, or with the transpose."""
    operator, preconditioner, normal = system.operator, system.preconditioner, system.normal
    if transposed:
        operator = operator.of if isinstance(operator, Adjoint) else Adjoint(operator)
        if preconditioner is not None:
            preconditioner = preconditioner.of if isinstance(preconditioner, Adjoint) else Adjoint(preconditioner)
    again = system._replace(
        operator=operator,
        preconditioner=preconditioner,
        leaves=len(b) + len(source or ()),
        has_init=False,
        warns=True,
        product=None,
        normal=None if normal is None else normal._replace(has_source=source is not None),
    )
    return list(_solved(again, *b, *(source or ()), *consts, *approximate))


def _least_squares(system: System, saved: list[Tensor]) -> LeastSquares:
    """Prepare normal equations for differentiation."""
    x, consts, approximate = _cut(system, saved)
    normal = system.normal
    assert normal is not None
    given = saved[len(x) + len(consts) + len(approximate) :]
    b = given[: system.leaves - (len(x) if normal.has_source else 0)]
    theta, ridge = (consts[:-1], consts[-1]) if normal.has_ridge else (consts, None)
    is_regular = normal.has_ridge or system.preconditioner is not None

    def solve(b: Leaves, *, transposed: bool = False, source: Leaves | None = None) -> list[Tensor]:
        of_b = tuple((x.shape[len(system.batch) :], x.dtype) for x in given_b)
        domain = of_b if transposed else normal.domain
        again = system._replace(normal=normal._replace(domain=domain))
        return solve_again(again, consts, approximate, b, transposed=transposed, source=source)

    given_b = b
    return LeastSquares(
        solve,
        system.operator,
        theta,
        ridge,
        is_regular,
        getattr(system.method, 'tol', 0.0),
        len(system.batch),
        x,
        given[system.leaves :] if system.has_init else None,
        b,
    )


def _push_normal(
    system: System, saved: list[Tensor], b_dot: Sequence[Any], consts_dot: Sequence[Any], moving: list[int]
) -> Leaves:
    solved, normal = _least_squares(system, saved), system.normal
    assert normal is not None

    def zeros_or(dots: Sequence[Any], like: Leaves) -> list[Tensor]:
        return [torch.zeros_like(z) if t is None else t for t, z in zip(dots, like)]

    n = len(solved.b)
    ridge_dot = consts_dot[-1] if normal.has_ridge else None
    moving = [i for i in moving if i < len(solved.theta)]
    return solved.push(
        zeros_or(b_dot[:n], solved.b),
        zeros_or(b_dot[n:], solved.x) if normal.has_source else None,
        moving,
        [consts_dot[i] for i in moving],
        ridge_dot,
    )


def _cut(system: System, saved: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    n = system.unknowns
    m = n + system.consts
    count = len(saved) - (0 if system.normal is None else system.leaves + n * system.has_init)
    return saved[:n], saved[n:m], saved[m:count]


def _problem(system: System, consts: Leaves, approximate: Leaves, b: Leaves, x0: Leaves | None) -> Problem:
    """The problem for the method."""
    preconditioner = system.preconditioner
    if system.normal is None:
        apply, adjoint = system.operator.prepare(consts, b)
        inverse = None if preconditioner is None else preconditioner.prepare(approximate, b)[0]
        many = functools.partial(system.operator.many, consts) if system.batch else None
        products = Products(apply, adjoint, inverse, system.product, many)
        return Problem(Layout.of(b, system.batch), products, b, x0, system.method.power)
    normal, ridge = system.normal, None
    if normal.has_ridge:
        *consts, last = consts
        ridge = last.reshape(*system.batch, 1) if system.batch else last.item()
    count, source = system.leaves, None
    if normal.has_source:
        count -= system.unknowns
        b, source = b[:count], b[count:]
    device = b[0].device if b else torch.device('cpu')
    like = [torch.empty((*system.batch, *shape), dtype=dtype, device=device) for shape, dtype in normal.domain]
    range_, domain = Layout.of(b, system.batch), Layout.of(like, system.batch)
    dtype = torch.promote_types(range_.dtype, domain.dtype)
    apply, adjoint = system.operator.prepare(consts, b)
    inverse = None if preconditioner is None else preconditioner.prepare(approximate, like)[0]
    products = Products(apply, adjoint, inverse)
    layouts = domain._replace(dtype=dtype, device=device), range_._replace(dtype=dtype, device=device)
    return NormalProblem(layouts[0], products, b, x0, layouts[1], source, ridge, normal.has_solution)


def attach_graph(
    method: Method, converted: Converted, b: Leaves, *, warns: bool
) -> tuple[list[Tensor], SolveStatus | None]:
    r"""Solve with a matrix whose dependence on tensors cannot be made explicit, since its graph was recorded earlier.

    The derivative is that above, with the product :math:`A(\theta)\, x` and its graph in place of :math:`\theta`.  This
    product is linear in a constant :math:`x`, so a second derivative would be wrong; therefore it raises an error.
    """
    if in_transform():
        raise RuntimeError(
            f'{method.name}: under torch.func transforms the matvec may not depend on tensors through '
            'torch.autograd.grad, torch.func.vjp(f, x) of a tensor x from outside, or a torch.autograd.Function, '
            'since these cannot be detected. Use operations of torch in it, or implicit_diff.root_vjp, or detach the '
            'tensors.'
        )
    operator = Closure(converted._replace(captured=[]), [(y.shape, y.dtype) for y in b])
    with torch.no_grad():
        x, status = solve_system(method, operator, (), b, warns=warns)
    y = converted.fun(x)
    return list(apply_function(_Attach, method, operator, len(x), *x, *b, *y)), status


class _Attach(torch.autograd.Function):
    """``apply(method, operator, n, *x, *b, *A_x) -> x``, where ``x`` is the solution already."""

    @staticmethod
    def forward(ctx: Any, method: Method, operator: Operator, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.method, ctx.operator, ctx.n = method, operator, n
        ctx.save_for_backward(*tensors[n:])
        return tuple(x.clone() for x in tensors[:n])

    @staticmethod
    def backward(ctx: Any, *x_bar: Tensor) -> tuple[Any, ...]:
        operator = ctx.operator if ctx.method.symmetric else Adjoint(ctx.operator)
        with torch.no_grad():
            u, _ = solve_system(ctx.method, operator, (), x_bar)
        if torch.is_grad_enabled():
            # The other tensors are inputs too, so that a second derivative with respect to them raises instead of
            # being zero.
            u = list(apply_function(_Once, ctx.method.name, ctx.n, *u, *ctx.saved_tensors, *x_bar))
        return None, None, None, *[None] * ctx.n, *u, *(-g for g in u)


class _Once(torch.autograd.Function):
    """``apply(name, n, *u, *rest) -> u``; its derivative raises an error."""

    @staticmethod
    def forward(ctx: Any, name: str, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(x.clone() for x in tensors[:n])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(
            f'{ctx.name}: second derivatives require a matvec whose dependence on tensors can be detected. This one '
            'uses a graph that was recorded before, through torch.autograd.grad or torch.func.vjp, or a result that it '
            'keeps from its first call. Compute the product inside the matvec, with torch.func.jvp of a function of '
            'the tensors, or use implicit_diff.root_vjp.'
        )
