# SPDX-License-Identifier: Apache-2.0
"""Scalars of an optimizer step: Python numbers in double precision, or tensors with a graph.

A step count is a 0-d integer tensor on the CPU, so states can be mapped over, saved and traced.  If its value is
available on the host without synchronization, everything that depends on it (bias corrections, schedules) is
computed with Python floats.  Under ``torch.func.vmap``, under compilation, and for learned hyper-parameters, the
same formulas run on float64 tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from torchopt.dtypes import is_half, real_dtype, widened
from torchopt.graphs import carries_no_graph
from torchopt.levels import has_tangent, is_transformed

__all__ = [
    'abs_sq',
    'advance',
    'as_python_list',
    'as_python_scalar',
    'as_scalar_like',
    'bias_correction',
    'common_device',
    'in_double',
    'in_single',
    'increment',
    'one_minus',
    'positive_ratio',
    'safe_increment',
    'safe_sqrt',
    'tensor_like',
    'vector',
    'zero_count',
]

Scalar = float | torch.Tensor
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def zero_count(device: torch.device | str = 'cpu') -> torch.Tensor:
    """A step count of zero: a 0-d int64 tensor, on the CPU for any default device."""
    return torch.zeros((), dtype=torch.int64, device=device)


def as_python_scalar(x: Any) -> float | int | None:
    """The value of a scalar if it is available on the host without synchronization and needs no gradient, or None."""
    if type(x) is torch.Tensor:
        if torch.compiler.is_compiling() or _is_wrapped(x) or not x.is_cpu:
            return None
        if x.requires_grad or x.numel() != 1 or x.is_complex():
            return None
        return None if forward_ad._current_level >= 0 and has_tangent(x) else x.item()
    if isinstance(x, (int, float)):
        return x
    return x.item() if isinstance(x, np.number) and not isinstance(x, np.complexfloating) else None


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
    r"""The next count, and its value for formulas such as :math:`1 - \beta^t`.

    The value is an int if it is available on the host without synchronization, else a float64 tensor.  The count stops
    at the largest value of its integer type instead of wrapping around.
    """
    value = as_python_scalar(count)
    if value is None:
        following = safe_increment(count)
        return following, following.to(torch.float64)
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
    if not count.is_floating_point():
        return count.clamp(max=torch.iinfo(count.dtype).max - 1) + 1
    limit = torch.finfo(count.dtype).max
    return torch.where(count < limit, count + 1, limit)


def bias_correction(decay: Scalar, count: Any) -> Scalar:
    r"""The divisor :math:`1 - \beta^t` that corrects the bias of an average from its zero initialization.

    Rules whose decay rates come from :class:`torchopt.elementwise.Hyperparams`, and so are in double precision, write
    it as a formula.
    """
    beta, t = as_python_scalar(decay), as_python_scalar(count)
    if beta is not None and t is not None:
        return 1.0 - beta**t
    exponent = count.to(torch.float64) if isinstance(count, torch.Tensor) else count
    if isinstance(decay, torch.Tensor):
        return 1.0 - decay.to(torch.float64) ** exponent
    return 1.0 - torch.pow(decay, exponent)


def in_double(value: Any) -> Any:
    """Convert a floating 0-d tensor or a NumPy number to double precision, for computing coefficients.

    Other values are unchanged.
    """
    if isinstance(value, np.number):
        return value.item()
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


def in_single(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of one leaf compute half precision in float32, as the kernels do, and round once.

    In float16, squares overflow above 255 and an epsilon of 1e-8 is zero; in bfloat16 a decay rate of 0.999 is one.

    Args:
        rule: The function.  Its result, or the first of several, takes the dtype to which its arguments promote.
    """

    def run(first: Any, *rest: Any) -> Any:
        if not (is_half(first) or any(map(is_half, rest))):
            return rule(first, *rest)
        dtype = functools.reduce(torch.promote_types, [x.dtype for x in (first, *rest) if isinstance(x, torch.Tensor)])
        # A weight in plain training must be a leaf to be recognized, and its float32 copy is not a leaf.
        found = rule(
            widened(first), *[x if is_half(x) and carries_no_graph(x, x.detach()) else widened(x) for x in rest]
        )
        return (found[0].to(dtype), *found[1:]) if isinstance(found, tuple) else found.to(dtype)

    return run
