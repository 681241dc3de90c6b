# SPDX-License-Identifier: Apache-2.0
"""Call one of two functions, depending on a condition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.levels import is_readable
from torchopt.numerics import as_python_scalar
from torchopt.scalars import pick


def as_condition(value: Any, name: str) -> Any:
    """Convert a value to a Python bool, or a tensor to a 0-d tensor of bools.

    Raises:
        TypeError: If ``value`` is a tensor that is not 0-d; ``name`` is its name in the message.
    """
    if not isinstance(value, Tensor):
        return bool(value)
    if value.dim() != 0:
        raise TypeError(
            f'{name} has shape {tuple(value.shape)}; expected a bool or a 0-d tensor. Reduce it with all() or any().'
        )
    return value if value.dtype == torch.bool else value != 0


def cond(pred: Any, true_fun: Callable[..., Any], false_fun: Callable[..., Any], *operands: Any) -> Any:
    r"""Call one of two functions.

    .. math:: y = \begin{cases} f_\text{true}(x) & \text{if } p \\ f_\text{false}(x) & \text{otherwise.} \end{cases}

    Only the chosen function is called if the condition has a single value; reading it from a device synchronizes.
    Under ``torch.vmap`` with a condition for each sample, and under ``torch.compile`` with a tensor as condition, both
    are called and the results are selected elementwise.  Then, as under ``jax.vmap``, the derivatives of the function
    that is not chosen must be finite, too.

    Args:
        pred: A bool, a number, or a 0-d tensor.
        true_fun: Called with ``*operands`` if ``pred`` is true.
        false_fun: Called with ``*operands`` otherwise; it returns a tree of the same structure.
        *operands: Any trees.

    Returns:
        The result of the chosen function.

    Raises:
        TypeError: If ``pred`` is a tensor that is not 0-d, or both functions are called and return different dtypes.
        ValueError: If both functions are called and return trees of different structures or shapes.

    Example:
        >>> import torch
        >>> from torchopt.loop import cond
        >>> x = torch.tensor([3.0, -4.0])
        >>> cond(x.sum() > 0, torch.sqrt, torch.neg, x)
        tensor([-3.,  4.])
        >>> torch.vmap(lambda z: cond(z > 0, torch.sqrt, torch.neg, z))(torch.tensor([9.0, -4.0]))
        tensor([3., 4.])
    """
    for name, fun in (('true_fun', true_fun), ('false_fun', false_fun)):
        checks.function(name, fun, 'The order is cond(pred, true_fun, false_fun, *operands).')
    test = as_condition(pred, 'pred')
    if is_readable(test):
        return true_fun(*operands) if test else false_fun(*operands)
    yes, no = true_fun(*operands), false_fun(*operands)
    check_same(yes, no, 'false_fun', 'the result of true_fun')
    return pick(test, yes, no)


def check_same(old: Any, new: Any, function: str, like: str) -> None:
    """Require that the result of a function has the same structure, shapes and dtypes as another tree.

    Raises:
        TypeError: If a dtype differs; the message names the function and the path of the leaf.
        ValueError: If the structure or a shape differs.
    """
    leaves, spec = tree.flatten(old)
    for i, (x, y) in enumerate(zip(leaves, tree.flatten_up_to(spec, new, name=f'the result of {function}', like=like))):
        if not isinstance(x, Tensor):
            continue
        shape, dtype = (y.shape, y.dtype) if isinstance(y, Tensor) else (torch.Size(()), x.dtype)
        if shape != x.shape or dtype != x.dtype:
            path = tree.flatten_with_path(old)[i][0]
            if shape != x.shape:
                raise ValueError(
                    f'{like}{path} has shape {tuple(x.shape)}, but {function} changes it to {tuple(shape)}. Keep the '
                    f'shape.'
                )
            raise TypeError(f'{like}{path} has dtype {x.dtype}, but {function} changes it to {dtype}. Convert it.')


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
        >>> from torchopt.loop.branches import branch
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
