# SPDX-License-Identifier: Apache-2.0
"""States that ``torch.load`` accepts with ``weights_only=True`` and that ``copy.deepcopy`` copies."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch

from torchopt.tree.registry import flatten

_Class = TypeVar('_Class', bound=type)


def safe_to_load(cls: _Class) -> _Class:
    """Class decorator for states: let ``torch.load`` create instances, and ``copy.deepcopy`` copy them.

    By default, ``torch.load`` creates instances only of registered classes.  Named tuples are safe to register, since
    creating one runs no code.

    ``copy.deepcopy`` raises for tensors with an autograd graph.  For instances of the class, it clones such tensors,
    and the clones stay connected to the graph.

    Example:
        >>> import io, torch, torchopt
        >>> file = io.BytesIO()
        >>> torch.save(torchopt.adam().init([torch.zeros(2)]), file)
        >>> _ = file.seek(0)
        >>> torch.load(file, weights_only=True)[0].mu
        [tensor([0., 0.])]
    """
    torch.serialization.add_safe_globals([cls])
    cls.__deepcopy__ = _deepcopy  # type: ignore[attr-defined]
    return cls


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    for x in flatten(self)[0]:
        if isinstance(x, torch.Tensor) and not x.is_leaf:
            memo.setdefault(id(x), x.clone())
    return type(self)(*(copy.deepcopy(x, memo) for x in self))
