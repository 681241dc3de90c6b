# SPDX-License-Identifier: Apache-2.0
"""Products with Jacobians of functions of lists of tensors, or of recorded graphs.

All are differentiable.  Outside of ``torch.func`` they are computed by ``torch.autograd``, which is faster than
``torch.func`` and lets functions use ``torch.autograd.grad`` inside.  In inference mode autograd records nothing, so
``torch.func`` computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from torchopt.autodiff.tape import Leaves, Product
from torchopt.graphs import nodes_of
from torchopt.levels import in_transform, is_tracing

_WITHOUT_TANGENTS = {'LinalgDetBackward0', 'LinalgSlogdetBackward0', 'LinalgSolveExBackward0'}
"""Nodes that use the saved factors of a matrix, which have no tangents, unless their backward pass has a graph."""


def replacing(
    fun: Callable[[Leaves, Leaves], Leaves], theta: Leaves, some: Sequence[int], x: Leaves
) -> Callable[..., Leaves]:
    """``fun(theta, x)`` as a function of some of ``theta``."""
    return lambda *values: fun(put(theta, some, values), x)


def put(x: Sequence[Tensor], where: Sequence[int], values: Sequence[Tensor]) -> list[Tensor]:
    """The tensors with others in some places."""
    replaced = list(x)
    for i, value in zip(where, values):
        replaced[i] = value
    return replaced


def map_product(product: Product) -> Product:
    """Map a product over many vectors; one after another if torch cannot vectorize it."""

    def mapped(x: Leaves) -> Leaves:
        try:
            return torch.vmap(lambda z: tuple(product(z)))(list(x))
        except (RuntimeError, NotImplementedError):
            rows = [product(z) for z in zip(*(leaf.unbind() for leaf in x))]
            return [torch.stack(column) for column in zip(*rows)]

    return mapped


def vjp(fun: Callable[..., Leaves], primals: Leaves, cotangents: Leaves) -> Leaves:
    """The vector-Jacobian product of a function of leaves; it is differentiable."""
    return pulled_back(fun, primals)[1](cotangents)


def pulled_back(
    fun: Callable[..., Leaves], primals: Leaves, given: Sequence[int] | None = None, *, independent: bool = False
) -> tuple[Leaves, Product]:
    """The value of a function, and its vector-Jacobian product, which may be called once, in the same grad mode.

    Args:
        fun: The function.
        primals: The arguments.
        given: The indices of the values that have cotangents; by default all.
        independent: Whether the arguments are different leaves, on which nothing else depends that the function uses.
    """
    again = torch.is_grad_enabled()  # whether the product is differentiable, which requires its graph
    if _needs_func():

        def with_all(*x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            nonlocal again
            y = tuple(fun(*x))
            outputs = y if given is None else tuple(y[j] for j in given)
            is_forward = forward_ad._current_level >= 0
            again = again or (is_forward and any(node.name() in _WITHOUT_TANGENTS for node in nodes_of(outputs)))
            return outputs, y

        found: Any = torch.func.vjp(with_all, *primals, has_aux=True)
        _, pull, value = found
        return value, lambda u: pull(tuple(u), retain_graph=again, create_graph=again)
    ready = again and independent and all(x.requires_grad for x in primals)
    tracked = primals if ready else _tracked(primals, again)
    with torch.enable_grad():
        value = fun(*tracked)
    outputs = value if given is None else [value[j] for j in given]
    return value, pullback(outputs, tracked, retain_graph=again)


def jvp(fun: Callable[..., Leaves], primals: Leaves, tangents: Leaves) -> Leaves:
    """The Jacobian-vector product, as the transpose of the vector-Jacobian product.

    Forward mode is not used, since torch has no formula for some operations, and since it cannot be nested in a
    ``torch.autograd.forward_ad.dual_level``.
    """
    if _needs_func():
        at, pull = torch.func.vjp(lambda *x: tuple(fun(*x)), *primals)[:2]
        return torch.func.vjp(pull, tuple(torch.zeros_like(y) for y in at))[1](tuple(tangents))[0]
    again = torch.is_grad_enabled()
    tracked = _tracked(primals, again)
    with torch.enable_grad():
        value = fun(*tracked)
        u = [torch.zeros_like(y).requires_grad_() for y in value]
        pulled = pullback(value, tracked)(u)
    return pullback(pulled, u, retain_graph=again)(tangents)


def missing_forward_mode(error: Exception) -> str:
    """What an operation or an autograd Function lacks for forward mode, according to an error; empty for other ones."""
    text = str(error)
    if 'ZeroTensor' in text:  # a formula that writes in place into the tangent of a constant
        return (
            'An operation fails in forward mode if an argument, such as the target, is a constant. '
            'torch.nn.functional.mse_loss does: write (prediction - target).square().mean().'
        )
    if isinstance(error, NotImplementedError) or 'setup_context' in text or 'forward AD' in text:
        return text.partition('\n')[0]
    return f'It calls torch.autograd.grad or backward(). {GRADIENT_REMEDY}' if calls_autograd(error) else ''


def calls_autograd(error: Exception) -> bool:
    """Whether the error is that of autograd, called by a function that runs in a transform or without a graph."""
    text = str(error)
    return 'a functorch transform' in text or 'does not have a grad_fn' in text


GRADIENT_REMEDY = 'Take gradients inside the function by torchopt.grad or torch.func.grad.'
"""What to write instead of :func:`calls_autograd`."""


def recorded(fun: Callable[..., Leaves], primals: Leaves) -> tuple[Leaves, Product]:
    """The value of a function and its vector-Jacobian product, which is recorded once for many calls.

    The derivatives are with respect to ``primals`` only, not to the tensors that they were computed from.
    """
    if is_autograd_off():
        value, pull = torch.func.vjp(lambda *x: tuple(fun(*x)), *primals)[:2]
        return value, lambda u: pull(tuple(u))
    with torch.enable_grad():
        point = [x.detach().requires_grad_() for x in primals]
        value = fun(*point)
    return value, pullback(value, point)


def pullback(outputs: Leaves, inputs: Leaves, *, retain_graph: bool = True) -> Product:
    """The vector-Jacobian product of a recorded graph; zeros for inputs on which the outputs do not depend."""

    def product(u: Leaves) -> Leaves:
        tracked = [y for y in outputs if y.requires_grad]
        if not tracked:
            return [torch.zeros_like(x) for x in inputs]
        if len(tracked) < len(u):
            u = [v for y, v in zip(outputs, u) if y.requires_grad]
        found = gradients_of(tracked, u, inputs, retain_graph=retain_graph, create_graph=torch.is_grad_enabled())
        return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found)]

    return product


def gradients_of(
    outputs: Leaves, cotangents: Leaves, inputs: Leaves, *, retain_graph: bool, create_graph: bool
) -> Sequence[Tensor | None]:
    """``torch.autograd.grad`` with ``allow_unused``; cotangents have the shapes of the outputs.

    Its checks take as long as the backward pass of a small graph, so plain tensors go to what it calls in the end.
    """
    intercepted = is_tracing() or torch._C._len_torch_function_stack()
    if _run_backward is None or intercepted or not _PLAIN.issuperset(map(type, (*outputs, *inputs))):
        return torch.autograd.grad(
            outputs, inputs, cotangents, retain_graph=retain_graph, create_graph=create_graph, allow_unused=True
        )
    found: Sequence[Tensor | None] = _run_backward(
        tuple(outputs), tuple(cotangents), retain_graph, create_graph, tuple(inputs), True, accumulate_grad=False
    )
    return found


_run_backward: Any = getattr(torch.autograd.graph, '_engine_run_backward', None)  # an internal function of torch
_PLAIN = {Tensor, nn.Parameter}


def _needs_func() -> bool:
    return in_transform() or is_autograd_off()


def is_autograd_off() -> bool:
    """Whether this is inference mode.

    Inside a ``torch.func`` transform ``torch.is_inference_mode_enabled()`` returns False, although autograd is off.
    """
    return torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutogradFunctionality)


def _tracked(xs: Sequence[Tensor], again: bool) -> list[Tensor]:
    """Tensors to differentiate with respect to, without other paths of the graph to them, such as from the solution."""
    with torch.set_grad_enabled(False):  # unlike detach(), views keep the tangents of forward mode
        found = [None if again and x.requires_grad else x.view_as(x).requires_grad_() for x in xs]
    return [x.view_as(x) if y is None else y for x, y in zip(xs, found)]
