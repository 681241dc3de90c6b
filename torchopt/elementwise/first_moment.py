# SPDX-License-Identifier: Apache-2.0
"""The initial mean of the gradients: zeros, in a given dtype if there is one."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from torchopt import elementwise, tree
from torchopt.numerics import DTypeLike, as_dtype

__all__ = ['moment_dtype', 'zero_mean']


def moment_dtype(dtype: DTypeLike | None, name: str = 'mu_dtype') -> torch.dtype | None:
    """The real floating dtype of torch that is meant, or None.

    Raises:
        TypeError: If ``dtype`` is anything else.
    """
    if dtype is None:
        return None
    with contextlib.suppress(TypeError):
        found = as_dtype(dtype)
        if found.is_floating_point:
            return found
    raise TypeError(
        f'Invalid {name} value: {dtype!r}; expected a real floating dtype such as torch.bfloat16, or None for '
        f'that of the parameters.'
    )


def zero_mean(params: Any, mu_dtype: torch.dtype | None, *, requires_grad: bool = False) -> Any:
    """A tree of zeros like ``params``.

    Args:
        params: Tree of floating or complex tensors; ``None`` leaves stay ``None``.
        mu_dtype: Real dtype of the zeros, and of the two parts of complex ones; None takes that of each parameter.
        requires_grad: Whether they are leaves that require grad, so that they can be learned.
    """
    if mu_dtype is None:
        return elementwise.zero_moment(params, requires_grad=requires_grad)

    def convert(zeros: torch.Tensor) -> torch.Tensor:
        zeros = zeros.to(mu_dtype.to_complex() if zeros.is_complex() else mu_dtype)
        return zeros.requires_grad_() if requires_grad else zeros  # which torch.func forbids even for False

    return tree.map(convert, elementwise.zero_moment(params))
