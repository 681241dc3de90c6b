# SPDX-License-Identifier: Apache-2.0
"""Decorators that give a solver the implicit derivative of its root or fixed point."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

from torchopt import checks, tree
from torchopt.autodiff.closure import is_recording
from torchopt.dtypes import is_inexact
from torchopt.implicit_diff.binding import Reference, bind, match, refuse_hidden_parameters, signature_of
from torchopt.implicit_diff.root import Root, Solver, attach_derivative, select_tensors
from torchopt.kinds import kind_of
from torchopt.levels import eager, has_tangent, in_transform
from torchopt.linear_solve.solve import TreeShape
from torchopt.spelling import names_checked
from torchopt.tree.ops import detached


@names_checked
def custom_root(
    optimality_fun: Callable[..., Any],
    has_aux: bool = False,
    solve: Solver | None = None,
    reference_signature: Reference = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    r"""Differentiate the solution of a solver, a root of ``optimality_fun``, by the implicit function theorem.

    .. math::

        F(x, \theta) = 0 \quad\Longrightarrow\quad
        \mathrm{d}x = -(\partial_x F)^{-1}\, \partial_\theta F\, \mathrm{d}\theta

    The decorated ``solver_fun(init_params, *args, **kwargs)`` runs on tensors without a graph, so it may use any
    method, and no intermediate results are stored.  The derivative is exact at an exact root.  It is available in
    reverse and forward mode, to any order, and under ``torch.func`` transforms.  Arguments, and tensors that
    ``optimality_fun`` closes over, get gradients; ``init_params`` does not.  ``optimality_fun`` is evaluated again when
    the derivative is computed, with the variables that it had: these may be rebound, but what they refer to, such as a
    dict or a tensor that does not require grad, must not be changed in place before.

    Args:
        optimality_fun: ``optimality_fun(sol, *args, **kwargs)`` returns a tree like the solution, zero at the
            solution.
        has_aux: Whether ``solver_fun`` returns a pair of the solution and auxiliary results, which get no derivatives.
        solve: The linear solver, ``solve(matvec, b)``.  If None: for up to 256 unknowns an LU factorization of the
            Jacobian (64 for each system of a batch under ``torch.vmap``); for more, inside ``torch.compile``, and for
            a singular Jacobian, :func:`torchopt.linear_solve.solve_normal_cg`.  If the Jacobian is symmetric positive
            definite, as for the gradient of a strictly convex function, :func:`~torchopt.linear_solve.solve_cg` uses
            half the matrix-vector products of the latter and tolerates larger condition numbers.
        reference_signature: A function, or its signature, to match arguments if the signature of ``optimality_fun`` is
            not available.

    Returns:
        A decorator of ``solver_fun``.

    Raises:
        TypeError: If ``solve`` is not a function.  When called: if the arguments do not match, one of them is a module
            whose parameters require gradients, or the solver returns no tensor.
        ValueError: When differentiated: if the result of ``optimality_fun`` is not a tree like the solution, or values
            are not finite.
        RuntimeError: When called: if ``optimality_fun`` closes over tensors that require gradients in a way that cannot
            be detected, through a ``torch.autograd.Function`` or a graph that was recorded earlier.

    Warns:
        LinearSolveWarning: When differentiated, if the linear system is not solved to the tolerance of ``solve``; for
            :func:`~torchopt.linear_solve.solve_normal_cg`, also if the residual of the system itself, as opposed to
            that of the normal equations, is more than ten times above the tolerance.

    Example:
        >>> import torch
        >>> from torchopt.implicit_diff import custom_root
        >>> X, y = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 3.0])
        >>> def stationarity(w, penalty):
        ...     return X.T @ (X @ w - y) + penalty * w
        >>> @custom_root(stationarity)
        ... def ridge(init, penalty):
        ...     return torch.linalg.solve(X.T @ X + penalty * torch.eye(1), X.T @ y)
        >>> penalty = torch.tensor(2.0, requires_grad=True)
        >>> w = ridge(None, penalty)
        >>> torch.autograd.grad(w.sum(), penalty)
        (tensor(-0.1429),)

    References:
        Blondel et al., *Efficient and Modular Implicit Differentiation*, 2022 (arXiv 2105.15183).
    """
    checks.function('optimality_fun', optimality_fun)
    checks.linear_solver('solve', solve)

    def decorate(solver_fun: Callable[..., Any]) -> Callable[..., Any]:
        checks.function('solver_fun', solver_fun)
        signature = signature_of(solver_fun)
        reference = signature_of(optimality_fun if reference_signature is None else reference_signature)

        @eager
        @functools.wraps(solver_fun)
        def solver(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = bind(signature, args, kwargs)
            refuse_hidden_parameters((args[1:], kwargs))
            return find_root(solver_fun, optimality_fun, reference, args, kwargs, has_aux=has_aux, solve=solve)

        return solver

    return decorate


@names_checked
def custom_fixed_point(
    fixed_point_fun: Callable[..., Any],
    has_aux: bool = False,
    solve: Solver | None = None,
    reference_signature: Reference = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    r"""Differentiate the solution of a solver, a fixed point :math:`x = T(x, \theta)`.

    It is :func:`custom_root` with :math:`F(x, \theta) = T(x, \theta) - x`.

    Args:
        fixed_point_fun: ``fixed_point_fun(sol, *args, **kwargs)`` returns ``sol`` at the solution.
        has_aux: See :func:`custom_root`.
        solve: See :func:`custom_root`.
        reference_signature: See :func:`custom_root`.

    Returns:
        A decorator of ``solver_fun``.

    Example:
        >>> import torch
        >>> from torchopt.implicit_diff import custom_fixed_point
        >>> def T(x, a):
        ...     return 0.5 * (x + a / x)  # Heron's iteration for the square root
        >>> @custom_fixed_point(T)
        ... def square_root(init, a):
        ...     x = init
        ...     for _ in range(8):
        ...         x = T(x, a)
        ...     return x
        >>> torch.func.grad(square_root, argnums=1)(torch.tensor(1.0), torch.tensor(9.0))
        tensor(0.1667)
    """

    def optimality_fun(params: Any, *args: Any, **kwargs: Any) -> Any:
        return tree.sub(fixed_point_fun(params, *args, **kwargs), params)

    reference = fixed_point_fun if reference_signature is None else reference_signature
    return custom_root(optimality_fun, has_aux, solve, signature_of(reference))


def find_root(
    solver_fun: Callable[..., Any],
    optimality_fun: Callable[..., Any],
    reference: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    has_aux: bool,
    solve: Solver | None,
    constants: Sequence[Tensor] = (),
) -> Any:
    """Run a solver and attach the implicit derivative to its solution; ``constants`` get none."""
    optimality_arguments = select_tensors(match(reference, args, kwargs))
    result = solver_fun(*_own_copy(args[:1]), *detached(args[1:]), **detached(kwargs))
    aux: tuple[Any, ...] = ()
    if has_aux:
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(
                f'With has_aux=True the solver must return a pair (solution, auxiliary results); it returned a '
                f'{type(result).__name__}.'
            )
        result, aux = result[0], (detached(result[1]),)
    elif (
        type(result) is tuple
        and len(result) == 2
        and result[1] is not None
        and not any(isinstance(x, Tensor) and is_inexact(x) for x in tree.leaves(result[1]))
    ):
        raise TypeError(
            'The solver returned a pair whose second entry contains no floating tensors. If it returns auxiliary '
            'results besides the solution, pass has_aux=True.'
        )
    solution = detached(result)
    if is_recording():
        shape = TreeShape(solution, 'the solution')
        if not shape.unknowns and optimality_arguments.selected:
            raise TypeError(
                f'The solver returned {kind_of(solution)}, which can have no derivative: it holds no tensor of a '
                f'floating or complex dtype. Return a tensor, not its item(), or a tree of tensors.'
            )
        root = Root(optimality_fun, shape, optimality_arguments, solve, constants)
        if any(wants_derivative(x) for x in root.theta):
            solution = root.shape.pack(attach_derivative(root))
    return (solution, *aux) if has_aux else solution


def _own_copy(x: Any) -> Any:
    """A copy that a solver may change in place without changing the caller's tensors."""

    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        own = leaf.detach().clone()
        return own.requires_grad_() if leaf.requires_grad and not in_transform() else own

    return tree.map(copy, x)


def wants_derivative(x: Tensor) -> bool:
    """Whether a tensor is being differentiated, or mapped over by vmap."""
    return (x.requires_grad and torch.is_grad_enabled()) or _functorch.is_functorch_wrapped_tensor(x) or has_tangent(x)
