# SPDX-License-Identifier: Apache-2.0
"""The surroundings of a function call, which its value depends on: recorded in one run, restored for later runs.

These are the random number generators, autocast, and the modules that it calls: their parameters, buffers and training
flags.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchopt.autodiff.modes import Capture, allow_unused, version_of
from torchopt.kinds import kind_of
from torchopt.levels import entered
from torchopt.module_hooks import hooked


class Surroundings:
    """The surroundings of the first run of a function."""

    def __init__(self) -> None:
        self.random: _Random | None = None
        self.autocast: list[tuple[str, bool, torch.dtype]] = []
        self.modules: dict[int, _Module] = {}
        self.slots: dict[int, tuple[dict[str, Any], dict[str, Tensor]]] = {}

    @contextlib.contextmanager
    def noted(self, tensors: Sequence[Tensor], seen: Capture) -> Iterator[None]:
        """Record the surroundings of a run.

        Args:
            tensors: Tensors whose devices, besides the CPU, may draw random numbers.
            seen: The mode that knows which tensors were created in the run.
        """
        devices = set(map(_device, tensors))
        types = {'cpu', *(d.type for d in devices)}
        self.autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in types
            if torch.amp.is_autocast_available(kind)
        ]
        before = _Random(devices)

        def note(container: dict[str, Any]) -> None:
            _, noted = self.slots.setdefault(id(container), (container, {}))
            if len(noted) < len(container):
                # Not those that were made inside: a function may put other tensors into a module temporarily.
                begun = seen.has_begun
                noted |= {
                    name: x
                    for name, x in container.items()
                    if x is not None and name not in noted and not (begun and seen.has_made(x))
                }

        def note_module(module: nn.Module, _: Any) -> None:
            if id(module) not in self.modules:
                self.modules[id(module)] = _Module(module)
                if module._buffers:
                    allow_unused(map(id, module._buffers.values()))  # that a copy is made here is no use of them
                note(module._parameters)
                note(module._buffers)

        _NOTING.append(note)
        try:
            with hooked(note_module):
                yield
        finally:
            _NOTING.remove(note)
        if not before.is_unchanged():
            self.random = before
        for saved in self.modules.values():
            note(saved.module._parameters)
            saved.refuse_graph()

    def keep_changed(self, also: Container[int]) -> None:
        """Drop the buffers that did not change in the run, according to their versions and the ids ``also``."""
        for module in self.modules.values():
            module.keep_changed(also)

    def owns(self, x: Tensor) -> bool:
        """Whether a tensor is a buffer that the run changed, so that its value is restored."""
        return any(module.owns(x) for module in self.modules.values())

    def changed_later(self, x: Tensor) -> RuntimeError:
        """The error for a tensor that was changed in place after the run; it names a buffer of a module."""
        for module in (saved.module for saved in self.modules.values()):
            _, noted = self.slots.get(id(module._buffers), (None, {}))
            for name in module._buffers:
                if noted.get(name) is x:
                    return RuntimeError(
                        f'The buffer {name!r} of {kind_of(module)}, which the function uses, was changed in place '
                        f'later, such as by a call in training mode, so the function cannot be recomputed. Before such '
                        f'a call, replace the buffers of the module by clones: buffers that were replaced are restored.'
                    )
        return RuntimeError(
            f'A tensor of shape {tuple(x.shape)} that the function uses was changed in place later, so the function '
            f'cannot be recomputed. Pass the function a clone of it, or write to another tensor.'
        )

    @contextlib.contextmanager
    def restored(self) -> Iterator[dict[int, Tensor]]:
        """Set the surroundings to those of the first run; restore the current ones at the end.

        Yields:
            A copy of the recorded value of each buffer that the first run changed, by the id of the buffer.
        """
        changed = (saved for module in self.modules.values() for saved in module.buffers.values())
        copies = {id(x): value.clone() for x, _, value in changed}
        now = None if self.random is None else self.random.of_now()
        contents = [dict(container) for container, _ in self.slots.values()]
        back: list[Callable[[], None]] = []
        with self._in_autocast():
            try:
                if self.random is not None:
                    self.random.restore()
                for container, noted in self.slots.values():
                    container.update(noted)
                for module in self.modules.values():
                    back.append(module.swap(copies))
                yield copies
            finally:
                for undo in reversed(back):
                    undo()
                for (container, _), content in zip(self.slots.values(), contents):
                    container.clear()
                    container.update(content)
                if now is not None:
                    now.restore()

    def _in_autocast(self) -> contextlib.AbstractContextManager[Any]:
        contexts = [
            torch.autocast(kind, dtype=dtype, enabled=enabled)
            for kind, enabled, dtype in self.autocast
            if enabled != torch.is_autocast_enabled(kind) or (enabled and dtype != torch.get_autocast_dtype(kind))
        ]
        return entered(contexts)


_NOTING: list[Callable[[dict[str, Any]], None]] = []


def note_slots(containers: Iterable[dict[str, Any]]) -> None:
    """Inform the runs that are being recorded that parameters in these containers will be replaced."""
    for note in _NOTING:
        for container in containers:
            note(container)


_device = operator.attrgetter('device')


class _Random:
    """States of random number generators."""

    def __init__(self, devices: Iterable[torch.device]) -> None:
        devices = {d for d in devices if d.type not in ('cpu', 'meta')}
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            devices.add(torch.device('cuda', torch.cuda.current_device()))
        self.devices = sorted(devices, key=str)
        self.states = self._read()

    def _read(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.get_device_module(d).get_rng_state(d) for d in self.devices)]

    def is_unchanged(self) -> bool:
        return all(map(torch.equal, self.states, self._read()))

    def of_now(self) -> _Random:
        now = object.__new__(_Random)
        now.devices, now.states = self.devices, self._read()
        return now

    def restore(self) -> None:
        torch.set_rng_state(self.states[0])
        for device, state in zip(self.devices, self.states[1:]):
            torch.get_device_module(device).set_rng_state(state, device)


class _Module:
    """The buffers and the training flag of a module when it is called, without those of its children."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.training = module, module.training
        self.buffers = {
            name: (x, version_of(x), x.detach().clone()) for name, x in module._buffers.items() if x is not None
        }

    def keep_changed(self, also: Container[int]) -> None:
        """See :meth:`Surroundings.keep_changed`."""
        self.buffers = {
            name: (x, version, value)
            for name, (x, version, value) in self.buffers.items()
            if version_of(x) != version or id(x) in also
        }

    def refuse_graph(self) -> None:
        """Require that the module has no new buffer with a graph, which the node of the run would not include."""
        for name, x in self.module._buffers.items():
            if x is not None and x.grad_fn is not None and (name not in self.buffers or x is not self.buffers[name][0]):
                raise RuntimeError(
                    f'The function sets the buffer {name!r} of {kind_of(self.module)} to a tensor with a graph, which '
                    f'later steps could not differentiate. Set it to x.detach().'
                )

    def owns(self, x: Tensor) -> bool:
        """See :meth:`Surroundings.owns`."""
        return any(x is saved[0] for saved in self.buffers.values())

    def swap(self, copies: dict[int, Tensor]) -> Callable[[], None]:
        """Set the module to its recorded state, with copies of the buffers by their ids.

        Returns:
            The function that restores the current state.
        """
        module, training = self.module, self.module.training
        buffers = {name: module._buffers.get(name) for name in self.buffers}
        if self.training != training:  # an assignment to an attribute of a module is slow
            module.training = self.training
        for name, (x, _, _) in self.buffers.items():
            module._buffers[name] = copies[id(x)]

        def back() -> None:
            if module.training != training:
                module.training = training
            module._buffers.update(buffers)

        return back
