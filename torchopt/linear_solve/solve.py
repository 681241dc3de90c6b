# SPDX-License-Identifier: Apache-2.0
"""The entry point of all solvers: convert trees and functions to a system, and the solution back to a tree."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from torchopt import tree
from torchopt.autodiff.closure import Converted, closure_convert
from torchopt.autodiff.tape import Leaves
from torchopt.dtypes import is_inexact
from torchopt.kinds import kind_of
from torchopt.levels import in_transform, is_tracing
from torchopt.linear_solve.derivative import Method, Normal, attach_graph, solve_system
from torchopt.linear_solve.operators import Closure, Operator, Shifted, some_vector
from torchopt.spelling import check_names


class TreeShape:
    """The unknowns of a tree: its tensors of a floating or complex dtype; other leaves are kept unchanged."""

    def __init__(self, example: Any, name: str) -> None:
        self.example, self.name = example, name
        is_alone = isinstance(example, Tensor) and (example.is_floating_point() or example.is_complex())
        # The shape and the dtype of a tree that is one tensor.
        self.alone = (example.shape, example.dtype) if is_alone else None
        self.unknowns: list[Tensor] = [example] if is_alone else self._selection.selected
        devices = {x.device for x in self.unknowns}
        if len(devices) > 1:
            raise ValueError(f'{name} has leaves on several devices ({sorted(map(str, devices))}); move them to one.')

    @functools.cached_property
    def _selection(self) -> tree.Selection:
        return tree.Selection(self.example, is_inexact)

    def pack(self, unknowns: Sequence[Tensor]) -> Any:
        """The tree with new unknowns."""
        return self._selection.replace(unknowns) if self.alone is None else unknowns[0]

    def unpack(self, other: Any, name: str) -> list[Tensor]:
        """The unknowns of another tree of the same structure and shapes, converted to the dtypes of this one."""
        if self.alone is not None and isinstance(other, Tensor) and (other.shape, other.dtype) == self.alone:
            return [other]
        unknowns = []
        selection = self._selection
        for i, x, like in zip(selection.positions, selection.of(other, name=name, like=self.name), self.unknowns):
            if not isinstance(x, Tensor) or x.shape != like.shape:
                path = tree.flatten_with_path(self.pack(self.unknowns))[i][0]
                kind = f'has shape {tuple(x.shape)}' if isinstance(x, Tensor) else f'is {kind_of(x)}'
                raise ValueError(
                    f'{name}{path} {kind}, but {self.name}{path} has shape {tuple(like.shape)}. They must have the '
                    'same shapes.'
                )
            if x.is_complex() and not like.is_complex():
                raise TypeError(f'{name} is complex, but {self.name} is real. Convert {self.name} to {x.dtype}.')
            unknowns.append(x if x.dtype == like.dtype else x.to(like.dtype))
        return unknowns


class BoundOperator:
    """The matvec of a system that has a solution, with explicit tensors, so that solvers need not search for them."""

    def __init__(self, operator: Operator, consts: Leaves, shape: TreeShape) -> None:
        self.operator, self.consts, self.shape = operator, consts, shape

    def __call__(self, x: Any) -> Any:
        """The product with a tree."""
        return self.shape.pack(self.operator.matvec(self.consts, self.shape.unpack(x, 'the argument of matvec')))


def solve_with(
    method: Method,
    matvec: Callable[[Any], Any] | None,
    b: Any,
    *,
    ridge: Any = None,
    init: Any = None,
    M: Callable[[Any], Any] | None = None,
    normal: bool = False,
    return_status: bool = False,
) -> Any:
    """Solve ``matvec(x) = b`` for a tree.

    Args:
        method: The method.
        matvec: A linear function of a tree.
        b: The right-hand side.
        ridge: A number or 0-d tensor; the matrix is that of ``matvec`` plus ``ridge`` times the identity.
        init: The initial guess.
        M: An approximation of the inverse, as a linear function of a tree.
        normal: Whether to solve the normal equations instead; then the structures of ``init`` and ``b`` may differ.
        return_status: Whether to also return a :class:`SolveStatus`, instead of a warning on failure.
    """
    name = method.name
    if not callable(matvec):
        raise TypeError(f'{name}: matvec is {kind_of(matvec)}; expected a function of a tree. For a matrix: A.matmul.')
    rhs = TreeShape(b, 'b')
    guess = rhs if init is None else TreeShape(init, 'init')
    if not normal:
        guess = rhs
    start = None if init is None else guess.unpack(init, 'init')
    transformed = in_transform()
    # Under transforms the vector must not be mapped over, since batch dimensions may move; any other one will do.
    example = [some_vector(x) if transformed else x.detach() for x in guess.unknowns]
    operator: Operator
    known = preconditioner = None
    if isinstance(matvec, BoundOperator):
        operator, consts = matvec.operator, list(matvec.consts)
    else:
        fun = _on_leaves(matvec, guess, rhs, name)
        if normal and init is None:
            _require_square(fun, guess, name)
        found = closure_convert(fun, example, lazily=not (normal or ridge is not None))
        consts = found.captured
        if found.value is not None and not (transformed or normal or ridge is not None):
            known = [y.detach() for y in found.value]
        if not found.is_complete:
            if ridge is not None or normal or M is not None:
                raise RuntimeError(
                    f'{name}: matvec depends on a graph that was recorded before it was called (torch.autograd.grad, '
                    'torch.func.vjp), which cannot be combined with ridge, M or normal equations. Compute the product '
                    'inside matvec, with torch.func.jvp or vjp of a function of the tensors, or detach its result.'
                )
            x, status = attach_graph(method, found.lasting(), rhs.unknowns, warns=not return_status)
            return (rhs.pack(x), status) if return_status else rhs.pack(x)
        operator = _closure(found, guess)
    if ridge is not None:
        consts = [*consts, _ridge(ridge, name, guess)]
        operator = operator if normal else Shifted(operator)
    if M is not None:
        found = closure_convert(_on_leaves(M, guess, guess, name, 'M'), example)
        preconditioner = _closure(found, guess), found.captured
    x, status = solve_system(
        method,
        operator,
        consts,
        rhs.unknowns,
        start,
        preconditioner,
        warns=not return_status,
        product=known,
        normal=Normal(
            tuple((x.shape, x.dtype) for x in guess.unknowns),
            has_ridge=ridge is not None,
            has_solution=isinstance(matvec, BoundOperator),
        )
        if normal
        else None,
    )
    solution = guess.pack(x) if guess.alone is None else x[0]
    return (solution, status) if return_status else solution


def _closure(found: Converted, domain: TreeShape) -> Closure:
    is_plain = not found.captured or not (in_transform() or any(map(is_functorch_wrapped_tensor, found.captured)))
    return Closure(found._replace(value=None), [(x.shape, x.dtype) for x in domain.unknowns], is_plain)


def _on_leaves(
    fun: Callable[[Any], Any], domain: TreeShape, range_: TreeShape, name: str, what: str = 'matvec'
) -> Callable[[Leaves], Leaves]:
    """The function of lists of leaves, whose result is checked and converted, also later: in another autocast."""
    result, is_alone, alone = f'{name}: {what}(x)', domain.alone is not None, range_.alone

    def product(x: Leaves) -> Leaves:
        y = fun(x[0] if is_alone else domain.pack(x))
        return (y,) if type(y) is Tensor and (y.shape, y.dtype) == alone else range_.unpack(y, result)

    return product


def _require_square(fun: Callable[[Leaves], Leaves], shape: TreeShape, name: str) -> None:
    try:
        fun(shape.unknowns)  # with a graph, since the function may keep its result
    except (RuntimeError, ValueError) as error:
        raise TypeError(
            f'{name}: matvec cannot be applied to a tree like b ({error}). If it is not square, pass init, a tree like '
            f'a solution, such as zeros.'
        ) from error


def _ridge(ridge: Any, name: str, shape: TreeShape) -> Tensor:
    device = shape.unknowns[0].device if shape.unknowns else None
    if not isinstance(ridge, Tensor):
        ridge = torch.tensor(float(ridge), dtype=torch.float64, device=device)
    if ridge.dim() != 0 or ridge.is_complex():
        raise ValueError(
            f'{name}: ridge has shape {tuple(ridge.shape)} and dtype {ridge.dtype}; expected a real number '
            'or 0-d tensor.'
        )
    return ridge if device is None else ridge.to(device)


_P = ParamSpec('_P')


def configurable(solve: Callable[_P, Any]) -> Callable[_P, Any]:
    """Allow a call of a solver without a matvec, as in TorchOpt 0.7.3: it returns itself with the options bound."""
    signature = inspect.signature(solve)
    known = frozenset(signature.parameters)

    @functools.wraps(solve)
    def solve_or_bind(*args: _P.args, **kwargs: _P.kwargs) -> Any:
        if is_tracing():
            return torch.compiler.disable(solve_or_bind)(*args, **kwargs)  # type: ignore[no-untyped-call]
        if not known.issuperset(kwargs):
            check_names(solve.__name__, kwargs, signature.parameters)
        if len(args) > 1 and args[0] is not None and args[1] is not None:
            return solve(*args, **kwargs)
        bound = signature.bind(*args, **kwargs).arguments
        if bound.get('matvec') is not None:
            if bound.get('b') is None:
                raise TypeError(f'{solve.__name__}: b is missing. Call it as {solve.__name__}(matvec, b, ...).')
            return solve(*args, **kwargs)
        if bound.get('b') is not None:
            raise TypeError(
                f'{solve.__name__}: b is given, but matvec is not. Call it as {solve.__name__}(matvec, b, ...).'
            )
        return functools.partial(solve_or_bind, **{k: v for k, v in bound.items() if k not in ('matvec', 'b')})

    return solve_or_bind
