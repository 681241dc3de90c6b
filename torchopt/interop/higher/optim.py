# SPDX-License-Identifier: Apache-2.0
"""Optimizers with differentiable steps, with the names of ``higher.optim``."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchopt import tree
from torchopt.base import GradientTransformation, TransformationLike, UninitializedState, check_impl
from torchopt.interop.higher.options import (
    Override,
    apply_trainable_opt_params,
    get_trainable_opt_params,
    values_of_groups,
)
from torchopt.interop.higher.patch import FunctionalModule, tensors_of
from torchopt.interop.torch_optim import from_torch_optimizer
from torchopt.kinds import kind_of
from torchopt.optim import FuncOptimizer, Optimizer
from torchopt.optim.gradients import (
    as_leaf,
    continued,
    differentiable_gradients,
    hide_integers,
    is_closure,
    is_unrecorded,
    recomputed_gradients,
    without_integers,
)
from torchopt.optim.meta import MetaOptimizer
from torchopt.spelling import absent
from torchopt.update import update_params

__all__ = [
    'DifferentiableAdadelta',
    'DifferentiableAdagrad',
    'DifferentiableAdam',
    'DifferentiableAdamax',
    'DifferentiableOptimizer',
    'DifferentiableRMSprop',
    'DifferentiableSGD',
    'apply_trainable_opt_params',
    'create_diff_optim',
    'get_diff_optim',
    'get_trainable_opt_params',
]

GradCallback = Callable[[list[Any]], Iterable[Any]]
"""A function from the gradients of all parameters, including ``None``, to the gradients to use."""


class DifferentiableOptimizer:
    """An optimizer with differentiable steps.

    :func:`torchopt.interop.higher.innerloop_ctx`, :func:`get_diff_optim` and :func:`create_diff_optim` make it; the
    arguments are those of :func:`get_diff_optim`.

    Attributes:
        param_groups: The options of each group, which may be changed between steps.
    """

    _steps_of: ClassVar[str] = ''

    def __init__(
        self,
        other: torch.optim.Optimizer | TransformationLike,
        reference_params: Iterable[Tensor],
        fmodel: FunctionalModule | None = None,
        device: torch.device | str | None = None,
        override: Override | None = None,
        grad_callback: GradCallback | None = None,
        track_higher_grads: bool = True,
    ) -> None:
        if self._steps_of not in ('', *(kind.__name__ for kind in type(other).__mro__)):
            raise TypeError(
                f'{type(self).__name__} takes the steps of {self._steps_of}, but opt is {kind_of(other)}. Call '
                f'get_diff_optim, which takes any optimizer.'
            )
        reference = list(reference_params)
        places = {id(p): i for i, p in enumerate(reference)}
        self._alias, parts_of = _read(other, reference)
        self._fmodel = fmodel
        self._grad_callback = grad_callback
        self._tracked = track_higher_grads
        self._count = len(reference)
        self.param_groups: list[dict[str, Any]] = [parts[0].options for parts in parts_of]
        self._built = [dict(group) for group in self.param_groups]  # the options of the transformations below
        self._owners: list[int] = []  # for each part, its group
        self._members: list[list[int]] = []
        for i, part in ((i, part) for i, parts in enumerate(parts_of) for part in parts):
            strangers = [tuple(p.shape) for p in part.params if id(p) not in places]
            if strangers:
                raise ValueError(
                    f'Group {i} of the optimizer contains parameters that do not belong to the model, with the shapes '
                    f'{strangers[:8]}. Make the optimizer with parameters of this model only.'
                )
            self._owners.append(i)
            self._members.append([places[id(p)] for p in part.params])
        self._impls = [self._build(part.impl, part.options) for parts in parts_of for part in parts]
        self._states = [_copied(part.state, device) for parts in parts_of for part in parts]
        if override is not None:
            groups, impls, self._states = self._overridden(override, reference)
            self._use(groups, impls)

    @property
    def state_groups(self) -> list[Any]:
        """The states of all groups; :func:`torchopt.stop_gradient` detaches them.

        A group has several if its parameters had taken different numbers of steps.
        """
        return list(self._states)

    def step(
        self,
        loss: Tensor | Callable[..., Tensor],
        params: Iterable[Tensor] | None = None,
        override: Override | None = None,
        grad_callback: GradCallback | None = None,
        *,
        checkpoint: str | None = 'reverse',
    ) -> list[Any]:
        """Take a step, and set the new parameters in the functional module, if there is one.

        Args:
            loss: Scalar tensor computed from the parameters.  Unlike in ``higher``, it may be a function that computes
                it, without arguments, or of the list ``params`` if that is given: then the step keeps the parameters
                instead of the graph of the loss, which is computed again in the backward pass.
            params: The parameters that it was computed from; by default those of the functional module.
            override: Options from this step on, as in :func:`innerloop_ctx`.
            grad_callback: Called with the list of gradients, ``None`` for parameters that are frozen or do not enter
                the loss; returns those to be used.  By default, the one that the optimizer was made with.
            checkpoint: For a function: ``'reverse'`` or ``'mixed'``, how second derivatives are computed; None keeps
                the graph.

        Returns:
            The new parameters.

        Raises:
            ValueError: If there are no parameters, their number is wrong, the loss depends on none of them, an option
                is out of range or needs another state, or ``checkpoint`` is unknown, or ``'mixed'`` for a tensor;
                nothing is changed then.
            TypeError: If the loss is not a tensor, ``params`` is a mapping, ``override`` or a group contains an unknown
                option, or values that are no list, or ``grad_callback`` returns no gradients.
            RuntimeError: If the loss has no graph, or the loop has ended.
        """
        if not self._impls:
            raise RuntimeError('The inner loop has ended. Take its steps inside the `with` block.')
        closure: Any = loss
        if params is None:
            if self._fmodel is None:
                raise ValueError('The optimizer has no fmodel. Pass params to step, or fmodel to get_diff_optim.')
            params = self._fmodel.parameters()
            closure = self._fmodel.at_parameters(closure)
        old = tensors_of(params)
        self._require_all(old, 'params')
        if is_closure(loss, checkpoint):
            _, grads = recomputed_gradients(closure, old, checkpoint=checkpoint, create_graph=self._tracked)
        else:
            grads = differentiable_gradients(loss, old, create_graph=self._tracked)
        if all(g is None for g in grads):
            raise ValueError(
                'The loss depends on none of the parameters. Compute it with fmodel, or pass the params from which '
                'it was computed.'
            )
        if grad_callback is None:
            grad_callback = self._grad_callback
        if grad_callback is not None:
            found: Any = grad_callback(grads)
            if isinstance(found, Tensor) or not isinstance(found, Iterable):
                raise TypeError(
                    f'grad_callback returned an object of type {type(found).__name__}; expected an iterable with a '
                    f'gradient, or None, for each parameter. Functions that change gradients in place do not fit: '
                    f'return new ones.'
                )
            grads = list(found)
            self._require_all(grads, 'What grad_callback returned')
        groups, impls, states = self.param_groups, self._impls, self._states
        if override is not None or self._is_edited():
            groups, impls, states = self._overridden(override or {}, old)
        new, new_states = list(old), []
        with contextlib.nullcontext() if self._tracked else torch.no_grad():
            for impl, state, members in zip(impls, states, self._members):
                own, own_grads = [old[i] for i in members], [grads[i] for i in members]
                if isinstance(state, UninitializedState):
                    state = impl.init(without_integers(own))
                moved, state = update_params(impl, own_grads, state, hide_integers(own, own_grads), inplace=False)
                new_states.append(state)
                for i, p in zip(members, moved):
                    new[i] = old[i] if p is None else p
        if not self._tracked or is_unrecorded():  # also those without a gradient; those of no group keep their graph
            for i in itertools.chain.from_iterable(self._members):
                new[i] = as_leaf(old[i], new[i])
        self._use(groups, impls)
        self._states = new_states
        if self._fmodel is not None:
            self._fmodel.update_params(new)
        return new

    def _is_edited(self) -> bool:
        """Whether an option in ``param_groups`` was replaced since the last step."""
        return any(
            group.keys() != built.keys() or any(group[name] is not built[name] for name in built)
            for group, built in zip(self.param_groups, self._built)
        )

    def _require_all(self, given: Sequence[Any], what: str) -> None:
        if len(given) != self._count:
            raise ValueError(
                f'{what} holds {len(given)} entries; expected {self._count}, one for each parameter of the model.'
            )

    def _build(self, impl: GradientTransformation, options: dict[str, Any]) -> GradientTransformation:
        return impl if self._alias is None else self._alias(**options)

    def _use(self, groups: list[dict[str, Any]], impls: list[GradientTransformation]) -> None:
        """Set the options of the groups and the transformations that were made from them."""
        for group, options in zip(self.param_groups, groups):
            group.update(options)
        self._impls, self._built = impls, [dict(group) for group in groups]

    def _overridden(
        self, override: Override, params: Sequence[Any]
    ) -> tuple[list[dict[str, Any]], list[GradientTransformation], list[Any]]:
        """The options of the groups with those that are overridden, the transformations made from them, and states."""
        known = sorted(self._built[0]) if self._built[0] else 'none, since the optimizer is a plain transformation'
        for i, (group, built) in enumerate(zip(self.param_groups, self._built)):
            for name in group.keys() ^ built.keys():
                raise TypeError(
                    f'param_groups[{i}][{name!r}] was added or removed; the options of the optimizer are {known}.'
                )
        if not isinstance(override, Mapping):
            raise TypeError(
                f'override is of type {type(override).__name__}; expected a dict from the name of an option to a list '
                f"of values, such as {{'lr': [0.1]}}."
            )
        groups = [dict(group) for group in self.param_groups]
        for name, values in override.items():
            if any(name not in group for group in groups):
                raise TypeError(f'override: {name!r} is not an option of the optimizer; its options are {known}.')
            for group, value in zip(groups, values_of_groups(name, values, len(groups))):
                group[name] = value
        impls = [self._build(impl, groups[i]) for impl, i in zip(self._impls, self._owners)]
        states = []
        for i, impl, state, members in zip(self._owners, impls, self._states, self._members):
            if not isinstance(state, UninitializedState):
                expected = impl.init(without_integers([params[j] for j in members]))
                changed = [name for name, value in groups[i].items() if value is not self._built[i][name]]
                state = continued(state, expected, name=f'the state of group {i}', changed=changed)
            states.append(state)
        return groups, impls, states

    def _end(self) -> None:
        self._fmodel, self._states, self._impls = None, [], []


class _Part(NamedTuple):
    """Parameters of a group that have taken the same number of steps, the options of the group, and their state."""

    params: list[Tensor]
    options: dict[str, Any]
    impl: GradientTransformation
    state: Any


def _read(
    other: Any, reference: list[Tensor]
) -> tuple[Callable[..., GradientTransformation] | None, list[list[_Part]]]:
    """The function that makes a transformation from options (None for a plain one), and the parts of each group."""
    if isinstance(other, GradientTransformation) or hasattr(other, 'gradient_transformation'):
        return None, [[_Part(reference, {}, check_impl(other), UninitializedState())]]
    ours, fresh, counts = other, False, [1] * len(getattr(other, 'param_groups', ()))
    if not isinstance(other, Optimizer):
        if not isinstance(other, torch.optim.Optimizer):
            hint = ''
            if isinstance(other, (MetaOptimizer, FuncOptimizer)):
                hint = ' It takes differentiable steps itself, outside of innerloop_ctx; here pass the transformation.'
            raise TypeError(
                f'opt is {kind_of(other)}; expected an optimizer of torch.optim or torchopt, or a '
                f'GradientTransformation such as torchopt.adam().{hint}'
            )
        split, counts = _split_by_steps(other)
        ours, fresh = from_torch_optimizer(split), not other.state
    parts = iter(
        _Part(group['params'], {name: group[name] for name in options}, impl, UninitializedState() if fresh else state)
        for group, (options, impl), state in zip(ours.param_groups, ours.impl_groups, ours.state_groups)
    )
    return type(ours).alias, [list(itertools.islice(parts, count)) for count in counts]


def _split_by_steps(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, list[int]]:
    """The optimizer with groups whose parameters have taken the same number of steps, and how many each group became.

    ``torch.optim`` counts the gradients of each parameter, a transformation counts those of a group.
    """
    groups, counts = [], []
    for group in optimizer.param_groups:
        parts: dict[float, list[Tensor]] = {}
        for p in group['params']:
            entries = optimizer.state.get(p, {})
            steps = entries.get('step', entries.get('momentum_buffer') is not None)
            parts.setdefault(float(steps), []).append(p)
        lists = list(parts.values()) or [[]]
        groups += [{**group, 'params': params} for params in lists]
        counts.append(len(lists))
    split = object.__new__(type(optimizer))  # copy.copy may change the state and the groups, which are shared
    split.__dict__.update(vars(optimizer), param_groups=groups)
    return split, counts


def _copied(state: Any, device: torch.device | str | None) -> Any:
    def copied(x: Any) -> Any:
        return x.detach().to(device, copy=True) if isinstance(x, Tensor) else x

    return state if isinstance(state, UninitializedState) else tree.map(copied, state)


class DifferentiableSGD(DifferentiableOptimizer):
    """Differentiable steps of ``SGD``; see :func:`get_diff_optim`."""

    _steps_of = 'SGD'


class DifferentiableAdam(DifferentiableOptimizer):
    """Differentiable steps of ``Adam``; see :func:`get_diff_optim`."""

    _steps_of = 'Adam'


class DifferentiableAdamax(DifferentiableOptimizer):
    """Differentiable steps of ``Adamax``; see :func:`get_diff_optim`."""

    _steps_of = 'Adamax'


class DifferentiableAdadelta(DifferentiableOptimizer):
    """Differentiable steps of ``Adadelta``; see :func:`get_diff_optim`."""

    _steps_of = 'Adadelta'


class DifferentiableAdagrad(DifferentiableOptimizer):
    """Differentiable steps of ``Adagrad``; see :func:`get_diff_optim`."""

    _steps_of = 'Adagrad'


class DifferentiableRMSprop(DifferentiableOptimizer):
    """Differentiable steps of ``RMSprop``; see :func:`get_diff_optim`."""

    _steps_of = 'RMSprop'


_CLASSES = {kind._steps_of: kind for kind in DifferentiableOptimizer.__subclasses__()}


def get_diff_optim(
    opt: torch.optim.Optimizer | TransformationLike,
    reference_params: Iterable[Tensor],
    fmodel: FunctionalModule | None = None,
    device: torch.device | str | None = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
    grad_callback: GradCallback | None = None,
) -> DifferentiableOptimizer:
    """Make a differentiable optimizer from another optimizer, which does not change.

    Args:
        opt: The optimizer; see :func:`torchopt.interop.higher.innerloop_ctx`.
        reference_params: All parameters of the model, in the order in which ``step`` gets them.
        fmodel: The functional module whose parameters the steps update; without it, pass parameters to ``step``.
        device: The device of the state; None means that of the state of ``opt``.
        override: See :func:`torchopt.interop.higher.innerloop_ctx`.
        track_higher_grads: See :func:`torchopt.interop.higher.innerloop_ctx`.
        grad_callback: The ``grad_callback`` of the steps that get none.

    Returns:
        The optimizer, with a copy of the state: a :class:`DifferentiableSGD` for ``SGD``, and so on, and a
        :class:`DifferentiableOptimizer` for what ``higher`` does not know.

    Raises:
        TypeError: If ``opt`` is not an optimizer, or its class of ``torch.optim`` has no counterpart here.
        ValueError: If ``opt`` contains parameters that are not among ``reference_params``.

    Example:
        >>> import torch
        >>> from torchopt.interop import higher
        >>> start = [torch.tensor([1.0], requires_grad=True)]
        >>> diffopt = higher.get_diff_optim(torch.optim.SGD(start, lr=0.25), start)
        >>> params = diffopt.step(start[0].square().sum(), params=start)
        >>> params[0].item(), torch.autograd.grad(params[0], start)[0].item()
        (0.5, 0.5)
    """
    kind = _CLASSES.get(type(opt).__name__, DifferentiableOptimizer)
    return kind(opt, reference_params, fmodel, device, override, grad_callback, track_higher_grads)


def create_diff_optim(
    opt_type: Callable[..., torch.optim.Optimizer],
    opt_kwargs: Mapping[str, Any] | None = None,
    params: Iterable[Any] | None = None,
    fmodel: FunctionalModule | None = None,
    device: torch.device | str | None = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
    grad_callback: GradCallback | None = None,
) -> DifferentiableOptimizer:
    """Make a differentiable optimizer from the class of an optimizer.

    Args:
        opt_type: The class, such as ``torch.optim.Adam`` or :class:`torchopt.AdamW`.
        opt_kwargs: Its options.
        params: Tensors, or groups of tensors, like those that the steps get; only their shapes matter.  By default the
            parameters of ``fmodel``.
        fmodel: See :func:`get_diff_optim`.
        device: See :func:`get_diff_optim`.
        override: See :func:`torchopt.interop.higher.innerloop_ctx`.
        track_higher_grads: See :func:`torchopt.interop.higher.innerloop_ctx`.
        grad_callback: See :func:`get_diff_optim`.

    Returns:
        The optimizer, with a fresh state.

    Raises:
        TypeError: If the class has no counterpart here.
        ValueError: If there is neither ``params`` nor ``fmodel``.

    Example:
        >>> import torch
        >>> from torchopt.interop import higher
        >>> start = [torch.tensor([1.0], requires_grad=True)]
        >>> diffopt = higher.create_diff_optim(torch.optim.SGD, {'lr': 0.25}, start)
        >>> diffopt.step(start[0].square().sum(), params=start)[0].item()
        0.5
    """
    if params is None:
        if fmodel is None:
            raise ValueError('create_diff_optim needs the shapes of the parameters. Pass params or fmodel.')
        params = fmodel.parameters()
    given = list(params)
    grouped = bool(given) and isinstance(given[0], Mapping)
    stand_ins: list[Tensor] = []
    groups = []
    for group in given if grouped else [{'params': given}]:
        held = [group['params']] if isinstance(group['params'], Tensor) else group['params']
        own = [torch.zeros_like(p, requires_grad=True) for p in held]
        stand_ins += own
        groups.append({**group, 'params': own})
    opt = opt_type(groups, **opt_kwargs or {})
    return get_diff_optim(opt, stand_ins, fmodel, device, override, track_higher_grads, grad_callback)


ABSENT = {
    'DifferentiableASGD': 'ASGD has no counterpart here.',
    'DifferentiableRprop': 'Pass torchopt.rprop(lr) as opt; it lags one step behind torch.optim.Rprop.',
    'register_optim': 'It is not needed: pass your own transformation as opt.',
}
"""The names of ``higher.optim`` without a counterpart, and what to use instead."""

if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        raise absent(sys.modules[__name__], name, ABSENT)
