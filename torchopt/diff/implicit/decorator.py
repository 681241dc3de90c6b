# SPDX-License-Identifier: Apache-2.0
"""TorchOpt's version of :func:`torchopt.implicit_diff.custom_root`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from torchopt import checks, tree
from torchopt.autodiff.arguments import positions_of
from torchopt.dtypes import is_inexact
from torchopt.implicit_diff.binding import bind, parameters_within, refuse_hidden_parameters, signature_of
from torchopt.implicit_diff.custom_root import find_root
from torchopt.kinds import kind_of
from torchopt.levels import eager
from torchopt.spelling import names_checked
from torchopt.tree.ops import detached

__all__ = ['custom_root']


@names_checked
def custom_root(
    optimality_fn: Callable[..., Any],
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    solve: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    r"""Differentiate the solution of ``solver_fn(params, *args)`` as a root of ``optimality_fn``.

    See :func:`torchopt.implicit_diff.custom_root`, which has no ``argnums``.

    Args:
        optimality_fn: ``optimality_fn(params, *args)`` returns a tree like the solution, zero at the solution.
        argnums: The positions of the arguments of ``solver_fn`` that get gradients; negative numbers count from the
            end.  None means all arguments that require a gradient.  Position 0, the initial solution, has no gradient.
        has_aux: Whether ``solver_fn`` returns a pair of the solution and auxiliary results, which get no derivatives.
        solve: The linear solver, such as ``torchopt.linear_solve.solve_cg()``;
            if None, as for :func:`torchopt.implicit_diff.custom_root`.

    Raises:
        TypeError: If ``argnums`` is neither an int nor a sequence of ints.
        ValueError: If ``argnums`` contains 0 or a position that does not exist.
        RuntimeError: When called: if an argument in ``argnums``, or the solution, has no floating or complex tensors;
            if ``has_aux`` is set and the result is not a pair.
        TypeError: When called without ``argnums``: if an argument is a module whose parameters require gradients.

    Example:
        >>> import torch, torchopt
        >>> def stationary(x, a, b):
        ...     return x - a * b
        >>> @torchopt.diff.implicit.custom_root(stationary, argnums=1)
        ... def solve(x, a, b):
        ...     return a * b
        >>> a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
        >>> x = solve(torch.tensor(0.0), a, b)
        >>> torch.autograd.grad(x, (a, b), allow_unused=True)
        (tensor(3.), None)
    """
    checks.function('optimality_fn', optimality_fn)
    checks.linear_solver('solve', solve)

    def decorate(solver_fn: Callable[..., Any]) -> Callable[..., Any]:
        checks.function('solver_fn', solver_fn)
        signature = signature_of(solver_fn)
        reference = signature_of(optimality_fn)
        chosen = None if argnums is None else _positions(argnums, signature)

        def checked(*args: Any, **kwargs: Any) -> Any:
            result = solver_fn(*args, **kwargs)
            _check_output(result, has_aux)
            return result

        @eager
        @functools.wraps(solver_fn)
        def solver(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = bind(signature, args, kwargs)
            constants: list[Tensor] = []
            if chosen is None:
                refuse_hidden_parameters((args[1:], kwargs))
            else:
                constants = parameters_within((args[1:], kwargs))  # module parameters cannot be detached
                wanted = {i if i >= 0 else len(args) + i for i in chosen}
                args = tuple(_only_if(i in wanted, i, x) for i, x in enumerate(args))
                kwargs = {k: detached(x) for k, x in kwargs.items()}
            return find_root(
                checked, optimality_fn, reference, args, kwargs, has_aux=has_aux, solve=solve, constants=constants
            )

        return solver

    return decorate


def _positions(argnums: int | Sequence[int], signature: inspect.Signature | None) -> tuple[int, ...]:
    if isinstance(argnums, (tuple, list)) and not argnums:
        return ()  # no argument gets a gradient
    chosen, _ = positions_of(argnums)
    positional, open_ended = 0, signature is None
    for p in signature.parameters.values() if signature is not None else ():
        positional += p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        open_ended |= p.kind is p.VAR_POSITIONAL
    for i in chosen:
        if i == 0 or (not open_ended and i == -positional):
            raise ValueError(
                'Invalid argnums: 0 is the initial solution, which has no gradient; the arguments begin at 1.'
            )
        if not open_ended and not -positional <= i < positional:
            raise ValueError(f'Invalid argnums: {i}, but the solver has {positional} positional arguments.')
    return chosen


def _only_if(wanted: bool, position: int, argument: Any) -> Any:
    if not wanted:
        return argument if position == 0 else detached(argument)
    if not _has_unknowns(argument):
        raise RuntimeError(
            'argument of function solver_fn specified with `argnums` should be a torch.Tensor or a tuple of '
            f'torch.Tensor, or another tree of them; argument {position} is {kind_of(argument)} '
            'without floating or complex tensors.'
        )
    return argument


def _check_output(result: Any, has_aux: bool) -> None:
    where = 'custom_root(optimality_fn)(solver_fn)(*args): output of function solver_fn should be'
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        raise RuntimeError(f'{where} a tuple (solution, auxiliary results) with has_aux=True; it is {kind_of(result)}.')
    solution = result[0] if has_aux else result
    if not _has_unknowns(solution):
        raise RuntimeError(
            f'{where} a torch.Tensor or a tuple of torch.Tensor, or another tree of them; it is a '
            f'{type(solution).__name__} without floating or complex tensors.'
        )


def _has_unknowns(x: Any) -> bool:
    return any(map(is_inexact, tree.leaves(x)))
