# SPDX-License-Identifier: Apache-2.0
"""Chains of transformations."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torchopt import tree
from torchopt.base import (
    ChainedGradientTransformation,
    GradientTransformation,
    GradientTransformationExtraArgs,
    TransformationLike,
    check_impl,
    factory,
    identity,
    with_extra_args_support,
)
from torchopt.kinds import kind_of
from torchopt.preconditions import Precondition, required_by_all, wrong_state

__all__ = ['chain', 'chain_flat', 'named_chain']


def chain(*transformations: TransformationLike) -> GradientTransformation:
    """Apply transformations one after another.

    Nested chains are flattened and identities omitted, so ``chain(clip, adam())`` has the state
    ``(clip state, ScaleByAdamState, EmptyState)``.  Extra arguments of ``update`` reach the members that accept them.

    Args:
        *transformations: The members.  Without members, the result is the identity; a single one is returned as is.

    Returns:
        A transformation whose state is the tuple of the members' states.

    Raises:
        TypeError: If a member is not a GradientTransformation.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.sgd(0.5))
        >>> params = {'w': torch.zeros(2)}
        >>> optimizer.update({'w': torch.tensor([30.0, 40.0])}, optimizer.init(params))[0]
        {'w': tensor([-0.3000, -0.4000])}
    """
    if len(transformations) == 1:
        return check_impl(transformations[0], 'Member 0 of a chain: ')
    return ChainedGradientTransformation(*transformations) if transformations else identity()


@factory
def chain_flat(*transformations: TransformationLike) -> GradientTransformationExtraArgs:
    """Like :func:`chain`, but the members receive the flat list of the leaves instead of the tree.

    The state then has the structure of this list.

    Args:
        *transformations: The members.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.combine.chain_flat(torchopt.adam())
        >>> len(optimizer.init({'w': torch.zeros(2), 'b': torch.zeros(1)})[0].mu)
        2
    """
    inner = with_extra_args_support(chain(*transformations))

    def init(params: Any) -> Any:
        return inner.init(tree.flatten(params)[0])

    def update(updates: Any, state: Any, params: Any = None, *, inplace: bool = False, **extra: Any) -> tuple[Any, Any]:
        leaves, spec = tree.flatten(updates)
        if params is not None:
            params = tree.flatten_up_to(spec, params, name='params', like='updates')
        leaves, state = inner.update(leaves, state, params, inplace=inplace, **extra)
        return tree.unflatten(spec, leaves), state

    requires = required_by_all(lambda state, params: [(state, params)], inner)
    made = GradientTransformationExtraArgs.requiring(init, update, requires)
    made.adds_to_params = inner.adds_to_params
    return made


chain.flat = chain_flat  # type: ignore[attr-defined]


@factory
def named_chain(*args: tuple[str, TransformationLike]) -> GradientTransformationExtraArgs:
    """Chain named transformations; the state is an ordered dict from name to state.

    Args:
        *args: Pairs of a name and a transformation.

    Raises:
        ValueError: If two members have the same name.
        TypeError: If a member is not a pair of a string and a GradientTransformation.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.combine.named_chain(('scale', torchopt.transform.scale(2.0)), ('adam', torchopt.adam()))
        >>> list(tx.init([torch.zeros(1)]))
        ['scale', 'adam']
    """
    for i, pair in enumerate(args):
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(
                f'Member {i} of named_chain is {pair!r}; expected a pair of a name and a GradientTransformation.'
            )
    names = [name for name, _ in args]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f'Named transformations must have unique names, but named_chain has two members named {name!r}. Give '
                f'each member its own name.'
            )
    members = {name: with_extra_args_support(check_impl(tx, f'Member {name!r} of named_chain: ')) for name, tx in args}

    def init(params: Any) -> OrderedDict[str, Any]:
        return OrderedDict((name, tx.init(params)) for name, tx in members.items())

    def fits(state: Any, params: Any = None) -> None:
        if not isinstance(state, dict) or set(state) != set(members):
            found = sorted(state, key=str) if isinstance(state, dict) else kind_of(state)
            problem = f'The state of this named_chain is {found}; expected a dict with the names {sorted(members)}.'
            raise wrong_state(state, problem, of='chain')

    def update(
        updates: Any, state: dict[str, Any], params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, OrderedDict[str, Any]]:
        new: OrderedDict[str, Any] = OrderedDict()
        for name, tx in members.items():
            updates, new[name] = tx.update(updates, state[name], params, inplace=inplace, **extra)
        return updates, new

    return GradientTransformationExtraArgs.requiring(
        init,
        update,
        Precondition(fits, 'always'),
        required_by_all(lambda state, params: [(state[name], params) for name in members], *members.values()),
    )
