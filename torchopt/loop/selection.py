# SPDX-License-Identifier: Apache-2.0
"""One of two steps, depending on a condition: if it is known, only one step runs; else both, selected elementwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchopt import tree
from torchopt.numerics import as_python_scalar

__all__ = ['branch']


def branch(condition: Any, yes: Callable[[bool], Any], no: Callable[[bool], Any], *, inplace: bool = False) -> Any:
    """The result of one of two functions.

    If the condition is available on the host without synchronization (a bool, or a tensor on the CPU), only one
    function is called.  On a device, under ``torch.func`` and under compilation, both are called and their results are
    selected elementwise, without synchronization.

    Args:
        condition: A bool, or a 0-d tensor.
        yes: ``yes(inplace)`` returns the result if the condition is true.  If both functions are called, ``inplace``
            is False, since ``no`` also needs the tensors that ``yes`` could change.
        no: ``no(inplace)`` returns the result if the condition is false, a tree of the same structure.
        inplace: Whether they may write in place.

    Raises:
        ValueError: If the condition is a tensor of several elements.

    Example:
        >>> import torch
        >>> from torchopt.loop.selection import branch
        >>> branch(torch.tensor(3) > 2, lambda inplace: [1.0], lambda inplace: [2.0])
        [1.0]
    """
    if not isinstance(condition, Tensor):
        return yes(inplace) if condition else no(inplace)
    if condition.numel() != 1:
        raise ValueError(
            f'The condition is a tensor of shape {tuple(condition.shape)}; expected a bool or a 0-d tensor. Reduce it '
            f'with all() or any().'
        )
    known = as_python_scalar(condition)
    if known is not None:
        return yes(inplace) if known else no(inplace)
    flag = condition.reshape(()) != 0 if condition.dtype != torch.bool else condition.reshape(())

    def pick(x: Any, y: Any) -> Any:
        if x is y:
            return x
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        # Counts are on the CPU; do not copy the condition from its device for them, which would synchronize.
        device = flag.device if x.device.type == 'cpu' else x.device
        return torch.where(flag.to(device), x.to(device), y.to(device))

    return tree.map(pick, yes(False), no(False))
