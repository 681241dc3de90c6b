# SPDX-License-Identifier: Apache-2.0
"""Access to the entries of optimizer states by name, and to the copies of the parameter tree in a state.

A name is the field of a named tuple, the key of a dict, or the name of a named tuple's class.  A path is a tuple of
keys from the root; filters use it to distinguish entries of the same name.
"""

from __future__ import annotations

import builtins
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import torch

from torchopt.tree.ops import map
from torchopt.tree.registry import flatten, is_leaf_node, register_node, unflatten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True)
class NamedTupleKey:
    """The key of a field of a named tuple.

    Example:
        >>> import torchopt
        >>> str(torchopt.tree.NamedTupleKey('ScaleByAdamState', 'mu'))
        'ScaleByAdamState.mu'
    """

    tuple_name: str
    name: str

    def __str__(self) -> str:
        return f'{self.tuple_name}.{self.name}'


@dataclass(frozen=True)
class DictKey:
    """The key of an entry of a dict, or of a registered class with named children.

    Example:
        >>> import torchopt
        >>> str(torchopt.tree.DictKey('w'))
        "['w']"
    """

    key: Any

    def __str__(self) -> str:
        return f'[{self.key!r}]'


@dataclass(frozen=True)
class SequenceKey:
    """The key of an item of a list, a tuple, or a registered class.

    Example:
        >>> import torchopt
        >>> str(torchopt.tree.SequenceKey(0))
        '[0]'
    """

    idx: int

    def __str__(self) -> str:
        return f'[{self.idx}]'


KeyPath = tuple[NamedTupleKey | DictKey | SequenceKey, ...]


@runtime_checkable
class Initable(Protocol):
    """An object with a method ``init`` that makes a state for parameters, such as a transformation."""

    def init(self, params: Any) -> Any:
        """Make the state."""


class ParamsPlaceholder:
    """A placeholder for the parameters, with which :func:`map_params` finds their copies in a state.

    It is a tree without leaves, so mapping over it returns it.  An ``init`` that compares its parameters with another
    tree, such as a mask, must accept it: ``if isinstance(params, torchopt.tree.ParamsPlaceholder): ...``.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.map(torch.zeros_like, torchopt.tree.ParamsPlaceholder())
        ParamsPlaceholder()
    """

    def __repr__(self) -> str:
        return 'ParamsPlaceholder()'


register_node(ParamsPlaceholder, lambda node: ((), None), lambda static, kids: ParamsPlaceholder())


def map_params(
    initable: Initable | Callable[[Any], Any],
    f: Callable[..., Any],
    state: Any,
    /,
    *rest: Any,
    transform_non_params: Callable[[Any], Any] | None = None,
    is_leaf: Callable[[Any], bool] | None = None,
) -> Any:
    """Apply a function to the leaves of an optimizer state that correspond to parameters.

    Args:
        initable: The optimizer, or its ``init``.
        f: ``f(leaf, *rest_leaves)`` is called for each leaf of each copy of the parameter tree in the state.
        state: A state of this optimizer.
        *rest: Trees with the structure of the parameters.
        transform_non_params: Applied to all other leaves; by default they do not change.
        is_leaf: ``is_leaf(node)`` returns True for nodes inside a copy of the parameters to treat as leaves.

    Returns:
        A state of the same structure.  ``None`` leaves, and leaves that a mask has removed, stay as they are: ``f`` is
        not called for them.

    Raises:
        ValueError: If the state is not one of this optimizer, or a tree of ``rest`` does not match the parameters.

    Example:
        >>> import torch, torchopt
        >>> def init(params):
        ...     return {'count': torch.tensor(0), 'mu': torchopt.tree.zeros_like(params)}
        >>> state = init({'b': torch.ones(1), 'w': torch.ones(2)})
        >>> torchopt.tree.map_params(init, lambda m, name: name, state, {'b': 'bias', 'w': 'weight'})
        {'count': tensor(0), 'mu': {'b': 'bias', 'w': 'weight'}}
    """
    init = initable.init if isinstance(initable, Initable) else initable
    template = init(ParamsPlaceholder())

    def stop(node: Any) -> bool:
        return (is_leaf is not None and is_leaf(node)) or _is_hole(node)

    def visit(value: Any, *others: Any) -> Any:
        if _is_hole(value) and not (is_leaf is not None and is_leaf(value)):
            return value
        return f(value, *others)

    def walk(mark: Any, value: Any) -> Any:
        if isinstance(mark, ParamsPlaceholder):
            return map(visit, value, *rest, is_leaf=stop)
        return value if transform_non_params is None else transform_non_params(value)

    return map(walk, template, state, is_leaf=lambda node: isinstance(node, ParamsPlaceholder))


def get_all_with_path(
    tree: Any, key: Any, filtering: Callable[[KeyPath, Any], bool] | None = None
) -> list[tuple[KeyPath, Any]]:
    """All entries of a tree with a given name, each with its path.

    Args:
        tree: The tree, usually an optimizer state.
        key: The field of a named tuple, the key of a dict, or the name of a named tuple's class.
        filtering: ``filtering(path, value)`` returns True for the entries to keep.

    Returns:
        Pairs of path and value; outer entries come before those found inside them.

    Example:
        >>> import torchopt
        >>> torchopt.tree.get_all_with_path(({'lr': 0.1}, {}), 'lr')
        [((SequenceKey(idx=0), DictKey(key='lr')), 0.1)]
    """
    found = [(_path(trail), x) for trail, x in _find((), tree, key)]
    return [(path, x) for path, x in found if filtering is None or filtering(path, x)]


def get(tree: Any, key: Any, default: Any = None, filtering: Callable[[KeyPath, Any], bool] | None = None) -> Any:
    """The only entry of a tree with a given name.

    Args:
        tree: The tree, usually an optimizer state.
        key: The field of a named tuple, the key of a dict, or the name of a named tuple's class.
        default: The result if there is no such entry.
        filtering: ``filtering(path, value)`` returns True for the entries to consider.

    Raises:
        KeyError: If there are several; the message lists their paths.

    Example:
        >>> import torchopt
        >>> state = ({'count': 3, 'lr': 0.1}, {'lr': 0.2})
        >>> torchopt.tree.get(state, 'count'), torchopt.tree.get(state, 'mu', default='none')
        (3, 'none')
        >>> torchopt.tree.get(state, 'lr', filtering=lambda path, value: path[0].idx == 1)
        0.2
    """
    values = _values(tree, key)
    if values and (filtering is not None or len(values) > 1):
        found = get_all_with_path(tree, key, filtering)
        if len(found) > 1:
            places = ', '.join(_describe(path) for path, _ in found)
            raise KeyError(
                f'Found multiple values for {key!r}, at {places}. Pass a filtering(path, value) '
                f'that returns True for one of them.'
            )
        values = [x for _, x in found]
    return values[0] if values else default


def set(tree: Any, filtering: Callable[[KeyPath, Any], bool] | None = None, /, **kwargs: Any) -> Any:
    """A copy of a tree with the entries of given names replaced.

    Args:
        tree: The tree, usually an optimizer state.
        filtering: ``filtering(path, value)`` returns True for the entries to replace; by default, all of them.
        **kwargs: The new values by name: field, key, or class of a named tuple.

    Returns:
        The new tree; entries that were not replaced are shared with the old one.

    Raises:
        KeyError: If there is no entry with one of the names, or the filter rejects all of them; the message lists the
            entries found.

    Example:
        >>> import torchopt
        >>> torchopt.tree.set(({'count': 3, 'lr': 0.1}, {'lr': 0.2}), lr=0.5)
        ({'count': 3, 'lr': 0.5}, {'lr': 0.5})
    """
    for key in kwargs:
        found = get_all_with_path(tree, key)
        if not found:
            names = ', '.join(sorted(_names(tree))) or 'none at all'
            raise KeyError(f'Found no values matching {key!r}. Names in this tree: {names}.')
        if filtering is not None and not builtins.any(filtering(path, value) for path, value in found):
            places = ', '.join(_describe(path) for path, _ in found)
            raise KeyError(
                f'Found no values matching {key!r} given the filtering operation, which rejected those at {places}.'
            )
    return _replace((), tree, filtering, kwargs)


def _is_named_tuple(x: Any) -> bool:
    return isinstance(x, tuple) and hasattr(x, '_fields')


def _is_hole(x: Any) -> bool:
    """Whether a node is a named tuple without fields, with which a mask replaces a leaf."""
    return _is_named_tuple(x) and not x._fields


def _children(path: KeyPath, node: Any) -> list[tuple[KeyPath, Any]]:
    """The children of a node with their paths; none for a leaf."""
    return [((*path, key), x) for key, x in zip(_keys(node), _inner(node))]


def _inner(node: Any) -> list[Any]:
    """The children of a node; none for a leaf."""
    if isinstance(node, dict):
        return [x for _, x in _in_order(node)]
    if isinstance(node, (list, tuple)):
        return list(node)
    if isinstance(node, torch.Tensor) or is_leaf_node(node):
        return []
    return flatten(node, lambda x: x is not node)[0]


def _keys(node: Any) -> list[NamedTupleKey | DictKey | SequenceKey]:
    """The keys of the children of a node, in the same order."""
    if _is_named_tuple(node):
        return [NamedTupleKey(type(node).__name__, name) for name in node._fields]
    if isinstance(node, dict):
        return [DictKey(key) for key, _ in _in_order(node)]
    if isinstance(node, (list, tuple)):
        return [SequenceKey(i) for i in range(len(node))]
    if isinstance(node, torch.Tensor) or is_leaf_node(node):
        return []
    _, spec = flatten(node, lambda x: x is not node)
    return [SequenceKey(e) if isinstance(e, int) else DictKey(e) for e in spec.entries()]


def _in_order(node: dict[Any, Any]) -> Iterable[tuple[Any, Any]]:
    try:
        return sorted(node.items(), key=lambda item: item[0])
    except TypeError:
        return node.items()


_Trail: TypeAlias = 'tuple[()] | tuple[Any, Any, int]'
"""How a search came to a node: the trail of its parent, the parent, and its place there; empty for the root."""


def _path(trail: _Trail) -> KeyPath:
    keys: list[Any] = []
    while trail:
        trail, parent, i = trail
        keys.append(_keys(parent)[i])
    return tuple(reversed(keys))


def _match(trail: _Trail, node: Any, key: Any) -> tuple[_Trail, Any] | None:
    names: Any
    if _is_named_tuple(node):
        if key == type(node).__name__:
            return trail, node
        names = node._fields
        if key not in names:
            return None
    elif isinstance(node, dict) and key in node:
        names = [name for name, _ in _in_order(node)]
    else:
        return None
    i = names.index(key)
    return (trail, node, i), _inner(node)[i]


def _values(tree: Any, key: Any) -> list[Any]:
    """The values that :func:`_find` finds, in any order; without trails, since steps read their state by name."""
    pending, found = [tree], []
    for node in pending:  # which grows
        match = _match((), node, key)
        if match is not None:
            found.append(match[1])
        for x in node if isinstance(node, tuple) else _inner(node):
            if not isinstance(x, torch.Tensor):
                pending.append(x)
    return found


def _find(trail: _Trail, tree: Any, key: Any) -> list[tuple[_Trail, Any]]:
    """The outermost matches, from left to right, and then those inside each of their nodes."""
    pending: list[tuple[_Trail, Any]] = [(trail, tree)]
    outer, found = [], []
    while pending:
        place, node = pending.pop()
        match = _match(place, node, key)
        if match is None:
            pending.extend(_steps(place, node)[::-1])
        else:
            outer.append((place, node))
            found.append(match)
    for place, node in outer:
        for inner, child in _steps(place, node):
            found.extend(_find(inner, child, key))
    return found


def _steps(trail: _Trail, node: Any) -> list[tuple[_Trail, Any]]:
    """The children that can contain something, each with its trail."""
    return [((trail, node, i), x) for i, x in enumerate(_inner(node)) if not isinstance(x, torch.Tensor)]


def _replace(path: KeyPath, node: Any, filtering: Callable[[KeyPath, Any], bool] | None, values: dict[str, Any]) -> Any:
    def replaces(name: Any, place: KeyPath, x: Any) -> bool:
        return name in values and (filtering is None or filtering(place, x))

    if _is_named_tuple(node) and replaces(type(node).__name__, path, node):
        return values[type(node).__name__]
    new = []
    for place, child in _children(path, node):
        name = _name(place[-1])
        if name is not None and replaces(name, place, child) and _has_names(node):
            new.append(values[name])
        else:
            new.append(_replace(place, child, filtering, values))
    return _rebuild(node, new)


def _has_names(node: Any) -> bool:
    return isinstance(node, dict) or _is_named_tuple(node)


def _name(key: NamedTupleKey | DictKey | SequenceKey) -> Any:
    if isinstance(key, NamedTupleKey):
        return key.name
    return key.key if isinstance(key, DictKey) else None


def _rebuild(node: Any, children: list[Any]) -> Any:
    if _is_named_tuple(node):
        return node._replace(**dict(zip(node._fields, children)))
    if isinstance(node, dict):
        values = dict(zip([key for key, _ in _in_order(node)], children))
        if type(node) is dict:
            return {key: values[key] for key in node}
        new = copy.copy(node)  # keeps the type, the order of keys, and the factory of a defaultdict
        new.update(values)
        return new
    if is_leaf_node(node):
        return node
    return unflatten(flatten(node, lambda x: x is not node)[1], children)


def _names(tree: Any) -> list[str]:
    """All names in a tree that :func:`set` can replace, each once."""
    names: dict[str, None] = {}
    pending: list[Any] = [tree]
    while pending:
        node = pending.pop()
        for path, child in _children((), node):
            if _has_names(node):
                names[str(_name(path[-1]))] = None
            pending.append(child)
    return list(names)


def _describe(path: KeyPath) -> str:
    code = ''.join(f'.{key.name}' if isinstance(key, NamedTupleKey) else str(key) for key in path)
    last = path[-1] if path else None
    owner = f' (of {last.tuple_name})' if isinstance(last, NamedTupleKey) else ''
    return f"'{code}'{owner}" if code else 'the root'
