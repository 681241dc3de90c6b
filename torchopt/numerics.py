# SPDX-License-Identifier: Apache-2.0
"""Scalars of an optimizer step: Python numbers in double precision, or tensors with a graph.

A step count is a 0-d integer tensor on the CPU, so states can be mapped over, saved and traced.  If its value is
available on the host without synchronization, everything that depends on it (bias corrections, schedules) is
computed with Python floats.  Under ``torch.func.vmap``, under compilation, and for learned hyper-parameters, the
same formulas run on float64 tensors.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ParamSpec, TypeAlias

import numpy as np
import torch
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import forward_ad

__all__ = [
    'DTypeLike',
    'abs_sq',
    'advance',
    'apply_function',
    'as_dtype',
    'as_scalar_like',
    'beneath',
    'bias_correction',
    'carries_graph',
    'carries_no_graph',
    'common_device',
    'detach_graph',
    'one_minus',
    'eager',
    'forward_mode',
    'has_tangent',
    'in_double',
    'in_single',
    'in_transform',
    'increment',
    'is_inexact',
    'is_readable',
    'is_tracing',
    'is_tracked',
    'is_transformed',
    'as_python_list',
    'is_plain',
    'as_non_leaf',
    'as_python_scalar',
    'positive_ratio',
    'real_dtype',
    'safe_increment',
    'safe_sqrt',
    'runs_directly',
    'saved_tensors',
    'tensor_like',
    'vector',
    'wide_dtype',
    'widened',
    'without_ended',
    'zero_count',
    'zeros_of',
]

Scalar = float | torch.Tensor
_unwrap_if_dead = torch._C._functorch.unwrap_if_dead
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_requires_grad = operator.attrgetter('requires_grad')
_innermost_transform = torch._C._functorch.peek_interpreter_stack

DTypeLike: TypeAlias = 'torch.dtype | np.dtype[Any] | type | str'
"""The types that :func:`as_dtype` accepts."""


def as_dtype(dtype: DTypeLike, name: str = 'dtype') -> torch.dtype:
    """Convert a dtype of torch or NumPy, or the name of one, to a dtype of torch.

    Args:
        dtype: ``torch.bfloat16``, ``'bfloat16'``, ``np.float32``, ``np.dtype('float32')``.
        name: The name of the argument in an error message.

    Raises:
        TypeError: If torch has no such dtype.

    Example:
        >>> import numpy as np
        >>> from torchopt.numerics import as_dtype
        >>> as_dtype('bfloat16'), as_dtype(np.float32)
        (torch.bfloat16, torch.float32)
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    if found is None and dtype is not None:  # NumPy would accept None as a dtype
        with contextlib.suppress(TypeError):
            found = getattr(torch, np.dtype(dtype).name, None)
    if not isinstance(found, torch.dtype):
        raise TypeError(
            f'Invalid {name}: {dtype!r}; expected a dtype of torch or of NumPy, or its name, such as torch.bfloat16 or '
            f"'bfloat16'."
        )
    return found


def zero_count() -> torch.Tensor:
    """A step count of zero: a 0-d int64 tensor, on the CPU for any default device."""
    return torch.zeros((), dtype=torch.int64, device='cpu')


def is_tracing() -> bool:
    """Whether ``torch.compile`` traces this code: values cannot be read, functions not inspected, caches not used."""
    return torch.compiler.is_compiling()


def is_transformed(x: torch.Tensor) -> bool:
    """Whether a tensor is wrapped by a ``torch.func`` transform, or code is being compiled."""
    return torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x)


def is_readable(x: Any) -> bool:
    """Whether a tensor has one readable value, not inside ``vmap`` and not while compiling; a device synchronizes."""
    if not isinstance(x, torch.Tensor):
        return True
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return False
        x = functorch.get_unwrapped(x)
    return True


def in_transform() -> bool:
    """Whether the code runs inside a ``torch.func`` transform."""
    return _innermost_transform() is not None


def has_tangent(x: torch.Tensor) -> bool:
    """Whether a tensor has a forward-mode tangent in any of the nested transforms."""
    if forward_ad._current_level < 0 or not is_inexact(x):
        return False
    if not in_transform():
        return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
    functorch = torch._C._functorch
    if functorch.is_functorch_wrapped_tensor(x):
        with beneath(x):
            if has_tangent(functorch.get_unwrapped(x)):
                return True
        if functorch.is_batchedtensor(x):
            return False
    with beneath(x, itself=True):
        return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def runs_directly() -> bool:
    """Whether operations run at once on plain tensors: no ``torch.func`` transform, no compiler."""
    return not (torch.compiler.is_compiling() or in_transform())


@contextlib.contextmanager
def beneath(x: torch.Tensor, *, itself: bool = False) -> Iterator[None]:
    """Disable the ``torch.func`` transforms inside the one that wraps a tensor, and this one too.

    Inner transforms hide what the outer ones attach to the tensor: its tangents and its batches.

    Args:
        x: The tensor.
        itself: Keep the transform that wraps it enabled.
    """
    level = torch._C._functorch.maybe_get_level(x)
    with contextlib.ExitStack() as lowered:
        while (top := torch._C._functorch.peek_interpreter_stack()) is not None:
            if top.level() < max(level, 1) or (itself and top.level() == level):
                break
            lowered.enter_context(retrieve_current_functorch_interpreter().lower())
        yield


def without_ended(x: Any) -> Any:
    """A tensor without the wrappers of ``torch.func`` transforms that have ended; other objects unchanged.

    The pullback of ``torch.func.vjp`` runs after its transform has ended, on tensors that were saved inside it.  Their
    wrappers still require grad, but belong to no graph: autograd differentiates the tensors inside.
    """
    if isinstance(x, torch.Tensor):
        while (within := _unwrap_if_dead(x)) is not x:
            x = within
    return x


def saved_tensors(ctx: Any) -> list[Any]:
    """The tensors that an autograd Function saved for its backward pass; see :func:`without_ended`."""
    return _all_without_ended(ctx.saved_tensors)


def _all_without_ended(xs: Iterable[Any]) -> list[Any]:
    return [without_ended(x) if isinstance(x, torch.Tensor) and _unwrap_if_dead(x) is not x else x for x in xs]


def apply_function(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)`` for tensors that may have been saved in a transform that has ended.

    Outside transforms it bypasses ``torch.func``, which would flatten every argument.  Function modes, which do not see
    the arguments of an autograd Function, see this call: those that record or replace tensors would miss them otherwise
    (see :mod:`torchopt.autodiff.modes`).
    """
    if torch._C._len_torch_function_stack():
        if torch.compiler.is_compiling():
            args = tuple(x.view_as(x) if isinstance(x, torch.Tensor) else x for x in args)
        else:
            return torch.overrides.handle_torch_function(apply_function, (), function, *args)
    args = tuple(_all_without_ended(args))
    if in_transform():
        return function.apply(*args)  # type: ignore[no-untyped-call]
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def as_python_scalar(x: Any) -> float | int | None:
    """The value of a scalar if it is available on the host without synchronization and needs no gradient, or None."""
    if isinstance(x, (int, float)):
        return x
    if isinstance(x, np.number) and not isinstance(x, np.complexfloating):
        return x.item()
    if type(x) is not torch.Tensor or torch.compiler.is_compiling() or _is_wrapped(x):
        return None
    if x.device.type != 'cpu' or x.requires_grad or x.numel() != 1 or x.is_complex():
        return None
    return None if forward_ad._current_level >= 0 and has_tangent(x) else x.item()


def as_python_list(x: torch.Tensor) -> list[float] | None:
    """The values of a vector if they are on the host without synchronization and need no gradient, or None."""
    return x.tolist() if x.numel() == 0 or as_python_scalar(x[0]) is not None else None


def vector(values: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Scalars as one tensor in double precision, differentiable with respect to those that are tensors."""
    if device.type == 'cpu' and not any(isinstance(x, torch.Tensor) for x in values):
        return torch.tensor([float(x) for x in values], dtype=torch.float64, device=device)
    # Filling, unlike copying, does not synchronize with a device.
    where: Any = {'dtype': torch.float64, 'device': device}
    scalars = [x.to(device) if isinstance(x, torch.Tensor) else torch.full((), x, **where) for x in values]
    if any(x.dim() for x in scalars):
        scalars = [x.reshape(()) for x in scalars]  # also tensors of one element
    return torch.stack(scalars).to(torch.float64)


def common_device(values: Iterable[Any]) -> torch.device:
    """The device of the tensors that are not on the CPU; the CPU if there are none."""
    devices = [x.device for x in values if isinstance(x, torch.Tensor) and x.device.type != 'cpu']
    return devices[0] if devices else torch.device('cpu')


def advance(count: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """The next count and its value, a Python number if it is available on the host without synchronization.

    The count stops at the largest value of its integer type instead of wrapping around.
    """
    value = as_python_scalar(count)
    if value is None:
        following = safe_increment(count)
        return following, following
    if value < torch.iinfo(count.dtype).max:
        return count + 1, value + 1
    return count, value


def increment(count: torch.Tensor) -> torch.Tensor:
    """The next count, the first result of :func:`advance`."""
    return advance(count)[0]


def safe_increment(count: Any) -> Any:
    """Add one to a count of any numeric type without overflow.

    Args:
        count: An int, or a tensor of an integer or floating dtype, of any shape.

    Returns:
        ``count + 1``, or ``count`` if it is the largest value of its dtype.

    Example:
        >>> import torch
        >>> from torchopt.numerics import safe_increment
        >>> safe_increment(torch.tensor(127, dtype=torch.int8))
        tensor(127, dtype=torch.int8)
    """
    if not isinstance(count, torch.Tensor):
        return count + 1
    info = torch.finfo if count.is_floating_point() else torch.iinfo
    limit = info(count.dtype).max
    return torch.where(count < limit, count + 1, limit)


def bias_correction(decay: Scalar, count: Any) -> Scalar:
    r"""The divisor :math:`1 - \beta^t` that corrects the bias of an average from its zero initialization."""
    if type(decay) is float and type(count) is int:
        return 1.0 - decay**count
    beta, t = as_python_scalar(decay), as_python_scalar(count)
    if beta is not None and t is not None:
        return 1.0 - beta**t
    exponent = count.to(torch.float64) if isinstance(count, torch.Tensor) else count
    if isinstance(decay, torch.Tensor):
        return 1.0 - decay.to(torch.float64) ** exponent
    return 1.0 - torch.pow(decay, exponent)


def in_double(value: Any) -> Any:
    """Convert a floating 0-d tensor to double precision, for computing coefficients; other values are unchanged."""
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() == 1:
        return value.to(torch.float64)
    return value


def one_minus(decay: Scalar) -> Scalar:
    r""":math:`1 - \beta`, the weight of a new value in an average, in double precision."""
    return 1.0 - (decay.to(torch.float64) if isinstance(decay, torch.Tensor) else decay)


def as_scalar_like(value: Any, like: torch.Tensor) -> Any:
    """Convert a scalar tensor to the (real) dtype and the device of a leaf; numbers stay numbers.

    Otherwise a 0-d parameter would be promoted to the wider dtype of its hyper-parameter.
    """
    if not isinstance(value, torch.Tensor):
        return value
    dtype = value.dtype if value.is_complex() else real_dtype(like.dtype)
    return value.reshape(()).to(dtype=dtype, device=like.device)


def tensor_like(value: Any, like: torch.Tensor) -> torch.Tensor:
    """A scalar as a 0-d tensor like another one; filling, unlike copying, does not synchronize with a device."""
    if isinstance(value, torch.Tensor):
        return value.reshape(()).to(dtype=like.dtype, device=like.device)
    return torch.full((), value, dtype=like.dtype, device=like.device)


def abs_sq(x: torch.Tensor) -> torch.Tensor:
    r""":math:`|x|^2` elementwise, a real tensor for complex ``x`` too."""
    return x.real * x.real + x.imag * x.imag if x.is_complex() else x * x


def safe_sqrt(x: torch.Tensor) -> torch.Tensor:
    r""":math:`\sqrt{x}` whose derivative at zero is zero instead of infinite.

    A parameter whose gradient is exactly zero has the second moment :math:`v = 0`.  There the update
    :math:`m / (\sqrt{v} + \epsilon)` is differentiable, but the chain rule computes :math:`0 \cdot \infty`.  With zero
    instead of infinity the result is correct, in reverse mode and in forward mode.
    """
    if not (x.requires_grad or forward_ad._current_level >= 0 or is_transformed(x)):
        return x.sqrt()
    zero = x == 0
    return torch.where(zero, torch.zeros_like(x), torch.where(zero, torch.ones_like(x), x).sqrt())


def positive_ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """A quotient; zero if the divisor is zero, which it is before the first nonzero gradient."""
    empty = below == 0
    return torch.where(empty, torch.zeros_like(above), above / torch.where(empty, torch.ones_like(below), below))


def is_tracked(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether results computed from these tensors are differentiated, mapped or otherwise transformed."""
    recorded = torch.is_grad_enabled() and True in map(_requires_grad, tensors)
    return recorded or forward_ad._current_level >= 0 or in_transform()


def carries_graph(x: Any) -> bool:
    """Whether a hyper-parameter is a tensor that requires grad."""
    return isinstance(x, torch.Tensor) and x.requires_grad


def is_plain(params: Iterable[Any], updates: Iterable[Any]) -> bool:
    """Whether a step is plain training, which is not differentiated.

    This holds outside ``torch.func`` transforms and compilation, if no update has a graph and all parameters are
    leaves: weights, or constants, which is how transformations pass on weights in plain training.
    """
    return runs_directly() and not any(u.requires_grad for u in updates) and all(p.is_leaf for p in params)


def carries_no_graph(p: torch.Tensor, u: torch.Tensor) -> bool:
    """Whether ``p`` is a weight, a leaf that requires grad, and its step with the update ``u`` is plain training."""
    return p.requires_grad and is_plain((p,), (u,))


def zeros_of(x: torch.Tensor) -> torch.Tensor:
    """Zeros like a tensor that stay connected to its graph, with a derivative of zero.

    An update without a graph marks a step of plain training.  So a transformation that waits, in a step that is
    recorded, must not return plain zeros.
    """
    zeros = torch.zeros_like(x)
    if torch.compiler.is_compiling() or not x.requires_grad:
        return zeros
    return torch.where(torch.zeros((), dtype=torch.bool, device=x.device), x, zeros)


def detach_graph(x: torch.Tensor) -> torch.Tensor:
    """The same tensor without its graph; unlike ``detach()``, this keeps the tangent of forward mode."""
    if forward_ad._current_level < 0 or not is_inexact(x):
        return x.detach()
    if in_transform():
        with torch.no_grad():
            return x.view_as(x)
    tangent = forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call]
    return x.detach() if tangent is None else forward_ad.make_dual(x.detach(), tangent.detach())  # type: ignore[no-untyped-call]


def as_non_leaf(p: Any) -> Any:
    """The same parameter, or a view with a graph if the parameter would be treated as in plain training.

    If the loss is linear, gradients have no graph even with ``create_graph=True``, but a differentiable step must still
    be differentiable with respect to the parameters.
    """
    return p.view_as(p) if isinstance(p, torch.Tensor) and p.requires_grad and is_plain((p,), ()) else p


def is_inexact(x: Any) -> bool:
    """Whether ``x`` is a tensor of a floating or complex dtype, one that can have a gradient."""
    return isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The real dtype of the same precision: ``complex64`` gives ``float32``."""
    return dtype.to_real() if dtype.is_complex else dtype


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The real dtype for computations: the same precision, but at least float32."""
    return torch.promote_types(real_dtype(dtype), torch.float32)


def widened(x: Any) -> Any:
    """Convert a tensor in half precision to float32; other values are unchanged."""
    return x.float() if _is_half(x) else x


def _is_half(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype in _HALVES


_HALVES = frozenset({torch.float16, torch.bfloat16})


def in_single(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of one leaf compute half precision in float32, as the kernels do, and round once.

    In float16, squares overflow above 255 and an epsilon of 1e-8 is zero; in bfloat16 a decay rate of 0.999 is one.

    Args:
        rule: The function.  Its result, or the first of several, takes the dtype to which its arguments promote.
    """

    def run(first: Any, *rest: Any) -> Any:
        if not (_is_half(first) or any(map(_is_half, rest))):
            return rule(first, *rest)
        dtype = functools.reduce(torch.promote_types, [x.dtype for x in (first, *rest) if isinstance(x, torch.Tensor)])
        # A weight in plain training must be a leaf to be recognized, and its float32 copy is not a leaf.
        found = rule(
            widened(first), *[x if _is_half(x) and carries_no_graph(x, x.detach()) else widened(x) for x in rest]
        )
        return (found[0].to(dtype), *found[1:]) if isinstance(found, tuple) else found.to(dtype)

    return run


@contextlib.contextmanager
def forward_mode(ctx: Any) -> Iterator[list[Any]]:
    """Within ``jvp`` of an autograd Function: the saved tensors, without the tangents of this level.

    Torch disables forward mode there, and with it the tangents of all outer levels: forward mode over forward mode
    would be silently wrong.  So this enables it again.
    """
    with forward_ad._set_fwd_grad_enabled(True):
        yield [forward_ad.unpack_dual(x).primal if is_inexact(x) else x for x in saved_tensors(ctx)]  # type: ignore[no-untyped-call]


_P = ParamSpec('_P')


def eager(fun: Callable[_P, Any]) -> Callable[_P, Any]:
    """Make a function one graph break under ``torch.compile``, instead of many small graphs.

    This is for functions that cannot be compiled, since the number of their steps depends on data.
    ``torch.compiler.disable`` loads the compiler, which takes a second, so it is called only while compiling.
    """

    @functools.wraps(fun)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(fun)(*args, **kwargs)  # type: ignore[no-untyped-call]
        return fun(*args, **kwargs)

    return run
