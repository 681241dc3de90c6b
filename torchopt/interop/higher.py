# SPDX-License-Identifier: Apache-2.0
"""The inner loop of the library ``higher``, with its names, implemented by transformations.

``from torchopt.interop import higher`` replaces ``import higher``.  This is an independent implementation; the page
"From higher" of the documentation lists the differences.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchopt import tree
from torchopt.base import GradientTransformation, UninitializedState
from torchopt.graphs import detach_graph
from torchopt.interop.functional_module import FunctionalModule, monkeypatch
from torchopt.interop.torch_optim import from_torch_optimizer
from torchopt.optim import FuncOptimizer, Optimizer
from torchopt.optim.gradients import (
    check_same_kind,
    differentiable_gradients,
    hide_integers,
    recomputed_gradients,
    without_integers,
)
from torchopt.optim.meta import MetaOptimizer
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
"""A mapping from the name of an option to its values: one for all groups, or one for each."""

GradCallback = Callable[[list[Any]], Iterable[Any]]
"""A function from the gradients of all parameters, including ``None``, to the gradients to use."""


class DifferentiableOptimizer:
    """An optimizer with differentiable steps.

    Made by :func:`innerloop_ctx` and :func:`get_diff_optim`; the arguments are those of the latter.

    Attributes:
        param_groups: The options of each group.
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
                    f'Group {i} of the optimizer contains parameters that do not belong to the model, with the shapes '
                    f'{strangers[:8]}. Make the optimizer with parameters of this model only.'
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
        """Take a step, and set the new parameters in the functional module, if there is one.

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
            ValueError: If there are no parameters, their number is wrong, the loss depends on none of them, or an
                option is out of range; nothing is changed then.
            TypeError: If the loss is not a tensor, or ``override`` contains an unknown option.
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
        old = list(params)
        self._require_all(old, 'params')
        if callable(loss) and not isinstance(loss, Tensor):
            _, grads = recomputed_gradients(closure, old, checkpoint=checkpoint, create_graph=self._tracked)
        else:
            grads = differentiable_gradients(loss, old, create_graph=self._tracked)
        if all(g is None for g in grads):
            raise ValueError(
                'The loss depends on none of the parameters. Compute it with fmodel, or pass the params from which '
                'it was computed.'
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
                raise TypeError(f'override: {name!r} is not an option of the optimizer; its options are {known}.')
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
    """A parameter group of an optimizer: its parameters, options and state."""

    params: list[Tensor]
    options: dict[str, Any]
    impl: GradientTransformation
    state: Any


def _read(other: Any, reference: list[Tensor]) -> tuple[Callable[..., GradientTransformation] | None, list[_Group]]:
    """The function that makes a transformation from options (None for a plain transformation), and the groups."""
    if isinstance(other, GradientTransformation):
        return None, [_Group(reference, {}, other, UninitializedState())]
    ours, fresh = other, False
    if not isinstance(other, Optimizer):
        if not isinstance(other, torch.optim.Optimizer):
            hint = ''
            if isinstance(other, (MetaOptimizer, FuncOptimizer)):
                hint = ' It takes differentiable steps itself, outside of innerloop_ctx; here pass the transformation.'
            raise TypeError(
                f'opt is a {type(other).__name__}; expected an optimizer of torch.optim or torchopt, or a '
                f'GradientTransformation such as torchopt.adam().{hint}'
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


def get_diff_optim(
    opt: torch.optim.Optimizer | GradientTransformation,
    reference_params: Iterable[Tensor],
    fmodel: FunctionalModule | None = None,
    device: torch.device | str | None = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
) -> DifferentiableOptimizer:
    """Make a differentiable optimizer from another optimizer, which does not change.

    Args:
        opt: The optimizer; see :func:`innerloop_ctx`.
        reference_params: All parameters of the model, in the order in which ``step`` gets them.
        fmodel: The functional module whose parameters the steps update; without it, pass parameters to ``step``.
        device: The device of the state; None means that of the state of ``opt``.
        override: See :func:`innerloop_ctx`.
        track_higher_grads: See :func:`innerloop_ctx`.

    Returns:
        The optimizer, with a copy of the state.

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

    The model and its optimizer do not change.  At the end of the block the optimizer drops its state; the graph is
    released once ``fmodel`` and the losses are deleted.

    Args:
        model: The model.
        opt: An optimizer of its parameters, of ``torch.optim`` (if :func:`torchopt.interop.from_torch_optimizer`
            supports it) or :mod:`torchopt.optim`; the inner loop begins with its options, groups and state.  Or a
            transformation, for all parameters.
        device: The device of the copies; None means that of the originals.
        copy_initial_weights: Whether the loop begins with copies of the parameters, so that the originals get no
            meta-gradients; False, for MAML, begins with the parameters themselves.
        override: Options that replace those of ``opt``: for each, a list with one value for all groups, or with one for
            each group.  Tensors that require grad are learned.
        track_higher_grads: False takes the same steps without a graph, for evaluation.

    Yields:
        The pair of :class:`FunctionalModule` and :class:`DifferentiableOptimizer`.

    Raises:
        TypeError: If the model or the optimizer has a wrong type, or the optimizer has no counterpart here.
        ValueError: If the optimizer contains parameters that are not those of the model.

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
    """The real-valued options of an optimizer as tensors that can be learned.

    Args:
        opt: The optimizer.
        device: The device of the tensors.

    Returns:
        A dict from the name of an option to a list with its value in each group: a tensor, or a tuple of tensors,
        that require grad.  Pass it as ``override`` to :func:`innerloop_ctx`.

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
        override: A dict from the name of an option to a list with one value for all groups, or with one for each.

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
                f'override: {name!r} is not an option of {type(opt).__name__}; its options are {sorted(opt.defaults)}.'
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


patch = SimpleNamespace(monkeypatch=monkeypatch)
"""The names of the module ``higher.patch``."""

optim = SimpleNamespace(
    DifferentiableOptimizer=DifferentiableOptimizer,
    apply_trainable_opt_params=apply_trainable_opt_params,
    get_diff_optim=get_diff_optim,
    get_trainable_opt_params=get_trainable_opt_params,
)
"""The names of the module ``higher.optim``."""
