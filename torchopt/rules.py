# SPDX-License-Identifier: Apache-2.0
"""The update rules in plain torch: the specification of the native kernels, their fallback and their test.

A rule maps the gradient of one leaf and its moments to an update and the next moments.  Its keyword arguments are the
*coefficients*, which all leaves share: Python numbers, or 0-d tensors if they are learned.  Names and order are those
of ``include/torchopt/rules.hpp``.

Terms whose coefficient is the number zero are left out of sums, so that ``0 * inf`` does not give NaN.  The square root
has the derivative zero at zero (:func:`torchopt.numerics.safe_sqrt`); the maximum of equal numbers has the derivative
1/2 with respect to each.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchopt.dtypes import real_dtype
from torchopt.numerics import abs_sq, as_scalar_like, one_minus, safe_sqrt

__all__ = ['RULES', 'add_params', 'scale', 'step']

Coef = Any
"""A coefficient: a number or a 0-d tensor."""


def times(coef: Coef, x: Any) -> Any:
    """``coef * x``, in the dtype of ``x``; the number zero gives the number zero."""
    if isinstance(coef, Tensor):
        return x * as_scalar_like(coef, x) if isinstance(x, Tensor) else x * coef
    if coef == 0.0 or coef == 1.0:
        return x if coef else 0.0
    return x * coef


def plus(x: Any, y: Any) -> Any:
    """``x + y``; the number zero is left out, and a 0-d tensor is converted to the dtype of the other."""
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x + y
    if not isinstance(x, Tensor) and x == 0.0:
        return y
    return x if not isinstance(y, Tensor) and y == 0.0 else x + y


def average(keep: Coef, old: Tensor, take: Coef, new: Tensor) -> Any:
    """``keep * old + take * new``.

    It uses a scaled addition, since compiling ``lerp`` or ``addcmul`` under ``torch.func.grad`` fails on torch 2.13.
    """
    if isinstance(keep, Tensor) or isinstance(take, Tensor):
        return plus(times(keep, old), times(take, new))
    if keep:
        return torch.add(times(keep, old), new, alpha=take)
    return times(take, new) if take else 0.0 * new  # not the number 0


def moving_average(decay: Coef, old: Tensor, new: Tensor) -> Any:
    """``decay * old + (1 - decay) * new``."""
    return average(decay, old, one_minus(decay), new)


def rescaled(
    g: Tensor, m: Tensor, v: Tensor, mean: Coef, gradient: Coef, slope: Coef, offset: Coef, shift: Coef
) -> Any:
    r""":math:`(\text{mean}\,m + \text{gradient}\,g) / (\text{slope}\sqrt{v + \text{shift}} + \text{offset})`."""
    if not isinstance(slope, Tensor) and slope == 0.0:
        below: Any = as_scalar_like(offset, v)
    else:
        root = safe_sqrt(plus(v, as_scalar_like(shift, v)))
        below = plus(times(slope, root), as_scalar_like(offset, v))
    return plus(times(mean, m), times(gradient, g)) / below


def identity(g: Tensor) -> tuple[Tensor]:
    """The rule of plain gradient descent."""
    return (g,)


def trace(g: Tensor, b: Tensor, *, keep: Coef, take: Coef, gradient: Coef, buffer: Coef) -> tuple[Tensor, Tensor]:
    """Momentum: the update is a combination of the gradient and a decaying sum of gradients."""
    b = average(keep, b, take, g)
    return plus(times(gradient, g), times(buffer, b)), b


def adam(
    g: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    b1: Coef,
    d1: Coef,
    b2: Coef,
    d2: Coef,
    mean: Coef,
    gradient: Coef,
    slope: Coef,
    offset: Coef,
    shift: Coef,
) -> tuple[Tensor, ...]:
    """Adam, AdamW, NAdam and RAdam: moving averages of the gradient and its square."""
    m = average(b1, m, d1, g)
    v = average(b2, v, d2, abs_sq(g))
    return rescaled(g, m, v, mean, gradient, slope, offset, shift), m, v


def amsgrad(
    g: Tensor,
    m: Tensor,
    v: Tensor,
    largest: Tensor,
    *,
    b1: Coef,
    d1: Coef,
    b2: Coef,
    d2: Coef,
    mean: Coef,
    slope: Coef,
    offset: Coef,
    shift: Coef,
    correction: Coef,
) -> tuple[Tensor, ...]:
    """AMSGrad: Adam with the maximum of all (corrected) mean squares so far."""
    m = average(b1, m, d1, g)
    v = average(b2, v, d2, abs_sq(g))
    largest = torch.maximum(largest, times(correction, v))
    return rescaled(g, m, largest, mean, 0.0, slope, offset, shift), m, v, largest


def yogi(
    g: Tensor, m: Tensor, v: Tensor, *, b1: Coef, d1: Coef, d2: Coef, mean: Coef, slope: Coef, offset: Coef, shift: Coef
) -> tuple[Tensor, ...]:
    """Yogi: Adam whose mean square changes by a multiple of the squared gradient in each step."""
    m = average(b1, m, d1, g)
    square = abs_sq(g)
    v = v - times(d2, torch.sign(v - square) * square)
    return rescaled(g, m, v, mean, 0.0, slope, offset, shift), m, v


def belief(
    g: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    b1: Coef,
    d1: Coef,
    b2: Coef,
    d2: Coef,
    mean: Coef,
    slope: Coef,
    offset: Coef,
    shift: Coef,
    floor: Coef,
) -> tuple[Tensor, ...]:
    """AdaBelief: Adam with the mean square of the difference between gradient and mean."""
    surprise = abs_sq(g - m)
    m = average(b1, m, d1, g)
    v = plus(average(b2, v, d2, surprise), as_scalar_like(floor, v))
    return rescaled(g, m, v, mean, 0.0, slope, offset, shift), m, v


def adamax(
    g: Tensor, m: Tensor, n: Tensor, *, b1: Coef, d1: Coef, b2: Coef, eps: Coef, correction: Coef
) -> tuple[Tensor, ...]:
    """AdaMax: Adam with the decayed maximum of the absolute gradients."""
    m = average(b1, m, d1, g)
    n = torch.maximum(n * as_scalar_like(b2, n), g.abs() + as_scalar_like(eps, n))
    return m / times(correction, n), m, n


def rms(g: Tensor, v: Tensor, *, keep: Coef, take: Coef, offset: Coef, shift: Coef) -> tuple[Tensor, ...]:
    """RMSProp: divide by the root of the mean square."""
    v = average(keep, v, take, abs_sq(g))
    return g / plus(safe_sqrt(plus(v, as_scalar_like(shift, v))), as_scalar_like(offset, v)), v


def stddev(g: Tensor, m: Tensor, v: Tensor, *, keep: Coef, take: Coef, offset: Coef, shift: Coef) -> tuple[Tensor, ...]:
    """RMSProp, centered: divide by the standard deviation."""
    m = average(keep, m, take, g)
    v = average(keep, v, take, abs_sq(g))
    variance = (v - abs_sq(m)).clamp(min=0.0)
    return g / plus(safe_sqrt(plus(variance, as_scalar_like(shift, v))), as_scalar_like(offset, v)), m, v


def rss(g: Tensor, s: Tensor, *, offset: Coef) -> tuple[Tensor, ...]:
    """AdaGrad: divide by the root of the sum of squares."""
    s = s + abs_sq(g)
    # If s is zero, so is g, and dividing it by one gives zero.
    return g / torch.where(s > 0, plus(safe_sqrt(s), as_scalar_like(offset, s)), 1.0), s


def adadelta(g: Tensor, e_g: Tensor, e_x: Tensor, *, keep: Coef, take: Coef, eps: Coef) -> tuple[Tensor, ...]:
    """AdaDelta: multiply by the root mean square of updates and divide by that of gradients."""
    e_g = average(keep, e_g, take, abs_sq(g))
    e = as_scalar_like(eps, e_g)
    u = g * safe_sqrt((e_x + e) / (e_g + e))
    return u, e_g, average(keep, e_x, take, abs_sq(u))


def sign(x: Tensor) -> Tensor:
    """The sign; for complex numbers, :math:`x / |x|`."""
    # torch.sgn supports both, but for real numbers its gradient has no storage, which makes compiled code crash.
    return torch.sgn(x) if x.is_complex() else torch.sign(x)


def lion(g: Tensor, m: Tensor, *, b1: Coef, d1: Coef, b2: Coef, d2: Coef) -> tuple[Tensor, Tensor]:
    """Lion: the sign of an average."""
    return sign(average(b1, m, d1, g)), average(b2, m, d2, g)


def scale(g: Tensor, *, factor: Coef) -> tuple[Tensor]:
    """Multiply the update by a factor; in plain torch, this may also be a tensor with the shape of the update."""
    if isinstance(factor, Tensor) and factor.numel() != 1:
        dtype = factor.dtype if factor.is_complex() else real_dtype(g.dtype)
        return (g * factor.to(dtype=dtype, device=g.device),)
    return (g if isinstance(factor, float) and factor == 1.0 else g * as_scalar_like(factor, g),)


def add_params(g: Tensor, p: Tensor, *, weight: Coef) -> tuple[Tensor]:
    """Weight decay: add a multiple of the parameters to the update."""
    return (g + p * as_scalar_like(weight, p),)


RULES: dict[Callable[..., tuple[Any, ...]], str] = {
    rule: rule.__name__
    for rule in (identity, trace, adam, amsgrad, yogi, belief, adamax, rms, stddev, rss, adadelta, lion)
}
"""The rules that have a kernel, and its name."""


@functools.cache
def coefficients(rule: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a rule's coefficients, in the order of its kernel."""
    parameters = inspect.signature(rule).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


@functools.cache
def count_moments(rule: Callable[..., Any]) -> int:
    """The number of moments of a rule."""
    return len(inspect.signature(rule).parameters) - len(coefficients(rule)) - 1


def step(
    rules: Sequence[Callable[..., tuple[Any, ...]]],
    coefs: Sequence[Coef],
    g: Tensor,
    moments: Sequence[Tensor],
    p: Tensor | None,
) -> tuple[Tensor, ...]:
    r"""A whole step on one leaf: :math:`f \cdot \text{rules}(s\,g + \lambda\,p) + w\,p`.

    Args:
        rules: Rules that follow one another.
        coefs: :math:`s, \lambda, f, w`, followed by the coefficients of the rules.
        g: The gradient.
        moments: The moments of all rules.
        p: The parameter; None means zero.

    Returns:
        The update, and the moments in their old dtypes.
    """
    sign, decay, factor, weight = coefs[:4]
    (x,) = scale(g, factor=sign)
    if p is not None:
        x = plus(x, times(decay, p))
    moved: list[Tensor] = []
    first = 4
    for rule in rules:
        names = coefficients(rule)
        own = moments[len(moved) : len(moved) + count_moments(rule)]
        x, *new = rule(x, *own, **dict(zip(names, coefs[first:])))
        moved += [n.to(o.dtype) for n, o in zip(new, own)]
        first += len(names)
    (x,) = scale(x, factor=factor)
    return (x if p is None else plus(x, times(weight, p)), *moved)
