# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters that differ between leaves: broadcast to the parameters, and converted to coefficients of rules.

A hyper-parameter is one value for all parameters, or a tree of values with the structure of the parameters or a prefix
of it; in a prefix, one value applies to a whole subtree.  A value is a number or a 0-d tensor.  Leaves with the same
values share a *row* of coefficients.
"""

from __future__ import annotations

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from torchopt.levels import is_tracing
from torchopt.numerics import common_device, in_double, vector
from torchopt.tree.ops import broadcast_prefix, describe_shapes
from torchopt.tree.registry import (
    TreeSpec,
    first_difference,
    flatten,
    flatten_up_to,
    flatten_with_path,
    is_leaf_node,
    leaves,
    unflatten,
)
from torchopt.tree.state import ParamsPlaceholder


def is_spread(value: Any) -> bool:
    """Whether a hyper-parameter is a tree of values."""
    if isinstance(value, (dict, list, tuple)):
        return True
    return not (isinstance(value, (int, float, Tensor)) or callable(value) or is_leaf_node(value))


def has_shape(value: Any) -> bool:
    """Whether a value is a tensor with an entry for each element of its parameter, rather than a scalar."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.numel() != 1


def check_each(check: Callable[[str, Any], Any], name: str, value: Any) -> None:
    """Check a hyper-parameter, or each value of a tree; names in error messages then include the path.

    Args:
        check: ``check(name, value)`` raises if a value is not allowed.
        name: The name of the hyper-parameter.
        value: The hyper-parameter.

    Example:
        >>> import torchopt
        >>> torchopt.elementwise.check_each(torchopt.checks.at_least, 'eps', {'w': 0.1, 'b': -1.0})
        Traceback (most recent call last):
            ...
        ValueError: Invalid eps['b']: -1.0; expected a number >= 0.
    """
    if not is_spread(value):
        check(name, value)
    else:
        for path, x in flatten_with_path(value):
            check(name + path, x)


class Hyperparams:
    """Build the rule of a step from hyper-parameters; if one of them is a tree, build a rule for each leaf.

    Args:
        make: ``make(*common, **hypers)`` returns a rule, a partial application of a function to coefficients that are
            numbers or 0-d tensors.  It must also accept vectors, and treat their entries independently.
        **hypers: The hyper-parameters.

    Attributes:
        trees: The hyper-parameters that are trees.
        rule: ``rule(*common)`` returns the rule, or a :class:`PerLeafRule`; ``common`` is what leaves share.

    Example:
        >>> import functools, operator, torchopt
        >>> spread = torchopt.elementwise.Hyperparams(lambda t, lr: functools.partial(operator.mul, lr / t), lr=8.0)
        >>> spread.rule(2)(3.0)
        12.0
    """

    def __init__(self, make: Callable[..., Callable[..., Any]], **hypers: Any) -> None:
        self.make, self.hypers = make, hypers
        self.trees = {name: value for name, value in hypers.items() if type(value) is not float and is_spread(value)}
        self.rule: Callable[..., Any] = functools.partial(make, **hypers)
        if self.trees:
            self.rule = self._per_leaf
        elif any(isinstance(value, (Tensor, np.number)) for value in hypers.values()):
            self.rule = self._in_double

    def _in_double(self, *common: Any) -> Callable[..., Any]:
        return self.make(*common, **{name: in_double(value) for name, value in self.hypers.items()})

    def _per_leaf(self, *common: Any) -> PerLeafRule:
        return PerLeafRule(self, common)

    def check(self, params: Any, *, like: str = 'params') -> None:
        """Require that the hyper-parameters match these parameters.

        Raises:
            ValueError: If a tree is not a prefix of the parameters, or the shape of a tensor differs from its
                parameter; the message names the path.
        """
        if isinstance(params, ParamsPlaceholder):
            return  # tree.map_params passes placeholders instead of parameters
        leaves, spec = flatten(params) if self.trees else ((), None)
        for name, value in self.trees.items():
            values, index = _spread(name, value, spec, like)
            if any(map(has_shape, values)):
                _check_shapes(name, [values[i] for i in index], params, leaves, like)

    def require(self, state: Any, params: Any = None) -> None:
        """Check as a precondition of a step."""
        if params is not None:
            self.check(params)

    def first_check(self, init: Callable[..., Any], params: Any) -> Any:
        """Check, and then compute ``init(params)``."""
        self.check(params)
        return init(params)


class PerLeafRule(NamedTuple):
    """A rule whose hyper-parameters differ between leaves."""

    spread: Hyperparams
    common: tuple[Any, ...]

    def columns(self, updates: Any, spec: TreeSpec) -> dict[str, tuple[list[Any], Sequence[int]]]:
        """Map the name of each tree to its values, and to the index of the value of each leaf of the updates."""
        found = {name: _spread(name, value, spec, 'updates') for name, value in self.spread.trees.items()}
        if any(has_shape(x) for values, _ in found.values() for x in values):
            self.spread.check(updates, like='updates')
        return found

    def of_rows(self, rows: dict[str, list[Any]]) -> list[Callable[..., Any]]:
        """A rule for each row.

        Args:
            rows: Maps the name of each tree to its value in each row.
        """
        return [self._fill(dict(zip(rows, own))) for own in zip(*rows.values())]

    def together(self, rows: dict[str, list[Any]]) -> Callable[..., Any] | None:
        """One rule for all rows, with vectors as coefficients; None if a value is a tensor of positive dimension."""
        if any(has_shape(x) for column in rows.values() for x in column):
            return None
        values = itertools.chain(self.common, self.spread.hypers.values(), *rows.values())
        device = common_device(values)
        return self._fill({name: vector(column, device) for name, column in rows.items()})

    def coefficients(self) -> list[Any]:
        """All hyper-parameters of the rules of the leaves."""
        return [*self.common, *leaves(self.spread.hypers)]

    def _fill(self, own: dict[str, Any]) -> Callable[..., Any]:
        hypers = {**self.spread.hypers, **own}
        return self.spread.make(*self.common, **{name: in_double(value) for name, value in hypers.items()})


def share_rows(columns: Sequence[Sequence[Any]], present: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Group leaves with equal entries into rows.

    Args:
        columns: Hashable entries, one for each leaf.
        present: For each leaf whether it is present.

    Returns:
        The row of each leaf, 0 for an absent one; and the first leaf of each row.
    """
    first: dict[Any, int] = {}
    number: dict[Any, int] = {}
    of_leaf = []
    for i, (counts, *key) in enumerate(zip(present, *columns)):
        row = number.setdefault(tuple(key), len(number)) if counts else 0
        if counts:
            first.setdefault(row, i)
        of_leaf.append(row)
    return of_leaf, list(first.values())


def _check_shapes(name: str, values: Sequence[Any], params: Any, leaves: Sequence[Any], like: str) -> None:
    for i, (x, y) in enumerate(zip(leaves, values)):
        if has_shape(y) and isinstance(x, Tensor) and x.shape != y.shape:
            path = flatten_with_path(params)[i][0]
            raise ValueError(describe_shapes(x, y, f'{like}{path}', f'its {name}'))


def _spread(name: str, value: Any, spec: Any, like: str) -> tuple[list[Any], Sequence[int]]:
    """The values of a tree, and the index of the value of each leaf of ``spec``."""
    values, own = flatten(value)
    spread = _indices.__wrapped__ if is_tracing() else _indices
    return values, spread(own, spec, name, like)


@functools.lru_cache(maxsize=256)
def _indices(prefix: TreeSpec, spec: TreeSpec, name: str, like: str) -> Sequence[int]:
    over = unflatten(spec, [_LEAF] * spec.num_leaves)
    try:
        spread = broadcast_prefix(unflatten(prefix, range(prefix.num_leaves)), over)
    except ValueError:
        path, reason = first_difference(prefix, over)
        reason = _REASONS.get(reason, reason)
        reason = reason.replace('expected', f'{name} has', 1).replace(' and found', f' and {like} has', 1)
        raise ValueError(
            f'{name} does not fit {like}: at {like}{path}, {reason}. Pass {name} as one number, '
            f'or as a tree of numbers with the structure of the parameters or a prefix of it (one number then applies '
            f'to a whole subtree).{_CONTAINERS.get(type(over), "")}'
        ) from None
    return flatten_up_to(spec, spread, name=name, like=like)  # in the order of the leaves


_LEAF = type('leaf', (), {})()  # error messages contain the name of this type
_CONTAINERS: dict[type, str] = {
    list: ' An optimizer such as torchopt.Adam passes the parameters of a group as a list, in their order.',
    OrderedDict: ' An optimizer such as torchopt.MetaAdam passes the parameters as a dict, with the names of '
    'module.named_parameters().',
}
_REASONS = {'this entry is missing': 'there is nothing', 'this entry is not expected': 'no value is given'}
