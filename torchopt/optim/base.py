# SPDX-License-Identifier: Apache-2.0
"""The PyTorch-like interface: optimizers that train parameters in place."""

from __future__ import annotations

import collections
import copy
import inspect
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch

from torchopt import checks, tree
from torchopt.base import (
    ChainedGradientTransformation,
    GradientTransformation,
    TransformationLike,
    UninitializedState,
    check_impl,
)
from torchopt.graphs import carries_graph
from torchopt.kinds import kind_of
from torchopt.optim.from_alias import FromAlias
from torchopt.optim.gradients import check_states, continued, hide_integers, without_integers
from torchopt.optim.rule_options import require_options
from torchopt.optim.state_dicts import per_parameter, plain_options, read_entries, read_groups, separate
from torchopt.preconditions import check_preconditions
from torchopt.update import update_params


class Optimizer(FromAlias, torch.optim.Optimizer):
    """Train parameters in place with a transformation, like the optimizers of ``torch.optim``.

    The transformation receives the parameters of a group as a list: ``torchopt.SGD(net.parameters(), lr=[0.1, 0.2])``
    has one rate per parameter.  Each group has a state of its own: ``clip_grad_norm`` bounds the norm of each group.

    Args:
        params: Parameters: an iterable of tensors, of ``(name, tensor)`` pairs, or of dicts with the key ``'params'``
            (groups, which may have their own hyper-parameters if a class such as ``Adam`` defines them); or
            a tree.
        impl: The transformation.

    Attributes:
        impl: The transformation.
        param_groups: The groups, dicts as in ``torch.optim``.
        state_groups: The state of each group, ``UninitializedState()`` before the first step.
        state: The state by parameter, as in ``torch.optim``.
        set_to_none: What :meth:`zero_grad` does by default.

    Note:
        ``zero_grad()`` fills gradients with zeros, as in TorchOpt 0.7.3; ``torch.optim`` sets them to None.  With
        zeros, a parameter that is frozen later, or does not enter the loss, still moves by its momentum and its weight
        decay.  For the behaviour of ``torch.optim``, call ``zero_grad(set_to_none=True)``, or once set
        ``optimizer.set_to_none = True``.

        Parameters move one after another, as in ``torch.optim``: elements that several of them share, and a parameter
        that a group contains twice, of which torch warns, move for each of them.

    Raises:
        TypeError: If ``impl`` is not a GradientTransformation or ``params`` contains anything other than tensors.
        ValueError: If there are no parameters, or one is in two groups.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(2, 1)
        >>> clipped = torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.sgd(0.1))
        >>> optimizer = torchopt.Optimizer(net.parameters(), clipped)
        >>> loss = net(torch.ones(1, 2)).square().mean()
        >>> optimizer.zero_grad()
        >>> loss.backward()
        >>> optimizer.step()
        >>> bool(net(torch.ones(1, 2)).square().mean() < loss)
        True
    """

    set_to_none: bool = False
    """Whether :meth:`zero_grad` sets gradients to None by default, as in ``torch.optim``."""

    target_prose: ClassVar[str] = (
        'params: Parameters, or dicts with groups of them; see :class:`Optimizer`.  For a different value of a\n'
        '        hyper-parameter per parameter, pass a list in the order of the parameters of the group.'
    )
    remark: ClassVar[str] = (
        'Unlike in ``torch.optim``, ``zero_grad()`` fills gradients with zeros by default; see :class:`Optimizer`.'
    )
    example: ClassVar[str] = """\
>>> import torch, torchopt
>>> net = torch.nn.Linear(2, 1)
>>> optimizer = torchopt.{name}(net.parameters(), lr=0.1)
>>> before = net.weight.clone()
>>> net(torch.ones(1, 2)).sum().backward()
>>> optimizer.step()
>>> bool((net.weight < before).all())
True
"""

    def __init__(self, params: Any, impl: TransformationLike) -> None:
        self._setup(params, check_impl(impl), {})

    def _setup(self, params: Any, impl: GradientTransformation, options: dict[str, Any]) -> None:
        self.impl = impl
        self.impl_groups: list[tuple[dict[str, Any], GradientTransformation]] = []
        self.state_groups: list[Any] = []
        torch.optim.Optimizer.__init__(self, _as_groups(params), options)
        if not any(group['params'] for group in self.param_groups):
            raise ValueError(_NO_PARAMETERS)

    def add_param_group(self, param_group: Any) -> None:
        """Train more parameters.

        Args:
            param_group: A dict with the key ``'params'`` and hyper-parameters of the group, or a tree of parameters.

        Raises:
            TypeError: If a parameter is not a tensor.
            ValueError: If a hyper-parameter is out of range, or a parameter is in another group.
        """
        if not (isinstance(param_group, dict) and 'params' in param_group):
            param_group = {'params': _as_list(param_group)}
        parameters = {k: v for k, v in param_group.items() if k in ('params', 'param_names')}
        options = self._first_names({k: v for k, v in param_group.items() if k not in parameters}, self.defaults)
        if options and type(self).alias is None:
            raise TypeError(
                f'The group options {sorted(options)} would have no effect: a plain {type(self).__name__} takes all '
                f'hyper-parameters from its impl. Use a class such as torchopt.Adam, or torchopt.partition.'
            )
        require_options(options, self.defaults, type(self), f'Group {len(self.param_groups)}')
        merged = {k: options.get(k, v) for k, v in self.defaults.items()}
        impl = self._rebuild(self.impl, merged)
        _warn_of_learned(merged or {'impl': impl}, type(self).__name__)
        parameters['params'] = _with_gradients(parameters['params'])
        group = {**parameters, **options}
        super().add_param_group(group if type(self).alias else _GroupWithoutOptions(group))
        self.impl_groups.append((merged, impl))
        self.state_groups.append(UninitializedState())

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        """Clear the gradients.

        Args:
            set_to_none: True sets them to None, as ``torch.optim`` does by default, so that parameters without a new
                gradient are skipped.  False fills them with zeros, so that these parameters still move by their
                momentum and their weight decay.  By default, the attribute ``set_to_none`` decides: False, as in
                TorchOpt 0.7.3, unless you change it, and True for optimizers from :mod:`torchopt.interop`.
        """
        super().zero_grad(self.set_to_none if set_to_none is None else set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the gradients in ``.grad``, which do not change.

        A parameter whose gradient is None keeps its value and its moments.  The step count, with which for example Adam
        corrects its bias, belongs to the group; ``torch.optim`` counts the steps of each parameter instead.

        Args:
            closure: Recomputes the loss and its gradients; called once, before the step.

        Returns:
            The result of the closure.

        Raises:
            TypeError: If ``closure`` is not a function.
            ValueError: If a schedule returns NaN, if an option of a group is out of range or would have no effect, or
                if an option changed so that the optimizer keeps another state (momentum from zero to another value);
                nothing is changed then.
            RuntimeError: If a gradient is sparse; nothing is changed then.
        """
        loss = None
        if closure is not None:
            checks.function(
                'closure', closure, 'Call loss.backward() and then step(); only MetaAdam and its like take step(loss).'
            )
            with torch.enable_grad():
                loss = closure()
        enabled = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # in a small step, the context manager takes a tenth of the time
        try:
            self._step_groups()
        finally:
            torch._C._set_grad_enabled(enabled)
        return loss

    def _step_groups(self) -> None:
        ready, settled = [], True
        for i, group in enumerate(self.param_groups):
            impl, params, state = self._impl_of(i), group['params'], self.state_groups[i]
            grads = list(map(_grad_of, params))
            if not (_TENSOR.issuperset(map(type, grads)) and _DENSE.issuperset(map(_layout_of, grads))):
                _require_dense(grads, i)
                params = hide_integers(params, grads)
            if isinstance(state, UninitializedState):
                state = impl.init(params)
            settled = settled and impl.is_settled
            ready.append((impl, grads, state, params))
        if len(ready) > 1 or not settled:  # otherwise update checks them, before it writes anything
            for impl, _, state, params in ready:
                check_preconditions(impl, state, params)
        if settled:
            for i, (impl, grads, state, params) in enumerate(ready):
                _, self.state_groups[i] = update_params(impl, grads, state, params, inplace=True)
            return
        # The values of gradients can be rejected: compute the steps of all groups before writing anything.
        moved = [update_params(impl, grads, state, params) for impl, grads, state, params in ready]
        for i, ((*_, params), (new, state)) in enumerate(zip(ready, moved)):
            for p, x in zip(params, new):
                if x is not p:
                    p.copy_(x)
            self.state_groups[i] = state

    def _impl_of(self, i: int) -> GradientTransformation:
        """The transformation of a group; rebuilt after a hyper-parameter changes, for example by a scheduler."""
        group = self.param_groups[i]
        options, impl = self.impl_groups[i]
        if len(group) > len(options) + 1:  # 'params', and what was added to it
            require_options(group, options, type(self), f'Group {i}')
        if _differ(list(map(group.__getitem__, options)), list(options.values())):
            current = {name: group[name] for name in options}
            impl = self._rebuild(impl, current)
            state = self.state_groups[i]
            if not isinstance(state, UninitializedState):
                expected = impl.init(without_integers(group['params']))
                changed = [name for name, value in options.items() if _differ([current[name]], [value])]
                self.state_groups[i] = continued(state, expected, name=f'state_groups[{i}]', changed=changed)
            self.impl_groups[i] = (current, impl)
        return impl

    @property
    def state(self) -> defaultdict[torch.Tensor, dict[str, Any]]:
        """The state by parameter, as in ``torch.optim``: ``optimizer.state[p]['exp_avg']``.

        Each access creates new dicts with the tensors of :attr:`state_groups`.  Before the first step they contain the
        initial state.
        """
        found: defaultdict[torch.Tensor, dict[str, Any]] = collections.defaultdict(dict)
        for i, group in enumerate(self.param_groups):
            found.update(per_parameter(self._state_of(i), group['params']))
        return found

    @state.setter
    def state(self, value: Any) -> None:
        if value:  # torch's constructor sets an empty one
            raise AttributeError('state is a view of state_groups. Set state_groups, or call load_state_dict.')

    def _state_of(self, i: int) -> Any:
        """The state of a group, or its initial state before the first step."""
        state = self.state_groups[i]
        return self._first_state(i) if isinstance(state, UninitializedState) else state

    def _first_state(self, i: int) -> Any:
        return self._impl_of(i).init(without_integers(self.param_groups[i]['params']))

    def state_dict(self) -> dict[str, Any]:
        """The state and the options of the groups in the layout of ``torch.optim``.

        Entries have the names of ``torch.optim`` for the same quantities (``step``, ``exp_avg``, ...), otherwise
        the names of torchopt's states.  Options that are functions, such as schedules, are omitted, since they belong
        to the program.

        Returns:
            ``{'state': {index: {name: tensor}}, 'param_groups': [{..., 'params': [index]}]}``.  The tensors are not
            copied, except for those that belong to all parameters, such as ``step``: each entry has its own copy.
            ``torch.load`` reads it with ``weights_only=True``.  :attr:`state_groups` has the states as trees.
        """
        made = super().state_dict()
        for i, group in enumerate(made['param_groups']):
            separate(self._state_of(i), [made['state'][index] for index in group['params']])
        made['param_groups'] = [plain_options(group) for group in made['param_groups']]
        return made

    def load_state_dict(self, state_dict: Any) -> None:
        """Continue from a saved state.

        Args:
            state_dict: The result of :meth:`state_dict` of an optimizer of this kind; its tensors are copied, and the
                options of its groups replace those of this optimizer.  Or, as in TorchOpt 0.7.3, a tuple with the
                state of each group; it is used without a copy.

        Raises:
            ValueError: If it is not a state of this optimizer for these parameters; nothing is changed then.
            TypeError: If it has another layout; nothing is changed then.
        """
        state_dict = state_dict.copy() if isinstance(state_dict, dict) else state_dict
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        if isinstance(state_dict, Mapping):
            self._load_entries(state_dict)
        else:
            self.state_groups = check_states(state_dict, len(self.param_groups), self._first_state)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _load_entries(self, state_dict: Mapping[str, Any]) -> None:
        loaded = []
        read = read_groups(state_dict, self.param_groups)
        for group, (old, impl), (saved, entries, places) in zip(self.param_groups, self.impl_groups, read):
            saved = copy.deepcopy(saved)  # a learning rate that is a tensor must not be shared
            require_options(saved, old, type(self), "A group of state_dict['param_groups']")
            options = {name: saved.get(name, group[name]) for name in old}
            _require_flags(options, old)
            impl = self._rebuild(impl, options)
            expected, state = impl.init(without_integers(group['params'])), UninitializedState()
            if any(entries) or not tree.leaves(expected):
                state = read_entries(expected, group['params'], entries, places)
            loaded.append((saved, options, impl, state))
        for group, (saved, _, _, _) in zip(self.param_groups, loaded):
            group.update(saved)
        self.impl_groups = [(options, impl) for _, options, impl, _ in loaded]
        self.state_groups = [state for *_, state in loaded]

    def __getstate__(self) -> dict[str, Any]:
        """The data for copies and pickles."""
        taken = ('defaults', 'param_groups', 'impl', 'impl_groups', 'state_groups', 'set_to_none')
        return {name: self.__dict__[name] for name in taken if name in self.__dict__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy; hyper-parameters that are tensors are not shared."""
        super().__setstate__(state)
        self.defaults.pop('differentiable', None)  # added by torch; our rules have no such option
        self.impl_groups = [(options, self._rebuild(impl, options)) for options, impl in self.impl_groups]


_grad_of, _layout_of = operator.attrgetter('grad'), operator.attrgetter('layout')
_TENSOR, _DENSE = frozenset({torch.Tensor}), frozenset({torch.strided})


def _differ(current: list[Any], options: list[Any]) -> bool:
    try:
        return current != options
    except RuntimeError:  # comparing tensors of several elements, such as rates per element
        return True


def _require_flags(options: dict[str, Any], like: dict[str, Any]) -> None:
    for name, value in options.items():
        flag = isinstance(like[name], bool)
        if (flag and not isinstance(value, bool)) or (like[name] is None and isinstance(value, torch.Tensor)):
            expected = 'True or False' if flag else 'no tensor'
            raise TypeError(
                f"state_dict['param_groups'] has {name}={value!r}; expected {expected}. Load a state that an "
                f'optimizer with this rule saved for these parameters.'
            )


def _require_dense(grads: Sequence[torch.Tensor | None], group: int) -> None:
    for i, g in enumerate(grads):
        if g is not None and g.layout is not torch.strided:
            raise RuntimeError(
                f'The gradient of parameter {i} of group {group} is {g.layout}; only dense gradients are '
                f'supported. Pass sparse=False to the layer that makes it.'
            )


def _warn_of_learned(arguments: Mapping[str, Any], optimizer: str) -> None:
    for name in dict.fromkeys(_learned(arguments)):
        checks.warn(
            f'{name} requires grad, but {optimizer} steps in place and records no graph, so it gets no gradient. '
            f'To learn it, use a class such as torchopt.MetaAdam, or a function such as torchopt.adam. Otherwise '
            f'detach it.'
        )


def _learned(arguments: Mapping[str, Any]) -> Iterator[str]:
    """The names of arguments that require grad, those of the calls that made inner transformations included."""
    for name, value in arguments.items():
        for x in tree.leaves(value, lambda x: isinstance(x, GradientTransformation)):
            if carries_graph(x):
                yield name
            elif isinstance(x, ChainedGradientTransformation):
                yield from _learned({'member': x.transformations})
            elif isinstance(x, GradientTransformation) and x.call is not None:
                given = inspect.signature(x.call.function).bind(*x.call.args, **x.call.kwargs)
                yield from _learned(given.arguments)


class _GroupWithoutOptions(dict[str, Any]):
    """A group of a plain optimizer, which tells schedulers of torch why it has no learning rate."""

    def __missing__(self, name: str) -> Any:
        raise KeyError(
            f'{name!r}: a plain optimizer takes its options from the transformation, not from groups. Use a class such '
            f'as torchopt.SGD, or pass a schedule to the transformation, as in torchopt.sgd(schedule).'
        )


_NO_PARAMETERS = 'params is empty; there is nothing to optimize. Was a generator consumed before?'


def _as_groups(params: Any) -> Any:
    """Convert what TorchOpt 0.7.3 accepts to what torch accepts."""
    if isinstance(params, GradientTransformation):
        raise TypeError(
            'params is a transformation; expected an iterable of tensors. To train with it, use '
            'torchopt.Optimizer(module.parameters(), transformation).'
        )
    if isinstance(params, torch.Tensor):
        raise TypeError('params is a single tensor; expected an iterable of tensors. Pass [tensor].')
    if isinstance(params, Iterable) and not isinstance(params, (dict, str)):
        params = list(params)
        if params and all(isinstance(x, dict) and 'params' in x for x in params):
            return params
        if params and all(isinstance(x, tuple) and x and isinstance(x[0], str) for x in params):
            return params
    return _as_list(params)


def _with_gradients(params: Any) -> Any:
    """The parameters of a group; those that are not leaves (results of a MetaOptimizer) are set to retain ``.grad``."""
    params = params if isinstance(params, (torch.Tensor, set)) else list(params)
    for entry in [params] if isinstance(params, torch.Tensor) else params:
        p = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry
        if isinstance(p, torch.Tensor) and not p.is_leaf:
            p.retain_grad()
    return params


def _as_list(params: Any) -> list[torch.Tensor]:
    if not isinstance(params, Iterable):
        given = kind_of(params) if isinstance(params, torch.nn.Module) else repr(params)
        raise TypeError(f'params is {given}; expected an iterable of tensors. Pass module.parameters().')
    leaves = tree.leaves(list(params) if not isinstance(params, (dict, torch.Tensor)) else params)
    for path, p in tree.flatten_with_path(leaves):
        if not isinstance(p, torch.Tensor):
            raise TypeError(
                f'params{path} is {p!r} of type {type(p).__name__}; expected a tensor. Pass hyper-parameters '
                f"of a group in a dict with the key 'params'."
            )
    if not leaves:
        raise ValueError(_NO_PARAMETERS)
    return leaves
