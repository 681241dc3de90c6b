# SPDX-License-Identifier: Apache-2.0
"""The base class of the differentiable optimizers for modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, overload

from torch import Tensor, nn

from torchopt.autodiff.surroundings import note_slots
from torchopt.base import GradientTransformation, TransformationLike, UninitializedState, check_impl
from torchopt.kinds import kind_of
from torchopt.optim.from_alias import FromAlias
from torchopt.optim.gradients import (
    as_leaf,
    check_states,
    gradients_of_leaves,
    hide_integers,
    is_closure,
    is_unrecorded,
    recomputed_gradients,
    warn_of_no_gradient,
    without_integers,
)
from torchopt.sharding import is_fully_sharded
from torchopt.spelling import absent, check_names
from torchopt.update import update_params

Slots = dict[str, list[tuple[dict[str, Any], str]]]
"""All places that contain a parameter, by name; tied weights have several."""


class MetaOptimizer(FromAlias):
    r"""Train a module with differentiable steps.

    ``step(loss)`` replaces the parameters of the module by new tensors, differentiable functions of the old ones and of
    everything on which the loss depends.  A later ``outer_loss.backward()`` differentiates through all steps.
    ``step(closure)`` does the same in far less memory: it recomputes the loss instead of keeping its graph.

    The transformation receives the parameters as a dict by name: ``torchopt.MetaSGD(net, lr={'weight': 0.1, 'bias':
    rate})`` has one rate per parameter; rates that are tensors can be learned.

    Under ``torch.no_grad()`` a step records no graph, and the new parameters are leaves.

    Parameters that do not require grad are frozen, parameters on which the loss does not depend are skipped, and tied
    weights stay tied.  The graph of all steps is kept as long as the module has the new parameters; release it with
    :func:`torchopt.stop_gradient` or :func:`torchopt.recover_state_dict`.

    Args:
        module: The module; every step replaces its parameters.
        impl: The transformation.

    Attributes:
        impl: The transformation.
        param_groups: The places of the parameters of each group.
        state_groups: The state of each group, ``UninitializedState()`` before the first step.

    Raises:
        TypeError: If ``module`` is not a module or is under FSDP, or ``impl`` is not a GradientTransformation.
        ValueError: If the module has no parameters.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> rate = torch.tensor(0.1, requires_grad=True)
        >>> optimizer = torchopt.MetaOptimizer(net, torchopt.sgd(lr=rate))
        >>> start = net.weight
        >>> optimizer.step(net.weight.sum() * 3.0)
        >>> torch.autograd.grad(net.weight.sum(), rate)[0]
        tensor(-3.)
    """

    target_prose: ClassVar[str] = (
        'module: The module; every step replaces its parameters.  For a different value of a hyper-parameter per\n'
        '        parameter, pass a dict with the names of ``module.named_parameters()``.'
    )
    example: ClassVar[str] = """\
>>> import torch, torchopt
>>> net, rate = torch.nn.Linear(1, 1), torch.tensor(0.1, requires_grad=True)
>>> optimizer = torchopt.{name}(net, lr=rate)
>>> optimizer.step(net(torch.ones(1, 1)).sum())
>>> net(torch.ones(1, 1)).sum().backward()
>>> bool(rate.grad < 0)
True
"""

    def __init__(self, module: nn.Module, impl: TransformationLike) -> None:
        self._setup(module, check_impl(impl), {})

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise absent(self, name, _NO_GRADIENTS)

    def _setup(self, module: nn.Module, impl: GradientTransformation, options: dict[str, Any]) -> None:
        self.impl = impl
        self.defaults = options
        self.param_groups: list[Slots] = []
        self.impl_groups: list[GradientTransformation] = []
        self.state_groups: list[Any] = []
        self.add_param_group(module)

    def add_param_group(self, module: nn.Module, **options: Any) -> None:
        """Add a module.

        Args:
            module: The module.
            **options: Hyper-parameters that differ from those of the constructor, for classes such as ``MetaAdam``.

        Raises:
            TypeError: If ``module`` is not a module, or is under FSDP, or an option is not one of this class.
            ValueError: If the module has no parameters, or shares one with an earlier group, or a mask has other names
                than the parameters.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(
                f'Unexpected class of {module!r}: expected an nn.Module. Pass the module, not its parameters(). For a '
                f'tree of tensors, use torchopt.FuncOptimizer, or functions such as torchopt.adam.'
            )
        if options:
            options = self._first_names(options, self.defaults)
            check_names(f'{type(self).__name__}.add_param_group', options, self.defaults)
        slots = _find_slots(module)
        if not slots:
            raise ValueError('The module has no parameters; there is nothing to optimize.')
        current = {**self.defaults, **options}
        for option in self.masks:
            _check_mask(option, current[option], slots)
        for i in range(len(self.param_groups)):
            taken = set(map(id, self._parameters_of(i).values()))
            for name, ((container, key), *_) in slots.items():
                if id(container[key]) in taken:
                    raise ValueError(
                        f'Parameter {name!r} is already in an earlier group. Put every parameter into one group.'
                    )
        impl = self._rebuild(self.impl, current) if options else self.impl
        self.param_groups.append(slots)
        self.impl_groups.append(impl)
        self.state_groups.append(UninitializedState())

    @overload
    def step(self, loss: Tensor) -> None: ...

    @overload
    def step(self, loss: Callable[[], Tensor], *, checkpoint: str | None = 'reverse') -> Tensor: ...

    def step(
        self, loss: Tensor | Callable[[], Tensor] | None = None, *, checkpoint: str | None = 'reverse'
    ) -> Tensor | None:
        """Take one differentiable step.

        A loss that is a tensor keeps its graph, and the graph of its gradient, until the outer backward pass.  A loss
        that is a function is computed here, and again in the backward pass, as by :func:`torchopt.value_and_grad` with
        ``checkpoint``: each step keeps the parameters and the state only.

        Args:
            loss: Scalar tensor computed by the module; or a function without arguments that computes it, and that may
                be called several times.
            checkpoint: For a function: ``'reverse'`` or ``'mixed'``, how second derivatives are computed; None keeps
                the graph.

        Returns:
            The loss, if it was a function.

        Raises:
            TypeError: If the loss is missing or is not a tensor.
            ValueError: If it has more than one element, if no parameter requires grad, if ``checkpoint`` is unknown, or
                ``'mixed'`` for a tensor.
            RuntimeError: If it has no graph; for a function also as :func:`torchopt.checkpoint`.

        Example:
            >>> import torch, torchopt
            >>> net, rate = torch.nn.Linear(2, 1), torch.tensor(0.1, requires_grad=True)
            >>> optimizer = torchopt.MetaAdam(net, lr=rate)
            >>> for _ in range(3):
            ...     loss = optimizer.step(lambda: net(torch.ones(1, 2)).square().sum())
            >>> net(torch.ones(1, 2)).square().sum().backward()
            >>> rate.grad is not None
            True
        """
        if loss is None:
            raise TypeError(
                f'loss is missing or None; expected a scalar tensor. Call {type(self).__name__}.step(loss), or '
                f'step(closure), without loss.backward(): only optimizers such as torchopt.Adam read .grad.'
            )
        groups = list(map(self._parameters_of, range(len(self.param_groups))))
        unrecorded = is_unrecorded()
        leaves = [p for params in groups for p in params.values()]
        value: Tensor | None = None
        if is_closure(loss, checkpoint):
            at_parameters = _at_parameters(self.param_groups)
            value, found = recomputed_gradients(loss, leaves, checkpoint=checkpoint, call=at_parameters)
        else:
            found = gradients_of_leaves(loss, leaves)
        rest = iter(found)
        gradients = [OrderedDict(zip(params, rest)) for params in groups]
        if all(g is None for grads in gradients for g in grads.values()):
            warn_of_no_gradient()
        new_states, new_groups = [], []
        for impl, state, params, grads in zip(self.impl_groups, self.state_groups, groups, gradients):
            is_partial = type(None) in map(type, grads.values())
            read = OrderedDict(zip(params, hide_integers(params.values(), grads.values()))) if is_partial else params
            if isinstance(state, UninitializedState):
                state = impl.init(read)
            new, state = update_params(impl, grads, state, read, inplace=False)
            if is_partial:
                new = {name: p if new[name] is None else new[name] for name, p in params.items()}
            if unrecorded:
                new = {name: as_leaf(params[name], p) for name, p in new.items()}
            new_groups.append(new)
            new_states.append(state)
        self.state_groups = new_states
        for slots, new in zip(self.param_groups, new_groups):
            for name, places in slots.items():
                for container, key in places:
                    container[key] = new[name]
        return value

    def _parameters_of(self, i: int) -> OrderedDict[str, Any]:
        slots = self.param_groups[i]
        try:
            return OrderedDict([(name, container[key]) for name, ((container, key), *_) in slots.items()])
        except (TypeError, ValueError):
            raise TypeError(
                f'param_groups[{i}] of a {type(self).__name__} holds the places of parameters, and no options; found '
                f'the keys {list(slots)}. Remove what you added. For an option that changes between '
                f'steps, pass a function of their count, such as lr=lambda count: rates[count].'
            ) from None

    def state_dict(self) -> tuple[Any, ...]:
        """The states of the groups, not copied; :func:`torchopt.extract_state_dict` makes copies."""
        return tuple(self.state_groups)

    def load_state_dict(self, state_dict: Sequence[Any]) -> None:
        """Continue from the states of all groups.

        Args:
            state_dict: The result of :meth:`state_dict` of an optimizer of this kind.

        Raises:
            ValueError: If they are not states of this optimizer for these parameters; nothing is changed then.
        """
        self.state_groups = check_states(state_dict, len(self.param_groups), self._first_state)

    def _first_state(self, i: int) -> Any:
        return self.impl_groups[i].init(without_integers(self._parameters_of(i)))


_NO_GRADIENTS = dict.fromkeys(
    ('zero_grad', 'backward'),
    'Leave it out: step(loss) computes the gradients itself, and neither reads nor writes .grad. The gradients of the '
    'outer problem are cleared by the optimizer that trains its parameters.',
)


def _find_slots(module: nn.Module) -> Slots:
    slots: Slots = OrderedDict()
    names: dict[int, str] = {}
    for prefix, owner in module.named_modules():
        if is_fully_sharded(owner):
            raise TypeError(
                f'{f"The submodule {prefix!r}" if prefix else "The module"} is under FSDP, which frees its parameters, '
                f'so new tensors cannot replace them. Differentiate through functional steps on DTensors: '
                f'torchopt.sgd(...).update on a dict of parameters, with torch.func.functional_call.'
            )
        for key, p in owner._parameters.items():
            if p is not None:
                name = names.setdefault(id(p), f'{prefix}.{key}' if prefix else key)
                slots.setdefault(name, []).append((owner._parameters, key))
    return slots


def _at_parameters(groups: list[Slots]) -> Callable[[Callable[[], Tensor], list[Tensor]], Tensor]:
    """Call a function with other parameters in the modules."""
    parts: dict[int, tuple[dict[str, Any], dict[str, int]]] = {}
    for i, places in enumerate(places for slots in groups for places in slots.values()):
        for container, key in places:
            parts.setdefault(id(container), (container, {}))[1][key] = i

    def at_parameters(closure: Callable[[], Tensor], params: list[Tensor]) -> Tensor:
        note_slots([container for container, _ in parts.values()])
        present = [(container, {key: container[key] for key in numbers}) for container, numbers in parts.values()]
        try:
            for container, numbers in parts.values():
                container.update(zip(numbers, map(params.__getitem__, numbers.values())))
            return closure()
        finally:
            for container, content in present:
                container.update(content)

    return at_parameters


def _check_mask(option: str, mask: Any, slots: Slots) -> None:
    """Require a mask by the names of parameters; those of modules, which contain several, are not among them."""
    if isinstance(mask, (dict, list, tuple)):
        unknown = [name for name in mask if name not in slots] if isinstance(mask, dict) else [kind_of(mask)]
        if unknown:
            found = f'the keys {unknown} are not names of parameters' if isinstance(mask, dict) else unknown[0]
            raise ValueError(
                f'Invalid {option}: {found}; expected a dict {{name: bool}} for the names of '
                f'module.named_parameters(), which are {list(slots)}.'
            )
