# SPDX-License-Identifier: Apache-2.0
"""Messages between processes: any picklable object, with its tensors extracted.

The pickler visits every tensor of an object, in a dict, a module or an attribute, so that it finds every tensor that
requires grad.  Torch's own pickler copies the parameters of a module and loses their gradients.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchopt.distributed.reference import rref_of, value_to_send
from torchopt.kinds import kind_of


class Message(NamedTuple):
    """A message.

    Attributes:
        payload: The pickled object, with numbers in place of the objects in ``parts``.
        parts: Detached tensors; ``RRef``s, which only the pickler of RPC can send; saved scripted modules.
        kinds: The kind of each part, which determines how it is restored.
        common: Pickled objects that are equal in several messages; the payload refers to them.
    """

    payload: bytes
    parts: list[Any]
    kinds: list[str]
    common: bytes = b''

    def __reduce__(self) -> tuple[Any, ...]:
        """Join the small tensors of each dtype into one: RPC needs more time for a tensor than for its numbers."""
        small: defaultdict[torch.dtype, list[Tensor]] = defaultdict(list)
        for part in self.parts:
            if _can_be_joined(part):
                small[part.dtype].append(part.reshape(-1))
        joined = {dtype: torch.cat(tensors) for dtype, tensors in small.items() if len(tensors) > 1}
        # A tuple takes the place of a joined tensor.
        parts = [(x.dtype, tuple(x.shape)) if _can_be_joined(x) and x.dtype in joined else x for x in self.parts]
        return _separated, (self.payload, parts, self.kinds, self.common, joined)


_SMALL = 65536  # bytes of a tensor; larger ones are sent without a copy


def _can_be_joined(part: Any) -> bool:
    return (
        type(part) is Tensor
        and part.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        and part.layout == torch.strided
        and part.device.type == 'cpu'
        and part.nbytes <= _SMALL
        and part.is_contiguous()
    )


def _separated(
    payload: bytes, parts: list[Any], kinds: list[str], common: bytes, joined: dict[torch.dtype, Tensor]
) -> Message:
    """The message whose small tensors were joined; each gets memory of its own again."""
    used = dict.fromkeys(joined, 0)
    for number, part in enumerate(parts):
        if isinstance(part, tuple):
            dtype, shape = part
            size = math.prod(shape)
            parts[number] = joined[dtype].narrow(0, used[dtype], size).clone().view(shape)
            used[dtype] += size
    return Message(payload, parts, kinds, common)


Classify = Callable[[Tensor], 'tuple[str, Any]']
"""A function from a tensor to its kind and the object to send for it."""


def _part(number: int) -> Any:
    """A placeholder for a part in the pickled object; ``unpack`` replaces it by the part."""
    raise pickle.UnpicklingError('Read a message with unpack.')


class _Pickler(pickle.Pickler):
    def __init__(
        self, file: io.BytesIO, classify: Classify, after: _Pickler | None = None, values: bool = False
    ) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.classify, self.values = classify, values
        self.originals: list[Any] = []
        self.parts: list[Any] = []
        self.kinds: list[str] = []
        if after is not None:
            self.memo = after.memo
            self.originals += after.originals
            self.parts += after.parts
            self.kinds += after.kinds

    def reducer_override(self, obj: Any) -> Any:
        # Called once for every object, except those of Python's basic types.
        if type(obj) is OrderedDict and not obj and not vars(obj):
            return OrderedDict, ()  # as by default, but faster: a module has 14 of them for its hooks
        value: tuple[Any, ...] = ()
        if isinstance(obj, Tensor):
            if type(obj) not in (Tensor, nn.Parameter):
                if obj.requires_grad:
                    raise TypeError(
                        f'{kind_of(obj)} that requires grad cannot be sent with its gradient. Send a plain '
                        f'tensor, or detach it.'
                    )
                return NotImplemented
            kind, part = self.classify(obj)
        elif isinstance(obj, torch.jit.ScriptModule):
            kind, part = 'scripted', _scripted(obj)
        elif (rref := rref_of(obj)) is not None:
            kind, part = 'reference', rref
            value = value_to_send(obj) if self.values else ()
        else:
            return NotImplemented
        self.originals.append(obj)
        self.parts.append(part)
        self.kinds.append(kind)
        # The value is pickled as a state, after the reference is memoized, since it may contain the same reference.
        return (_part, (len(self.parts) - 1,), value) if value else (_part, (len(self.parts) - 1,))


def _scripted(module: torch.jit.ScriptModule) -> bytes:
    file = io.BytesIO()
    torch.jit.save(module, file)
    return file.getvalue()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, found: Sequence[Any]) -> None:
        super().__init__(file)
        self.found = found

    def find_class(self, module: str, name: str) -> Any:
        return self.found.__getitem__ if (module, name) == (__name__, '_part') else super().find_class(module, name)


def as_leaf(x: Tensor) -> tuple[str, Tensor]:
    """Send a tensor as a value; one that requires grad arrives as a new leaf."""
    kind = 'parameter' if isinstance(x, nn.Parameter) else 'leaf'
    return (kind if x.requires_grad else f'frozen {kind}'), x.detach()


def pack(obj: Any, classify: Classify = as_leaf) -> tuple[Message, list[Any]]:
    """Make a message from an object; also return the originals of its parts.

    Raises:
        TypeError, AttributeError, pickle.PicklingError: If something in the object cannot be pickled.
    """
    file = io.BytesIO()
    pickler = _Pickler(file, classify)
    pickler.dump(obj)
    return Message(file.getvalue(), pickler.parts, pickler.kinds), pickler.originals


def pack_each(objects: Sequence[Any], common: Sequence[Any]) -> list[tuple[Message, list[Any]]]:
    """Like :func:`pack` for several objects; objects that all of them contain, such as a module, are pickled only once.

    An ``RRef`` whose value is in this process is sent with the value; see :func:`value_to_send`.
    """
    shared = io.BytesIO()
    before = _Pickler(shared, as_leaf, values=True)
    if common:
        before.dump(list(common))
    packed = []
    for obj in objects:
        file = io.BytesIO()
        pickler = _Pickler(file, as_leaf, before, values=True)
        pickler.dump(obj)
        message = Message(file.getvalue(), pickler.parts, pickler.kinds, shared.getvalue())
        packed.append((message, pickler.originals))
    return packed


_ARRIVE: dict[str, Callable[[Any], Any]] = {
    'leaf': lambda x: x.detach().requires_grad_(),
    'frozen leaf': lambda x: x,
    'parameter': nn.Parameter,
    'frozen parameter': lambda x: nn.Parameter(x, requires_grad=False),
    'scripted': lambda x: torch.jit.load(io.BytesIO(x)),  # type: ignore[no-untyped-call]
    'reference': lambda x: x,
}


def differentiable(parts: Sequence[Any]) -> list[Tensor]:
    """The tensors that require grad among parts or their originals, in the same order for sender and receiver."""
    found: list[Tensor] = []
    for part in parts:
        if isinstance(part, torch.jit.ScriptModule):
            found += (p for p in part.parameters() if p.requires_grad)
        elif isinstance(part, Tensor) and part.requires_grad:
            found.append(part)
    return found


def copied(message: Message) -> Message:
    """The same message with copied tensors, for a receiver in the same process."""
    return message._replace(parts=[part.clone() if isinstance(part, Tensor) else part for part in message.parts])


def unpack(message: Message, arrive: dict[str, Callable[[Any], Any]] | None = None) -> tuple[Any, list[Any]]:
    """Make an object from a message; also return its restored parts.  ``arrive`` restores parts of further kinds."""
    kinds = _ARRIVE if arrive is None else {**_ARRIVE, **arrive}
    found = [kinds[kind](part) for kind, part in zip(message.kinds, message.parts)]
    unpickler = _Unpickler(io.BytesIO(message.common + message.payload), found)
    if message.common:
        unpickler.load()
    return unpickler.load(), found
