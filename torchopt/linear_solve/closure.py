# SPDX-License-Identifier: Apache-2.0
"""What a matvec closes over, made explicit.

A user writes ``solve_cg(lambda v: X.T @ (X @ v), b)`` and expects a derivative with respect to ``X``.  So the function
is run once under a mode that sees each operation of torch, and notes the tensors that come from outside and could be
differentiated or mapped.  From then on the function is one of these tensors too: run under a mode that puts others in
their places.

Some dependences cannot be seen this way: those in a graph that was recorded earlier (a matvec that calls
``torch.autograd.grad``, or what ``torch.func.vjp`` returned).  They are found out by running the function with
constants in place of what was noted; if the result still has a graph, the matrix keeps that graph, which serves for
first derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from torchopt.linear_solve.derivative import Method, solve_system
from torchopt.linear_solve.operators import Adjoint, Function, Leaves, Operator
from torchopt.linear_solve.status import SolveStatus
from torchopt.numerics import apply_function, has_tangent, in_transform

__all__ = ['Capture', 'Closure', 'Found', 'attach_graph', 'close_over']

Fun = Callable[[Leaves], Leaves]


class Closure(Function):
    """The map of a function that closes over tensors.

    Args:
        fun: The function of lists of leaves.
        captured: The tensors that it closes over, which others can replace.
        domain: Leaves like its argument, if the map is not square.
    """

    def __init__(self, fun: Fun, captured: Sequence[Tensor], domain: Leaves | None = None) -> None:
        super().__init__(lambda consts, x: self._replacing(consts)(x), domain)
        self.bare, self.captured = fun, list(captured)
        # Outside of torch.func the tensors that come in their places have the same values.
        self.is_plain = not in_transform()

    def _replacing(self, consts: Leaves) -> Fun:
        if not self.captured:
            return self.bare
        replacement = {id(x): c for x, c in zip(self.captured, consts)}

        def run(x: Leaves) -> Leaves:
            with _Replace(replacement):
                return self.bare(x)

        return run

    def prepare(self, consts: Leaves, like: Leaves) -> tuple[Any, Any]:
        """Those of the function itself where nothing has to be replaced, which saves the mode's time."""
        if self.is_plain and self.captured:
            return Closure(self.bare, (), self.domain_like(like)).prepare((), like)
        return super().prepare(consts, like)


class Found(NamedTuple):
    """What a function was found to depend on.

    Attributes:
        closure: The map.
        captured: The tensors that it depends on.
        is_complete: Whether they are all: False where the function depends on a graph recorded before.
        product: The product with the leaves that it was tried on, if that is known.
    """

    closure: Closure
    captured: list[Tensor]
    is_complete: bool = True
    product: list[Tensor] | None = None


def close_over(fun: Fun, like: Leaves, domain: Leaves | None = None) -> Found:
    """Find the tensors that a linear function depends on.

    Args:
        fun: A function of lists of leaves.
        like: Leaves to try it on.
        domain: The same, if the map is not square.
    """
    transformed = in_transform()
    if not (torch.is_grad_enabled() or forward_ad._current_level >= 0 or transformed):
        return Found(Closure(fun, (), domain), [])
    # Under transforms any vector does, but none that is mapped over: dimensions of a batch may move.
    probe = [_some_vector(x) for x in like] if transformed else [x.detach() for x in like]
    with Capture(probe) as seen:
        value = fun(probe)
    product = None if transformed else [y.detach() for y in value]
    captured = list(seen.captured.values())
    if not _carries_derivative(value):
        # A constant matrix, whatever it was made from; under vmap each system may have its own all the same.
        captured = [x for x in captured if _functorch.is_functorch_wrapped_tensor(x)]
        return Found(Closure(fun, captured, domain), captured, product=product)
    closure = Closure(fun, captured, domain)
    try:
        constant = closure.matvec([x.detach() for x in captured], probe)
    except RuntimeError:  # from torch.autograd.grad, of a tensor that has lost its graph
        return Found(closure, captured, is_complete=False)
    same = all(torch.allclose(_bare(x), _bare(y), rtol=1e-3, equal_nan=True) for x, y in zip(value, constant))
    return Found(closure, captured, same and not _carries_derivative(constant), product)


def _some_vector(like: Tensor) -> Tensor:
    """Neither zero nor constant, which many matrices map to zero."""
    return torch.arange(1, like.numel() + 1, device=like.device).sin().reshape(like.shape).to(like.dtype)


def _bare(x: Tensor) -> Tensor:
    """What is inside of the wrappers of ``torch.func``."""
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x.detach()


def attach_graph(method: Method, fun: Fun, b: Leaves, domain: Leaves | None) -> tuple[list[Tensor], SolveStatus]:
    r"""Solve with a matrix that has a graph of its own.

    The derivative is the one of :mod:`torchopt.linear_solve.derivative`, with the product :math:`A(\theta)\, x` in its
    graph standing for :math:`\theta`; that product is linear in a constant :math:`x`, so that a second derivative would
    be wrong, and is refused.
    """
    if in_transform():
        raise RuntimeError(
            f'{method.name}: under torch.func transforms the matvec may not depend on tensors through '
            'torch.autograd.grad, '
            'torch.func.vjp(f, x) of a tensor x from outside, or a torch.autograd.Function, since these cannot be '
            'seen. Use '
            f'operations of torch in it, or implicit_diff.root_vjp, or detach the tensors.'
        )
    operator = Closure(fun, (), domain)
    with torch.no_grad():
        x, status = solve_system(method, operator, (), b)
    y = fun(x)
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
            # What a second derivative would be taken by goes in too, so that it is refused, and not found to be
            # constant.
            u = list(apply_function(_Once, ctx.method.name, ctx.n, *u, *ctx.saved_tensors))
        return None, None, None, *[None] * ctx.n, *u, *(-g for g in u)


class _Once(torch.autograd.Function):
    """``apply(name, n, *u, *rest) -> u``; to differentiate it is an error."""

    @staticmethod
    def forward(ctx: Any, name: str, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(x.clone() for x in tensors[:n])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(
            f'{ctx.name}: second derivatives need a matvec whose dependence on tensors can be seen. This one uses a '
            'graph that was '
            'recorded before, through torch.autograd.grad or torch.func.vjp. Compute the product inside of the '
            'matvec, with '
            f'torch.func.jvp of a function of the tensors, or use implicit_diff.root_vjp.'
        )


class Capture(TorchFunctionMode):
    """Notes the tensors from outside that operations use."""

    def __init__(self, inside: Leaves) -> None:
        super().__init__()
        self.made = {id(x): x for x in inside}
        self.captured: dict[int, Tensor] = {}
        self.depth = _depth()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in _tensors((args, kwargs or {})):
            if id(x) not in self.made and _matters(x, self.depth):
                self.captured[id(x)] = x
        result = func(*args, **(kwargs or {}))
        for x in _tensors(result):
            if id(x) not in self.captured:
                self.made[id(x)] = x
        return result


class _Replace(TorchFunctionMode):
    """Puts tensors in the places of others."""

    def __init__(self, replacement: dict[int, Tensor]) -> None:
        super().__init__()
        self.replacement = replacement

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replaced: Any = self._replace((args, kwargs or {}))
        return func(*replaced[0], **replaced[1])

    def _replace(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self.replacement.get(id(x), x)
        if type(x) in (list, tuple):
            return type(x)(self._replace(y) for y in x)
        if type(x) is dict:
            return {k: self._replace(y) for k, y in x.items()}
        return x


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (list, tuple)):
        for y in x:
            yield from _tensors(y)
    elif isinstance(x, dict):
        yield from _tensors(list(x.values()))


def _depth() -> int:
    top = _functorch.peek_interpreter_stack()
    return 0 if top is None else top.level()


def _matters(x: Tensor, depth: int) -> bool:
    if _functorch.is_functorch_wrapped_tensor(x):
        return _functorch.maybe_get_level(x) <= depth  # deeper ones were made inside
    return _carries_derivative([x])


def _carries_derivative(leaves: Leaves) -> bool:
    return any(x.requires_grad or has_tangent(x) for x in leaves)
