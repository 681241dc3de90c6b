# SPDX-License-Identifier: Apache-2.0
"""What proximal methods have in common: step sizes, differences of trees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchopt import tree
from torchopt.scalars import numbers

__all__ = ['infinite_error', 'minus', 'norm', 'plus', 'stepsize_at', 'zero_count']


def stepsize_at(stepsize: Any, count: Any) -> Any:
    """A step size, or what a schedule says for a step."""
    value = stepsize(count) if callable(stepsize) else stepsize
    return numbers(value)[0]


def zero_count(params: Any) -> Tensor:
    """The number of steps before the first."""
    return torch.zeros((), dtype=torch.int64, device=_device(params))


def infinite_error(params: Any) -> Tensor:
    """The error before the first step."""
    like = next((x for x in tree.leaves(params) if isinstance(x, Tensor)), torch.zeros(()))
    return torch.full((), torch.inf, dtype=torch.promote_types(like.dtype.to_real(), torch.float32), device=like.device)


def plus(x: Any, scalar: Any, y: Any) -> Any:
    """``x + scalar * y`` of trees."""
    if isinstance(x, Tensor):
        return x + _fit(scalar, x) * y
    return tree.map(lambda a, b: a + _fit(scalar, a) * b, x, y)


def minus(x: Any, y: Any) -> Any:
    """``x - y`` of trees."""
    return x - y if isinstance(x, Tensor) else tree.map(torch.sub, x, y)


def norm(x: Any) -> Any:
    """The 2-norm of a tree, a number where it can be read."""
    return numbers(tree.wide_norm(x))[0]


def _fit(scalar: Any, x: Tensor) -> Any:
    return scalar.to(x.dtype) if isinstance(scalar, Tensor) else scalar


def _device(params: Any) -> torch.device:
    return next((x.device for x in tree.leaves(params) if isinstance(x, Tensor)), torch.device('cpu'))
