# SPDX-License-Identifier: Apache-2.0
"""Conversion of states that TorchOpt 0.7.3 saved.

A state of 0.7.3 has flat lists with one tensor and one step count per parameter.  Here, a state has the structure of
the parameters and one count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import torch

from torchopt import tree
from torchopt.base import GradientTransformation, UninitializedState
from torchopt.kinds import kind_of
from torchopt.optim import Optimizer
from torchopt.optim.meta import MetaOptimizer


class _Kind(NamedTuple):
    """A class of states of 0.7.3: its fields in order, and their names here."""

    ours: str
    fields: dict[str, str]


_KINDS = {
    'ScaleByAdamState': _Kind('ScaleByAdamState', {'mu': 'mu', 'nu': 'nu', 'count': 'count'}),
    'ScaleByAdadeltaState': _Kind('ScaleByAdaDeltaState', {'mu': 'e_g', 'nu': 'e_x'}),
    'ScaleByAdamaxState': _Kind('ScaleByAdamaxState', {'mu': 'mu', 'nu': 'nu', 't': 'count'}),
    'ScaleByRAdamState': _Kind('ScaleByRadamState', {'mu': 'mu', 'nu': 'nu', 't': 'count'}),
    'ScaleByRmsState': _Kind('ScaleByRmsState', {'nu': 'nu'}),
    'ScaleByRStdDevState': _Kind('ScaleByRStdDevState', {'mu': 'mu', 'nu': 'nu'}),
    'ScaleByRssState': _Kind('ScaleByRssState', {'sum_of_squares': 'sum_of_squares'}),
    'ScaleByScheduleState': _Kind('ScaleByScheduleState', {'count': 'count'}),
    'TraceState': _Kind('TraceState', {'trace': 'trace'}),
}
_EMPTY = frozenset({'EmptyState', 'ClipState', 'MaskedNode', 'UninitializedState'})
_MASKED = 'MaskedState'
_MINE = 'Load the state that 0.7.3 saved for an optimizer with these options and parameters.'

# Named tuples with the fields in the order of 0.7.3, which torch.load creates in place of its classes.
_STAND_INS: dict[str, type] = {
    **{name: NamedTuple(name, [(f, Any) for f in kind.fields]) for name, kind in _KINDS.items()},  # type: ignore[misc]
    _MASKED: NamedTuple(_MASKED, [('inner_state', Any)]),  # type: ignore[dict-item]
    **{name: NamedTuple(name, []) for name in _EMPTY},  # type: ignore[misc]
}


def load_torchopt_state(
    file: str | os.PathLike[str] | IO[bytes], map_location: torch.device | str | None = None
) -> Any:
    """Read a file that ``torch.save`` wrote under TorchOpt 0.7.3.

    It creates only tensors, numbers, containers and the states of 0.7.3 (``weights_only=True``).  0.7.3 need not be
    installed.

    Args:
        file: A path, or a seekable file opened for reading.
        map_location: As in ``torch.load``.

    Returns:
        The saved object, with states as named tuples of their fields in 0.7.3; for :func:`from_torchopt_state`.

    Raises:
        pickle.UnpicklingError: If the file contains other objects.

    Example:
        >>> import io, torch, torchopt
        >>> file = io.BytesIO()
        >>> torch.save({'epoch': 3}, file)
        >>> _ = file.seek(0)
        >>> torchopt.interop.load_torchopt_state(file)
        {'epoch': 3}
    """
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    for path in torch.serialization.get_unsafe_globals_in_checkpoint(_rewound(file)):
        room, _, name = path.rpartition('.')
        if room.partition('.')[0] == 'torchopt' and name in _STAND_INS:
            allowed.append((_STAND_INS[name], path))
    with torch.serialization.safe_globals(allowed):
        return torch.load(_rewound(file), map_location=map_location, weights_only=True)


def _rewound(file: Any) -> Any:
    if hasattr(file, 'seek'):
        file.seek(0)
    return file


def from_torchopt_state(
    state: Any,
    target: GradientTransformation | Optimizer | MetaOptimizer,
    params: Any = None,
    *,
    sorted_names: bool | None = None,
) -> Any:
    """Convert a state of TorchOpt 0.7.3.

    Moments are copied to the devices and dtypes of the state of ``target``.  Missing moments, such as those of a
    parameter without a gradient, get their initial values.  The counts of all parameters must be equal, except for
    parameters that were never updated.  0.7.3 did not save whether a momentum with dampening has begun; it counts as
    begun if it is nonzero.

    Args:
        state: The state of a transformation; or of an optimizer, a tuple with the state of each group.  Nested chains
            may have nested tuples.
        target: The transformation or the optimizer that will continue.
        params: The parameters, only for a transformation: with the structure for ``init``, and the leaves in the same
            order as in 0.7.3.
        sorted_names: For a ``MetaOptimizer``: whether the parameters of each submodule were sorted by name (as in
            versions of torch that store them in a ``dict``) or in the order of the module (as in older versions with
            an ``OrderedDict``).  None infers it from the shapes.

    Returns:
        A state of the transformation; or a tuple of states, for ``load_state_dict`` of the optimizer.

    Raises:
        TypeError: If ``target`` has another type, or ``params`` is missing, or given for an optimizer.
        ValueError: If the state belongs to another rule or to other parameters, if its counts differ, or if the shapes
            do not determine the order of the parameters of a module.

    Example:
        >>> import torch, torchopt
        >>> from typing import Any, NamedTuple
        >>> class ScaleByAdamState(NamedTuple):  # as there
        ...     mu: Any
        ...     nu: Any
        ...     count: Any
        >>> old = (ScaleByAdamState([torch.ones(2)], [torch.ones(2)], [torch.tensor(5)]), torchopt.base.EmptyState())
        >>> state = torchopt.interop.from_torchopt_state(old, torchopt.adam(), {'w': torch.zeros(2)})
        >>> state[0].mu, state[0].count
        ({'w': tensor([1., 1.])}, tensor(5))
    """
    if isinstance(target, GradientTransformation):
        if params is None:
            raise TypeError('params is None; for a transformation, pass the parameters to which the state belongs.')
        return _convert(state, target.init(params), 'state', None)
    if not isinstance(target, (Optimizer, MetaOptimizer)):
        raise TypeError(
            f'target is {kind_of(target)}; expected a GradientTransformation, an Optimizer or a MetaOptimizer.'
        )
    if params is not None:
        raise TypeError('params is given, but an optimizer has its own. Leave it out.')
    groups = target.param_groups
    if not isinstance(state, (tuple, list)) or hasattr(state, '_fields') or len(state) != len(groups):
        raise ValueError(
            f'state is {_called(state)}; expected a tuple with the state of each of the {len(groups)} groups, as '
            f'state_dict() of 0.7.3 returned.'
        )
    made = []
    for i, own in enumerate(state):
        name = f'state[{i}]'
        if type(own).__name__ == 'UninitializedState':
            made.append(UninitializedState())
        else:
            order = None
            if isinstance(target, MetaOptimizer):
                order = _module_order(own, target.param_groups[i], target._parameters_of(i), name, sorted_names)
            made.append(_convert(own, target._first_state(i), name, order))
    return tuple(made)


def _stages(state: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The nonempty states, each with its path."""
    kind = type(state).__name__
    if kind in _KINDS:
        yield name, state
    elif kind == _MASKED:
        yield from _stages(state.inner_state, f'{name}.inner_state')
    elif type(state) in (tuple, list):
        for i, part in enumerate(state):
            yield from _stages(part, f'{name}[{i}]')
    elif kind not in _EMPTY:
        raise ValueError(f'{name} is {_called(state)}, which is not a state of 0.7.3. {_MINE}')


def _convert(state: Any, expected: Any, name: str, order: list[int] | None) -> Any:
    rest = list(_stages(state, name))

    def follow(like: Any) -> Any:
        if type(like) in (tuple, list):
            return type(like)(follow(part) for part in like)
        if type(like) is dict:
            return {key: follow(part) for key, part in like.items()}
        if type(like).__name__ == _MASKED:
            return like._replace(inner_state=follow(like.inner_state))
        if not hasattr(like, '_fields') or not like._fields:
            return like
        if not rest:
            raise ValueError(f'{name} ends before a state for {type(like).__name__}. {_MINE}')
        where, old = rest.pop(0)
        return _stage(old, like, where, order)

    made = follow(expected)
    if rest:
        raise ValueError(f'{rest[0][0]} is {_called(rest[0][1])}, for which this optimizer has no state. {_MINE}')
    return made


def _stage(old: Any, like: Any, name: str, order: list[int] | None) -> Any:
    kind = _KINDS[type(old).__name__]
    damped = type(like).__name__ == 'DampedTraceState' and kind.ours == 'TraceState'
    if type(like).__name__ != kind.ours and not damped:
        raise ValueError(f'{name} is {_called(old)}, but this optimizer has {kind_of(like)} here. {_MINE}')
    found: dict[str, Any] = {}
    for field, ours in kind.fields.items():
        value, where = getattr(old, field), f'{name}.{field}'
        if ours != 'count':
            found[ours] = _moments(value, getattr(like, ours), where, order)
        elif field == 't':
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'{where} is {value!r}; expected the number of the next step, from 1. {_MINE}')
            found[ours] = like.count + (value - 1)
        else:
            found[ours] = like.count + _common_count(tree.leaves(value), where)
    if damped:
        begun = any(bool((x != 0).any()) for x in tree.leaves(found['trace']))
        found['count'] = like.count + int(begun)
    return like._replace(**found)


def _moments(values: Any, like: Any, name: str, order: list[int] | None) -> Any:
    old = tree.flatten(values)[0]
    new, spec = tree.flatten(like)
    if len(old) != len(new):
        raise ValueError(f'{name} holds {len(old)} tensors, but there are {len(new)} parameters. {_MINE}')
    if order is not None:
        old = [old[j] for j in order]
    for i, (x, y) in enumerate(zip(old, new)):
        if x is not None and y is not None and (not isinstance(x, torch.Tensor) or x.shape != y.shape):
            path = tree.flatten_with_path(like)[i][0]
            raise ValueError(
                f'{name} holds {_called(x)} for the parameter {path or "given"}, whose shape is {tuple(y.shape)}. '
                f'{_MINE}'
            )
        if x is not None and y is not None and x.is_complex() != y.is_complex():
            raise ValueError(f'{name} has dtype {x.dtype}; expected {y.dtype}. {_MINE}')
    return tree.unflatten(spec, [y if x is None or y is None else _placed(x, y) for x, y in zip(old, new)])


def _placed(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return x.detach().to(like.device, like.dtype, copy=True).requires_grad_(like.requires_grad)


def _common_count(counts: Sequence[Any], name: str) -> int:
    taken = {int(c) for c in counts} - {0}
    if len(taken) > 1:
        raise ValueError(
            f'{name} has different counts: {sorted(taken)}. Here the parameters of a group share one count. Move '
            f'parameters that missed steps to their own group, and split the state likewise.'
        )
    return taken.pop() if taken else 0


def _module_order(
    state: Any, slots: dict[str, Any], held: dict[str, Any], name: str, sorted_names: bool | None
) -> list[int]:
    """For each parameter, its position in the state of 0.7.3, which lists them submodule by submodule."""
    names = list(slots)
    submodules: dict[int, list[str]] = {}
    for key, places in slots.items():
        submodules.setdefault(id(places[0][0]), []).append(key)
    orders = {
        False: [key for keys in submodules.values() for key in keys],
        True: [key for keys in submodules.values() for key in sorted(keys)],
    }
    lists = [
        tree.flatten(getattr(old, field))[0]
        for _, old in _stages(state, name)
        for field, ours in _KINDS[type(old).__name__].fields.items()
        if ours != 'count'
    ]

    def fits(order: list[str]) -> bool:
        return all(
            x is None or getattr(x, 'shape', None) == held[key].shape for row in lists for key, x in zip(order, row)
        )

    if sorted_names is None:
        fitting = [order for order in orders.values() if fits(order)] or [orders[True]]
        if len(fitting) > 1 and fitting[0] != fitting[1] and lists:
            raise ValueError(
                f'The shapes in {name} do not determine the order of the parameters. Pass sorted_names=True if it was '
                f'saved with a version of torch whose modules store their parameters in a dict, as they do today, and '
                f'False if they were stored in an OrderedDict.'
            )
        chosen = fitting[0]
    else:
        chosen = orders[sorted_names]
    return [chosen.index(key) for key in names]


def _called(x: Any) -> str:
    if isinstance(x, torch.Tensor):
        return f'a tensor of shape {tuple(x.shape)}'
    if type(x) in (tuple, list):
        return f'{kind_of(x)} of {len(x)}'
    return kind_of(x)
