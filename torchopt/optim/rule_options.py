# SPDX-License-Identifier: Apache-2.0
"""Options of ``torch.optim`` that change a rule, in groups and in states: none may be ignored."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch

from torchopt import alias
from torchopt.optim.from_alias import FromAlias
from torchopt.spelling import instead_of

INERT = frozenset({'foreach', 'capturable', 'differentiable', 'fused'})
"""Options that change how torch computes a step, but not its result."""

_DECOUPLED = 'decoupled_weight_decay'


def require_options(options: Mapping[str, Any], known: Collection[str], kind: type[FromAlias], place: str) -> None:
    """Require that the options of a group that change the rule are among those that the optimizer knows.

    Options that ``torch.optim`` does not have, such as those of schedulers, and options that are off, may be there.

    Raises:
        ValueError: If the optimizer would ignore an option; the message says what to use instead.
    """
    for name, value in options.items():
        if name in known or name not in _rule_options():
            continue
        if name == _DECOUPLED and kind.alias is alias.adamw:
            if not value:
                raise ValueError(f'{place} has {name}={value!r}, but AdamW decouples its weight decay. Use Adam.')
        elif isinstance(value, torch.Tensor) or value or name == 'lr':
            remedy = instead_of(name) if known else _PLAIN
            raise ValueError(
                f'{place} has {name}={value!r}, which {kind.__name__} does not support. '
                f'{remedy or "Remove that option, or keep using torch.optim."}'
            )


_PLAIN = (
    'A plain optimizer takes all hyper-parameters from its impl. Use a class such as torchopt.Adam, or a schedule in '
    'the impl, and remove the options of the group.'
)


@functools.cache
def _rule_options() -> frozenset[str]:
    """The options of all classes of ``torch.optim`` that can change the result of a step."""
    kinds = [x for x in vars(torch.optim).values() if inspect.isclass(x) and issubclass(x, torch.optim.Optimizer)]
    names = {name for kind in kinds for name in inspect.signature(kind).parameters}
    return frozenset(names) - INERT - {'params', 'defaults'}
