# SPDX-License-Identifier: Apache-2.0
"""Apply a transformation to some leaves only, or different transformations to different leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torchopt import tree
from torchopt.base import GradientTransformationExtraArgs, TransformationLike, factory, with_extra_args_support
from torchopt.kinds import kind_of
from torchopt.preconditions import Precondition, required_by, required_by_all, state_of


@tree.safe_to_load
class MaskedNode(NamedTuple):
    """A placeholder for a leaf that is hidden from the inner transformation; a tree without leaves."""


@tree.safe_to_load
class MaskedState(NamedTuple):
    """State of :func:`masked`: the state of the inner transformation, with :class:`MaskedNode` for hidden leaves."""

    inner_state: Any


@factory
def masked(
    inner: TransformationLike, mask: Any = None, *, mask_compatible_extra_args: bool = False
) -> GradientTransformationExtraArgs:
    """Apply a transformation where a mask is true; other updates do not change.

    Args:
        inner: The transformation.
        mask: A tree of booleans with the structure of the parameters or a prefix of it (one boolean then applies
            to the whole subtree), or a function that returns such a tree for the parameters (for the updates
            if ``update`` is called without parameters).  None applies it to all leaves.
        mask_compatible_extra_args: Whether to mask extra arguments of ``update`` that are trees like the updates.

    Returns:
        A transformation with state :class:`MaskedState`.

    Raises:
        ValueError: If the mask is not a prefix of the parameters.
        TypeError: If a leaf of the mask is not a boolean, or ``inner`` is not a transformation.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.masked(torchopt.transform.scale(-1.0), {'w': True, 'b': False})
        >>> g = {'w': torch.tensor(1.0), 'b': torch.tensor(1.0)}
        >>> tx.update(g, tx.init(g))[0]
        {'w': tensor(-1.), 'b': tensor(1.)}
    """
    wide = with_extra_args_support(inner)

    def init(params: Any) -> MaskedState:
        return MaskedState(wide.init(_hide(params, resolve_mask(mask, params), 'params')))

    def update(
        updates: Any, state: MaskedState, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, MaskedState]:
        shown = resolve_mask(mask, updates if params is None else params)
        hidden_params = None if params is None else _hide(params, shown, 'params')
        if mask_compatible_extra_args:
            like = tree.structure(updates)
            extra = {name: _hide(x, shown, name) if tree.structure(x) == like else x for name, x in extra.items()}
        new, inner_state = wide.update(
            _hide(updates, shown, 'updates'), state.inner_state, hidden_params, inplace=inplace, **extra
        )
        return _restore(updates, new, shown), MaskedState(inner_state)

    return GradientTransformationExtraArgs.requiring(
        init, update, state_of(MaskedState), required_by(wide, 'inner_state')
    )


def resolve_mask(mask: Any, params: Any) -> Any:
    """The tree of booleans of a mask, which may be a function.

    Raises:
        TypeError: If a leaf is not a boolean; the message names its path.
    """
    made = tree.made_for(params, mask)
    made = True if made is None else made
    for i, m in enumerate(tree.flatten(made)[0]):
        if not isinstance(m, (bool, type(None))) and not _is_boolean_scalar(m):
            path = tree.flatten_with_path(made)[i][0]
            raise TypeError(
                f'mask{path} is {m!r} of type {type(m).__name__}; expected True or False. '
                f'Pass a tree of booleans, or a function that makes one.'
            )
    return made


def _is_boolean_scalar(m: Any) -> bool:
    return 'bool' in str(getattr(m, 'dtype', '')) and getattr(m, 'ndim', None) == 0


def _hide(subject: Any, mask: Any, name: str) -> Any:
    """Replace every subtree for which the mask is false by a MaskedNode."""
    if isinstance(subject, tree.ParamsPlaceholder):
        return subject  # tree.map_params looks for copies of the parameters
    shown, spec = tree.flatten(mask)
    parts = tree.flatten_up_to(spec, subject, name=name, like='mask')
    return tree.unflatten(spec, [x if m else MaskedNode() for m, x in zip(shown, parts)])


def _restore(updates: Any, new: Any, mask: Any) -> Any:
    """Combine the results of the inner transformation, where the mask is true, with the old updates elsewhere."""
    shown, spec = tree.flatten(mask)
    old_parts = tree.flatten_up_to(spec, updates, name='updates', like='mask')
    new_parts = tree.flatten_up_to(spec, new, name='new updates', like='mask')
    return tree.unflatten(spec, [n if m else o for m, o, n in zip(shown, old_parts, new_parts)])


@tree.safe_to_load
class PartitionState(NamedTuple):
    """State of :func:`partition`: a dict from label to the :class:`MaskedState` of its transformation."""

    inner_states: Any


@factory
def partition(
    transforms: Mapping[Any, TransformationLike], param_labels: Any, *, mask_compatible_extra_args: bool = False
) -> GradientTransformationExtraArgs:
    """Apply to every leaf the transformation of its label.

    Args:
        transforms: A dict from labels to transformations.
        param_labels: A tree of labels with the structure of the parameters or a prefix of it, or a function that
            returns one for the parameters (for the updates if ``update`` is called without parameters).
        mask_compatible_extra_args: See :func:`masked`.

    Returns:
        A transformation with state :class:`PartitionState`.

    Raises:
        TypeError: If ``transforms`` is not a dict of transformations.
        ValueError: In ``init`` and ``update``, if a label has no transformation; the message names the leaf.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.partition(
        ...     {'fast': torchopt.sgd(1.0), 'frozen': torchopt.transform.scale(0.0)}, {'head': 'fast', 'body': 'frozen'}
        ... )
        >>> g = {'head': torch.tensor(2.0), 'body': [torch.tensor(2.0)]}
        >>> tx.update(g, tx.init(g))[0]
        {'head': tensor(-2.), 'body': [tensor(0.)]}
    """
    if not isinstance(transforms, Mapping):
        raise TypeError(f'transforms is {kind_of(transforms)}; expected a dict from labels to transformations.')
    members = {label: with_extra_args_support(tx) for label, tx in transforms.items()}

    def parts(params: Any) -> dict[Any, GradientTransformationExtraArgs]:
        labels = tree.made_for(params, param_labels)
        for i, label in enumerate(tree.flatten(labels)[0]):
            if label is not None and label not in members:
                path = tree.flatten_with_path(labels)[i][0]
                raise ValueError(
                    f'param_labels{path} is {label!r}, which is not a key of transforms: {sorted(members, key=str)}. '
                    f'Add a transformation with this label, or change the label.'
                )
        return {
            label: masked(
                tx,
                tree.map(lambda x, label=label: x == label, labels),
                mask_compatible_extra_args=mask_compatible_extra_args,
            )
            for label, tx in members.items()
        }

    def init(params: Any) -> PartitionState:
        return PartitionState({label: tx.init(params) for label, tx in parts(params).items()})

    def has_labels(state: PartitionState, params: Any = None) -> None:
        if set(state.inner_states) != set(members):
            raise ValueError(
                f'The state of this partition has the labels {sorted(state.inner_states, key=str)}; expected '
                f'{sorted(members, key=str)}. Pass the state that its own init or last update returned.'
            )

    def update(
        updates: Any, state: PartitionState, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, PartitionState]:
        new_states = {}
        for label, tx in parts(updates if params is None else params).items():
            updates, new_states[label] = tx.update(updates, state.inner_states[label], params, inplace=inplace, **extra)
        return updates, PartitionState(new_states)

    return GradientTransformationExtraArgs.requiring(
        init,
        update,
        state_of(PartitionState),
        Precondition(has_labels, 'always'),
        required_by_all(
            lambda state, params: [(state.inner_states[label].inner_state, params) for label in members],
            *members.values(),
        ),
    )
