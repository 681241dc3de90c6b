# SPDX-License-Identifier: Apache-2.0
"""States that ``torch.load`` accepts with ``weights_only=True``, its default."""

from __future__ import annotations

from typing import TypeVar

import torch

__all__ = ['safe_to_load']

_Class = TypeVar('_Class', bound=type)


def safe_to_load(cls: _Class) -> _Class:
    """Tell torch that files may hold instances of a class; a class decorator for states.

    A file could name any class, so ``torch.load`` makes instances only of those that it was told about.  A named tuple
    runs no code when it is made.

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
    return cls
