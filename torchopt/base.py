# SPDX-License-Identifier: Apache-2.0
"""Gradient transformations, which are pairs of pure functions.

``init(params)`` returns a state.  ``update(updates, state, params=None, *, inplace=False, **extra)`` converts gradients
to updates, which the caller adds to the parameters, and returns them with the next state.  The state contains all that
changes between steps.  A transformation has no state of its own, so it can be shared, copied and pickled.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import torch
from typing_extensions import Self

from torchopt import elementwise, tree
from torchopt.factories import FactoryCall, call_again, factory
from torchopt.kinds import kind_of
from torchopt.preconditions import Precondition, check_preconditions, wrong_state
from torchopt.spelling import absent

__all__ = [
    'ChainedGradientTransformation',
    'ElementwiseTransformation',
    'EmptyState',
    'GradientTransformation',
    'GradientTransformationExtraArgs',
    'IdentityGradientTransformation',
    'TransformInitFn',
    'TransformationLike',
    'TransformUpdateFn',
    'UninitializedState',
    'check_impl',
    'checking',
    'factory',
    'identity',
    'init_empty_state',
    'with_extra_args_support',
    'without_state',
]


@tree.safe_to_load
class EmptyState(NamedTuple):
    """The state of a stateless transformation; a tree without leaves."""


@tree.safe_to_load
class UninitializedState(NamedTuple):
    """The placeholder for the state of an optimizer before its first step."""


class TransformInitFn(Protocol):
    """``init(params) -> state``: the first state for these parameters."""

    def __call__(self, params: Any, /) -> Any:
        """Make the state."""


class TransformUpdateFn(Protocol):
    """``update(updates, state, params=None, ...) -> (updates, state)``: one step, without side effects."""

    def __call__(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        """Take the step."""


class _Functions(NamedTuple):
    init: Callable[..., Any]
    update: Callable[..., tuple[Any, Any]]


class GradientTransformation(_Functions):
    """A pair of pure functions, as in Optax.

    Attributes:
        init: ``init(params)`` returns the first state.
        update: ``update(updates, state, params=None, *, inplace=False)`` returns the new updates and the new state.
            ``inplace=True`` may reuse the storage of the old state, outside autograd.
        requires: The preconditions that ``update`` checks before a step.
        call: The factory call that created the transformation, if there is one.

    A user-defined ``update`` need not accept ``inplace``; callers pass it only to functions that accept it.

    Example:
        >>> import torch, torchopt
        >>> def update(updates, state, params=None):
        ...     return torchopt.tree.map(torch.sign, updates), state
        >>> sign = torchopt.base.GradientTransformation(torchopt.base.init_empty_state, update)
        >>> optimizer = torchopt.chain(sign, torchopt.transform.scale(-0.1))
        >>> params = {'w': torch.tensor(1.0)}
        >>> optimizer.update({'w': torch.tensor(-7.0)}, optimizer.init(params))[0]
        {'w': tensor(0.1000)}
    """

    requires: tuple[Precondition, ...] = ()
    call: FactoryCall | None = None
    adds_to_params = False
    """Whether ``update`` accepts ``onto_params=True`` and then returns the new parameters instead of the updates."""

    @classmethod
    def requiring(
        cls, init: Callable[..., Any], update: Callable[..., tuple[Any, Any]], *requires: Precondition
    ) -> Self:
        """A transformation whose ``update`` checks preconditions before each step."""
        self = cls(init, checking(update, requires))
        self.requires = requires
        return self

    def _replace(self, **functions: Any) -> GradientTransformation:
        """A plain transformation with another ``init`` or ``update``."""
        extra = isinstance(self, GradientTransformationExtraArgs)
        kind = GradientTransformationExtraArgs if extra else GradientTransformation
        return kind(**({'init': self.init, 'update': self.update} | functions))

    @functools.cached_property
    def is_settled(self) -> bool:
        """Whether an in-place step that meets all preconditions cannot fail later."""
        return all(condition.is_final for condition in self.requires)

    def chain(self, next: GradientTransformation) -> GradientTransformation:
        """This transformation followed by another."""
        return ChainedGradientTransformation(self, next)

    def __eq__(self, other: object) -> bool:
        """Transformations are equal if their functions are equal; chains compare their members."""
        return NotImplemented if isinstance(other, ChainedGradientTransformation) else tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return tuple.__hash__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the factory call, since closures cannot be pickled."""
        return (type(self), tuple(self)) if self.call is None else (call_again, self.call[:3])

    def __deepcopy__(self, memo: dict[int, Any]) -> GradientTransformation:
        """A transformation is immutable, so it is its own copy."""
        return self

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise absent(self, name, _AS_CLASS)

    def __repr__(self) -> str:
        """The call that created this transformation, with nested calls indented."""
        return tree.as_text(self)

    def _spelled(self) -> tree.Spelled:
        if self.call is None:
            # init and update may be methods of one object, such as MultiSteps.
            maker: Any = getattr(self.update, '__self__', None)
            if hasattr(maker, '_spelled'):
                return maker._spelled()
            return tree.Spelled(type(self).__name__, (), {'init': self.init, 'update': self.update})
        function, args, kwargs, spell = self.call
        return tree.Spelled(function.__name__, args, kwargs) if spell is None else spell(*args)


_AS_CLASS = dict.fromkeys(
    ('step', 'zero_grad', 'param_groups', 'add_param_group', 'state', 'state_dict', 'load_state_dict'),
    'It is a pair of functions, init and update. For an optimizer that trains parameters in place, use '
    'torchopt.Optimizer(params, this), or a class such as torchopt.Adam.',
)


def checking(update: Callable[..., Any], requires: tuple[Precondition, ...]) -> Callable[..., Any]:
    """``update`` that checks its preconditions before each step."""
    if not requires or torch.compiler.is_compiling():
        return update  # a compiled graph cannot raise errors about the state

    @functools.wraps(update)
    def checked(updates: Any, state: Any, params: Any = None, *, inplace: bool = False, **extra: Any) -> Any:
        for condition in requires:
            if inplace or condition.when == 'always':
                condition.check(state, params)
        return update(updates, state, params, inplace=inplace, **extra)

    return checked


class GradientTransformationExtraArgs(GradientTransformation):
    """A transformation whose ``update`` also takes extra keyword arguments (``value``, ``grad``, ...)."""


class _MakesTransformation(Protocol):
    def gradient_transformation(self) -> GradientTransformation:
        """Make the transformation."""


TransformationLike: TypeAlias = GradientTransformation | _MakesTransformation
"""A transformation, or an object with a method ``gradient_transformation`` that makes one, such as ``MultiSteps``."""


def init_empty_state(params: Any) -> EmptyState:
    """The ``init`` of every stateless transformation."""
    return EmptyState()


def without_state(f: Callable[[Any, Any], Any], *requires: Precondition) -> GradientTransformation:
    """A transformation without a state; ``f(updates, params)`` returns the new updates."""

    def update(updates: Any, state: Any, params: Any = None, *, inplace: bool = False) -> tuple[Any, Any]:
        return f(updates, params), state

    return GradientTransformation.requiring(init_empty_state, update, *requires)


def _pass_through(updates: Any, state: Any, params: Any = None, *, inplace: bool = False, **extra: Any) -> Any:
    return updates, state


class IdentityGradientTransformation(GradientTransformationExtraArgs):
    """The identity transformation; all its instances are equal."""

    def __new__(cls) -> IdentityGradientTransformation:
        """Create an instance."""
        return super().__new__(cls, init_empty_state, _pass_through)

    init_fn = staticmethod(init_empty_state)
    update_fn = staticmethod(_pass_through)

    def __reduce__(self) -> tuple[Any, ...]:
        return IdentityGradientTransformation, ()

    def _spelled(self) -> tree.Spelled:
        return tree.Spelled('identity', (), {})


def identity() -> GradientTransformation:
    """The transformation that returns updates and state unchanged.

    Example:
        >>> import torchopt
        >>> torchopt.base.identity()
        identity()
    """
    return IdentityGradientTransformation()


class ChainedGradientTransformation(GradientTransformationExtraArgs):
    """Several transformations, one after another, as returned by :func:`torchopt.chain`.

    Nested chains are flattened and identities omitted.  The state is a tuple with one state for each member.
    """

    transformations: tuple[GradientTransformation, ...]
    """The members."""

    def __new__(cls, *transformations: TransformationLike) -> ChainedGradientTransformation:
        """Chain the transformations.

        Raises:
            TypeError: If one of them is not a GradientTransformation.
        """
        members: list[GradientTransformation] = []
        for i, tx in enumerate(transformations):
            if not isinstance(tx, GradientTransformation):
                tx = check_impl(tx, f'Member {i} of a chain: ')
            if isinstance(tx, ChainedGradientTransformation):
                members.extend(tx.transformations)
            elif not isinstance(tx, IdentityGradientTransformation):
                members.append(tx)
        kept = tuple(members) or (identity(),)
        stages = _stages(kept)

        def init(params: Any) -> tuple[Any, ...]:
            return tuple([tx.init(params) for tx in kept])

        def update(updates: Any, state: Any, params: Any = None, **options: Any) -> tuple[Any, tuple[Any, ...]]:
            return _update_in_stages(kept, stages, updates, state, params, **options)

        is_one_pass = len(stages) == 1 and isinstance(kept[0], ElementwiseTransformation)
        self = super().__new__(cls, init, stages[0][1] if is_one_pass else update)
        self.adds_to_params = kept[-1].adds_to_params
        self.transformations = kept
        return self

    @property
    def requires(self) -> tuple[Precondition, ...]:  # type: ignore[override]  # computed when it is read, which is rare
        """The preconditions that ``update`` checks before a step."""
        members = self.transformations
        settled = all(condition.is_final for tx in members for condition in tx.requires)
        inner = Precondition(functools.partial(_check_members, members), is_final=settled)
        return Precondition(functools.partial(require_states, members), 'always'), inner

    def __eq__(self, other: object) -> bool:
        """Chains are equal if their members are equal; a chain of one equals its member."""
        if isinstance(other, ChainedGradientTransformation):
            return self.transformations == other.transformations
        return isinstance(other, GradientTransformation) and self.transformations == (other,)

    def __hash__(self) -> int:
        return hash(self.transformations)

    def __reduce__(self) -> tuple[Any, ...]:
        return ChainedGradientTransformation, self.transformations

    def _spelled(self) -> tree.Spelled:
        return tree.Spelled('chain', self.transformations, {}, a_line_each=True)


_Stage: TypeAlias = tuple[list[Any], Callable[..., Any]]


def _stages(members: Sequence[GradientTransformation]) -> list[_Stage]:
    """Split a chain into stages, each with its members; adjacent elementwise members share a stage."""
    stages: list[_Stage] = []
    for tx in members:
        if not isinstance(tx, ElementwiseTransformation):
            stages.append(([tx], functools.partial(_alone, with_extra_args_support(tx).update)))
        elif stages and isinstance(stages[-1][0][0], ElementwiseTransformation):
            stages[-1][0].append(tx)
        else:
            adjacent = [tx]
            stages.append((adjacent, functools.partial(update, adjacent)))
    return stages


def _update_in_stages(
    members: Sequence[GradientTransformation],
    stages: Sequence[_Stage],
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    inplace: bool = False,
    onto_params: bool = False,
    **extra: Any,
) -> tuple[Any, tuple[Any, ...]]:
    """The ``update`` of a chain."""
    require_states(members, state)
    if inplace:
        if not torch.compiler.is_compiling():
            _check_members(members, state, params)
        if params is not None:
            elementwise.check_updates(updates, params, inplace=onto_params)
    states: list[Any] = []
    for i, (own_members, stage) in enumerate(stages):
        own = state[len(states) : len(states) + len(own_members)]
        if onto_params and i == len(stages) - 1:
            extra['onto_params'] = True
        updates, new = stage(updates, own, params, inplace=inplace, **extra)
        states.extend(new)
    return updates, tuple(states)


def require_states(members: Sequence[Any], state: Any, params: Any = None) -> None:
    """Require a state for each member of a chain."""
    if not isinstance(state, tuple) or len(state) != len(members):
        kind = f'a tuple of {len(state)}' if isinstance(state, tuple) else kind_of(state)
        problem = 'The number of updates and states has to be the same in chain!'
        raise wrong_state(state, f'{problem} This chain has {len(members)} members, but its state is {kind}.', 'chain')


def _check_members(members: Sequence[GradientTransformation], state: Any, params: Any) -> None:
    for tx, own in zip(members, state):
        check_preconditions(tx, own, params)


def _alone(update: Callable[..., Any], updates: Any, states: tuple[Any], params: Any, **extra: Any) -> tuple[Any, Any]:
    updates, state = update(updates, states[0], params, **extra)
    return updates, (state,)


def update(
    members: Sequence[ElementwiseTransformation],
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    inplace: bool = False,
    onto_params: bool = False,
    **extra: Any,
) -> tuple[Any, tuple[Any, ...]]:
    """The ``update`` of a chain of elementwise transformations."""
    if type(state) is not tuple or len(state) != len(members):
        require_states(members, state)
    passes = []
    for tx, own in zip(members, state):
        for condition in tx.requires:
            if condition.kind is not None and isinstance(own, condition.kind):
                continue
            if condition.when == 'always' or (inplace and not torch.compiler.is_compiling()):
                condition.check(own, params)
        passes.append(tx.fixed or tx.prepare(own))
    return elementwise.run_steps(passes, updates, params, inplace=inplace, onto_params=onto_params)


class ElementwiseTransformation(GradientTransformation):
    """An elementwise transformation; a chain runs adjacent ones in one pass over the leaves.

    Args:
        init: ``init(params)`` returns the first state.
        prepare: ``prepare(state)`` computes the values that all leaves share in this step (such as bias corrections),
            and returns the step for the leaves; or the step itself, if all steps are the same.
        *requires: The preconditions of a step.
        hypers: The hyper-parameters; those that are trees must match the parameters.

    Attributes:
        fixed: The step, if all steps are the same.
    """

    prepare: Callable[[Any], elementwise.ElementwiseStep]
    fixed: elementwise.ElementwiseStep | None
    adds_to_params = True

    def __new__(
        cls,
        init: Callable[..., Any],
        prepare: Callable[[Any], elementwise.ElementwiseStep] | elementwise.ElementwiseStep,
        *requires: Precondition,
        hypers: elementwise.Hyperparams | None = None,
    ) -> ElementwiseTransformation:
        """Create an elementwise transformation."""
        fixed = prepare if isinstance(prepare, elementwise.ElementwiseStep) else None
        of_state: Any = prepare if fixed is None else lambda state: fixed

        def update(
            updates: Any, state: Any, params: Any = None, *, inplace: bool = False, onto_params: bool = False
        ) -> tuple[Any, Any]:
            step = of_state(state)
            updates, (state,) = elementwise.run_steps([step], updates, params, inplace=inplace, onto_params=onto_params)
            return updates, state

        if hypers is not None and hypers.trees:
            init = functools.partial(hypers.first_check, init)
            requires = (*requires, Precondition(hypers.require))
        self = super().__new__(cls, init, checking(update, requires))
        self.prepare, self.fixed, self.requires = of_state, fixed, requires
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the call that made this transformation, or its parts."""
        parts = (type(self), (self.init, self.fixed or self.prepare, *self.requires))
        return parts if self.call is None else super().__reduce__()


def check_impl(impl: Any, what: str = '') -> GradientTransformation:
    """Require a GradientTransformation, or an object such as ``MultiSteps`` that makes one; ``what`` begins errors."""
    if isinstance(impl, GradientTransformation):
        return impl
    if hasattr(impl, 'gradient_transformation') and not isinstance(impl, type):
        return check_impl(impl.gradient_transformation())
    remedy = 'Pass the result of a factory such as torchopt.adam().'
    if isinstance(impl, (list, tuple)) and impl and all(isinstance(tx, GradientTransformation) for tx in impl):
        remedy = 'Unpack it: torchopt.chain(*transformations).'
    raise TypeError(f'{what}{impl!r} (type: {type(impl).__name__}) is not a GradientTransformation. {remedy}')


def with_extra_args_support(tx: TransformationLike) -> GradientTransformationExtraArgs:
    """Convert a transformation to the most general protocol: it drops extra arguments that it does not accept.

    This works for transformations written for Optax (``update(updates, state, params=None)``) and for TorchOpt 0.7.3
    (``params`` and ``inplace`` as keywords).

    Args:
        tx: A transformation; if it is a :class:`GradientTransformationExtraArgs`, it is returned as it is.

    Returns:
        A transformation whose ``update`` takes ``(updates, state, params=None, *, inplace=False, **extra)``.

    Raises:
        TypeError: If ``tx`` is not a GradientTransformation.

    Example:
        >>> import torchopt
        >>> tx = torchopt.base.GradientTransformation(lambda params: (), lambda u, s, params=None: (u, s))
        >>> torchopt.base.with_extra_args_support(tx).update(1.0, (), value=3.0)
        (1.0, ())
    """
    tx = check_impl(tx)
    if isinstance(tx, GradientTransformationExtraArgs):
        return tx
    update = tx.update
    if torch.compiler.is_compiling():  # functions made while tracing cannot be inspected
        takes_extra, options, params_by_name = False, {'inplace'}, False
    else:
        parameters = inspect.signature(tx.update).parameters
        takes_extra = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        options = {'inplace'} & set(parameters)
        params_by_name = 'params' in parameters and parameters['params'].kind is inspect.Parameter.KEYWORD_ONLY
    if tx.adds_to_params:
        options.add('onto_params')
    if not takes_extra:

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            known = {name: extra[name] for name in options if name in extra}
            if params_by_name:
                return tx.update(updates, state, params=params, **known)
            return tx.update(updates, state, params, **known)

    wide = GradientTransformationExtraArgs(tx.init, update)
    wide.requires, wide.call, wide.adds_to_params = tx.requires, tx.call, tx.adds_to_params
    return wide
