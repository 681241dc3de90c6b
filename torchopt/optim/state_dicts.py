# SPDX-License-Identifier: Apache-2.0
"""Convert the state of a group, a tree, to the layout of ``torch.optim`` (entries per parameter), and back.

The transformation receives the parameters of a group as a list, so every list of this length in a state has one part
per parameter.  Values outside such lists (step counts) belong to all parameters, and are among the entries of each
parameter, like ``step`` in ``torch.optim``.

An entry has the name of ``torch.optim`` for the same quantity, otherwise the last name on its path in the state.  If
two names are equal, both entries have their full paths as names.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchopt import tree
from torchopt.kinds import kind_of

_COUNT = 'step'
_MOMENTS = {'count': _COUNT, 'mu': 'exp_avg', 'nu': 'exp_avg_sq'}
_TWINS: dict[str, dict[str, str]] = {
    'ScaleByAdamState': _MOMENTS,
    'ScaleByRadamState': _MOMENTS,
    'ScaleByAdamaxState': {**_MOMENTS, 'nu': 'exp_inf'},
    'ScaleByAdaDeltaState': {'e_g': 'square_avg', 'e_x': 'acc_delta'},
    'ScaleByRssState': {'sum_of_squares': 'sum'},
    'ScaleByRmsState': {'nu': 'square_avg'},
    'ScaleByRmsWithCountState': {'nu': 'square_avg'},
    'ScaleByRStdDevState': {'mu': 'grad_avg', 'nu': 'square_avg'},
    'ScaleByRStdDevWithCountState': {'mu': 'grad_avg', 'nu': 'square_avg'},
    'TraceState': {'trace': 'momentum_buffer'},
    'DampedTraceState': {'trace': 'momentum_buffer'},
}
"""The names of ``torch.optim`` for the fields of states."""

_PARAMS = 'params'


def per_parameter(state: Any, params: Sequence[torch.Tensor]) -> dict[torch.Tensor, dict[str, Any]]:
    """The entries of each parameter of a group: new dicts with the tensors of the state, not copies."""
    entries: dict[torch.Tensor, dict[str, Any]] = {p: {} for p in params}
    for name, i, x in _leaves(state, len(params)):
        if x is not None:
            for p in params if i is None else [params[i]]:
                entries[p][name] = x
    return entries


def separate(state: Any, entries: Sequence[dict[str, Any]]) -> None:
    """Replace what belongs to all parameters, such as the step count, by a copy in each of the entries.

    ``torch.optim`` counts up the ``step`` of each entry in place.  Some of its implementations require that it is a
    floating-point number; double precision holds every count.
    """
    common = {name for name, i, x in _leaves(state, len(entries)) if i is None and isinstance(x, torch.Tensor)}
    for own in entries:
        for name in common & own.keys():
            dtype = torch.float64 if name == _COUNT and own[name].device.type == 'cpu' else own[name].dtype
            own[name] = own[name].to(dtype, copy=True)


def read_entries(expected: Any, params: Sequence[torch.Tensor], entries: Sequence[Any], places: Sequence[str]) -> Any:
    """The state of a group from the entries of its parameters: the inverse of :func:`per_parameter`.

    Tensors are copied to the devices and dtypes of ``expected``.  Frozen parameters need no entries; theirs come from
    ``expected``.

    Raises:
        ValueError: If the entries do not match; the message names the place, one of ``places``.
        TypeError: If an entry is not a tensor or number where one is expected.
    """
    left = [dict(own) for own in entries]
    given = [bool(own) or p.requires_grad for own, p in zip(entries, params)]
    leaves = []
    for name, i, x in _leaves(expected, len(params)):
        owners = [j for j in (range(len(params)) if i is None else [i]) if given[j]]
        if x is None or not owners:
            leaves.append(x)
            continue
        if i is None:  # a frozen parameter may have been saved before it was frozen, or without ever being updated
            owners = [j for j in owners if params[j].requires_grad] or owners
        for j in owners:
            if name not in entries[j]:
                raise ValueError(
                    f'{places[j]} has no {name!r}; it has {sorted(map(str, entries[j]))}. {_REMEDY} {_FROM_TORCH}'
                )
        values = [entries[j][name] for j in owners]
        for own in left if i is None else [left[i]]:
            own.pop(name, None)
        for j, value in zip(owners, values):
            if not _equal(value, values[0]):
                raise ValueError(
                    f'{places[owners[0]]} and {places[j]} differ in {name!r}: {values[0]} and {value}. This optimizer '
                    f'has one value for all parameters of a group; put those parameters into different groups.'
                )
        leaves.append(_fit(values[0], x, f'{places[owners[0]]}[{name!r}]'))
    for own, place in zip(left, places):
        if own:
            raise ValueError(
                f'{place} has the entries {sorted(map(str, own))}, which this optimizer does not have. {_REMEDY} '
                f'{_FROM_TORCH}'
            )
    return tree.unflatten(tree.structure(expected), leaves)


def read_groups(
    state_dict: Mapping[str, Any], groups: Sequence[dict[str, Any]]
) -> list[tuple[dict[str, Any], list[Any], list[str]]]:
    """Split a state dict in the layout of ``torch.optim`` into the groups of an optimizer.

    Returns:
        For each group, its saved options, the entries of its parameters, and their names for error messages.

    Raises:
        TypeError: If it does not have this layout.
        ValueError: If it belongs to other groups.
    """
    saved, state = state_dict.get('param_groups'), state_dict.get('state')
    if not isinstance(saved, (list, tuple)) or not isinstance(state, Mapping):
        raise TypeError(
            "state_dict is a dict without a dict 'state' and a list 'param_groups'. Pass the result of state_dict() of "
            'an optimizer, not the dict in which it was saved.'
        )
    if len(saved) != len(groups):
        raise ValueError(
            f'state_dict holds {len(saved)} groups, but this optimizer has {len(groups)} groups. First add the '
            f'groups with which it was saved.'
        )
    read = []
    for i, (group, own) in enumerate(zip(saved, groups)):
        if not isinstance(group, Mapping) or len(group.get(_PARAMS, ())) != len(own[_PARAMS]):
            held = f'{len(group.get(_PARAMS, ()))} parameters' if isinstance(group, Mapping) else repr(group)
            raise ValueError(
                f"state_dict['param_groups'][{i}] holds {held}, but this group of the optimizer holds "
                f'{len(own[_PARAMS])} parameters. {_REMEDY}'
            )
        keys = list(group[_PARAMS])
        places = [f"state_dict['state'][{key!r}]" for key in keys]
        found = [state.get(key, {}) for key in keys]
        for place, entry in zip(places, found):
            if not isinstance(entry, Mapping):
                raise TypeError(f'{place} is {kind_of(entry)}; expected a dict. {_REMEDY}')
        entries = [{name: x for name, x in entry.items() if x is not None} for entry in found]
        read.append(({k: v for k, v in group.items() if k != _PARAMS}, entries, places))
    known = {key for group in saved for key in group[_PARAMS]}
    if unexpected := [key for key in state if key not in known]:
        raise ValueError(
            f"state_dict['state'] has entries of parameters in none of its groups: {unexpected[:8]}. {_REMEDY}"
        )
    return read


def plain_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a group that are data; functions (schedules, masks) are omitted."""
    return {name: x for name, x in group.items() if all(isinstance(leaf, _DATA) for leaf in tree.leaves(x))}


_DATA = (torch.Tensor, bool, int, float, complex, str, torch.dtype)
_REMEDY = 'Load a state that an optimizer with this rule saved for these parameters.'
_FROM_TORCH = 'To continue a run of torch.optim, use torchopt.interop.from_torch_optimizer.'


def _leaves(state: Any, count: int) -> list[tuple[str, int | None, Any]]:
    """The leaves of a state in order, each with its name and the index of its parameter, or None."""
    found: list[tuple[Any, int | None, Any]] = []
    for path, part in tree.flatten_with_keys(state, lambda x: type(x) is list and len(x) == count):
        if type(part) is list:
            for i, item in enumerate(part):
                found += [((*path, *inner), i, x) for inner, x in tree.flatten_with_keys(item)]
        else:
            found.append((path, None, part))
    paths = dict.fromkeys(path for path, _, _ in found)
    common = collections.Counter(map(_short_name, paths))
    names = {path: _short_name(path) if common[_short_name(path)] == 1 else _long_name(path) for path in paths}
    return [(names[path], i, x) for path, i, x in found]


def _short_name(path: Any) -> str:
    named = [j for j, key in enumerate(path) if not isinstance(key, tree.SequenceKey)]
    return _long_name(path[named[-1] :] if named else path)


def _long_name(path: Any) -> str:
    return '.'.join(map(_part, path)) or 'state'


def _part(key: Any) -> str:
    if isinstance(key, tree.NamedTupleKey):
        return _TWINS.get(key.tuple_name, {}).get(key.name, key.name)
    return str(key.key if isinstance(key, tree.DictKey) else key.idx)


def _equal(x: Any, y: Any) -> bool:
    if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
        return x is y or (x.shape == y.shape and bool((x == y.to(x.device)).all()))
    return bool(x == y)


def _fit(value: Any, like: Any, place: str) -> Any:
    """A copy of a saved value with the type, device and dtype of the leaf ``like``."""
    if not isinstance(like, torch.Tensor):
        if type(value) is not type(like):
            raise TypeError(f'{place} is {value!r}; expected {kind_of(like)}. {_REMEDY}')
        return value
    if not isinstance(value, (torch.Tensor, int, float, complex)):
        raise TypeError(f'{place} is {kind_of(value)}; expected a tensor. {_REMEDY}')
    value = torch.as_tensor(value)
    if value.shape != like.shape or value.is_complex() != like.is_complex():
        raise ValueError(
            f'{place} does not match: expected {like.dtype} of shape {tuple(like.shape)}, found {value.dtype} of '
            f'shape {tuple(value.shape)}. {_REMEDY}'
        )
    return value.detach().to(device=like.device, dtype=like.dtype, copy=True)
