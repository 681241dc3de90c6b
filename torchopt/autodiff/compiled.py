# SPDX-License-Identifier: Apache-2.0
"""Functions of trees that ``torch.compile`` captures, and that are differentiable to every order.

``torch.compile`` finds the tensors that a function uses, and recognizes a function that it has seen: it compares the
values of the Python variables, and the shapes, dtypes and devices of the tensors.  Its backend receives a graph and these
tensors.  The one here makes the graph a :class:`StagedFunction` and computes nothing; the caller then runs this function
as one autograd node, as often as necessary, without further comparisons.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

from torchopt import tree
from torchopt.autodiff.modes import first_sample
from torchopt.autodiff.pure import apply_pure
from torchopt.autodiff.staged import Compiler, StagedFunction
from torchopt.autodiff.tape import Leaves
from torchopt.autodiff.variables import Remembered
from torchopt.numerics import in_transform, is_tracing

__all__ = ['Backend', 'compiled']

Backend = str | Compiler
"""The name of a backend of ``torch.compile``, or a function with the same arguments."""


def compiled(fun: Callable[..., Any], backend: Backend) -> Callable[..., Any]:
    """Transform a step, which is called several times with its own results, to be compiled once.

    Args:
        fun: A function ``(carry, *rest) -> (carry, *outputs)`` of trees.
        backend: What compiles the graphs.

    Returns:
        A function for arguments of the same structure, shapes and dtypes in each call.
    """
    call: _Call | None = None

    def run(*args: Any) -> Any:
        nonlocal call
        if is_tracing():
            return fun(*args)
        leaves, spec = tree.flatten(args)
        if call is None:
            call = _capture(fun, args, leaves, spec, _frontend(backend))
        return call(leaves)

    return run


class _Call(NamedTuple):
    """A function that was captured.

    Attributes:
        fun: The function of tensors; None if it computes nothing.
        inputs: Its arguments: indices of leaves, and tensors from outside.
        outputs: The leaves of the result: numbers of outputs of ``fun``, and other objects.
        others: The leaves of the arguments that are not tensors.
        spec: The structure of the result.
    """

    fun: StagedFunction | None
    inputs: Sequence[int | Tensor]
    outputs: Sequence[Any]
    others: list[Any]
    spec: Any

    def __call__(self, leaves: Sequence[Any]) -> Any:
        others = _others(leaves)
        if others != self.others:
            raise TypeError(
                f'compile: a leaf that is not a tensor changes between two steps: {self.others} and {others}. Convert '
                f'it to a tensor.'
            )
        y: Leaves = ()
        if self.fun is not None:
            y = apply_pure(self.fun, *[leaves[i] if isinstance(i, int) else i for i in self.inputs])
        return tree.unflatten(self.spec, [x.of(leaves, y) if isinstance(x, _Place) else x for x in self.outputs])


class _Place(NamedTuple):
    """The place of a tensor in the result: its index in the leaves of the arguments or in the outputs."""

    is_output: bool
    index: int

    def of(self, leaves: Sequence[Any], outputs: Leaves) -> Any:
        return outputs[self.index] if self.is_output else leaves[self.index]


class _Capture:
    """What a run of the captured function has used and returned."""

    current: _Capture | None = None

    def __init__(self) -> None:
        self.graph: _Graph | None = None
        self.used: list[Tensor] = []
        self.made: list[weakref.ref[Tensor]] = []


class _Graph:
    """A graph that ``torch.compile`` has captured; a call records its arguments."""

    def __init__(self, graph: torch.fx.GraphModule, compiler: Compiler) -> None:
        self.graph, self.compiler = graph, compiler
        self.outputs = len(graph.graph.find_nodes(op='output')[0].args[0])
        self.functions: dict[tuple[int, ...], StagedFunction] = {}

    def __call__(self, *args: Tensor) -> list[Tensor]:
        capture = _Capture.current
        assert capture is not None
        # The results are placeholders: only their places in the result of the function matter.
        made = [torch.empty(0) for _ in range(self.outputs)]
        capture.graph, capture.used, capture.made = self, list(args), [weakref.ref(x) for x in made]
        return made

    def function(self, carried: Sequence[int]) -> StagedFunction:
        """The graph as a function, some of whose arguments are carried."""
        key = tuple(carried)
        if key not in self.functions:
            self.functions[key] = StagedFunction(lambda *x: self.graph(*x), self.compiler, carried)
        return self.functions[key]


@functools.lru_cache(maxsize=64)
def _frontend(backend: Backend) -> Callable[..., _Graph]:
    """The backend for ``torch.compile`` that only captures; one object for each backend, since it is compared."""

    def capture(graph: torch.fx.GraphModule, _: Sequence[Any]) -> _Graph:
        from torch._dynamo import lookup_backend  # takes long to import

        return _Graph(graph, lookup_backend(backend))

    return capture


def _capture(fun: Callable[..., Any], args: Any, leaves: Sequence[Any], spec: Any, frontend: Any) -> _Call:
    _check_leaves(leaves)
    carried = len(tree.leaves(args[0]))
    original: dict[int, Tensor] = {}
    with _alone():
        inside = [_stand_in(x, original) for x in leaves]
        place = {id(x): i for i, x in enumerate(inside) if isinstance(x, Tensor)}
        if in_transform():
            fun = Remembered(fun).replaced(lambda x: _without_transforms(x, original))
        capture, before = _Capture(), _Capture.current
        with temporarily_clear_interpreter_stack(), torch.enable_grad():
            _Capture.current = capture
            try:
                result = torch.compile(fun, backend=frontend, fullgraph=True, dynamic=False)(*tree.unflatten(spec, inside))
            except Exception as error:
                if not type(error).__module__.startswith('torch._dynamo'):
                    raise
                raise RuntimeError(_FAILED.format(str(error).partition('\n\n')[0])) from error
            finally:
                _Capture.current = before
        found, result_spec = tree.flatten(result)
        del result
        made = {id(reference()): j for j, reference in enumerate(capture.made)}

        def place_of(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            if id(x) in made:
                return _Place(True, made[id(x)])
            return _Place(False, place[id(x)]) if id(x) in place else original.get(id(x), x)

        outputs = list(map(place_of, found))
        del found
        if any(reference() is not None for reference in capture.made):
            raise RuntimeError(
                'compile: the function stores a tensor in an object from outside, such as a list. Return it as a part '
                'of the output.'
            )
        inputs = [place.get(id(x), original.get(id(x), x)) for x in capture.used]
    _check_leaves([x for x in inputs if isinstance(x, Tensor)])
    function = None
    if capture.graph is not None:
        function = capture.graph.function([j for j, i in enumerate(inputs) if isinstance(i, int) and i < carried])
    return _Call(function, inputs, outputs, _others(leaves), result_spec)


_FAILED = (
    'compile: torch.compile cannot capture the function as one graph. Change the function, or run it without compile. '
    '{}'
)


def _others(leaves: Sequence[Any]) -> list[Any]:
    return [x for x in leaves if not isinstance(x, Tensor)]


def _check_leaves(leaves: Sequence[Any]) -> None:
    for x in leaves:
        if isinstance(x, Tensor) and type(x) not in (Tensor, nn.Parameter, nn.Buffer):
            raise TypeError(f'compile: the function uses a {type(x).__name__}; expected tensors of torch. Run it without compile.')
        if not isinstance(x, (Tensor, bool, int, float, complex, str, type(None))):
            raise TypeError(f'compile: a leaf is a {type(x).__name__}; expected tensors, numbers and None.')


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Without function modes, which ``torch.compile`` would capture, and without forward mode."""
    with torch._C.DisableTorchFunction(), forward_ad._set_fwd_grad_enabled(False):
        yield


def _stand_in(x: Any, original: dict[int, Tensor]) -> Any:
    """A tensor with the value of ``x`` outside of transforms, and another id."""
    if not isinstance(x, Tensor):
        return x
    plain = first_sample(x)
    original[id(plain)] = x
    return plain


def _without_transforms(x: Any, original: dict[int, Tensor]) -> Any:
    """A variable of a function with stand-ins for the tensors that belong to a transform."""
    if not any(map(_is_wrapped, tree.leaves(x))):
        return x
    return tree.map(lambda leaf: _stand_in(leaf, original) if _is_wrapped(leaf) else leaf, x)


def _is_wrapped(x: Any) -> bool:
    return isinstance(x, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(x)
