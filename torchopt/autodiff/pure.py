# SPDX-License-Identifier: Apache-2.0
"""Pure functions of flat tensors, and the one autograd node that recomputes them instead of keeping their graphs.

A :class:`Pure` function takes tensors and returns a tuple of tensors.  It has three derived functions of the same kind:
its vector-Jacobian product, its Jacobian-vector product, and itself mapped over a batch.  The autograd Function of
:func:`apply_pure` saves its arguments and nothing else.  Backward, forward mode and ``vmap`` apply the same Function to
the derived function, at the saved arguments.  So derivatives of every order and all transforms of ``torch.func``
follow, each with the memory of its arguments.
"""

from __future__ import annotations

import abc
import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

from torchopt.autodiff import products
from torchopt.autodiff.tape import Leaves
from torchopt.dtypes import is_inexact
from torchopt.levels import apply_function, forward_mode, is_plain_level, saved_tensors


class Pure(abc.ABC):
    """A function of tensors that returns a tuple of tensors; every run with equal arguments has the same result."""

    @abc.abstractmethod
    def __call__(self, *x: Tensor) -> Leaves:
        """The value; differentiable if grad mode is on."""

    def vjp(self, arity: int, wanted: list[int], given: list[int]) -> Pure:
        """The function ``(*x, *cotangents) -> cotangents of x[wanted]``, for cotangents of the outputs ``given``."""
        return _Vjp(self, arity, wanted, given)

    def jvp(self, arity: int, moving: list[int], outputs: list[int]) -> Pure:
        """The function ``(*x, *tangents of x[moving]) -> tangents of the outputs``."""
        return _Jvp(self, arity, moving, outputs)

    def batched(self, dims: Sequence[int | None], randomness: str) -> Pure:
        """The function mapped over dimensions of its arguments."""
        return _Batched(self, dims, randomness)

    carried: Sequence[int] = ()
    """Arguments to differentiate with respect to in any case, so that fewer derived functions are needed."""

    returned: Sequence[int] = ()
    """Outputs whose cotangents are zeros instead of missing, for the same reason."""

    constant: Sequence[int] = ()
    """Outputs that are known to have no derivative."""

    @property
    def unshared(self) -> Sequence[int]:
        """The arguments that must be mapped over if any argument is."""
        return ()


class _Batched(Pure):
    """A function mapped over a batch."""

    def __init__(self, of: Pure, dims: Sequence[int | None], randomness: str) -> None:
        self.of = of
        self.mapped = torch.vmap(of.__call__, in_dims=tuple(dims), randomness=randomness)

    def __call__(self, *x: Tensor) -> Leaves:
        return self.mapped(*x)


class _Derived(Pure):
    """A derivative ``(*x, *vectors)`` of a function of ``x``."""

    of: Pure
    arity: int

    def batched(self, dims: Sequence[int | None], randomness: str) -> Pure:
        # A batch of vectors at one point, as in torch.func.jacrev, needs only one evaluation of the function.
        is_one_point = all(d is None for d in dims[: self.arity])
        return _Batched(self, dims, 'same' if is_one_point else randomness)


class _Vjp(_Derived):
    """The vector-Jacobian product: the function runs again with a graph, which is freed afterwards."""

    def __init__(self, of: Pure, arity: int, wanted: list[int], given: list[int]) -> None:
        self.of, self.arity, self.wanted, self.given = of, arity, wanted, given

    def __call__(self, *args: Tensor) -> Leaves:
        x, cotangents = args[: self.arity], args[self.arity :]
        fun = _of_some(self.of, x, self.wanted)
        _, pull = products.pulled_back(fun, [x[i] for i in self.wanted], self.given)
        return _going_back(pull, cotangents)


class _Jvp(_Derived):
    """The Jacobian-vector product, of the outputs that are not integers."""

    def __init__(self, of: Pure, arity: int, moving: list[int], outputs: list[int]) -> None:
        self.of, self.arity, self.moving, self.outputs = of, arity, moving, outputs

    def __call__(self, *args: Tensor) -> Leaves:
        x, tangents = args[: self.arity], args[self.arity :]
        fun, again = _of_some(self.of, x, self.moving), torch.is_grad_enabled()
        point = [x[i] for i in self.moving]

        def outputs(*some: Tensor) -> tuple[Tensor, ...]:
            y = fun(*some)
            return tuple(y[j] for j in self.outputs)

        def without_graph(*some: Tensor) -> tuple[Tensor, ...]:
            with torch.set_grad_enabled(again):  # torch.func.jvp turns grad mode on
                return outputs(*some)

        if _is_forward_mode_taken():
            return products.jvp(outputs, point, tangents)
        return torch.func.jvp(without_graph, tuple(point), tuple(tangents))[1]


class Gradient(Pure):
    """``x -> (*gradients, *outputs)``: the gradients of the first output, a scalar, and all outputs.

    The gradients of a batch of scalars are the gradient of their sum, so the products with the Hessian remain those of
    one scalar function.

    Args:
        of: The function.
        wrt: The arguments to differentiate with respect to.
        mixed: Whether products with the Hessian are computed forward over reverse.
    """

    def __init__(self, of: Pure, wrt: Sequence[int], mixed: bool) -> None:
        self.of, self.wrt, self.mixed = of, list(wrt), mixed

    def __call__(self, *x: Tensor) -> Leaves:
        """Gradients and outputs."""
        if not self.wrt:
            return self.of(*x)
        point = [x[i] for i in self.wrt]
        leaves = {id(t) for t in x if t.is_leaf}
        y, pull = products.pulled_back(_of_some(self.of, x, self.wrt), point, [0], independent=len(leaves) == len(x))
        gradients = _going_back(pull, [torch.ones_like(y[0])])
        self.verify(gradients)
        return *gradients, *y

    def verify(self, gradients: Leaves) -> None:
        """Called with the gradients of each run."""

    def vjp(self, arity: int, wanted: list[int], given: list[int]) -> Pure:
        """The product with the Hessian, and with the first derivatives of the outputs."""
        kind = _MixedVjp if self.mixed and not _is_forward_mode_taken() else _Vjp
        return kind(self, arity, wanted, given)

    def batched(self, dims: Sequence[int | None], randomness: str) -> Pure:
        """The gradient of the mapped function."""
        return Gradient(self.of.batched(dims, randomness), self.wrt, self.mixed)

    @property
    def unshared(self) -> Sequence[int]:
        """The arguments of the gradient, since the results have their shapes."""
        return self.wrt


class _MixedVjp(_Vjp):
    r"""The vector-Jacobian product of a gradient by forward over reverse mode.

    The Hessian is symmetric.  With the cotangents :math:`\bar g, \bar v, \bar a` of gradient, value and auxiliary
    outputs, the product is the derivative with respect to :math:`\epsilon` of the pullback of the dual cotangents
    :math:`(1 + \epsilon \bar v, \epsilon \bar a)` at :math:`\theta + \epsilon \bar g`.  The pullback saves dual
    numbers, which need twice the memory of a first-order gradient, and keeps no graph of its own.
    """

    of: Gradient

    def __call__(self, *args: Tensor) -> Leaves:
        x, bar = args[: self.arity], dict(zip(self.given, args[self.arity :]))
        wrt = self.of.wrt
        moving = [j for j in range(len(wrt)) if j in bar]
        # Use reverse mode if the gradient has no cotangent (no Hessian is needed), if there are saved-tensor hooks
        # (torch.func does not support them), or if this product is differentiated: forward mode would save no memory
        # then, and some of torch's formulas (batch_norm, layer_norm) have wrong derivatives, with constant statistics.
        if not moving or _has_hooks() or torch.is_grad_enabled():
            return super().__call__(*args)
        outputs = [0, *[j - len(wrt) for j in self.given if j > len(wrt)]]

        def pulled(*point: Tensor) -> tuple[Tensor, ...]:
            at = products.put(x, [wrt[j] for j in moving], point)
            with torch.no_grad():
                y, pull = products.pulled_back(
                    _of_some(self.of.of, at, self.wanted), [at[i] for i in self.wanted], outputs
                )
                seeds = [torch.ones_like(y[j]) if j == 0 else torch.zeros_like(y[j]) for j in outputs]
                for k, j in enumerate(outputs):
                    if j + len(wrt) in bar:
                        tangent = bar[j + len(wrt)].to(seeds[k].dtype)
                        seeds[k] = forward_ad.make_dual(seeds[k], tangent)  # type: ignore[no-untyped-call]
                return tuple(_going_back(pull, seeds))

        try:
            point, tangents = tuple(x[wrt[j]] for j in moving), tuple(bar[j] for j in moving)
            gradients, found = torch.func.jvp(pulled, point, tangents)[:2]
        except (NotImplementedError, RuntimeError) as error:
            reason = products.missing_forward_mode(error)
            if not reason:
                raise
            warnings.warn(
                f"checkpoint='mixed': the function has no forward mode, so reverse mode is used. {reason}", stacklevel=2
            )
            return super().__call__(*args)
        by_argument = dict(zip(self.wanted, gradients))
        if set(wrt) <= by_argument.keys():
            self.of.verify([by_argument[i] for i in wrt])
        return found


def _going_back(pull: Callable[[Leaves], Leaves], cotangents: Leaves) -> Leaves:
    try:
        return pull(cotangents)
    except (NotImplementedError, RuntimeError) as error:
        if 'is not implemented' not in str(error) or 'derivative for' not in str(error):
            raise
        remedy = 'Use operations that can be differentiated twice'
        if 'scaled_dot_product' in str(error):
            remedy = (
                'Compute attention inside `with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)`'
            )
        raise RuntimeError(f'The gradient of the function cannot be differentiated: {error}. {remedy}.') from error


class _Recomputed(torch.autograd.Function):
    """``apply(fun, known, *x) -> fun(*x)``, which saves ``x``; ``known`` is the value, or None if unknown."""

    @staticmethod
    def forward(fun: Pure, known: Leaves | None, *x: Tensor) -> tuple[Tensor, ...]:
        if known is None:
            with torch.no_grad(), own_hooks():
                known = fun(*map(_without_graph, x))
        return tuple([y if y.is_contiguous() else _without_overlap(y) for y in map(_without_graph, known)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.fun, _, *x = inputs
        ctx.save_for_backward(*x)
        if not is_plain_level():
            ctx.save_for_forward(*x)
        constant = ctx.fun.constant
        ctx.inexact = [j for j, y in enumerate(output) if is_inexact(y) and j not in constant]
        ctx.outputs = len(output)
        if len(ctx.inexact) < len(output):
            ctx.mark_non_differentiable(*(y for j, y in enumerate(output) if j not in ctx.inexact))
        ctx.zeros = {j: (output[j].shape, output[j].dtype, output[j].device) for j in ctx.fun.returned}
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *bar: Tensor | None) -> tuple[Any, ...]:
        x, fun = saved_tensors(ctx), ctx.fun
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            # Autograd frees the tensors here.  The function may refer to a module whose parameters refer to this graph;
            # Python cannot collect such a cycle.
            ctx.fun = None
        asked = ctx.needs_input_grad[2:]
        needed = [i for i, t in enumerate(x) if asked[i] and (t.is_floating_point() or t.is_complex())]
        result: list[Any] = [None] * len(x)
        given = [j for j in ctx.inexact if bar[j] is not None]
        if needed and given:
            wanted, given = (
                _with(needed, fun.carried, x),
                sorted({*given, *set(fun.returned).intersection(ctx.inexact)}),
            )
            cotangents = [_zeros(*ctx.zeros[j]) if bar[j] is None else bar[j] for j in given]
            found = apply_pure(fun.vjp(len(x), wanted, given), *x, *cotangents)
            for i, t in zip(wanted, found):
                result[i] = t if asked[i] else None
        return None, None, *result

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *dots: Tensor | None) -> tuple[Any, ...]:
        with forward_mode(ctx) as x:
            given = [i for i, t in enumerate(dots) if t is not None]
            moving = _with(given, ctx.fun.carried, x)
            tangents = [torch.zeros_like(x[i]) if dots[i] is None else dots[i] for i in moving]
            derived = ctx.fun.jvp(len(x), moving, ctx.inexact)
            found = dict(zip(ctx.inexact, apply_pure(derived, *x, *tangents)))
        return tuple(found.get(j) for j in range(ctx.outputs))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], fun: Pure, _: None, *x: Tensor) -> tuple[Any, Any]:
        dims: list[int | None] = []
        moved = []
        for i, (t, d) in enumerate(zip(x, in_dims[2:])):
            if d is None and i in fun.unshared:
                t, d = t.expand(info.batch_size, *t.shape).clone(), 0
            dims.append(None if d is None else 0)
            moved.append(t if d is None else t.movedim(d, 0))
        found = apply_pure(fun.batched(dims, info.randomness), *moved)
        return found, (0,) * len(found)


def _with(indices: list[int], more: Sequence[int], x: Leaves) -> list[int]:
    return sorted({*indices, *(i for i in more if is_inexact(x[i]))}) if more else indices


def _zeros(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def _without_graph(x: Tensor) -> Tensor:
    """The tensor without its graph, as another object; the vectors of ``is_grads_batched=True`` cannot be detached."""
    return x.view_as(x) if _functorch.is_legacy_batchedtensor(x) else x.detach()


def _without_overlap(x: Tensor) -> Tensor:
    """The tensor, or a copy if its elements share memory, as after ``expand``: it could not have tangents."""
    return x.contiguous() if any(n > 1 and s == 0 for n, s in zip(x.shape, x.stride())) else x


def apply_pure(fun: Pure, *x: Any, known: Leaves | None = None) -> tuple[Tensor, ...]:
    """The value of a function, with one autograd node that keeps the arguments.

    Args:
        fun: The function.
        *x: The arguments.
        known: The value, if it is known.
    """
    if known is None and not (torch.is_grad_enabled() or torch._C._len_torch_function_stack()) and is_plain_level():
        with own_hooks():
            return tuple(fun(*x))
    return apply_function(_Recomputed, fun, known, *x)


def own_hooks() -> contextlib.AbstractContextManager[Any]:
    """Hide the tensors saved here from outer saved-tensor hooks.

    ``torch.utils.checkpoint`` around a loop would drop them, and recompute the whole loop at the first inner backward
    pass.
    """
    if not _has_hooks():
        return contextlib.nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)


def _has_hooks() -> bool:
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _is_forward_mode_taken() -> bool:
    """Whether a ``dual_level`` is active that ``torch.func`` has not entered, in which it cannot nest its own."""
    return forward_ad._current_level >= 0 and not eager_transforms.JVP_NESTING


def _of_some(fun: Pure, x: Sequence[Tensor], some: Sequence[int]) -> Callable[..., Leaves]:
    """Restrict a function to some of its arguments; the others are constants."""
    return lambda *values: fun(*products.put(x, some, values))
