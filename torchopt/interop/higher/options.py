# SPDX-License-Identifier: Apache-2.0
"""The options of an optimizer as tensors to learn, with the names of ``higher.optim``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchopt import tree
from torchopt.kinds import kind_of

__all__ = ['Override', 'apply_trainable_opt_params', 'get_trainable_opt_params', 'values_of_groups']

Override = Mapping[str, Sequence[Any] | Tensor | nn.ParameterList]
"""A mapping from the name of an option to its values: one for all groups, or one for each."""


def get_trainable_opt_params(
    opt: torch.optim.Optimizer, device: torch.device | str | None = None
) -> dict[str, list[Any]]:
    """The real-valued options of an optimizer as tensors that can be learned.

    Args:
        opt: The optimizer.
        device: The device of the tensors.

    Returns:
        A dict from the name of an option to a list with its value in each group: a tensor, or a tuple of tensors,
        that require grad.  Pass it as ``override`` to :func:`innerloop_ctx`.

    Raises:
        TypeError: If ``opt`` is not an optimizer of torch.

    Example:
        >>> import torch
        >>> from torchopt.interop import higher
        >>> opt = torch.optim.SGD([torch.zeros(1)], lr=0.5, momentum=0.25)
        >>> higher.get_trainable_opt_params(opt)['lr']
        [tensor(0.5000, requires_grad=True)]
    """
    _require_optimizer(opt)
    return {
        name: [
            tree.map(lambda x: torch.tensor(float(x), device=device, requires_grad=True), group[name])
            for group in opt.param_groups
        ]
        for name in opt.defaults
        if all(_is_real(group[name]) for group in opt.param_groups)
    }


def apply_trainable_opt_params(opt: torch.optim.Optimizer, override: Override) -> None:
    """Write learned options into an optimizer, as numbers.

    Args:
        opt: The optimizer.
        override: A dict from the name of an option to a list with one value for all groups, or with one for each.

    Raises:
        TypeError: If ``opt`` is not an optimizer of torch, or has no such option, or its values are no list; nothing
            is changed then.
        ValueError: If the number of values is wrong; nothing is changed then.

    Example:
        >>> import torch
        >>> from torchopt.interop import higher
        >>> opt = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        >>> higher.apply_trainable_opt_params(opt, {'lr': [torch.tensor(0.25, requires_grad=True)]})
        >>> opt.param_groups[0]['lr']
        0.25
    """
    _require_optimizer(opt)
    for name in override:
        if name not in opt.defaults:
            raise TypeError(
                f'override: {name!r} is not an option of {type(opt).__name__}; its options are {sorted(opt.defaults)}.'
            )
    count = len(opt.param_groups)
    for name, values in [(name, values_of_groups(name, values, count)) for name, values in override.items()]:
        for group, value in zip(opt.param_groups, values):
            group[name] = tree.map(lambda x: x.item() if isinstance(x, Tensor) else x, value)


def values_of_groups(name: str, values: Any, count: int) -> list[Any]:
    """The values of an option, one for each of ``count`` groups, from a sequence of one or of ``count`` values.

    A sequence is a list, a tuple, a ``torch.nn.ParameterList`` or a 1-d tensor.
    """
    is_sequence = isinstance(values, (list, tuple, nn.ParameterList))
    if not is_sequence and not (isinstance(values, Tensor) and values.ndim == 1):
        found = f'a tensor of shape {tuple(values.shape)}' if isinstance(values, Tensor) else kind_of(values)
        raise TypeError(
            f'override[{name!r}] is {found}; expected a list with one value for all groups, or with one for each. Pass '
            f'[value].'
        )
    if len(values) not in (1, count):
        raise ValueError(
            f'override[{name!r}] holds {len(values)} values; expected one, or one for each of the {count} groups.'
        )
    return list(values) * (count if len(values) == 1 else 1)


def _require_optimizer(opt: Any) -> None:
    if not isinstance(opt, torch.optim.Optimizer):
        raise TypeError(f'opt is {kind_of(opt)}; expected an optimizer of torch.optim or torchopt.')


def _is_real(value: Any) -> bool:
    leaves = tree.leaves(value)
    return bool(leaves) and all(
        (isinstance(x, (int, float)) and not isinstance(x, bool)) or (isinstance(x, Tensor) and x.numel() == 1)
        for x in leaves
    )
