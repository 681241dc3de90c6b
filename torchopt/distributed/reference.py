# SPDX-License-Identifier: Apache-2.0
"""The object that a remote function receives in place of an ``RRef`` argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed.rpc as rpc
from torch import nn

from torchopt import tree
from torchopt.graphs import carries_graph

_rpc: Any = rpc  # its stubs lack PyRRef, the class of RRefs received from other processes


class Reference:
    """An ``RRef`` that may have been sent with its value, so that gradients flow back through the call.

    It has all methods of an ``RRef``.

    Args:
        rref: The ``RRef``.
        fetch: ``fetch(rref, timeout)`` returns its value if it was sent without it.
    """

    def __init__(self, rref: Any, fetch: Callable[[Any, float], Any]) -> None:
        self._rref, self._fetch = rref, fetch
        self._value: tuple[Any, ...] = ()

    def __setstate__(self, value: tuple[Any]) -> None:
        """Set the value that was sent with the reference."""
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
        """The value, or a copy of it if another process owns it."""
        if self._value:
            return self._value[0]
        return self._rref.local_value() if self._rref.is_owner() else self._fetch(self._rref, timeout)

    def local_value(self) -> Any:
        """The value, if this process owns it."""
        return self._value[0] if self._value and self._rref.is_owner() else self._rref.local_value()


def _arrived(fork: Any) -> Any:
    return _rpc.PyRRef._deserialize(fork)


def rref_of(obj: Any) -> Any:
    """The ``RRef`` that an object is or wraps, or None."""
    if isinstance(obj, Reference):
        return obj._rref
    return obj if isinstance(obj, _rpc.PyRRef) else None


def value_to_send(reference: Any) -> tuple[Any, ...]:
    """A tuple with the value of an ``RRef`` if it is in this process and can get gradients; else an empty tuple.

    These are modules, tensors that require grad, and trees with one of them.  Other objects are not sent, since they
    may be large or not picklable.
    """
    if isinstance(reference, Reference):
        return reference._value
    if not reference.is_owner():
        return ()
    value = reference.local_value()
    held = any(isinstance(x, nn.Module) or carries_graph(x) for x in tree.leaves(value))
    return (value,) if held else ()
