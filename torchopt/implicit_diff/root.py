# SPDX-License-Identifier: Apache-2.0
r"""The derivative of a root.

Let :math:`F(x(\theta), \theta) = 0`.  Differentiating,

.. math::

    \partial_x F\, \mathrm{d}x + \partial_\theta F\, \mathrm{d}\theta = 0
    \qquad\Longrightarrow\qquad
    \mathrm{d}x = -(\partial_x F)^{-1}\, \partial_\theta F\, \mathrm{d}\theta.

Forward mode solves one linear system with the Jacobian :math:`\partial_x F`.  Reverse mode solves one with its
transpose, for the cotangent :math:`\bar x` of the root:

.. math:: (\partial_x F)^\mathsf{H} u = -\bar x, \qquad \bar\theta = (\partial_\theta F)^\mathsf{H} u.

The derivative does not depend on how the root was computed.  It uses only products with the Jacobian; the Jacobian
itself is not built, unless the linear solver requires it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.autodiff.closure import Converted, closure_convert
from torchopt.autodiff.products import jvp, replacing, vjp
from torchopt.autodiff.tape import Leaves
from torchopt.dtypes import is_inexact, real_dtype
from torchopt.kinds import kind_of
from torchopt.levels import apply_function, forward_mode, in_transform, saved_tensors
from torchopt.linear_solve.direct import solve_jacobian
from torchopt.linear_solve.operators import Adjoint, Jacobian
from torchopt.linear_solve.solve import BoundOperator, TreeShape

Solver = Callable[..., Any]
"""``solve(matvec, b)`` returns the solution of ``matvec(x) = b``, both trees."""


def select_tensors(arguments: Any) -> tree.Selection:
    """The tensors of a tree."""
    return tree.Selection(arguments, lambda x: isinstance(x, Tensor))


class Root:
    """A root: the optimality function as a function of tensors only, and the linear solver.

    Args:
        fun: ``fun(sol, *args, **kwargs)``, zero at the root.
        shape: The structure and the value of the root.
        arguments: The tensors of the pair ``(args, kwargs)``.
        solve: The linear solver; if None, a factorization of small Jacobians, else
            :func:`torchopt.linear_solve.solve_normal_cg`.
        constants: Tensors that ``fun`` closes over and that get no derivative.

    Attributes:
        theta: The tensors on which ``fun`` depends: first those of the arguments, then those it closes over.

    Raises:
        RuntimeError: If ``fun`` depends on other tensors in a way that cannot be differentiated.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        shape: TreeShape,
        arguments: tree.Selection,
        solve: Solver | None,
        constants: Sequence[Tensor] = (),
    ) -> None:
        checks.linear_solver('solve', solve)
        self.shape, self.arguments = shape, arguments
        self.solve = solve_jacobian if solve is None else solve
        self.unknowns = len(shape.unknowns)

        def of_leaves(x: Leaves, given: Leaves) -> Leaves:
            args, kwargs = arguments.replace(given)
            return shape.unpack(fun(shape.pack(x), *args, **kwargs), 'the result of optimality_fun')

        point = [_differentiable(x.detach()) for x in shape.unknowns]
        try:
            found = closure_convert(of_leaves, point, [t.detach() for t in arguments.selected])
        except Exception:  # differentiation calls the function again and raises then
            found = Converted(of_leaves, [])
        if not found.is_complete:
            raise RuntimeError(
                'The optimality function depends on tensors that are not its arguments in a way that cannot be '
                'differentiated: through a torch.autograd.Function, or through a graph that was recorded before the '
                'call (torch.autograd.grad, or the result of torch.func.vjp). Pass these tensors as arguments of the '
                'solver, use operations of torch on them, or detach them.'
            )
        self._converted = found._replace(
            captured=[t for t in found.captured if not any(t is c for c in constants)]
        ).lasting()
        self.theta: list[Tensor] = [*arguments.selected, *self._converted.captured]

    def optimality(self, theta: Leaves, x: Leaves) -> Leaves:
        """The optimality function as a function of leaves."""
        n = len(self.arguments.selected)
        return self._converted(theta[n:], x, theta[:n])

    def vjp(self, x: Leaves, theta: Leaves, x_bar: Leaves, wanted: Sequence[int]) -> list[Tensor | None]:
        """The cotangents of the tensors of ``theta`` with indices ``wanted``; None for the others."""
        theta_bar: list[Tensor | None] = [None] * len(theta)
        if wanted:
            u = self._solve(Adjoint(Jacobian(self.optimality, self.unknowns)), x, theta, [-g for g in x_bar])
            F = replacing(self.optimality, theta, wanted, [_differentiable(z) for z in x])
            for i, g in zip(wanted, vjp(F, [theta[i] for i in wanted], u)):
                theta_bar[i] = g
        return theta_bar

    def jvp(self, x: Leaves, theta: Leaves, theta_dot: Sequence[Tensor | None]) -> list[Tensor]:
        """The tangent of the root; a tangent of None means a constant argument."""
        moving = [i for i, t in enumerate(theta_dot) if t is not None and is_inexact(theta[i])]
        if not moving:
            return [torch.zeros_like(z) for z in x]
        F = replacing(self.optimality, theta, moving, [_differentiable(z) for z in x])
        F_dot = jvp(
            F, [theta[i] for i in moving], [t for i, t in enumerate(theta_dot) if i in moving and t is not None]
        )
        return self._solve(Jacobian(self.optimality, self.unknowns), x, theta, [-t for t in F_dot])

    def _solve(self, operator: Any, x: Leaves, theta: Leaves, b: Leaves) -> list[Tensor]:
        matvec = BoundOperator(operator, [*x, *theta], self.shape)
        return self.shape.unpack(self.solve(matvec, self.shape.pack(b)), 'the result of solve')


class _MappedRoot:
    """The roots of a batch of problems, along the first dimension; each has its own linear system."""

    def __init__(self, of: Root | _MappedRoot, theta_dims: list[int | None]) -> None:
        self.of, self.theta_dims = of, theta_dims
        self.unknowns: int = of.unknowns

    def vjp(self, x: Leaves, theta: Leaves, x_bar: Leaves, wanted: Sequence[int]) -> list[Tensor | None]:
        def one(x: Leaves, theta: Leaves, x_bar: Leaves) -> tuple[Any, ...]:
            found = self.of.vjp(x, theta, x_bar, wanted)
            return tuple(found[i] for i in wanted)

        theta_bar: list[Tensor | None] = [None] * len(theta)
        each = self._map(one, 0)(list(x), list(theta), list(x_bar)) if wanted else ()
        for i, g in zip(wanted, each):
            theta_bar[i] = g if self.theta_dims[i] == 0 else g.sum(0)  # sum over the batch for shared arguments
        return theta_bar

    def jvp(self, x: Leaves, theta: Leaves, theta_dot: Sequence[Tensor | None]) -> list[Tensor]:
        moving = [i for i, t in enumerate(theta_dot) if t is not None]

        def one(x: Leaves, theta: Leaves, tangents: Leaves) -> tuple[Tensor, ...]:
            dot: list[Tensor | None] = [None] * len(theta)
            for i, t in zip(moving, tangents):
                dot[i] = t
            return tuple(self.of.jvp(x, theta, dot))

        if not moving:
            return [torch.zeros_like(z) for z in x]
        return list(
            self._map(one, [self.theta_dims[i] for i in moving])(list(x), list(theta), [theta_dot[i] for i in moving])
        )

    def _map(self, one: Callable[..., tuple[Any, ...]], last: Any) -> Callable[..., tuple[Any, ...]]:
        return torch.vmap(one, in_dims=(0, self.theta_dims, last), randomness='different')


def attach_derivative(root: Root) -> list[Tensor]:
    """The root as a differentiable function of the tensors on which it depends."""
    return list(apply_function(_Implicit, root, *root.shape.unknowns, *root.theta))


class _Implicit(torch.autograd.Function):
    """``apply(root, *x, *theta) -> x``."""

    @staticmethod
    def forward(root: Root | _MappedRoot, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.clone() for x in tensors[: root.unknowns])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        root, *tensors = inputs
        ctx.root = root
        ctx.save_for_backward(*output, *tensors[root.unknowns :])
        ctx.save_for_forward(*output, *tensors[root.unknowns :])

    @staticmethod
    def backward(ctx: Any, *x_bar: Tensor) -> tuple[Tensor | None, ...]:
        root, n = ctx.root, ctx.root.unknowns
        saved = saved_tensors(ctx)
        x, theta = saved[:n], saved[n:]
        wanted = [i for i, t in enumerate(theta) if ctx.needs_input_grad[1 + n + i] and is_inexact(t)]
        return None, *[None] * n, *root.vjp(x, theta, x_bar, wanted)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        root, n = ctx.root, ctx.root.unknowns
        with forward_mode(ctx) as saved:
            return tuple(root.jvp(saved[:n], saved[n:], tangents[n:]))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], root: Root | _MappedRoot, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        n, size = root.unknowns, info.batch_size
        moved = [t if d is None else t.movedim(d, 0) for t, d in zip(tensors, in_dims[1:])]
        x = [t.expand(size, *t.shape) if d is None else t for t, d in zip(moved[:n], in_dims[1:])]
        mapped = _MappedRoot(root, [None if d is None else 0 for d in in_dims[1 + n :]])
        return apply_function(_Implicit, mapped, *x, *moved[n:]), (0,) * n


def _differentiable(x: Tensor) -> Tensor:
    """The solution as a tensor with respect to which the optimality function may call ``torch.autograd.grad``."""
    return x if x.requires_grad or in_transform() else x.detach().requires_grad_()


def _graph_only_for(*tensors: Tensor) -> torch.set_grad_enabled:
    """Record a graph only if a tensor has one; the results of :func:`_differentiable` must not require grad."""
    needed = any(x.requires_grad for x in tensors) or in_transform()
    return torch.set_grad_enabled(torch.is_grad_enabled() and needed)


def _check_arguments(name: str, value: Any) -> None:
    if not isinstance(value, (tuple, list)):
        raise TypeError(
            f'{name} is {kind_of(value)}; expected a tuple with one entry for each argument after sol. Pass '
            f'{name}=(a,) for one argument.'
        )


def _as_tensor(x: Any, shape: TreeShape) -> Any:
    """A number as a 0-d tensor of a real dtype, since only tensors have derivatives; anything else as it is."""
    like = shape.unknowns[0] if shape.unknowns else torch.zeros(())
    return torch.full((), x, dtype=real_dtype(like.dtype), device=like.device) if isinstance(x, (int, float)) else x


def root_vjp(
    optimality_fun: Callable[..., Any], sol: Any, args: tuple[Any, ...], cotangent: Any, solve: Solver | None = None
) -> tuple[Any, ...]:
    r"""The vector-Jacobian product of a root.

    .. math:: \bar\theta = -(\partial_\theta F)^\mathsf{H}\, (\partial_x F)^{-\mathsf{H}}\, \bar x

    Args:
        optimality_fun: ``optimality_fun(sol, *args)`` returns a tree like ``sol``, zero at the root.
        sol: The root :math:`x`, a tree of floating or complex tensors.
        args: The arguments :math:`\theta`, any trees; their floats and their floating and complex tensors get
            cotangents.
        cotangent: :math:`\bar x`, a tree like ``sol``.
        solve: The linear solver, ``solve(matvec, b)``; None as in :func:`custom_root`.

    Returns:
        One tree for each argument, with None for leaves that are not floats, nor floating or complex tensors.

    Raises:
        TypeError: If ``args`` is not a tuple.
        ValueError: If the result of ``optimality_fun`` or ``cotangent`` does not match ``sol``, or if values are not
            finite.

    Example:
        >>> import torch
        >>> from torchopt.implicit_diff import root_vjp
        >>> F = lambda x, a: x * x - a  # x = sqrt(a), whose derivative is 1 / (2 x)
        >>> x, a = torch.tensor(3.0), torch.tensor(9.0)
        >>> root_vjp(F, x, (a,), torch.tensor(1.0))
        (tensor(0.1667),)
    """
    _check_arguments('args', args)
    shape = TreeShape(sol, 'sol')
    args = tree.map(lambda a: _as_tensor(a, shape) if isinstance(a, float) else a, tuple(args))
    arguments = select_tensors((args, {}))
    x_bar = shape.unpack(cotangent, 'cotangent')
    root = Root(optimality_fun, shape, arguments, solve)
    wanted = [i for i, t in enumerate(arguments.selected) if is_inexact(t)]
    with _graph_only_for(*shape.unknowns, *root.theta, *x_bar):
        return arguments.alone(root.vjp(shape.unknowns, root.theta, x_bar, wanted))[0]


def root_jvp(
    optimality_fun: Callable[..., Any],
    sol: Any,
    args: tuple[Any, ...],
    tangents: tuple[Any, ...],
    solve: Solver | None = None,
) -> Any:
    r"""The Jacobian-vector product of a root.

    .. math:: \dot x = -(\partial_x F)^{-1}\, \partial_\theta F\, \dot\theta

    Args:
        optimality_fun: ``optimality_fun(sol, *args)`` returns a tree like ``sol``, zero at the root.
        sol: The root :math:`x`, a tree of floating or complex tensors.
        args: The arguments :math:`\theta`; any trees of tensors and numbers.
        tangents: :math:`\dot\theta`: for each argument a tree like it, with None for constant arguments or leaves.
        solve: The linear solver, ``solve(matvec, b)``; None as in :func:`custom_root`.

    Returns:
        A tree like ``sol``.

    Raises:
        TypeError: If ``args`` or ``tangents`` is not a tuple, or an argument that is no number has a tangent.
        ValueError: If the number of tangents is wrong, trees do not match, or values are not finite.

    Example:
        >>> import torch
        >>> from torchopt.implicit_diff import root_jvp
        >>> F = lambda x, a, b: x * x - a * b
        >>> x, a, b = torch.tensor(3.0), torch.tensor(9.0), torch.tensor(1.0)
        >>> root_jvp(F, x, (a, b), (torch.tensor(1.0), None))
        tensor(0.1667)
    """
    _check_arguments('args', args)
    _check_arguments('tangents', tangents)
    args, tangents = tuple(args), tuple(tangents)
    if len(args) != len(tangents):
        raise ValueError(
            f'{len(args)} args but {len(tangents)} tangents; pass one for each, None for a constant argument.'
        )
    shape = TreeShape(sol, 'sol')
    found: list[Any] = []
    for i, (t, a) in enumerate(zip(tangents, args)):
        of_a, spec = tree.flatten(a)
        constant = [None] * len(of_a)
        found += constant if t is None else tree.flatten_up_to(spec, t, name=f'tangents[{i}]', like=f'args[{i}]')
    leaves, spec = tree.flatten(args)
    leaves = [a if t is None else _as_tensor(a, shape) for t, a in zip(found, leaves)]
    for t, a in zip(found, leaves):
        if t is not None and not isinstance(a, Tensor):
            raise TypeError(f'An argument is {kind_of(a)} and has a tangent. Pass None as its tangent.')
    arguments = select_tensors((tree.unflatten(spec, leaves), {}))
    theta_dot = [_as_tensor(found[i], shape) for i in arguments.positions]
    for t, a in zip(theta_dot, arguments.selected):
        if t is not None and t.shape != a.shape:
            raise ValueError(
                f'A tangent has shape {tuple(t.shape)}, but its argument has shape {tuple(a.shape)}. Pass equal shapes.'
            )
    root = Root(optimality_fun, shape, arguments, solve)
    theta_dot += [None] * (len(root.theta) - len(theta_dot))  # closed-over tensors are constant
    with _graph_only_for(*shape.unknowns, *root.theta, *(t for t in theta_dot if t is not None)):
        return shape.pack(root.jvp(shape.unknowns, root.theta, theta_dot))
