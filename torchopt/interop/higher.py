# SPDX-License-Identifier: Apache-2.0
"""Scripts for the library ``higher``: its inner loop, under its names, over our transformations.

``from torchopt.interop import higher`` takes the place of ``import higher``.  Written from what that library does, and
independent of it; where we differ is on the page "From higher" of the documentation.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchopt import tree
from torchopt.base import GradientTransformation, UninitializedState
from torchopt.interop.torch_optim import from_torch_optimizer
from torchopt.nn import MetaGradientModule, swap_state
from torchopt.numerics import detach_graph
from torchopt.optim import Optimizer
from torchopt.optim.gradients import (
    check_same_kind,
    differentiable_gradients,
    hide_integers,
    recomputed_gradients,
    without_integers,
)
from torchopt.update import update_params

__all__ = [
    'DifferentiableOptimizer',
    'FunctionalModule',
    'apply_trainable_opt_params',
    'get_diff_optim',
    'get_trainable_opt_params',
    'innerloop_ctx',
    'monkeypatch',
]

Override = Mapping[str, Sequence[Any]]
"""From the name of an option to its values: one for all groups, or one for each."""

GradCallback = Callable[[list[Any]], Iterable[Any]]
"""From the gradients of all parameters, ``None`` among them, to those that are used."""


class FunctionalModule(nn.Module):
    """A copy of a module whose parameters can be replaced by tensors that carry a graph.

    Made by :func:`monkeypatch`: an instance of this class *and* of the class of the module, so that the methods and
    attributes of the module are there.  Its buffers are copies: what it does to running statistics does not reach the
    module.

    Example:
        >>> import torch
        >>> from torchopt.interop import higher
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> fmodel = higher.monkeypatch(net)
        >>> fmodel(torch.ones(1), params=[torch.tensor([[5.0]])])
        tensor([5.])
        >>> len(list(fmodel.parameters())), next(fmodel.parameters(time=-1)).item()
        (1, 5.0)
    """

    _history: list[list[Any]]
    _places: list[list[str]]
    _tracked: bool

    def __call__(self, *args: Any, params: Iterable[Tensor] | None = None, **kwargs: Any) -> Any:
        """Run the module.

        Args:
            *args: What the module takes.
            params: Its parameters from now on, in the order of :meth:`parameters`; by default those that it has.
            **kwargs: What the module takes.

        Returns:
            What the module returns.

        Raises:
            ValueError: If the number of ``params`` is wrong.
        """
        if params is not None:
            self.update_params(params)
        return super().__call__(*args, **kwargs)

    def parameters(self, recurse: bool = True, time: int | None = None) -> Iterator[Any]:
        """The parameters of now, or of a step of the past.

        Args:
            recurse: As in ``torch.nn.Module``, for the parameters of now.
            time: The number of replacements before: 0 for the initial parameters, -1 for the last.

        Returns:
            An iterator over them, each once however often it is tied.

        Raises:
            ValueError: If earlier parameters are requested, but not tracked.
            IndexError: If there was no such step.
        """
        if time is None:
            return super().parameters(recurse)
        if not self._tracked and time != -1:
            raise ValueError(
                f'time is {time}, but track_higher_grads=False keeps only the parameters of now. Leave time out, or '
                f'pass track_higher_grads=True.'
            )
        if not -len(self._history) <= time < len(self._history):
            raise IndexError(f'time is {time}, but the parameters were replaced {len(self._history) - 1} times.')
        return iter(self._history[time])

    def update_params(self, params: Iterable[Tensor]) -> None:
        """Replace all parameters.

        Args:
            params: The new ones, in the order of :meth:`parameters`.

        Raises:
            ValueError: If there are more or fewer than the module has; nothing is changed then.
        """
        new = list(params)
        if len(new) != len(self._places):
            raise ValueError(
                f'params holds {len(new)} tensors, but the module has {len(self._places)} parameters. Pass one for '
                f'each that parameters() lists, in that order.'
            )
        self._swap(new)
        if self._tracked:
            self._history.append(new)
        else:
            self._history = [new]

    def _swap(self, params: Sequence[Any]) -> dict[str, Any]:
        return swap_state(self, {name: p for names, p in zip(self._places, params) for name in names})

    def _at_parameters(self, closure: Callable[[], Tensor]) -> Callable[[Sequence[Any]], Tensor]:
        """A function of nothing as one of the parameters of this module."""

        def at_parameters(params: Sequence[Any]) -> Tensor:
            present = self._swap(params)
            try:
                return closure()
            finally:
                swap_state(self, present)

        return at_parameters


class DifferentiableOptimizer:
    """The rule, options and state of an optimizer, as steps that can be differentiated through.

    Made by :func:`innerloop_ctx` and :func:`get_diff_optim`, with the same arguments as the latter.

    Attributes:
        param_groups: For each group its options.
    """

    def __init__(
        self,
        other: torch.optim.Optimizer | GradientTransformation,
        reference_params: Iterable[Tensor],
        fmodel: FunctionalModule | None = None,
        device: torch.device | str | None = None,
        override: Override | None = None,
        track_higher_grads: bool = True,
    ) -> None:
        reference = list(reference_params)
        places = {id(p): i for i, p in enumerate(reference)}
        self._alias, groups = _read(other, reference)
        self._fmodel = fmodel
        self._tracked = track_higher_grads
        self._count = len(reference)
        self.param_groups: list[dict[str, Any]] = [group.options for group in groups]
        self._members: list[list[int]] = []
        for i, group in enumerate(groups):
            strangers = [tuple(p.shape) for p in group.params if id(p) not in places]
            if strangers:
                raise ValueError(
                    f'Group {i} of the optimizer holds parameters that are not those of the model: of shapes '
                    f'{strangers[:8]}. Make the optimizer of the parameters of this model, and no others.'
                )
            self._members.append([places[id(p)] for p in group.params])
        self._impls = [self._build(group.impl, group.options) for group in groups]
        self._states = [_copied(group.state, device) for group in groups]
        if override is not None:
            self.param_groups, self._impls = self._overridden(override, reference)

    def step(
        self,
        loss: Tensor | Callable[..., Tensor],
        params: Iterable[Tensor] | None = None,
        override: Override | None = None,
        grad_callback: GradCallback | None = None,
        *,
        checkpoint: str | None = 'reverse',
    ) -> list[Any]:
        """Take a step, and put the new parameters into the functional module, if there is one.

        Args:
            loss: Scalar tensor computed from the parameters.  Unlike in ``higher``, it may be a function that computes
                it, without arguments, or of the list ``params`` if that is given: then the step keeps the parameters
                instead of the graph of the loss, which is computed again in the backward pass.
            params: The parameters that it was computed from; by default those of the functional module.
            override: Options from this step on, as in :func:`innerloop_ctx`.
            grad_callback: Called with the list of gradients, ``None`` for parameters that are frozen or do not enter
                the loss; returns those to be used.
            checkpoint: For a function: ``'reverse'`` or ``'mixed'``, how second derivatives are computed; None keeps
                the graph.

        Returns:
            The new parameters.

        Raises:
            ValueError: If there are no parameters to go on from, their number is wrong, the loss depends on none of
                them, or an option is out of range; nothing is changed then.
            TypeError: If the loss is not a tensor, or ``override`` names what is no option.
            RuntimeError: If the loss has no graph, or the loop has ended.
        """
        if not self._impls:
            raise RuntimeError('The inner loop has ended. Take its steps inside the with block.')
        closure: Any = loss
        if params is None:
            if self._fmodel is None:
                raise ValueError('There is no fmodel to take the parameters from. Pass params, or fmodel before.')
            params = self._fmodel.parameters()
            closure = self._fmodel._at_parameters(closure)
        old = list(params)
        self._require_all(old, 'params')
        if callable(loss) and not isinstance(loss, Tensor):
            _, grads = recomputed_gradients(closure, old, checkpoint=checkpoint, create_graph=self._tracked)
        else:
            grads = differentiable_gradients(loss, old, create_graph=self._tracked)
        if all(g is None for g in grads):
            raise ValueError(
                'The loss depends on none of the parameters. Compute it by fmodel, or pass the params that it was '
                'computed from.'
            )
        if grad_callback is not None:
            grads = list(grad_callback(grads))
            self._require_all(grads, 'What grad_callback returned')
        groups, impls = self.param_groups, self._impls
        if override is not None:
            groups, impls = self._overridden(override, old)
        new, states = list(old), []
        with contextlib.nullcontext() if self._tracked else torch.no_grad():
            for impl, state, members in zip(impls, self._states, self._members):
                own, own_grads = [old[i] for i in members], [grads[i] for i in members]
                if isinstance(state, UninitializedState):
                    state = impl.init(without_integers(own))
                moved, state = update_params(impl, own_grads, state, hide_integers(own, own_grads), inplace=False)
                states.append(state)
                for i, p in zip(members, moved):
                    new[i] = old[i] if p is None else p
        if not self._tracked:
            new = [n if n is p else detach_graph(n).requires_grad_(p.requires_grad) for n, p in zip(new, old)]
        self.param_groups, self._impls, self._states = groups, impls, states
        if self._fmodel is not None:
            self._fmodel.update_params(new)
        return new

    def _require_all(self, given: Sequence[Any], what: str) -> None:
        if len(given) != self._count:
            raise ValueError(
                f'{what} holds {len(given)} entries; expected {self._count}, one for each parameter of the model.'
            )

    def _build(self, impl: GradientTransformation, options: dict[str, Any]) -> GradientTransformation:
        return impl if self._alias is None else self._alias(**options)

    def _overridden(
        self, override: Override, params: Sequence[Any]
    ) -> tuple[list[dict[str, Any]], list[GradientTransformation]]:
        groups = [dict(group) for group in self.param_groups]
        for name, values in override.items():
            if any(name not in group for group in groups):
                known = sorted(groups[0]) if groups[0] else 'none, since the optimizer is a plain transformation'
                raise TypeError(f'override: {name!r} is no option of the optimizer; those are {known}.')
            if not isinstance(values, (list, tuple)) or len(values) not in (1, len(groups)):
                raise ValueError(
                    f'override[{name!r}] is {values!r}; expected a list with one value, or with one for each of the '
                    f'{len(groups)} groups.'
                )
            for i, group in enumerate(groups):
                group[name] = values[i if len(values) > 1 else 0]
        impls = [self._build(impl, group) for impl, group in zip(self._impls, groups)]
        for i, (impl, state, members) in enumerate(zip(impls, self._states, self._members)):
            if not isinstance(state, UninitializedState):
                expected = impl.init(without_integers([params[j] for j in members]))
                check_same_kind(state, expected, name=f'the state of group {i}')
        return groups, impls

    def _end(self) -> None:
        self._fmodel, self._states, self._impls = None, [], []


class _Group(NamedTuple):
    """A group of an optimizer: what is trained, how, and how far."""

    params: list[Tensor]
    options: dict[str, Any]
    impl: GradientTransformation
    state: Any


def _read(other: Any, reference: list[Tensor]) -> tuple[Callable[..., GradientTransformation] | None, list[_Group]]:
    """What makes a transformation of options, if something does, and the groups."""
    if isinstance(other, GradientTransformation):
        return None, [_Group(reference, {}, other, UninitializedState())]
    ours, fresh = other, False
    if not isinstance(other, Optimizer):
        if not isinstance(other, torch.optim.Optimizer):
            raise TypeError(
                f'opt is a {type(other).__name__}; expected an optimizer of torch.optim or torchopt, or a '
                f'GradientTransformation such as torchopt.adam().'
            )
        ours, fresh = from_torch_optimizer(other), not other.state
    return type(ours).alias, [
        _Group(group['params'], {name: group[name] for name in options}, impl, UninitializedState() if fresh else state)
        for group, (options, impl), state in zip(ours.param_groups, ours.impl_groups, ours.state_groups)
    ]


def _copied(state: Any, device: torch.device | str | None) -> Any:
    def copy(x: Any) -> Any:
        return x.detach().to(device, copy=True) if isinstance(x, Tensor) else x

    return state if isinstance(state, UninitializedState) else tree.map(copy, state)


def monkeypatch(
    module: nn.Module,
    device: torch.device | str | None = None,
    copy_initial_weights: bool = True,
    track_higher_grads: bool = True,
) -> FunctionalModule:
    """Make a functional copy of a module, which is left as it is.

    Args:
        module: The module.
        device: Where the copy is; None for where the module is.
        copy_initial_weights: True begins with copies of the parameters, which are leaves: a meta-gradient ends there.
            False begins with the parameters themselves, and a meta-gradient reaches them, as in MAML.
        track_higher_grads: Whether the parameters of all steps are kept.

    Returns:
        The copy.

    Raises:
        TypeError: If ``module`` is not a module, or a scripted one.

    Example:
        >>> import torch
        >>> from torchopt.interop import higher
        >>> net = torch.nn.Linear(1, 1)
        >>> fmodel = higher.monkeypatch(net, copy_initial_weights=False)
        >>> isinstance(fmodel, torch.nn.Linear), fmodel.weight is net.weight
        (True, True)
    """
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            f'model is a {type(module).__name__}; expected a torch.nn.Module that is not scripted. Pass the module '
            f'itself.'
        )
    copied = copy.deepcopy(module, _replicas(module, device))
    names: dict[int, list[str]] = {}
    initial: dict[int, Any] = {}
    for name, p in copied.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
        initial[id(p)] = p
    kind = type(module)
    if not issubclass(kind, FunctionalModule):
        copied.__class__ = type(f'Functional{kind.__name__}', (FunctionalModule, kind), {'__module__': __name__})
    assert isinstance(copied, FunctionalModule)
    copied._places, copied._tracked, copied._history = list(names.values()), track_higher_grads, []
    held = list(initial.values())
    copied.update_params([_leaf(p) for p in held] if copy_initial_weights else held)
    return copied


def _replicas(module: nn.Module, device: torch.device | str | None) -> dict[int, Any]:
    """What a copy of the module has in the place of its tensors: buffers of its own, and all others themselves."""
    held: list[Tensor] = list(module.parameters())
    if isinstance(module, MetaGradientModule):
        held += module.meta_parameters()
    for owner in module.modules():
        held += [x for x in vars(owner).values() if isinstance(x, Tensor)]
    found: dict[int, Any] = {id(x): x if device is None else x.to(device) for x in held}
    if isinstance(module, FunctionalModule):
        found[id(module._history)] = []
    for b in module.buffers():
        found[id(b)] = b.detach().to(device, copy=True).requires_grad_(b.requires_grad)
    return found


def _leaf(p: Any) -> Any:
    fresh = p.detach().clone()
    return (
        nn.Parameter(fresh, p.requires_grad) if isinstance(p, nn.Parameter) else fresh.requires_grad_(p.requires_grad)
    )


def get_diff_optim(
    opt: torch.optim.Optimizer | GradientTransformation,
    reference_params: Iterable[Tensor],
    fmodel: FunctionalModule | None = None,
    device: torch.device | str | None = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
) -> DifferentiableOptimizer:
    """Make a differentiable optimizer of another, which is left as it is.

    Args:
        opt: As in :func:`innerloop_ctx`.
        reference_params: The parameters of the model that ``opt`` is for, in the order in which ``step`` gets them.
        fmodel: What steps read the parameters from and write them to; without it, ``step`` is given them.
        device: Where its state is; None for where that of ``opt`` is.
        override: As in :func:`innerloop_ctx`.
        track_higher_grads: As in :func:`innerloop_ctx`.

    Returns:
        The optimizer, with copies of the state.

    Raises:
        TypeError: If ``opt`` is no optimizer, or of a class of ``torch.optim`` without a twin here.
        ValueError: If ``opt`` holds parameters that are not among ``reference_params``.

    Example:
        >>> import torch
        >>> from torchopt.interop import higher
        >>> start = [torch.tensor([1.0], requires_grad=True)]
        >>> diffopt = higher.get_diff_optim(torch.optim.SGD(start, lr=0.25), start)
        >>> params = diffopt.step(start[0].square().sum(), params=start)
        >>> params[0].item(), torch.autograd.grad(params[0], start)[0].item()
        (0.5, 0.5)
    """
    return DifferentiableOptimizer(opt, reference_params, fmodel, device, override, track_higher_grads)


@contextlib.contextmanager
def innerloop_ctx(
    model: nn.Module,
    opt: torch.optim.Optimizer | GradientTransformation,
    device: torch.device | str | None = None,
    copy_initial_weights: bool = True,
    override: Override | None = None,
    track_higher_grads: bool = True,
) -> Iterator[tuple[FunctionalModule, DifferentiableOptimizer]]:
    """An inner loop: a functional copy of a model, and a differentiable optimizer that trains it.

    The model and its optimizer are left as they are.  At the end of the block the optimizer lets go of its state; the
    graph is released when ``fmodel``, and the losses that were kept, are gone.

    Args:
        model: The model.
        opt: An optimizer of its parameters: one of ``torch.optim`` that :func:`torchopt.interop.from_torch_optimizer`
            takes or one of :mod:`torchopt.optim`, whose options, groups and state the inner loop begins with.  Or a
            transformation, for all parameters.
        device: Where the copies are; None for where the originals are.
        copy_initial_weights: Whether the loop begins with copies of the parameters, where a meta-gradient ends;
            False, for MAML, begins with the parameters themselves.
        override: Options that replace those of ``opt``: a list with one value for all groups, or with one for each.
            Tensors that require grad are learned.
        track_higher_grads: False takes the same steps without a graph, for evaluation.

    Yields:
        The pair of :class:`FunctionalModule` and :class:`DifferentiableOptimizer`.

    Raises:
        TypeError: If the model or the optimizer is none, or the optimizer has no twin here.
        ValueError: If the optimizer holds other parameters than those of the model.

    Example:
        >>> import torch
        >>> from torchopt.interop import higher
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> opt = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> x = torch.ones(1, 1)
        >>> with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fmodel, diffopt):
        ...     for _ in range(2):
        ...         _ = diffopt.step(0.5 * fmodel(x).square().sum())
        ...     fmodel(x).sum().backward()
        >>> net.weight.grad
        tensor([[0.8100]])

    References:
        Grefenstette et al.: Generalized Inner Loop Meta-Learning, 2019, https://arxiv.org/abs/1910.01727.
    """
    fmodel = monkeypatch(model, device, copy_initial_weights, track_higher_grads)
    diffopt = get_diff_optim(opt, model.parameters(), fmodel, device, override, track_higher_grads)
    try:
        yield fmodel, diffopt
    finally:
        diffopt._end()


def get_trainable_opt_params(
    opt: torch.optim.Optimizer, device: torch.device | str | None = None
) -> dict[str, list[Any]]:
    """The options of an optimizer that are real numbers, as tensors to be learned.

    Args:
        opt: The optimizer.
        device: Where to make the tensors.

    Returns:
        From the name of an option to a list with its value in each group: a tensor, or a tuple of tensors, that
        require grad.  It is an ``override`` for :func:`innerloop_ctx`.

    Raises:
        TypeError: If ``opt`` is not an optimizer of torch.

    Example:
        >>> import torch
        >>> from torchopt.interop import higher
        >>> opt = torch.optim.SGD([torch.zeros(1)], lr=0.5, momentum=0.25)
        >>> higher.get_trainable_opt_params(opt)['lr']
        [tensor(0.5000, requires_grad=True)]
    """
    _require_optimizer(opt)
    return {
        name: [
            tree.map(lambda x: torch.tensor(float(x), device=device, requires_grad=True), group[name])
            for group in opt.param_groups
        ]
        for name in opt.defaults
        if all(_is_real(group[name]) for group in opt.param_groups)
    }


def apply_trainable_opt_params(opt: torch.optim.Optimizer, override: Override) -> None:
    """Write learned options into an optimizer, as numbers.

    Args:
        opt: The optimizer.
        override: From the name of an option to a list with one value for all groups, or with one for each.

    Raises:
        TypeError: If ``opt`` is not an optimizer of torch, or has no such option; nothing is changed then.
        ValueError: If the number of values is wrong; nothing is changed then.

    Example:
        >>> import torch
        >>> from torchopt.interop import higher
        >>> opt = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        >>> higher.apply_trainable_opt_params(opt, {'lr': [torch.tensor(0.25, requires_grad=True)]})
        >>> opt.param_groups[0]['lr']
        0.25
    """
    _require_optimizer(opt)
    for name, values in override.items():
        if name not in opt.defaults:
            raise TypeError(
                f'override: {name!r} is no option of {type(opt).__name__}; those are {sorted(opt.defaults)}.'
            )
        if len(values) not in (1, len(opt.param_groups)):
            raise ValueError(
                f'override[{name!r}] holds {len(values)} values; expected one, or one for each of the '
                f'{len(opt.param_groups)} groups.'
            )
    for name, values in override.items():
        for i, group in enumerate(opt.param_groups):
            value = values[i if len(values) > 1 else 0]
            group[name] = tree.map(lambda x: x.item() if isinstance(x, Tensor) else x, value)


def _require_optimizer(opt: Any) -> None:
    if not isinstance(opt, torch.optim.Optimizer):
        raise TypeError(f'opt is a {type(opt).__name__}; expected an optimizer of torch.optim or torchopt.')


def _is_real(value: Any) -> bool:
    leaves = tree.leaves(value)
    return bool(leaves) and all(
        (isinstance(x, (int, float)) and not isinstance(x, bool)) or (isinstance(x, Tensor) and x.numel() == 1)
        for x in leaves
    )
