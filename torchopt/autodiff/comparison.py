# SPDX-License-Identifier: Apache-2.0
"""Comparison of a run with the first one, by sums: a function of a changed object gives other results."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from torchopt.autodiff.pure import Gradient, Pure
from torchopt.autodiff.tape import Leaves
from torchopt.dtypes import is_inexact
from torchopt.levels import is_readable
from torchopt.scalars import numbers
from torchopt.sharding import is_dtensor


class SameGradient(Gradient):
    """A gradient that must be that of the first run.

    A function of a changed object may have the same value and another gradient, such as ``c * x + (1 - c) *
    x.detach()``.

    Args:
        fun: The function.
        wrt: The arguments to differentiate with respect to.
        mixed: Whether products with the Hessian are computed forward over reverse.
        value: The sums of the results of the first run; None if they are unknown.
        gradients: The gradients of the first run; None if they are unknown.
    """

    def __init__(
        self, fun: Pure, wrt: Sequence[int], mixed: bool, value: tuple[float, float] | None, gradients: Leaves | None
    ) -> None:
        super().__init__(fun, wrt, mixed)
        # Both the sums and their comparison take longer than a copy of a short gradient.
        self.copy = None if gradients is None else _copy_of(gradients)
        self.sums = None if gradients is None or self.copy is not None else sums_of(gradients)
        self.noise = 0.0 if value is None else abs(value[0])
        # Autocast may round the gradients of the two runs at other places, since it keeps the casts of leaves.
        kinds = {x.device.type for x in gradients or ()}
        self.epsilon = max(
            (torch.finfo(torch.get_autocast_dtype(k)).eps for k in kinds if torch.is_autocast_enabled(k)), default=0.0
        )

    def verify(self, gradients: Leaves) -> None:
        """Raise if the gradients differ."""
        sums = self.sums
        if self.copy is not None:
            joined = _copy_of(gradients)
            if joined is not None and torch.equal(joined, self.copy):
                return
            sums = sums_of([self.copy])
        check_same('gradient', gradients, sums, noise=self.noise, epsilon=self.epsilon)


def check_same(
    name: str, outputs: Leaves, old: tuple[float, float] | None, *, noise: float = 0.0, epsilon: float = 0.0
) -> None:
    """Raise if the sums of tensors are not those of the first run.

    Args:
        name: What the tensors are.
        outputs: The tensors.
        old: The sums of the first run, None if they are unknown.
        noise: A number whose rounding errors may be the whole sum.
        epsilon: The relative rounding error of the computation, if it is larger than that of the tensors.
    """
    new = None if old is None else sums_of(outputs)
    if new is None or old is None or new == old:
        return
    epsilon = max(epsilon, *(torch.finfo(y.dtype).eps for y in outputs if is_inexact(y)))
    precision = epsilon**0.5
    tolerance = precision * max(new[0], old[0]) + precision**3 + 1e3 * epsilon * noise
    for x, y in zip(new, old):
        if x != y and not abs(x - y) <= tolerance and not (math.isnan(x) and math.isnan(y)):
            raise RuntimeError(
                f'The function gives another {name} when it is recomputed: {x} instead of {y}. It depends on an object '
                f'that was changed after the first run. Pass this object as an argument; a closure without arguments '
                f'must not depend on it. Random numbers of Python, of NumPy, or of a torch.Generator of your '
                f'own, are not repeated: draw them before the call.'
            )


def sums_of(outputs: Leaves) -> tuple[float, float] | None:
    """The sum of all absolute values and a sum with fixed weights, or None if they cannot be read.

    The weights differ, so that the second sum shows a change of signs or of the order.
    """
    if True in map(is_functorch_wrapped_tensor, outputs) and not all(map(is_readable, outputs)):
        return None
    with torch.set_grad_enabled(False):
        if len(outputs) == 1 and outputs[0].numel() == 1 and outputs[0].is_floating_point():
            value = float(outputs[0].detach())
            return abs(value), value
        values = [
            y if type(y) is Tensor and y.is_floating_point() else _real(y)
            for y in outputs
            if y.is_floating_point() or y.is_complex()
        ]
        if len(values) > 1 and (joined := _joined(values)) is not None:  # fewer operations
            values = [joined]
        sizes = [torch.linalg.vector_norm(y, 1) for y in values]
        read = list(map(float, numbers(*sizes, *map(_weighted_sum, values))))
    return sum(read[: len(sizes)]), sum(read[len(sizes) :])


def _joined(values: Leaves) -> Tensor | None:
    """The elements of real tensors in a new one, or None if they are many, or on several devices."""
    if sum(map(Tensor.numel, values)) > SHORT or len(set(map(_device, values))) != 1:
        return None
    return torch.cat(list(map(Tensor.flatten, values)))


def _copy_of(values: Leaves) -> Tensor | None:
    """The elements of short real tensors in a new one; None for other tensors."""
    if set(map(type, values)) != {Tensor} or not all(map(Tensor.is_floating_point, values)):
        return None
    if True in map(is_functorch_wrapped_tensor, values):
        return None
    with torch.set_grad_enabled(False):
        return _joined(values)


_device = operator.attrgetter('device')


def _real(x: Tensor) -> Tensor:
    """A tensor of real numbers; of a DTensor, the part of this process."""
    local: Any = x.detach()
    if is_dtensor(x):
        local = local.to_local()
    return torch.view_as_real(local.resolve_conj()) if x.is_complex() else local


SHORT = 1 << 14
"""Up to so many elements, copying tensors into one is cheaper than an operation for each, and their gaps are small."""


def _weighted_sum(x: Tensor) -> Tensor:
    if x.numel() == 1:
        return x
    if x.numel() > SHORT:
        return (x.reshape(-1) * _weights(x.numel(), x.device)).sum()
    weights = _short_weights(x.device)[: x.numel()]
    return torch.dot(x.reshape(-1), weights) if x.dtype == weights.dtype else (x.reshape(-1) * weights).sum()


def _weights(number: int, device: torch.device) -> Tensor:
    return torch.arange(1, number + 1, dtype=torch.float32, device=device).cos_()


@functools.cache
def _short_weights(device: torch.device) -> Tensor:
    return _weights(SHORT, device)
