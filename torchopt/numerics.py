# SPDX-License-Identifier: Apache-2.0
"""Scalars of an optimizer step: known on the host in double precision, or tensors that carry a graph.

A step count is a 0-d integer tensor on the CPU, so that states can be mapped over, saved and traced.  As long
as its value can be read without waiting for a device, all that follows from it (bias corrections, schedules) is
computed with Python floats.  Under ``torch.func.vmap``, under compilation, and for hyper-parameters that are
learned, the same formulas run on float64 tensors.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ParamSpec

import numpy as np
import torch
from torch.autograd import forward_ad

__all__ = [
    'abs_sq',
    'advance',
    'apply_function',
    'as_scalar_like',
    'bias_correction',
    'carries_graph',
    'carries_no_graph',
    'common_device',
    'complement',
    'eager',
    'forward_mode',
    'has_tangent',
    'in_transform',
    'increment',
    'is_dtensor',
    'is_fully_sharded',
    'is_inexact',
    'is_readable',
    'is_taken_away',
    'is_transformed',
    'list_on_host',
    'is_plain',
    'off_leaf',
    'on_host',
    'real_dtype',
    'safe_increment',
    'safe_norm',
    'safe_root_mean_squares',
    'safe_sqrt',
    'tensor_like',
    'vector',
    'zero_count',
]

Scalar = float | torch.Tensor


def zero_count() -> torch.Tensor:
    """A step count of zero: a 0-d int64 tensor, on the CPU whatever the default device is."""
    return torch.zeros((), dtype=torch.int64, device='cpu')


def is_transformed(x: torch.Tensor) -> bool:
    """Whether a tensor is wrapped by a ``torch.func`` transform, or code is being compiled."""
    return torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x)


def is_readable(x: Any) -> bool:
    """Whether there is one value to ask for: not in the middle of a batch of ``torch.func.vmap``, nor while compiling.

    On a device, asking waits for it.
    """
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
    """Whether a ``torch.func`` transform looks on."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def has_tangent(x: torch.Tensor) -> bool:
    """Whether a tensor has a tangent of forward mode."""
    if forward_ad._current_level < 0 or not is_inexact(x):
        return False
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def apply_function(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)``; outside of transforms without their door, which takes every argument apart."""
    if in_transform():
        return function.apply(*args)  # type: ignore[no-untyped-call]
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def on_host(x: Any) -> float | int | None:
    """The value of a scalar if it can be had at once and needs no gradient, otherwise None."""
    if isinstance(x, (int, float)):
        return x
    if isinstance(x, np.number) and not isinstance(x, np.complexfloating):
        return x.item()
    if type(x) is not torch.Tensor or is_transformed(x):
        return None
    if x.device.type != 'cpu' or x.requires_grad or x.numel() != 1 or x.is_complex():
        return None
    if has_tangent(x):
        return None
    return x.item()


def list_on_host(x: torch.Tensor) -> list[float] | None:
    """The values of a vector if they can be had at once and need no gradient, otherwise None."""
    return x.tolist() if x.numel() == 0 or on_host(x[0]) is not None else None


def vector(values: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Scalars as one tensor in double precision, differentiable in those that are tensors."""
    if device.type == 'cpu' and not any(isinstance(x, torch.Tensor) for x in values):
        return torch.tensor([float(x) for x in values], dtype=torch.float64, device=device)
    # Filling, unlike copying, does not wait for a device.
    where: Any = {'dtype': torch.float64, 'device': device}
    scalars = [x.to(device) if isinstance(x, torch.Tensor) else torch.full((), x, **where) for x in values]
    if any(x.dim() for x in scalars):
        scalars = [x.reshape(()) for x in scalars]  # those of one element
    return torch.stack(scalars).to(torch.float64)


def common_device(values: Iterable[Any]) -> torch.device:
    """The device of those tensors among some values that are not on the CPU, if there are any."""
    devices = [x.device for x in values if isinstance(x, torch.Tensor) and x.device.type != 'cpu']
    return devices[0] if devices else torch.device('cpu')


def advance(count: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """The next count and its value, a Python number where that can be had at once.

    The count stops at the largest value of its integer type instead of wrapping around.
    """
    value = on_host(count)
    if value is None:
        following = safe_increment(count)
        return following, following
    if value < torch.iinfo(count.dtype).max:
        return count + 1, value + 1
    return count, value


def increment(count: torch.Tensor) -> torch.Tensor:
    """The first half of :func:`advance`."""
    return advance(count)[0]


def safe_increment(count: Any) -> Any:
    """Add one to a count of any numeric type without overflow.

    Args:
        count: An int, or a tensor of an integer or floating dtype, of any shape.

    Returns:
        ``count + 1``; the largest value of the dtype stays as it is.

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
    r"""The factor :math:`1 - \beta^t` by which an average that began at zero falls short."""
    beta, t = on_host(decay), on_host(count)
    if beta is not None and t is not None:
        return 1.0 - beta**t
    exponent = count.to(torch.float64) if isinstance(count, torch.Tensor) else count
    if isinstance(decay, torch.Tensor):
        return 1.0 - decay.to(torch.float64) ** exponent
    return 1.0 - torch.pow(decay, exponent)


def complement(decay: Scalar) -> Scalar:
    r""":math:`1 - \beta`, the weight of what enters an average, in double precision."""
    return 1.0 - (decay.to(torch.float64) if isinstance(decay, torch.Tensor) else decay)


def as_scalar_like(value: Any, like: torch.Tensor) -> Any:
    """Bring a scalar tensor to the (real) dtype and the device of a leaf; numbers stay numbers.

    Without it a 0-d parameter would take the wider dtype of its hyper-parameter.
    """
    if not isinstance(value, torch.Tensor):
        return value
    dtype = value.dtype if value.is_complex() else real_dtype(like.dtype)
    return value.reshape(()).to(dtype=dtype, device=like.device)


def tensor_like(value: Any, like: torch.Tensor) -> torch.Tensor:
    """A scalar as a 0-d tensor like another; filling one, unlike copying, does not wait for a device."""
    if isinstance(value, torch.Tensor):
        return value.reshape(()).to(dtype=like.dtype, device=like.device)
    return torch.full((), value, dtype=like.dtype, device=like.device)


def abs_sq(x: torch.Tensor) -> torch.Tensor:
    r""":math:`|x|^2` elementwise, a real tensor for complex ``x`` too."""
    return x.real * x.real + x.imag * x.imag if x.is_complex() else x * x


def safe_sqrt(x: torch.Tensor) -> torch.Tensor:
    r""":math:`\sqrt{x}` whose derivative at zero is zero instead of infinite.

    A parameter whose gradient is exactly zero has a second moment of zero.  There the update
    :math:`m / (\sqrt{v} + \epsilon)` has a derivative, but the chain rule forms it as :math:`0 \cdot \infty`.
    With a zero in place of the infinity it comes out right, in reverse mode and in forward mode.
    """
    if not (x.requires_grad or forward_ad._current_level >= 0 or is_transformed(x)):
        return x.sqrt()
    zero = x == 0
    return torch.where(zero, torch.zeros_like(x), torch.where(zero, torch.ones_like(x), x).sqrt())


def safe_norm(
    x: torch.Tensor,
    min_norm: Any,
    ord: int | float | str | None = None,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
) -> torch.Tensor:
    r"""The norm of a tensor or a bound below, :math:`\max(\lVert x \rVert, s)`, with a derivative everywhere.

    Where the bound holds, the derivative in ``x`` is zero; so it is at :math:`x = 0`, where a norm alone has none.

    Args:
        x: A tensor of a floating or complex dtype.
        min_norm: The bound :math:`s`, a number or a tensor.
        ord: The order of the norm, as in :func:`torch.linalg.norm`; by default the 2-norm of all elements.
        axis: The dimension that a vector norm runs over, or the two dimensions of matrices; all by default.
        keepdims: Keep these dimensions, with size 1.

    Returns:
        A real tensor.

    Example:
        >>> import torch
        >>> from torchopt.numerics import safe_norm
        >>> x = torch.zeros(2, requires_grad=True)
        >>> norm = safe_norm(x, 1e-3)
        >>> norm.backward()
        >>> norm.detach(), x.grad
        (tensor(0.0010), tensor([0., 0.]))
    """
    small = torch.linalg.norm(x.detach(), ord, dim=axis, keepdim=True) <= min_norm
    norm = torch.linalg.norm(torch.where(small, torch.ones_like(x), x), ord, dim=axis, keepdim=keepdims)
    return torch.where(small.reshape(norm.shape), min_norm, norm)


def safe_root_mean_squares(x: torch.Tensor, min_rms: Any) -> torch.Tensor:
    r"""The root mean square of a tensor or a bound below, with a derivative everywhere; as :func:`safe_norm`.

    Args:
        x: A tensor of a floating or complex dtype.
        min_rms: The bound, a number or a tensor.

    Returns:
        A real 0-d tensor.

    Example:
        >>> import torch
        >>> from torchopt.numerics import safe_root_mean_squares
        >>> safe_root_mean_squares(torch.tensor([3.0, -3.0]), 0.1)
        tensor(3.)
    """
    small = abs_sq(x.detach()).mean().sqrt() <= min_rms
    return torch.where(small, min_rms, abs_sq(torch.where(small, torch.ones_like(x), x)).mean().sqrt())


def carries_graph(x: Any) -> bool:
    """Whether a hyper-parameter is a tensor that somebody may differentiate in."""
    return isinstance(x, torch.Tensor) and x.requires_grad


def carries_no_graph(p: torch.Tensor, u: torch.Tensor) -> bool:
    """Whether this is a step of plain training, which nobody differentiates.

    So it is where ``p`` is a leaf that requires grad, ``u`` has no graph, and no ``torch.func`` transform and no
    compiler looks on.
    """
    return (
        not torch.compiler.is_compiling()
        and p.requires_grad
        and p.is_leaf
        and not u.requires_grad
        and not in_transform()
    )


def is_plain(u: torch.Tensor, p: torch.Tensor) -> bool:
    """Whether nobody differentiates the step of a leaf: its update has no graph, its parameter none but as a leaf.

    The parameter may also be a constant, as a transformation hands it on in plain training.
    """
    return (
        not torch.compiler.is_compiling()
        and p.is_leaf
        and not u.requires_grad
        and not in_transform()
        and not (has_tangent(u) or has_tangent(p))
    )


def off_leaf(p: Any, u: Any) -> Any:
    """The same parameter; a view with a graph where it would count as one in plain training.

    A gradient may have no graph even under ``create_graph=True``, where the loss is linear.  A differentiable step
    must stay differentiable in the parameters all the same.
    """
    return p if p is None or u is None or not carries_no_graph(p, u) else p.view_as(p)


def is_dtensor(x: Any) -> bool:
    """Whether ``x`` is a ``DTensor``, a tensor that is spread over several processes."""
    module = sys.modules.get('torch.distributed.tensor')  # which takes a second to load, so that nobody else should
    return module is not None and isinstance(x, module.DTensor)


def is_fully_sharded(module: Any) -> bool:
    """Whether a module is under FSDP, which gathers its parameters for a moment and then takes them away."""
    fsdp = sys.modules.get('torch.distributed.fsdp')
    return fsdp is not None and isinstance(module, (fsdp.FSDPModule, fsdp.FullyShardedDataParallel))


def is_taken_away(x: Any) -> bool:
    """Whether a tensor has lost its memory; to read it would crash."""
    if 'torch.distributed.fsdp' not in sys.modules or x.layout is not torch.strided:
        return False
    # What torch.func wraps has no memory of its own to ask for.
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return not wrapped and x.numel() > 0 and x.untyped_storage().size() == 0


def is_inexact(x: Any) -> bool:
    """Whether ``x`` is a tensor of a floating or complex dtype, one that can have a gradient."""
    return isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The real dtype of the same precision: ``complex64`` gives ``float32``."""
    return dtype.to_real() if dtype.is_complex else dtype


@contextlib.contextmanager
def forward_mode(ctx: Any) -> Iterator[list[Any]]:
    """Within ``jvp`` of an autograd Function: the saved tensors, without the tangents of this level.

    Torch switches forward mode off there, and with it the tangents of all outer levels: forward mode over forward mode
    would come out wrong without a word.  So it is switched on again.
    """
    with forward_ad._set_fwd_grad_enabled(True):
        yield [forward_ad.unpack_dual(x).primal if is_inexact(x) else x for x in ctx.saved_tensors]  # type: ignore[no-untyped-call]


_P = ParamSpec('_P')


def eager(fun: Callable[_P, Any]) -> Callable[_P, Any]:
    """Let a function be one graph break under ``torch.compile``, instead of many small graphs.

    For what cannot be compiled, since the number of its steps depends on data.  ``torch.compiler.disable`` does it, but
    loads the compiler, which takes a second; so it is asked only once something is compiled.
    """

    @functools.wraps(fun)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(fun)(*args, **kwargs)  # type: ignore[no-untyped-call]
        return fun(*args, **kwargs)

    return run
