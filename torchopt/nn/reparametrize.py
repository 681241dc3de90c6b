# SPDX-License-Identifier: Apache-2.0
"""Run a module with other tensors in place of its own.

This makes ``module(x)`` a function of the parameters.  The tensors may have a graph, such as the parameters after an
unrolled inner loop or the arguments of an implicit function.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from torchopt.nn.meta_module import MetaGradientModule

ModuleT = TypeVar('ModuleT', bound=nn.Module)
NamedTensors = Mapping[str, Any] | Iterable[tuple[str, Any]]

_CONTAINERS = ('_parameters', '_buffers', '_meta_parameters')


class _Missing:
    """A placeholder for an attribute that did not exist; swapping it in deletes the attribute."""

    def __repr__(self) -> str:
        return '<missing>'


_MISSING = _Missing()


class _Slot(NamedTuple):
    """One place in one module that holds a tensor."""

    owner: nn.Module
    name: str
    container: MutableMapping[str, Any] | None  # None: use getattr and setattr

    def get(self) -> Any:
        if self.container is not None:
            return self.container[self.name]
        return getattr(self.owner, self.name, _MISSING)

    def put(self, value: Any) -> None:
        if value is _MISSING:
            if hasattr(self.owner, self.name):
                delattr(self.owner, self.name)
        elif self.container is not None:
            self.container[self.name] = value
        else:
            setattr(self.owner, self.name, value)

    def restore(self, original: Any) -> None:
        if self.container is None and original is not _MISSING and self.name in vars(self.owner):
            del vars(self.owner)[self.name]  # uncovers the attribute of the class
        else:
            self.put(original)


def _find(module: nn.Module, path: str, allow_missing: bool) -> _Slot:
    *parents, name = path.split('.')
    owner: Any = module
    for parent in parents:
        if not hasattr(owner, parent):
            raise AttributeError(
                f'named_tensors: {path!r} is not in the module: {type(owner).__name__!r} object '
                f'has no attribute {parent!r}. Correct the name'
            )
        owner = getattr(owner, parent)
    for container in (*(vars(owner).get(kind, {}) for kind in _CONTAINERS), vars(owner)):
        if name in container:
            return _Slot(owner, name, container)
    if not allow_missing and not hasattr(owner, name):
        raise AttributeError(
            f'named_tensors: {path!r} is not in the module: {type(owner).__name__!r} object '
            f'has no attribute {name!r}. Correct the name, or pass allow_missing=True to add it'
        )
    return _Slot(owner, name, None)


def _put_all(slots: Mapping[str, _Slot], values: Mapping[str, Any]) -> dict[str, Any]:
    """Put all values, or none if one raises; return the previous values."""
    originals = {name: slot.get() for name, slot in slots.items()}
    done: list[str] = []
    try:
        for name, slot in slots.items():
            slot.put(values[name])
            done.append(name)
    except BaseException:
        for name in done:
            slots[name].restore(originals[name])
        raise
    return originals


def swap_state(module: nn.Module, named_tensors: NamedTensors, allow_missing: bool = False) -> dict[str, Any]:
    """Replace tensors of a module and return the previous ones.

    All names are looked up before the first tensor is replaced, so an error leaves the module unchanged.  Of tied
    weights, only those that are named are replaced (:func:`reparametrize` replaces all).

    Args:
        module: The module to change.
        named_tensors: New values by dotted name, a mapping or pairs.  A name refers to a parameter, a buffer, a
            meta-parameter of a :class:`~torchopt.nn.MetaGradientModule`, or a plain attribute.  A plain tensor may
            replace an :class:`torch.nn.Parameter`.
        allow_missing: Whether a name that does not exist is added as an attribute.

    Returns:
        The previous values by the same names.  To restore them, call the function again with the same
        ``allow_missing``.  If a name did not exist, its value is a sentinel that deletes the attribute on restoring.

    Raises:
        AttributeError: A name does not exist and ``allow_missing`` is False.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> old = torchopt.nn.swap_state(net, {'weight': torch.ones(1, 2)})
        >>> net(torch.ones(2)).item()
        2.0
        >>> _ = torchopt.nn.swap_state(net, old)
        >>> net.weight is old['weight']
        True
    """
    values = dict(named_tensors)
    return _put_all({name: _find(module, name, allow_missing) for name in values}, values)


def _tied(module: nn.Module, slots: Mapping[str, _Slot], values: Mapping[str, Any]) -> dict[str, _Slot]:
    """The places that are not named, but contain the tensor of a named place."""
    leaders: dict[int, list[str]] = {}
    for name, slot in slots.items():
        original = slot.get()
        if slot.container is not None and isinstance(original, Tensor):
            leaders.setdefault(id(original), []).append(name)
    named = {(id(slot.container), slot.name) for slot in slots.values()}
    followers: dict[str, _Slot] = {}
    meta = module.named_meta_modules() if isinstance(module, MetaGradientModule) else ()
    for path, owner in itertools.chain(module.named_modules(), meta):
        for kind in _CONTAINERS:
            for name, tensor in vars(owner).get(kind, {}).items():
                if id(tensor) not in leaders or (id(vars(owner)[kind]), name) in named:
                    continue
                first, *others = leaders[id(tensor)]
                follower = f'{path}.{name}' if path else name
                if any(values[other] is not values[first] for other in others):
                    raise ValueError(
                        f'named_tensors: {follower!r} is tied to {first!r} and {others[0]!r}, '
                        f'which get different tensors. Name {follower!r} too, '
                        'or give them the same tensor'
                    )
                followers[follower] = _Slot(owner, name, vars(owner)[kind])
    return followers


@contextlib.contextmanager
def reparametrize(module: ModuleT, named_tensors: NamedTensors, allow_missing: bool = False) -> Iterator[ModuleT]:
    """Use other tensors in a module within a ``with`` block.

    Like :func:`swap_state`, but the previous tensors are restored at the end, also after an exception, and tied weights
    stay tied: a name from ``module.named_parameters()``, which lists a tied tensor once, replaces it everywhere.

    Args:
        module: The module to change.
        named_tensors: New values by dotted name, a mapping or pairs.
        allow_missing: Whether a name that does not exist is added as an attribute, and deleted at the end.

    Yields:
        The module.

    Raises:
        AttributeError: A name does not exist and ``allow_missing`` is False.
        ValueError: Names of one tied tensor get different values, and a third name of it is missing.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> weight = torch.tensor([[3.0, 4.0]], requires_grad=True)
        >>> with torchopt.nn.reparametrize(net, {'weight': 2 * weight}):
        ...     net(torch.ones(2)).sum().backward()
        >>> weight.grad
        tensor([[2., 2.]])
    """
    values = dict(named_tensors)
    slots = {name: _find(module, name, allow_missing) for name in values}
    followers = _tied(module, slots, values)
    if followers:
        by_tensor = {id(slot.get()): values[name] for name, slot in slots.items()}
        values.update({name: by_tensor[id(slot.get())] for name, slot in followers.items()})
        slots.update(followers)
    originals = _put_all(slots, values)
    try:
        yield module
    finally:
        for name, slot in slots.items():
            slot.restore(originals[name])


reparameterize = reparametrize
