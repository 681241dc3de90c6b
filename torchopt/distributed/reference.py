# SPDX-License-Identifier: Apache-2.0
"""The object that a remote function receives for an ``RRef`` among its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed.rpc as rpc
from torch import Tensor, nn

from torchopt import tree

__all__ = ['Reference', 'rref_of', 'value_to_send']

_rpc: Any = rpc  # whose stubs lack PyRRef, the class of all RRefs that did not begin here


class Reference:
    """An ``RRef`` that may have been sent with its value, so that gradients come back through the call.

    It does all that an ``RRef`` does.

    Args:
        rref: The ``RRef`` itself.
        fetch: From it and a timeout to its value, for one that was sent without.
    """

    def __init__(self, rref: Any, fetch: Callable[[Any, float], Any]) -> None:
        self._rref, self._fetch = rref, fetch
        self._value: tuple[Any, ...] = ()

    def __setstate__(self, value: tuple[Any]) -> None:
        """Take the value that was sent along."""
        self._value = value

    def __reduce__(self) -> tuple[Any, ...]:
        """Go through the pickler of RPC, in a call of ``torch.distributed.rpc`` itself."""
        return _arrived, (self._rref._serialize(),)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rref, name)

    def __repr__(self) -> str:
        """That of the ``RRef``."""
        return repr(self._rref)

    def to_here(self, timeout: float = -1.0) -> Any:
        """The value, or a copy of it where another process owns it."""
        if self._value:
            return self._value[0]
        return self._rref.local_value() if self._rref.is_owner() else self._fetch(self._rref, timeout)

    def local_value(self) -> Any:
        """The value, if this process owns it."""
        return self._value[0] if self._value and self._rref.is_owner() else self._rref.local_value()


def _arrived(fork: Any) -> Any:
    return _rpc.PyRRef._deserialize(fork)


def rref_of(obj: Any) -> Any:
    """The ``RRef`` that an object is or stands for, or None."""
    if isinstance(obj, Reference):
        return obj._rref
    return obj if isinstance(obj, _rpc.PyRRef) else None


def value_to_send(reference: Any) -> tuple[Any, ...]:
    """The value of an ``RRef``, in a tuple, if it is here and its tensors may get gradients; otherwise nothing.

    A module, a tensor that requires grad, or a tree that has one of them, is sent.  Other objects stay where they are:
    they may be large, or nothing that can be pickled.
    """
    if isinstance(reference, Reference):
        return reference._value
    if not reference.is_owner():
        return ()
    value = reference.local_value()
    held = any(isinstance(x, nn.Module) or (isinstance(x, Tensor) and x.requires_grad) for x in tree.leaves(value))
    return (value,) if held else ()
