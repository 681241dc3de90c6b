# SPDX-License-Identifier: Apache-2.0
"""States that ``torch.load`` accepts with ``weights_only=True``, its default, and that ``copy.deepcopy`` copies."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch

from torchopt.tree.registry import flatten

__all__ = ['safe_to_load']

_Class = TypeVar('_Class', bound=type)


def safe_to_load(cls: _Class) -> _Class:
    """Tell torch that files may hold instances of a class, and let them be copied; a class decorator for states.

    A file could name any class, so ``torch.load`` creates instances only of registered classes.  A named tuple
    runs no code when it is made.

    ``copy.deepcopy`` copies instances whose tensors carry a graph, too, which torch alone refuses: these become clones,
    still connected by the graph.

    Args:
        cls: A named tuple.

    Returns:
        ``cls``.

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
