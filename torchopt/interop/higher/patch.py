# SPDX-License-Identifier: Apache-2.0
"""Copies of modules whose parameters can be replaced by tensors with a graph, with the names of ``higher.patch``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchopt.kinds import kind_of
from torchopt.nn import MetaGradientModule, swap_state
from torchopt.utils.replication import Replicate

__all__ = ['FunctionalModule', 'buffer_sync', 'make_functional', 'monkeypatch']


class FunctionalModule(nn.Module):
    """A copy of a module whose parameters can be replaced by tensors with an autograd graph.

    Made by :func:`monkeypatch` and :func:`make_functional` as an instance of this class *and* of the class of the
    module, so that it has the methods and attributes of the module.  Its buffers are copies: changes of running
    statistics do not affect the module.

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

    _history: list[list[Any]]  # the parameters of the last replacements
    _time: int  # the number of replacements before the latest parameters, -1 if there are none
    _places: list[list[str]]
    _tracked: bool

    def __call__(self, *args: Any, params: Iterable[Tensor] | None = None, **kwargs: Any) -> Any:
        """Run the module.

        Args:
            *args: The arguments of the module.
            params: New parameters, which replace the current ones, in the order of :meth:`parameters`; by default
                the current ones are kept.
            **kwargs: The keyword arguments of the module.

        Raises:
            TypeError: If ``params`` are not tensors; nothing is changed then.
            ValueError: If their number or a shape is wrong; nothing is changed then.
        """
        if params is not None:
            self.update_params(params)
        return super().__call__(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        at = [i for i, names in enumerate(self._places) if name in names] if isinstance(value, Tensor) else []
        if at:  # a parameter of this module; torch.nn.Module would take nothing but a Parameter
            self.update_params([value if i in at else p for i, p in enumerate(self.parameters())])
        else:
            super().__setattr__(name, value)

    def parameters(self, recurse: bool = True, time: int | None = None) -> Iterator[Any]:
        """The current parameters, or those of an earlier step.

        Args:
            recurse: As in ``torch.nn.Module``, for the current parameters.
            time: The number of replacements before: 0 for the initial parameters, -1 for the latest.  With
                ``track_higher_grads=False``, only the latest are kept.

        Returns:
            An iterator over the parameters; tied parameters occur once.

        Raises:
            ValueError: If they are not kept.
            IndexError: If there was no such step.
        """
        if time is None:
            return super().parameters(recurse)
        at = time if time >= 0 else self._time + 1 + time
        if not 0 <= at <= self._time:
            raise IndexError(f'time is {time}, but the parameters were replaced {max(self._time, 0)} times.')
        first = self._time + 1 - len(self._history)
        if at < first:
            raise ValueError(
                f'time is {time}, but the parameters were replaced {self._time} times, and track_higher_grads=False '
                f'keeps only the current ones. Leave time out, or pass track_higher_grads=True.'
            )
        return iter(self._history[at - first])

    @property
    def fast_params(self) -> list[Any]:
        """The current parameters; setting them is :meth:`update_params`."""
        return list(self.parameters())

    @fast_params.setter
    def fast_params(self, params: Iterable[Tensor]) -> None:
        self.update_params(params)

    @property
    def init_fast_params(self) -> list[Any]:
        """The initial parameters."""
        return list(self.parameters(time=0))

    def update_params(self, params: Iterable[Tensor]) -> None:
        """Replace all parameters.

        Args:
            params: The new parameters, in the order of :meth:`parameters`.

        Raises:
            TypeError: If they are not tensors; nothing is changed then.
            ValueError: If their number or a shape is wrong; nothing is changed then.
        """
        new = tensors_of(params)
        if len(new) != len(self._places):
            raise ValueError(
                f'params holds {len(new)} tensors, but the module has {len(self._places)} parameters. Pass one for '
                f'each that parameters() lists, in that order.'
            )
        for (name, *_), x, old in zip(self._places, new, self.parameters()):
            if not isinstance(x, Tensor):
                raise TypeError(f'The entry of params for {name!r} is of type {type(x).__name__}; expected a tensor.')
            if x.shape != old.shape:
                raise ValueError(
                    f'The entry of params for {name!r} has shape {tuple(x.shape)}; expected {tuple(old.shape)}. '
                    f'Pass the parameters in the order of parameters().'
                )
        self._swap(new)
        if self._tracked:
            self._history.append(new)
        else:
            self._history = [new]
        self._time += 1

    @property
    def track_higher_grads(self) -> bool:
        """Whether the parameters of all steps are kept, and not only the latest."""
        return self._tracked

    @track_higher_grads.setter
    def track_higher_grads(self, tracked: bool) -> None:
        if not isinstance(tracked, bool):
            raise TypeError(f'track_higher_grads is {tracked!r}; expected True or False.')
        self._tracked = tracked

    def _swap(self, params: Sequence[Any]) -> dict[str, Any]:
        return swap_state(self, {name: p for names, p in zip(self._places, params) for name in names})

    def at_parameters(self, closure: Callable[[], Tensor]) -> Callable[[Sequence[Any]], Tensor]:
        """A function without arguments, as a function of the parameters of this module."""

        def at_parameters(params: Sequence[Any]) -> Tensor:
            present = self._swap(params)
            try:
                return closure()
            finally:
                swap_state(self, present)

        return at_parameters


def tensors_of(params: Iterable[Any]) -> list[Any]:
    """The parameters as a list; a mapping, which would give its keys, is an error."""
    if isinstance(params, Mapping):
        raise TypeError(
            f'params is of type {type(params).__name__}; expected tensors in the order of parameters(). Pass '
            f'list(params.values()) if it has that order.'
        )
    return list(params)


def monkeypatch(
    module: nn.Module,
    device: torch.device | str | None = None,
    copy_initial_weights: bool = True,
    track_higher_grads: bool = True,
) -> FunctionalModule:
    """Make a functional copy of a module; the module does not change.

    Args:
        module: The module.
        device: The device of the copy; None means that of the module.
        copy_initial_weights: True begins with copies of the parameters, which are leaves, so that the parameters of
            the module get no meta-gradients.  False begins with copies that have a graph, so that they get them, as in
            MAML.
        track_higher_grads: Whether to keep the parameters of all steps.

    Raises:
        TypeError: If ``module`` is not a module, or is scripted.

    Example:
        >>> import torch
        >>> from torchopt.interop import higher
        >>> net = torch.nn.Linear(1, 1)
        >>> fmodel = higher.monkeypatch(net, copy_initial_weights=False)
        >>> isinstance(fmodel, torch.nn.Linear)
        True
        >>> fmodel(torch.ones(1)).sum().backward()
        >>> net.weight.grad
        tensor([[1.]])
    """
    copied = _copy(module, device)
    copied._tracked = track_higher_grads
    held = list(copied.parameters())
    with torch.enable_grad():
        copied.update_params(map(Replicate('deepcopy') if copy_initial_weights else Tensor.clone, held))
    return copied


def make_functional(
    module: nn.Module, encapsulator: Callable[[FunctionalModule, nn.Module], Any] | None = None
) -> FunctionalModule:
    """Make a functional copy of a module that gets its parameters when it is called; the module does not change.

    Args:
        module: The module.
        encapsulator: Called with the copy and the module at the end, for example to set parameters.

    Returns:
        The copy.  Until it gets parameters, it uses those of the module.

    Raises:
        TypeError: If ``module`` is not a module, or is scripted.

    Example:
        >>> import torch
        >>> from torchopt.interop import higher
        >>> fmodel = higher.patch.make_functional(torch.nn.Linear(1, 1, bias=False))
        >>> fmodel(torch.ones(1), params=[torch.tensor([[3.0]])])
        tensor([3.])
    """
    copied = _copy(module, None)
    if encapsulator is not None:
        encapsulator(copied, module)
    return copied


def buffer_sync(module: nn.Module, fmodule: nn.Module, device: torch.device | str | None = None) -> None:
    """Set the buffers of a copy of a module to copies of those of the module.

    Args:
        module: The module.
        fmodule: The copy.
        device: The device of the new buffers; None means that of the module's.

    Raises:
        KeyError: If the copy lacks a submodule that has buffers; nothing is changed then.
    """
    new = []
    for name, b in module.named_buffers(remove_duplicate=False):
        path, _, last = name.rpartition('.')
        try:
            owner = fmodule.get_submodule(path)
        except AttributeError:
            raise KeyError(f'fmodule has no submodule {path!r}. Pass a functional copy of the module.') from None
        new.append((owner, last, b.detach().to(device, copy=True)))
    for owner, last, b in new:
        owner._buffers[last] = b


def _copy(module: nn.Module, device: torch.device | str | None) -> FunctionalModule:
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            f'model is {kind_of(module)}; expected a torch.nn.Module that is not scripted. Pass the module itself.'
        )
    copied = copy.deepcopy(module, _replicas(module, device))
    names: dict[int, list[str]] = {}
    for name, p in copied.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    kind = type(module)
    if not issubclass(kind, FunctionalModule):
        copied.__class__ = type(f'Functional{kind.__name__}', (FunctionalModule, kind), {'__module__': __name__})
    assert isinstance(copied, FunctionalModule)
    copied._places, copied._tracked, copied._history, copied._time = list(names.values()), True, [], -1
    return copied


def _replicas(module: nn.Module, device: torch.device | str | None) -> dict[int, Any]:
    """The tensors for a copy of the module, by ``id``: copies of buffers, and all other tensors themselves."""
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
