# SPDX-License-Identifier: Apache-2.0
"""The state of modules and meta-optimizers: save, restore and detach it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchopt import tree
from torchopt.kinds import kind_of
from torchopt.optim import FuncOptimizer, Optimizer
from torchopt.optim.meta import MetaOptimizer
from torchopt.utils.replication import Container, Device, Replicate

T = TypeVar('T')

OPTIMIZERS = (MetaOptimizer, Optimizer)
HOLDERS = (nn.Module, FuncOptimizer, *OPTIMIZERS)
"""The classes of objects that hold tensors and are no trees."""


class ModuleState(NamedTuple):
    """The tensors of a module at one time; made by :func:`extract_state_dict`.

    Attributes:
        params: One dict of names and tensors per submodule that has parameters, in the order of ``modules()``.
        buffers: Likewise for buffers; empty if they were not requested.
        visual_contents: Names for the nodes of a graph drawn by ``torchopt.visual.make_dot``: a dict from each
            parameter that is a leaf to its name, and from the ``grad_fn`` of each other parameter to the pair of name
            and parameter.  It contains the tensors of the module, so it keeps their graph alive.
        detach_buffers: Whether the buffers are copies without a graph, which are copied again on each recovery.
    """

    params: tuple[MutableMapping[str, Tensor], ...]
    buffers: tuple[MutableMapping[str, Tensor], ...]
    visual_contents: dict[Any, Any] | None = None
    detach_buffers: bool = False


torch.serialization.add_safe_globals([ModuleState])  # torch.load can create it, which runs no code


def is_state(x: Any) -> bool:
    """Treat a ModuleState as a leaf of a tree: its visual contents have tensors as keys, which cannot be sorted."""
    return isinstance(x, ModuleState)


def refuse_iterator(target: Any) -> None:
    """Raise for an iterator of tensors, which a tree would hold as one leaf, so that nothing would be done."""
    if isinstance(target, Iterator):
        raise TypeError(
            f'target is {kind_of(target)}; expected a module, an optimizer or a tree of tensors. Pass the module '
            f'itself, or a list such as list(module.parameters()).'
        )


def _unexpected(what: str, found: Any, expected: str) -> TypeError:
    return TypeError(f'Unexpected class of {what}: {type(found).__name__}. Pass {expected}.')


def extract_module_containers(
    module: nn.Module, with_buffers: bool = True
) -> tuple[tuple[Container, ...], tuple[Container, ...]]:
    """The dicts in which a module stores its tensors, without empty ones; changing them changes the module.

    Args:
        module: The module; the dicts are in the order of ``modules()``.
        with_buffers: Whether to return the containers of buffers, too.

    Returns:
        The containers of parameters and the containers of buffers.

    Raises:
        TypeError: ``module`` is not a module, or it was compiled by ``torch.jit``, which hides these dicts.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.BatchNorm1d(3))
        >>> params, buffers = torchopt.utils.extract_module_containers(net)
        >>> [list(container) for container in params]
        [['weight', 'bias'], ['weight', 'bias']]
        >>> [list(container) for container in buffers]
        [['running_mean', 'running_var', 'num_batches_tracked']]
    """
    if not isinstance(module, nn.Module):
        raise _unexpected('module', module, 'a torch.nn.Module')
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise _unexpected('module', module, 'the module from which torch.jit made it')
    params = tuple(container for _, container in _named_containers(module, '_parameters'))
    if not with_buffers:
        return params, ()
    return params, tuple(container for _, container in _named_containers(module, '_buffers'))


def _named_containers(module: nn.Module, kind: str) -> list[tuple[str, Container]]:
    return [(path, vars(owner)[kind]) for path, owner in module.named_modules() if vars(owner)[kind]]


@overload
def extract_state_dict(
    target: nn.Module,
    *,
    by: str = ...,
    device: Device | None = ...,
    with_buffers: bool = ...,
    detach_buffers: bool = ...,
    enable_visual: bool = ...,
    visual_prefix: str = ...,
) -> ModuleState: ...


@overload
def extract_state_dict(
    target: MetaOptimizer | Optimizer,
    *,
    by: str = ...,
    device: Device | None = ...,
    with_buffers: bool = ...,
    detach_buffers: bool = ...,
    enable_visual: bool = ...,
    visual_prefix: str = ...,
) -> tuple[Any, ...]: ...


def extract_state_dict(
    target: nn.Module | MetaOptimizer | Optimizer,
    *,
    by: str = 'reference',
    device: Device | None = None,
    with_buffers: bool = True,
    detach_buffers: bool = False,
    enable_visual: bool = False,
    visual_prefix: str = '',
) -> ModuleState | tuple[Any, ...]:
    """Save the state of a module or an optimizer, for :func:`recover_state_dict`.

    Tied weights stay tied.  Leaves of an optimizer's state that are not tensors (numbers, None) are kept unchanged.
    The meta members of a :class:`torchopt.nn.MetaGradientModule` belong to the outer problem and are not part of its
    state.

    Args:
        target: The object whose state to extract.
        by: How to save the tensors.

            * ``'reference'`` (``'ref'``): the same tensor objects, with their graph, without copying.  In-place changes
              of the module's tensors, such as updates of the running statistics of batch normalization or a step of
              :class:`torchopt.Optimizer`, also change the state.
            * ``'copy'`` (``'clone'``): clones that are connected to the originals by the graph.
            * ``'deepcopy'`` (``'deepclone'``): clones without a graph.  They require grad if the originals do, and are
              parameters if the originals are.
        device: The device of the saved tensors; None means that of the originals.
        with_buffers: Whether to save buffers, too.  For modules.
        detach_buffers: Whether to save buffers by ``'deepcopy'`` for any ``by``.  For modules; use it for an inner loop
            in training mode with batch normalization.
        enable_visual: Whether to fill :attr:`ModuleState.visual_contents`.  For modules.
        visual_prefix: A prefix for the names in it.

    Returns:
        A :class:`ModuleState` for a module; for an optimizer, a tuple with the state of each parameter group, which is
        :class:`torchopt.base.UninitializedState` before the first step.

    Raises:
        TypeError: ``target`` is neither a module nor an optimizer.
        ValueError: ``by`` is unknown.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> start = torchopt.extract_state_dict(net, by='reference')
        >>> optimizer = torchopt.MetaSGD(net, lr=0.1)
        >>> optimizer.step(net(torch.ones(2)).sum())
        >>> net.weight is start.params[0]['weight']
        False
        >>> torchopt.recover_state_dict(net, start)
        >>> net.weight is start.params[0]['weight']
        True
    """
    replicate = Replicate(by, device)
    if isinstance(target, nn.Module):
        params, buffers = extract_module_containers(target, with_buffers)
        replicate_buffer = Replicate('deepcopy', device) if detach_buffers else replicate
        return ModuleState(
            params=tuple(map(replicate.container, params)),
            buffers=tuple(map(replicate_buffer.container, buffers)),
            visual_contents=_visual_contents(target, visual_prefix) if enable_visual else None,
            detach_buffers=detach_buffers,
        )
    if isinstance(target, OPTIMIZERS):
        return tuple(tree.map(replicate, state) for state in target.state_groups)
    raise _unexpected('target', target, 'a torch.nn.Module, a MetaOptimizer or an Optimizer')


def _visual_contents(module: nn.Module, prefix: str) -> dict[Any, Any]:
    contents: dict[Any, Any] = {}
    for name, param in module.named_parameters():
        if param.grad_fn is None or param.grad_fn in contents:  # all results of a fused step have the same grad_fn
            contents[param] = prefix + name
        else:
            contents[param.grad_fn] = (prefix + name, param)
    return contents


def recover_state_dict(target: nn.Module | MetaOptimizer | Optimizer, state: Any) -> None:
    """Restore a state that :func:`extract_state_dict` saved.

    The module or optimizer then contains the tensors of the state; no values are copied.  So the module and the state
    **share tensors** afterwards: in-place changes of the module's tensors (running statistics, writes under
    ``torch.no_grad()``, a step of :class:`torchopt.Optimizer`) also change the state.  ``MetaOptimizer.step`` replaces
    tensors and does not change the state, which can be restored any number of times.  Buffers that were extracted with
    ``detach_buffers=True`` are copied, so those of the state do not change.

    Names and shapes are checked first; an error leaves the target unchanged.  Buffers that are not in the state do not
    change.

    Args:
        target: The object to change.
        state: A :class:`ModuleState` for a module, the tuple of states for an optimizer.

    Raises:
        TypeError: ``target`` is neither a module nor an optimizer, or ``state`` has the wrong type for it.
        ValueError: The state belongs to another module or optimizer.

    Example:
        >>> import torch, torchopt
        >>> small, large = torch.nn.Linear(2, 1), torch.nn.Linear(3, 1)
        >>> torchopt.recover_state_dict(small, torchopt.extract_state_dict(large))
        Traceback (most recent call last):
            ...
        ValueError: state: 'weight' has shape (1, 3), but the module has (1, 2)...
    """
    if isinstance(target, nn.Module):
        if not isinstance(state, ModuleState):
            raise _unexpected('state', state, 'the ModuleState extracted from a module')
        params, buffers = extract_module_containers(target)
        _check_containers('parameter', state.params, _named_containers(target, '_parameters'), complete=True)
        saved_buffers = state.buffers
        if saved_buffers:
            _check_containers('buffer', saved_buffers, _named_containers(target, '_buffers'), complete=False)
            if state.detach_buffers:
                saved_buffers = tuple(map(Replicate('deepcopy').container, saved_buffers))
        else:
            buffers = ()
        for container, saved in zip(params + buffers, state.params + saved_buffers, strict=True):
            container.update(saved)
    elif isinstance(target, OPTIMIZERS):
        if isinstance(state, ModuleState) or not isinstance(state, (tuple, list)):
            raise _unexpected('state', state, 'the tuple extracted from an optimizer')
        target.load_state_dict(state)
    else:
        raise _unexpected('target', target, 'a torch.nn.Module, a MetaOptimizer or an Optimizer')


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    return None if is_lazy(tensor) else tuple(tensor.shape)


def _check_containers(
    kind: str, saved: tuple[Mapping[str, Tensor], ...], live: list[tuple[str, Container]], *, complete: bool
) -> None:
    """Require that the names in the state exist with equal shapes; if ``complete``, also that none is missing."""
    blame = 'It is the state of another module.'
    if len(saved) != len(live):
        raise ValueError(
            f'state: it has {kind}s of {len(saved)} submodules, but the module has {kind}s of {len(live)}. {blame}'
        )
    for entries, (path, container) in zip(saved, live, strict=True):
        prefix = f'{path}.' if path else ''
        for name, tensor in entries.items():
            if name not in container:
                raise ValueError(f'state: it has {prefix + name!r}, but the module has no such {kind}. {blame}')
            place = container[name]
            if place is not None and _shape(place) != _shape(tensor):
                raise ValueError(
                    f'state: {prefix + name!r} has shape {_shape(tensor)}, but the module has {_shape(place)}. {blame}'
                )
        if complete:
            for name, place in container.items():
                if place is not None and name not in entries:
                    raise ValueError(f'state: the {kind} {prefix + name!r} of the module is not in it. {blame}')


# -- cutting the graph -----------------------------------------------------------------------------


class _Place(NamedTuple):
    """A tensor, its path, and, if possible, a function that replaces it."""

    path: str
    tensor: Tensor
    put: Callable[[Tensor], None] | None = None


def _places(target: Any) -> Iterator[_Place]:
    """The tensors that :func:`stop_gradient` detaches."""
    if isinstance(target, nn.Module):
        yield from _container_places(extract_module_containers(target, with_buffers=False)[0])
    elif isinstance(target, ModuleState):
        yield from _container_places(target.params + target.buffers)
    elif isinstance(target, OPTIMIZERS) or hasattr(target, 'state_groups'):  # such as those of interop.higher
        yield from _places(target.state_groups)
    elif isinstance(target, FuncOptimizer):
        yield from _places(target.optim_state)
    elif isinstance(target, Tensor):
        yield _Place('', target)
    elif not tree.is_leaf_node(target):
        for path, leaf in tree.flatten_with_path(target, is_state):
            yield from (place._replace(path=path + place.path) for place in _places(leaf))


def _container_places(containers: Iterable[Container]) -> Iterator[_Place]:
    for container in containers:
        for name, tensor in container.items():
            if tensor is not None:
                put = functools.partial(container.__setitem__, name)
                yield _Place(f'[{name!r}]', tensor, put)


def stop_gradient(target: Any) -> None:
    """Detach tensors from their graph, in place: they become leaves with the same values.

    Tensors that required grad still do, so a loop can continue.  The graph is released once nothing else refers to it.

    Args:
        target: The object to detach:

            * a module: its parameters, but not its buffers or meta members, which an outer problem may train;
            * a :class:`ModuleState`: its parameters and buffers;
            * a :class:`torchopt.MetaOptimizer`, :class:`torchopt.FuncOptimizer` or :class:`torchopt.Optimizer`, and
              an optimizer of ``interop.higher``: its state;
            * any tree of these and of tensors; other leaves are not changed.

    Raises:
        TypeError: The target is an iterator, such as ``module.parameters()``.
        ValueError: A tensor with a graph is a view of another tensor, which cannot be detached in place, and is not in
            a module or a ``ModuleState``, where it would be replaced.  Nothing is detached then.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(2, 1)
        >>> optimizer = torchopt.MetaAdam(net, lr=0.1)
        >>> optimizer.step(net(torch.ones(2)).sum())
        >>> net.weight.grad_fn is None
        False
        >>> torchopt.stop_gradient((net, optimizer))
        >>> net.weight.grad_fn is None, net.weight.requires_grad
        (True, True)
    """
    refuse_iterator(target)
    places = [place for place in _places(target) if place.tensor.grad_fn is not None]
    for path, tensor, put in places:
        if put is None and tensor._is_view():
            raise ValueError(
                f'target{path}: this tensor is a view of another and cannot be detached in place. '
                'Use its detach() or clone() instead'
            )
    detached = Replicate('deepcopy')
    for _, tensor, put in places:
        if put is not None and tensor._is_view():
            put(detached(tensor))
        else:
            tensor.detach_().requires_grad_()


def module_detach_(target: T) -> T:
    """Apply :func:`stop_gradient` and return the same object.

    Args:
        target: A module, a :class:`ModuleState`, an optimizer, or any tree.

    Example:
        >>> import torch, torchopt
        >>> x = torch.ones(2, requires_grad=True)
        >>> torchopt.module_detach_({'y': 2 * x})
        {'y': tensor([2., 2.], requires_grad=True)}
    """
    stop_gradient(target)
    return target
