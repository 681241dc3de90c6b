# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters in the state of an optimizer, which follow schedules or can be set between steps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.base import GradientTransformation, GradientTransformationExtraArgs, factory, with_extra_args_support
from torchopt.dtypes import DTypeLike, as_dtype, wide_dtype
from torchopt.kinds import described, kind_of
from torchopt.numerics import increment, zero_count
from torchopt.preconditions import state_of
from torchopt.spelling import renamer_of, suggesting


@tree.safe_to_load
class InjectHyperparamsState(NamedTuple):
    """The state of :func:`inject_hyperparams` in old versions of Optax, kept for code that refers to it."""

    count: Any
    hyperparams: Any
    inner_state: Any


@tree.safe_to_load
class InjectStatefulHyperparamsState(NamedTuple):
    """State of the transformation that :func:`inject_hyperparams` makes.

    Attributes:
        count: The number of steps so far.
        hyperparams: A dict from the names of the hyper-parameters to their values in the last step, 0-d tensors.
            You may set the ones that do not follow a schedule.
        hyperparams_states: A dict with the states of the schedules.
        inner_state: The state of the optimizer.
    """

    count: Any
    hyperparams: Any
    hyperparams_states: Any
    inner_state: Any


@runtime_checkable
class StatefulSchedule(Protocol):
    """A schedule with its own state, which may depend on the extra arguments of ``update``."""

    def init(self) -> Any:
        """The first state."""

    def update(self, state: Any, **extra_args: Any) -> Any:
        """The next state."""

    def __call__(self, state: Any, **extra_args: Any) -> Any:
        """The value of the hyper-parameter in this state."""


@tree.safe_to_load
class WrappedScheduleState(NamedTuple):
    """State of :class:`WrappedSchedule`: the number of steps so far."""

    count: Any


class WrappedSchedule:
    """A :class:`StatefulSchedule` made from a function of the count; its state is the count.

    Args:
        schedule_fn: The schedule.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.WrappedSchedule(lambda count: 0.5**count)
        >>> state = schedule.update(schedule.init())
        >>> float(schedule(state))
        0.5
    """

    def __init__(self, schedule_fn: Callable[[Any], Any]) -> None:
        self.schedule_fn = schedule_fn

    def init(self) -> WrappedScheduleState:
        """The first state."""
        return WrappedScheduleState(zero_count())

    def update(self, state: WrappedScheduleState, **extra_args: Any) -> WrappedScheduleState:
        """The next state."""
        return WrappedScheduleState(increment(state.count))

    def __call__(self, state: WrappedScheduleState, **extra_args: Any) -> Any:
        """The value at the count in the state."""
        return self.schedule_fn(state.count)


@suggesting
def inject_hyperparams(
    inner_factory: Callable[..., GradientTransformation],
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: DTypeLike | None = None,
) -> Callable[..., GradientTransformationExtraArgs]:
    """Store the hyper-parameters of an optimizer in its state, and let each of them follow a schedule.

    Arguments of the factory, including defaults, are treated by kind:

    - A number is stored in the state as a 0-d tensor on the CPU; you may set it between steps.
    - A function is a schedule, which gives the value of its argument in each step.  A :class:`StatefulSchedule` also
      receives the extra arguments of ``update``.
    - A tensor is stored unchanged, so that it can be learned.
    - An argument that the factory annotates as an ``int`` (a size, a number of iterations, a seed) or a ``Callable``
      is passed on unchanged and is not in the state.

    Args:
        inner_factory: The factory of the optimizer, such as :func:`torchopt.adam`.
        static_args: Names of arguments that are not injected, such as a ``mask`` that is a function.
        hyperparam_dtype: The dtype of floating hyper-parameters; by default the highest dtype among the parameters,
            but at least float32, since a decay rate of 0.999 rounds to 1 in bfloat16.

    Returns:
        A function with the arguments of ``inner_factory``, which returns a transformation with state
        :class:`InjectStatefulHyperparamsState`.

    Raises:
        ValueError: If ``static_args`` contains a name that is not an argument of the factory.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.schedule import inject_hyperparams, linear_schedule
        >>> optimizer = inject_hyperparams(torchopt.sgd)(linear_schedule(1.0, 0.0, 2), momentum=0.0)
        >>> state = optimizer.init([torch.zeros(())])
        >>> for _ in range(2):
        ...     updates, state = optimizer.update([torch.ones(())], state)
        >>> updates, state.hyperparams['lr']
        ([tensor(-0.5000)], tensor(0.5000))
        >>> state.hyperparams['momentum'] = torch.tensor(0.9)
    """
    names = (static_args,) if isinstance(static_args, str) else tuple(static_args)
    if isinstance(inner_factory, GradientTransformation) or not callable(inner_factory):
        raise TypeError(
            f'inner_factory is {kind_of(inner_factory)}; expected a function that makes an optimizer. Pass the '
            f'function and then its arguments, such as inject_hyperparams(adam)(0.1).'
        )
    known = inspect.signature(inner_factory).parameters
    if not set(names) <= set(known):
        raise ValueError(
            f'Invalid static_args: {sorted(set(names) - set(known))} are not arguments of the factory. It takes '
            f'{sorted(known)}.'
        )

    @functools.wraps(inner_factory)
    def make(*args: Any, **kwargs: Any) -> GradientTransformationExtraArgs:
        return _injected(inner_factory, names, hyperparam_dtype, args, kwargs)

    return make


@suggesting
def inject_stateful_hyperparams(
    inner_factory: Callable[..., GradientTransformation],
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: DTypeLike | None = None,
) -> Callable[..., GradientTransformationExtraArgs]:
    """The deprecated name of :func:`inject_hyperparams`, with the same arguments."""
    checks.deprecated('inject_stateful_hyperparams is deprecated; inject_hyperparams does the same.')
    return inject_hyperparams(inner_factory, static_args, hyperparam_dtype)


def _spelled(
    inner_factory: Callable[..., GradientTransformation], static_args: Any, dtype: Any, args: Any, kwargs: Any
) -> tree.Spelled:
    """How to print the transformation: the two calls that make it."""
    options = {'static_args': static_args, 'hyperparam_dtype': dtype}
    shown = ''.join(f', {name}={tree.as_text(x)}' for name, x in options.items() if x)
    return tree.Spelled(f'inject_hyperparams({tree.as_text(inner_factory)}{shown})', args, kwargs)


@functools.partial(factory, spell=_spelled)
def _injected(
    inner_factory: Callable[..., GradientTransformation],
    static_args: tuple[str, ...],
    hyperparam_dtype: DTypeLike | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> GradientTransformationExtraArgs:
    numbers: dict[str, Any] = {}
    schedules: dict[str, Any] = {}
    others: dict[str, Any] = {}
    arguments, off = _arguments(inner_factory, args, kwargs)
    for name, value in arguments.items():
        if name in static_args or name in off or isinstance(value, bool) or _is_static(inner_factory, name, value):
            others[name] = value
        elif isinstance(value, StatefulSchedule):
            schedules[name] = value
        elif checks.is_schedule(value):
            schedules[name] = WrappedSchedule(value)
        elif isinstance(value, (int, float, Tensor, np.ndarray, np.number)):
            numbers[name] = value
        else:
            others[name] = value

    def values(known: dict[str, Any], states: dict[str, Any], like: Any, extra: dict[str, Any]) -> dict[str, Any]:
        dtype = wide_dtype(tree.dtype(like, 'promote')) if hyperparam_dtype is None else as_dtype(hyperparam_dtype)
        dtype = dtype.to_real() if dtype.is_complex else dtype
        current = {name: schedule(states[name], **extra) for name, schedule in schedules.items()}
        found = {name: _as_tensor(name, value, dtype) for name, value in known.items() if name not in current}
        # Convert the values of schedules always: compiled, they are float64 tensors instead of floats.
        return found | {name: _as_tensor(name, value, dtype, always=True) for name, value in current.items()}

    def init(params: Any) -> InjectStatefulHyperparamsState:
        states = {name: schedule.init() for name, schedule in schedules.items()}
        hypers = values(numbers, states, params, {})
        inner = inner_factory(**others, **hypers)
        return InjectStatefulHyperparamsState(zero_count(), hypers, states, inner.init(params))

    def update(
        updates: Any, state: InjectStatefulHyperparamsState, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, InjectStatefulHyperparamsState]:
        states = state.hyperparams_states
        hypers = values(state.hyperparams, states, updates if params is None else params, extra)
        inner = with_extra_args_support(inner_factory(**others, **hypers))
        updates, inner_state = inner.update(updates, state.inner_state, params, inplace=inplace, **extra)
        states = {name: schedule.update(states[name], **extra) for name, schedule in schedules.items()}
        return updates, InjectStatefulHyperparamsState(increment(state.count), hypers, states, inner_state)

    return GradientTransformationExtraArgs.requiring(init, update, state_of(InjectStatefulHyperparamsState))


def _arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a call by name, including defaults, and the names of those that are switched off.

    If a function has second names for some arguments (``learning_rate`` for ``lr``), a given second name is kept and
    replaces the default of the first name.  In these functions, from TorchOpt 0.7.3, a default of zero switches off a
    stage of the optimizer (decay, momentum, dampening), so it cannot be set later.
    """
    signature = inspect.signature(function)
    first_names = renamer_of(function)
    second = {} if first_names is None else {k: v for k, v in kwargs.items() if k not in signature.parameters}
    bound = signature.bind_partial(*args, **{k: v for k, v in kwargs.items() if k not in second})
    given = set(bound.arguments)
    covered = set(first_names(second)) if first_names and second else set()
    bound.apply_defaults()
    found = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            found.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            raise TypeError(f'inject_hyperparams does not support the arguments *{name} of {function.__name__}.')
        elif name in given or name not in covered:
            found[name] = value
    missing = [
        name
        for name, p in signature.parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    missing = [name for name in missing if name not in found and name not in covered]
    if missing:
        raise TypeError(f'{function.__name__}() is missing the arguments {missing}')
    defaults = {name: value for name, value in found.items() if first_names and name not in given}
    off = {name for name, value in defaults.items() if isinstance(value, (int, float)) and value == 0}
    return found | second, off


def _is_static(function: Callable[..., Any], name: str, value: Any) -> bool:
    """Whether an argument is annotated as an integer or a function, and its value is one."""
    parameter = inspect.signature(function).parameters.get(name)
    if parameter is None:
        return False
    kind = parameter.annotation
    kinds = {k.strip() for k in kind.split('|')} if isinstance(kind, str) else {kind, *get_args(kind)}
    if isinstance(value, (int, np.integer)):
        return bool(kinds & {'int', int}) and not kinds & {'Any', 'float', 'Tensor', 'torch.Tensor', float, Tensor}
    return callable(value) and isinstance(kind, str) and kind.startswith('Callable')


def _as_tensor(name: str, value: Any, dtype: torch.dtype, *, always: bool = False) -> Tensor:
    """Convert a hyper-parameter to a tensor; integers keep their dtype, and so do tensors unless ``always``."""
    if isinstance(value, Tensor):
        return value.to(dtype) if always and value.is_floating_point() else value
    if not isinstance(value, (bool, int, float, complex, np.ndarray, np.generic)):
        raise TypeError(
            f'Invalid hyperparams[{name!r}] of the state: {described(value)}; expected a number or a 0-d tensor. '
            f'Assign one, for example state.hyperparams[{name!r}] = torch.tensor(0.1).'
        )
    floating = isinstance(value, float) or (isinstance(value, (np.ndarray, np.number)) and value.dtype.kind == 'f')
    return torch.as_tensor(value, dtype=dtype if floating else None, device='cpu')
