# SPDX-License-Identifier: Apache-2.0
"""Functions of trees that ``torch.compile`` captures, and that are differentiable to every order.

``torch.compile`` finds the tensors that a function uses, and recognizes a function that it has seen: it compares the
values of the Python variables, and the shapes, dtypes and devices of the tensors.  Its backend receives a graph and
these tensors.  The one here makes the graph a :class:`StagedFunction` and computes nothing; the caller then runs this
function as one autograd node, as often as necessary, without further comparisons.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import operator
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack

from torchopt import tree
from torchopt._C.dispatch import recording
from torchopt.autodiff.modes import Replace, first_sample
from torchopt.autodiff.products import is_autograd_off
from torchopt.autodiff.pure import apply_pure
from torchopt.autodiff.replay import replay
from torchopt.autodiff.staged import Compiler, StagedFunction
from torchopt.autodiff.steps import Loop, run_loop
from torchopt.autodiff.tape import Leaves
from torchopt.autodiff.variables import Remembered
from torchopt.kinds import kind_of
from torchopt.levels import in_transform, is_tensor, is_tracing
from torchopt.module_hooks import unhooked

Backend = str | Compiler
"""``'graph'``, the name of a backend of ``torch.compile``, or a function with the same arguments."""

REPLAY = 'graph'
"""The backend that runs the recorded graphs as they are; see :func:`torchopt.autodiff.replay.replay`."""


class Compiled:
    """A step, which is called several times with its own results, that is compiled once.

    Args:
        fun: A function ``(carry, x) -> (carry, y)`` of trees.  All calls have arguments of the same structure,
            shapes and dtypes.
        backend: What compiles the graphs.
    """

    def __init__(self, fun: Callable[..., Any], backend: Backend) -> None:
        self.fun, self.backend = fun, backend
        # A list, since a variable would be reset while an outer function is recomputed.
        self.calls: list[_Call] = []

    def __call__(self, *args: Any) -> Any:
        """Run one step."""
        if is_tracing() or is_autograd_off():
            return self.fun(*args)
        leaves, spec = tree.flatten(args)
        return self._captured(args, leaves, spec)(leaves)

    def steps(
        self, carry: Any, sequences: Sequence[Any], spec: Any, length: int, *, keep: bool, check: Callable[[Any], None]
    ) -> tuple[Any, Any] | None:
        """Run all steps with one autograd node.

        Args:
            carry: The first carry.
            sequences: The leaves of a tree of sequences.
            spec: The structure of this tree.
            length: The number of steps.
            keep: Whether what the backward pass needs is kept, not computed again.
            check: Called with the carry after the first step.

        Returns:
            The last carry and the results, whose tensors are stacked; None if the steps must be run one by one.
        """
        if is_tracing() or is_autograd_off() or in_transform():
            return None
        args = (carry, tree.unflatten(spec, [None if x is None else x[0] for x in sequences]))
        leaves, args_spec = tree.flatten(args)
        return self._captured(args, leaves, args_spec).steps(carry, leaves, sequences, length, keep, check)

    def _captured(self, args: Any, leaves: Sequence[Any], spec: Any) -> _Call:
        if not self.calls:
            with recording() if self.backend == REPLAY else contextlib.nullcontext():
                self.calls.append(_capture(self.fun, args, leaves, spec, _frontend(self.backend)))
        return self.calls[0]


class _Call(NamedTuple):
    """A function that was captured.

    The tensors of a call, ``(*tensors of the arguments, *fixed, *outputs of fun)``, have numbers: places in this list,
    those of the outputs counted from its end.

    Attributes:
        fun: The function of tensors; None if it computes nothing.
        fixed: Tensors from outside.
        inputs: The numbers of its arguments.
        outputs: The numbers of the leaves of the result; None for those that are not tensors.
        constants: The leaves of the result that are not tensors, at the same places as in ``outputs``.
        others: The leaves of the arguments that are not tensors.
        spec: The structure of the result.
    """

    fun: StagedFunction | None
    fixed: list[Tensor]
    inputs: list[int]
    outputs: list[int | None]
    constants: list[Any]
    others: list[Any]
    spec: Any

    def __call__(self, leaves: Sequence[Any]) -> Any:
        self._check(_others(leaves))
        found = [*filter(is_tensor, leaves), *self.fixed]
        if self.fun is not None:
            found += apply_pure(self.fun, *[found[i] for i in self.inputs])
        return tree.unflatten(self.spec, [x if i is None else found[i] for i, x in zip(self.outputs, self.constants)])

    def _check(self, others: list[Any]) -> None:
        if others != self.others:
            raise TypeError(
                f'compile: a leaf that is not a tensor changes between two steps: {self.others} and {others}. Convert '
                f'it to a tensor.'
            )

    def steps(
        self,
        carry: Any,
        leaves: Sequence[Any],
        sequences: Sequence[Any],
        length: int,
        keep: bool,
        check: Callable[[Any], None],
    ) -> tuple[Any, Any] | None:
        """See :meth:`Compiled.steps`; ``leaves`` are those of the arguments of the first step."""
        pair = tree.unflatten(self.spec, range(len(self.outputs)))
        if self.fun is None or not isinstance(pair, tuple) or len(pair) != 2:
            return None
        self._check(_others(leaves))
        following, carry_spec = tree.flatten(pair[0])
        n, count = len(following), len(tree.leaves(carry))

        def assembled(found: Iterator[Tensor], spec: Any, part: slice) -> Any:
            return tree.unflatten(
                spec, [x if i is None else next(found) for i, x in zip(self.outputs[part], self.constants[part])]
            )

        def check_first(tensors: Leaves) -> None:
            new = assembled(iter(tensors), carry_spec, slice(n))
            check(new)
            if length > 1:
                self._check(_others([*tree.leaves(new), *leaves[count:]]))

        carried, rows = list(filter(is_tensor, leaves[:count])), [s for s in sequences if s is not None]
        loop = Loop(
            self.fun,
            length,
            (len(carried), len(rows), len(self.fixed)),
            self.inputs,
            [i for i in self.outputs[:n] if i is not None],
            [i for i in self.outputs[n:] if i is not None],
            check_first,
        )
        found = iter(run_loop(loop, keep, *carried, *rows, *self.fixed))
        last = assembled(found, carry_spec, slice(n))
        return last, assembled(found, tree.flatten(pair[1])[1], slice(n, None))


class _Capture:
    """What a run of the captured function has used and returned."""

    def __init__(self) -> None:
        self.graph: _Graph | None = None
        self.custom: str | None = None
        self.used: list[Tensor] = []
        self.made: list[weakref.ref[Tensor]] = []

    def run(self, captured: Callable[..., Any], args: Any) -> Any:
        """Call the function, outside of all transforms; its result has placeholders instead of tensors."""
        token = _CAPTURE.set(self)
        try:
            with temporarily_clear_interpreter_stack(), torch.enable_grad(), _custom_functions_noted(self):
                return captured(*args)
        except Exception as error:
            if not type(error).__module__.startswith('torch._dynamo'):
                raise
            if type(error).__name__ == 'FailOnRecompileLimitHit':
                raise RuntimeError(_TOO_OFTEN) from error
            reason = _HIDDEN if in_transform() else str(error).partition('\n\n')[0]
            raise RuntimeError(f'{_FAILED} {reason}') from error
        finally:
            _CAPTURE.reset(token)


@contextlib.contextmanager
def _custom_functions_noted(capture: _Capture) -> Iterator[None]:
    """Note the name of a ``torch.autograd.Function``, since ``torch.compile`` may ignore its backward pass."""
    from torch._dynamo.variables import misc  # takes long to import

    variable: Any = getattr(misc, 'AutogradFunctionVariable', None)
    original = getattr(variable, 'call_apply', None)
    if original is None:
        raise RuntimeError(
            f'compile: whether a function calls a torch.autograd.Function, whose backward pass torch.compile may '
            f'ignore, is unknown in torch {torch.__version__}. Run it without compile, or with another release.'
        )

    def call_apply(self: Any, *args: Any, **kwargs: Any) -> Any:
        capture.custom = self.fn_cls.__name__
        return original(self, *args, **kwargs)

    variable.call_apply = call_apply
    try:
        yield
    finally:
        variable.call_apply = original


_CAPTURE: contextvars.ContextVar[_Capture] = contextvars.ContextVar('_CAPTURE')


class _Graph:
    """A graph that ``torch.compile`` has captured; a call records its arguments.

    Attributes:
        custom: The name of a ``torch.autograd.Function`` that the function calls.
        is_stable: Whether a second run of the same function is known to have the same graph.
    """

    def __init__(self, graph: torch.fx.GraphModule, compiler: Compiler) -> None:
        self.graph, self.compiler = graph, compiler
        self.values = [y.meta['example_value'] for y in graph.graph.find_nodes(op='output')[0].args[0]]
        self.functions: dict[Any, StagedFunction] = {}
        self.custom = _CAPTURE.get().custom
        self.is_stable = False

    def __call__(self, *args: Tensor) -> list[Tensor]:
        capture = _CAPTURE.get()
        made = [torch.empty(0) for _ in self.values]
        capture.graph, capture.used, capture.made = self, list(args), [weakref.ref(x) for x in made]
        return made

    def function(self, carried: tuple[int, ...], returned: tuple[int, ...]) -> StagedFunction:
        """The graph as a function, some of whose arguments and outputs are carried."""
        key = carried, returned
        if key not in self.functions:
            self.functions[key] = StagedFunction(self.graph.forward, self.compiler, self.values, carried, returned)
        return self.functions[key]


@functools.lru_cache(maxsize=64)
def _frontend(backend: Backend) -> Callable[..., _Graph]:
    """The backend for ``torch.compile`` that only captures; one object for each backend, since it is compared."""
    from torch._dynamo import list_backends, lookup_backend  # takes long to import

    if backend == REPLAY:
        return lambda graph, _: _Graph(graph, replay)
    if isinstance(backend, str) and backend not in list_backends(exclude_tags=()):
        raise ValueError(
            f'Invalid compile: {backend!r}; expected True, {REPLAY!r}, or a backend of torch.compile: '
            f'{list_backends()}.'
        )
    compiler = lookup_backend(backend)
    if backend == 'inductor':
        compiler = functools.partial(_with_inductor, compiler)
    return lambda graph, _: _Graph(graph, compiler)


def _with_inductor(
    compiler: Callable[..., Any], graph: torch.fx.GraphModule, x: Sequence[Tensor]
) -> Callable[..., Any]:
    """Compile a graph; on the CPU as one C++ file with all kernels and their calls.

    This takes less time than a file for each kernel, and calls of small kernels take less time than from Python.
    """
    on_cpu = all(t.device.type == 'cpu' for t in x)
    program: Callable[..., Any] = compiler(graph, x, **({'config_patches': {'cpp_wrapper': True}} if on_cpu else {}))
    return program


def _call(fun: Callable[..., Any], *args: Any) -> Any:
    return fun(*args)


def _call_with_views(fun: Callable[..., Any], *args: Any) -> Any:
    """Return results of the graph only.

    ``torch.compile`` reads an attribute of an argument that is returned, such as ``x.T``, outside of the graph.
    """
    return tree.map(lambda y: y.view_as(y) if isinstance(y, Tensor) else y, fun(*args))


@functools.lru_cache(maxsize=1024)
def _caller(code: types.CodeType | None, frontend: Any, call: types.FunctionType) -> Callable[..., Any]:
    """A compiled copy of :func:`_call` or of :func:`_call_with_views`, for a function that has this code.

    A call of ``torch.compile`` takes as long as a step of a small network.  ``torch.compile`` limits the number of
    captures for one piece of code, so each function has a caller with a piece of code of its own.
    """
    own = call.__code__.replace(co_name=code.co_name if code else 'call')
    return torch.compile(types.FunctionType(own, globals()), backend=frontend, fullgraph=True, dynamic=False)


def _capture(fun: Callable[..., Any], args: Any, leaves: Sequence[Any], spec: Any, frontend: Any) -> _Call:
    """Let ``torch.compile`` capture a function, or recognize it."""
    _check_leaves(leaves)
    _check_autocast(leaves)
    original: dict[int, Tensor] = {}
    with _alone():
        inside = [_stand_in(x, original) for x in leaves]
        if in_transform():
            fun = Remembered(fun).replaced(lambda x: _without_transforms(x, original))
        for call in (_call, _call_with_views):
            captured = functools.partial(_caller(getattr(fun, '__code__', None), frontend, call), fun)
            seen = _Capture()
            result = seen.run(captured, tree.unflatten(spec, inside))
            found, result_spec = tree.flatten(result)
            known = {*original, *map(id, seen.used), *(id(reference()) for reference in seen.made)}
            if known.issuperset(map(id, filter(is_tensor, found))):
                break
        first = len(tree.leaves(result[0])) if isinstance(result, tuple) and result else 0
        del result
        tensors = list(filter(is_tensor, inside))
        number = dict(zip(map(id, tensors), range(len(tensors))))
        number.update((id(reference()), j - len(seen.made)) for j, reference in enumerate(seen.made))
        fixed: list[Tensor] = []

        def number_of(x: Any) -> int | None:
            if not isinstance(x, Tensor):
                return None
            if id(x) not in number:
                number[id(x)] = len(tensors) + len(fixed)
                fixed.append(original.get(id(x), x))
            return number[id(x)]

        inputs: list[Any] = list(map(number_of, seen.used))
        used = len(fixed)
        outputs = list(map(number_of, found))
        constants = [None if isinstance(x, Tensor) else x for x in found]
        del found
        if any(reference() is not None for reference in seen.made):
            raise RuntimeError(
                'compile: the function stores a tensor in an object from outside, such as a list. Return it as a part '
                'of the output.'
            )
        if seen.graph is not None and seen.graph.custom is not None:
            raise RuntimeError(
                f'compile: the function calls {seen.graph.custom}, a torch.autograd.Function, whose backward pass '
                f'torch.compile ignores in some derivatives. Run the function without compile.'
            )
        if seen.graph is not None and not seen.graph.is_stable:
            again = _Capture()
            again.run(captured, tree.unflatten(spec, inside))
            if again.graph is not seen.graph:
                raise RuntimeError(
                    'compile: the function changes a Python variable that it reads, such as a counter. Make it a '
                    'tensor in the carry.'
                )
            seen.graph.is_stable = True
    _check_leaves(fixed[:used])
    function = None
    if seen.graph is not None:
        count = sum(map(is_tensor, tree.leaves(args[0])))
        function = seen.graph.function(
            tuple(j for j, i in enumerate(inputs) if i < count),
            tuple(sorted({len(seen.made) + i for i in outputs[:first] if i is not None and i < 0})),
        )
    return _Call(function, fixed, inputs, outputs, constants, _others(leaves), result_spec)


_FAILED = (
    'compile: torch.compile cannot capture the function as one graph. Change the function, or run it without compile.'
)
_TOO_OFTEN = (
    'compile: the function was compiled as often as torch._dynamo.config.recompile_limit allows, for other values of '
    'its Python variables or other shapes. Make variables that change, such as a learning rate, tensors, or raise the '
    'limit.'
)
_HIDDEN = 'Tensors that belong to a transform of torch.func must be in the arguments, or variables of the function.'


def _others(leaves: Sequence[Any]) -> list[Any]:
    return list(itertools.filterfalse(is_tensor, leaves))


def _check_autocast(leaves: Sequence[Any]) -> None:
    devices = set(map(operator.attrgetter('device'), filter(is_tensor, leaves)))
    for kind in {'cpu', *(device.type for device in devices)}:
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            raise RuntimeError('compile: autocast is on. Use torch.autocast inside of the function instead.')


_KINDS = {Tensor, nn.Parameter, nn.Buffer, bool, int, float, complex, str, type(None)}


def _check_leaves(leaves: Sequence[Any]) -> None:
    if _KINDS.issuperset(map(type, leaves)):
        return
    for x in leaves:
        if isinstance(x, Tensor) and type(x) not in (Tensor, nn.Parameter, nn.Buffer):
            raise TypeError(
                f'compile: the function uses {kind_of(x)}; expected tensors of torch. Run it without compile.'
            )
        if not isinstance(x, (Tensor, bool, int, float, complex, str, type(None))):
            raise TypeError(f'compile: a leaf is {kind_of(x)}; expected tensors, numbers and None.')


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Without our function modes and hooks, which ``torch.compile`` would capture, and without forward mode."""
    modes = any(isinstance(mode, Replace) for mode in _get_current_function_mode_stack())  # type: ignore[no-untyped-call]
    with (
        torch._C.DisableTorchFunction() if modes else contextlib.nullcontext(),
        forward_ad._set_fwd_grad_enabled(False),
        unhooked(),
    ):
        yield


def _stand_in(x: Any, original: dict[int, Tensor]) -> Any:
    """A tensor with the value of ``x`` outside of transforms, and another id."""
    if not isinstance(x, Tensor):
        return x
    plain = first_sample(x) if in_transform() else x.detach()
    original[id(plain)] = x
    return plain


def _without_transforms(x: Any, original: dict[int, Tensor]) -> Any:
    """A variable of a function with stand-ins for the tensors that belong to a transform."""
    if not any(map(_is_wrapped, tree.leaves(x))):
        return x
    return tree.map(lambda leaf: _stand_in(leaf, original) if _is_wrapped(leaf) else leaf, x)


def _is_wrapped(x: Any) -> bool:
    return isinstance(x, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(x)
