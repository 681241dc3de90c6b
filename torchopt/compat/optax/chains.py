# SPDX-License-Identifier: Apache-2.0
"""Chains whose state is nested like the chains, with an entry for every member.

:func:`torchopt.chain` flattens nested chains and omits identities, so that adjacent members share a pass over the
parameters.  The chains here use it and only change the structure of its state to that of Optax, for ``state[1][0].mu``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeAlias

from torchopt import tree
from torchopt.base import (
    ChainedGradientTransformation,
    EmptyState,
    GradientTransformation,
    GradientTransformationExtraArgs,
    IdentityGradientTransformation,
    TransformationLike,
    check_impl,
    checking,
    factory,
    require_states,
)
from torchopt.preconditions import required_by_all

__all__ = ['Fold', 'NestedChain', 'chain', 'with_every_inner_stage', 'with_every_stage']

Fold: TypeAlias = 'bool | tuple[Fold, ...]'
"""The structure of a nested state: True for a state, False for that of an identity, a tuple for a chain."""

_P = ParamSpec('_P')


class NestedChain(GradientTransformationExtraArgs):
    """The result of :func:`chain`.

    Attributes:
        members: The members, including those of inner chains, without identities.
        fold: The structure of their states.
    """

    members: tuple[GradientTransformation, ...]
    fold: tuple[Fold, ...]

    def __new__(cls, members: tuple[GradientTransformation, ...], fold: tuple[Fold, ...]) -> NestedChain:
        """Chain the members, and nest their states."""
        flat = ChainedGradientTransformation(*members)

        def init(params: Any) -> tuple[Any, ...]:
            return _wrap(fold, iter(flat.init(params)))

        def update(
            updates: Any, state: Any, params: Any = None, *, inplace: bool = False, **extra: Any
        ) -> tuple[Any, tuple[Any, ...]]:
            states = _unwrap(fold, state) or (EmptyState(),)
            updates, states = flat.update(updates, states, params, inplace=inplace, **extra)
            return updates, _wrap(fold, iter(states))

        requires = (required_by_all(lambda state, params: [(_unwrap(fold, state) or (EmptyState(),), params)], flat),)
        self = super().__new__(cls, init, checking(update, requires))
        self.requires = requires
        self.adds_to_params = flat.adds_to_params
        self.members, self.fold = members, fold
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the call of the factory, or else the members."""
        return (NestedChain, (self.members, self.fold)) if self.call is None else super().__reduce__()

    def _spelled(self) -> tree.Spelled:
        if self.call is None:
            return tree.Spelled('chain', self.members, {}, a_line_each=True)
        return super()._spelled()


def _wrap(fold: tuple[Fold, ...], states: Iterator[Any]) -> tuple[Any, ...]:
    folded: list[Any] = []
    for part in fold:
        if isinstance(part, tuple):
            folded.append(_wrap(part, states))
        else:
            folded.append(next(states) if part else EmptyState())
    return tuple(folded)


def _unwrap(fold: tuple[Fold, ...], state: Any) -> tuple[Any, ...]:
    require_states(fold, state)
    states: tuple[Any, ...] = ()
    for part, s in zip(fold, state):
        if isinstance(part, tuple):
            states += _unwrap(part, s)
        elif part:
            states += (s,)
    return states


def _take_apart(tx: TransformationLike) -> tuple[tuple[GradientTransformation, ...], Fold]:
    if isinstance(tx, NestedChain):
        return tx.members, tx.fold
    if isinstance(tx, ChainedGradientTransformation):
        return tx.transformations, (True,) * len(tx.transformations)
    if isinstance(tx, IdentityGradientTransformation):
        return (), False
    return (check_impl(tx),), True


@factory
def chain(*args: TransformationLike) -> GradientTransformationExtraArgs:
    """Apply transformations one after another, like :func:`torchopt.chain`, but with the nested state of Optax.

    Args:
        *args: The members.

    Returns:
        A transformation whose state is the tuple of the members' states; that of an inner chain is a tuple, too.

    Raises:
        TypeError: If a member is not a GradientTransformation.
        ValueError: In ``update``, if the state does not belong to this chain.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
        >>> state = tx.init([torch.zeros(2)])
        >>> state[1][0].mu
        [tensor([0., 0.])]
    """
    parts = [_take_apart(tx) for tx in args]
    return NestedChain(tuple(tx for members, _ in parts for tx in members), tuple(fold for _, fold in parts))


def with_every_stage(
    alias: Callable[_P, GradientTransformation], stages: int, optional: int, module: str
) -> Callable[_P, GradientTransformationExtraArgs]:
    """Add an entry for an optional stage to the state of an optimizer, also if the stage is omitted.

    Args:
        alias: The optimizer.
        stages: The number of stages.
        optional: The index of the stage that may be omitted.
        module: The module that contains the result, for pickling.
    """

    def make(*args: _P.args, **kwargs: _P.kwargs) -> GradientTransformationExtraArgs:
        return _complete(alias(*args, **kwargs), stages, optional)

    return _exported(make, alias, module)


def with_every_inner_stage(
    alias: Callable[_P, GradientTransformation], stages: dict[str, tuple[int, int]] | tuple[int, int], module: str
) -> Callable[_P, GradientTransformationExtraArgs]:
    """Like :func:`with_every_stage`, for the chains inside of an optimizer.

    Args:
        alias: The optimizer, the result of a factory whose first argument is a chain, or a dict of chains.
        stages: The number of stages and the index of the optional one, of the chain or of each chain.
        module: The module that contains the result, for pickling.
    """

    def make(*args: _P.args, **kwargs: _P.kwargs) -> Any:
        call = alias(*args, **kwargs).call
        assert call is not None
        inner, *others = call.args
        if isinstance(stages, dict):
            inner = {name: _complete(inner[name], *own) for name, own in stages.items()}
        else:
            inner = _complete(inner, *stages)
        return call.function(inner, *others, **call.kwargs)

    return _exported(make, alias, module)


def _complete(tx: GradientTransformation, stages: int, optional: int) -> NestedChain:
    members, _ = _take_apart(tx)
    return NestedChain(members, tuple(i != optional or len(members) == stages for i in range(stages)))


def _exported(make: Callable[_P, Any], alias: Callable[_P, Any], module: str) -> Callable[_P, Any]:
    functools.update_wrapper(make, alias, updated=())
    make.__module__ = module
    return factory(make)
