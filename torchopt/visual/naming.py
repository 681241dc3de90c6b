# SPDX-License-Identifier: Apache-2.0
"""The names of the tensors in a graph, from mappings, modules, states and trees."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node as AutogradNode

from torchopt import tree
from torchopt.kinds import described

_KINDS = (
    'a mapping of names to tensors, a ModuleState, a module, an optimizer, pairs of name and tensor, '
    'a tree of tensors, or an iterable of these'
)


@dataclasses.dataclass(eq=False)
class Names:
    """The known names.

    Attributes:
        leaves: Names by the ``id`` of a tensor without ``grad_fn``, with the tensor, which keeps the ``id`` valid.
        results: Names by the node that computed a tensor, and by the index of the result.
        shown: The keys of the results that the user named; they are drawn as boxes.
        by_node: The keys of the results that were named by their node, as in ``visual_contents``.
    """

    leaves: dict[int, tuple[str, Tensor]] = dataclasses.field(default_factory=dict)
    results: dict[tuple[Any, int], str] = dataclasses.field(default_factory=dict)
    shown: set[tuple[Any, int]] = dataclasses.field(default_factory=set)
    by_node: set[tuple[Any, int]] = dataclasses.field(default_factory=set)

    def add(self, name: str, tensor: Tensor) -> None:
        """Name a tensor; a later name replaces an earlier one."""
        if tensor.grad_fn is None:
            self.leaves[id(tensor)] = (name, tensor)
        else:
            self.results[tensor.grad_fn, tensor.output_nr] = name
            self.shown.add((tensor.grad_fn, tensor.output_nr))

    def of(self, tensor: Tensor) -> str | None:
        """The name of a tensor, if it has one."""
        if tensor.grad_fn is None:
            found = self.leaves.get(id(tensor))
            return found[0] if found else None
        return self.results.get((tensor.grad_fn, tensor.output_nr))


def collect_names(params: Any) -> Names:
    """Read the names from the argument ``params`` of :func:`torchopt.visual.make_dot`.

    Raises:
        TypeError: If an entry does not name tensors; the message gives its path.
    """
    names = Names()
    if params is not None:
        if isinstance(params, (str, bytes, int, float, complex)):
            raise _unexpected('params', params)
        _collect(names, params, '', 'params')
    return names


def _unexpected(where: str, found: Any) -> TypeError:
    return TypeError(f'{where}: {described(found)}, which does not name tensors. Pass {_KINDS}.')


def _collect(names: Names, item: Any, prefix: str, where: str) -> None:
    """Name the tensors in ``item``; ``prefix`` is the name of ``item``, ``where`` its path for error messages."""
    if item is None or isinstance(item, (bool, int, float, complex)):
        return  # other entries of optimizer states
    if isinstance(item, Tensor):
        names.add(prefix or where, item)
    elif isinstance(item, nn.Module):
        start = f'{prefix}.' if prefix else ''
        for name, tensor in (*item.named_parameters(), *item.named_buffers()):
            names.add(start + name, tensor)
    elif _is_module_state(item):
        _collect_state(names, item, f'{prefix}.' if prefix else '')
    elif isinstance(item, Mapping):
        for key, value in item.items():
            _collect_entry(names, key, value, prefix, where)
    elif _is_pair(item):
        _collect(names, item[1], f'{prefix}.{item[0]}' if prefix else item[0], where)
    elif isinstance(item, tuple) and hasattr(item, '_fields'):
        for field, value in zip(item._fields, item):
            _collect(names, value, f'{prefix}.{field}' if prefix else field, f'{where}.{field}')
    elif isinstance(item, (list, tuple, set, frozenset, Generator, Iterator)):
        for i, value in enumerate(item):
            # Number the elements if the item has a name and they have none.
            own = prefix if not prefix or _is_pair(value) else f'{prefix}[{i}]'
            _collect(names, value, own, f'{where}[{i}]')
    elif hasattr(item, 'param_groups') and hasattr(item, 'state_groups'):
        _collect(names, tuple(item.state_groups), prefix or 'state', where)
    elif not isinstance(item, (str, bytes)) and not tree.is_leaf_node(item):
        for path, leaf in tree.flatten_with_path(item):
            _collect(names, leaf, f'{prefix}{path}', f'{where}{path}')
    elif isinstance(item, Iterable) and not isinstance(item, (str, bytes)):
        _collect(names, iter(item), prefix, where)
    else:
        raise _unexpected(where, item)


def _collect_entry(names: Names, key: Any, value: Any, prefix: str, where: str) -> None:
    if isinstance(key, Tensor):  # an entry of visual_contents: leaf to name
        names.add(prefix + str(value), key)
    elif isinstance(key, AutogradNode) or hasattr(key, 'next_functions'):  # or node to name and tensor
        name, tensor = value
        result = tensor.output_nr if tensor.grad_fn is key else 0
        names.results[key, result] = prefix + name
        names.by_node.add((key, result))
        names.shown.add((key, result))
    else:
        _collect(names, value, f'{prefix}[{key!r}]' if prefix else str(key), f'{where}[{key!r}]')


def _collect_state(names: Names, state: Any, prefix: str) -> None:
    if state.visual_contents:
        for key, value in state.visual_contents.items():
            _collect_entry(names, key, value, prefix, 'visual_contents')
        return
    # Without visual contents, only the names within the modules are known; several modules need a number.
    containers = state.params
    for i, container in enumerate(containers):
        own = prefix if len(containers) == 1 else f'{prefix}{i}.'
        for name, tensor in container.items():
            names.add(own + name, tensor)


def _is_module_state(item: Any) -> bool:
    return isinstance(item, tuple) and {'params', 'buffers', 'visual_contents'} <= {*getattr(item, '_fields', ())}


def _is_pair(item: Any) -> bool:
    return type(item) in (tuple, list) and len(item) == 2 and isinstance(item[0], str)
