# SPDX-License-Identifier: Apache-2.0
"""Pure functions that are compiled: each runs as one first-order graph of ATen operations.

A compiler that differentiates a graph itself cannot differentiate the result again, and the steps of an inner loop
contain a gradient.  So the function and its derivatives are traced below autograd, each into a graph of its own:

- order 0, the function: traced once, compiled;
- order 1, its vector-Jacobian or Jacobian-vector product: traced when it is first needed, compiled;
- order 0 and 1 together, as two graphs, the first of which keeps what the second needs (:class:`Split`);
- higher orders: traced, and run operation by operation.

The graph of a derivative comes from the original function, which autograd differentiates during the trace.  The graph
of a function has lost what its own derivative needs (results that autograd saved appear in it as detached constants),
so it is never differentiated.  But it can be mapped over a batch: the derivative of a mapped function is the mapped
derivative, summed over the batch for the arguments that all samples share.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torchopt.autodiff import products
from torchopt.autodiff.pure import Pure
from torchopt.autodiff.replay import replay
from torchopt.autodiff.split import Split
from torchopt.autodiff.tape import Leaves
from torchopt.dtypes import is_inexact
from torchopt.levels import without_autocast
from torchopt.module_hooks import unhooked

Compiler = Callable[[torch.fx.GraphModule, list[Tensor]], Callable[..., Any]]
"""Compiles a graph for example inputs."""


class Staged(Pure):
    """A pure function that is traced, and compiled, once for each set of shapes, dtypes and devices.

    Args:
        compiler: What compiles the graphs.
        order: The number of derivatives that the function contains, beyond those of the user.
    """

    def __init__(self, compiler: Compiler, order: int) -> None:
        self.compiler, self.order = compiler, order
        self._graphs: dict[Any, torch.fx.GraphModule] = {}
        self._programs: dict[Any, Callable[..., Any]] = {}
        self._derived: dict[Any, Staged] = {}

    @abc.abstractmethod
    def target(self, *x: Tensor) -> Leaves:
        """The function, as it is traced."""

    def __call__(self, *x: Tensor) -> Leaves:
        """Run the compiled function, without a graph of autograd."""
        if True in map(torch._C._functorch.is_legacy_batchedtensor, x):  # of is_grads_batched=True, without memory
            graph = self.graph([torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in x])
            return tuple(graph(*x))
        x = tuple(map(as_compiled, x))
        return tuple(self.program(x)(*x))

    def program(self, x: Sequence[Tensor]) -> Callable[..., Any]:
        """The compiled function for arguments like these; see :func:`as_compiled`."""
        key = _signature(x)
        program = self._programs.get(key)
        if program is None:
            graph = self.graph(x)
            program = self._programs[key] = graph.forward if self.order > 1 else self._compile(graph, x)
        return program

    def _compile(self, graph: torch.fx.GraphModule, x: Sequence[Tensor]) -> Callable[..., Any]:
        if not any(node.op == 'call_function' for node in graph.graph.nodes):
            return graph
        with torch.no_grad(), without_autocast(['cpu', *(t.device.type for t in x)]):
            return self.compiler(graph, [t.detach() for t in x])

    def graph(self, x: Sequence[Tensor]) -> torch.fx.GraphModule:
        """The graph of the function for arguments like these."""
        key = _signature(x)
        if key not in self._graphs:
            self._graphs[key] = _trace(self.target, x)
        return self._graphs[key]

    def vjp(self, arity: int, wanted: list[int], given: list[int]) -> Staged:
        """See :meth:`Pure.vjp`."""
        return self._once(_StagedVjp, arity, wanted, given)

    def jvp(self, arity: int, moving: list[int], outputs: list[int]) -> Staged:
        """See :meth:`Pure.jvp`."""
        return self._once(_StagedJvp, arity, moving, outputs)

    def batched(self, dims: Sequence[int | None], randomness: str) -> Staged:
        """See :meth:`Pure.batched`."""
        return self._once(_StagedBatch, list(dims), [])

    def _once(self, kind: Callable[..., Staged], *options: Any) -> Any:
        key = (kind, *(tuple(x) if isinstance(x, list) else x for x in options))
        if key not in self._derived:
            self._derived[key] = kind(self, *options)
        return self._derived[key]


class StagedFunction(Staged):
    """A function of tensors.

    Args:
        fun: The function; it is called outside of transforms and in grad mode only, and autograd may differentiate it.
        compiler: What compiles the graphs.
        values: Tensors with the shapes, dtypes and devices of the outputs.
        carried: The arguments that are results of earlier calls of this function, except in the first call.
        returned: The outputs that are arguments of later calls, except in the last call.  The first and the last call
            are differentiated and mapped over like all others, so that they use the same graphs.
    """

    def __init__(
        self,
        fun: Callable[..., Leaves],
        compiler: Compiler,
        values: Leaves,
        carried: Sequence[int],
        returned: Sequence[int],
    ) -> None:
        super().__init__(compiler, 0)
        self.fun, self.values, self.carried, self.returned = fun, values, carried, returned
        self._splits: dict[Any, Split] = {}

    def target(self, *x: Tensor) -> Leaves:
        """See :meth:`Staged.target`."""
        with torch.enable_grad():
            return [as_compiled(y) for y in self.fun(*x)]

    def split(self, x: Sequence[Tensor], wanted: list[int]) -> Split:
        """The function and its product for some arguments, compiled for arguments like these."""
        key = _signature(x), tuple(wanted)
        if key not in self._splits:
            given = [j for j, y in enumerate(self.values) if is_inexact(y)]
            examples = [
                torch.empty(y.shape, dtype=y.dtype, device=y.device) for y in map(self.values.__getitem__, given)
            ]

            def joint(*args: Tensor) -> Leaves:
                at, cotangents = args[: len(x)], args[len(x) :]
                with torch.no_grad():
                    y, pull = products.pulled_back(
                        lambda *some: self.target(*products.put(at, wanted, some)), [at[i] for i in wanted], given
                    )
                    return [*y, *map(as_compiled, pull(cotangents))]

            graph = _trace(joint, [*x, *examples])
            self._splits[key] = Split(
                graph, len(x), len(self.values), given, self._compile, x, fuses=self.compiler is not replay
            )
        return self._splits[key]

    @property
    def unshared(self) -> Sequence[int]:
        """The arguments that are carried."""
        return self.carried


class _StagedDerivative(Staged):
    """A derivative ``(*x, *vectors)`` of a function of ``x``."""

    def __init__(self, of: Staged, arity: int, some: list[int], others: list[int]) -> None:
        super().__init__(of.compiler, of.order + 1)
        self.of, self.arity, self.some, self.others = of, arity, some, others

    def _of_some(self, x: Sequence[Tensor]) -> Callable[..., Leaves]:
        return lambda *values: self.of.target(*products.put(x, self.some, values))

    @property
    def unshared(self) -> Sequence[int]:
        """The arguments that are carried, and the vectors, which are so as well."""
        return [*self.of.unshared, *range(self.arity, self.arity + self._vectors)]

    @property
    @abc.abstractmethod
    def _vectors(self) -> int:
        """The number of vectors."""


class _StagedVjp(_StagedDerivative):
    """The vector-Jacobian product, of the arguments ``some`` and the outputs ``others``."""

    def target(self, *args: Tensor) -> Leaves:
        """See :meth:`Staged.target`."""
        x, cotangents = args[: self.arity], args[self.arity :]
        _, pull = products.pulled_back(self._of_some(x), [x[i] for i in self.some], self.others)
        return pull(cotangents)

    @property
    def _vectors(self) -> int:
        return len(self.others)


class _StagedJvp(_StagedDerivative):
    """The Jacobian-vector product, of the arguments ``some`` and the outputs ``others``."""

    def target(self, *args: Tensor) -> Leaves:
        """See :meth:`Staged.target`."""
        x, tangents = args[: self.arity], args[self.arity :]
        fun = self._of_some(x)

        def outputs(*values: Tensor) -> Leaves:
            y = fun(*values)
            return [y[j] for j in self.others]

        return products.jvp(outputs, [x[i] for i in self.some], tangents)

    @property
    def _vectors(self) -> int:
        return len(self.some)


class _StagedBatch(Staged):
    """A function mapped over a batch.

    Args:
        of: The function.
        dims: 0 for each argument that is a batch, and None for the others.
        summed: The outputs that are summed over the batch.
    """

    def __init__(self, of: Staged, dims: list[int | None], summed: list[int]) -> None:
        super().__init__(of.compiler, of.order)
        self.of, self.dims, self.summed = of, dims, summed
        self.carried, self.returned = of.carried, of.returned

    def target(self, *x: Tensor) -> Leaves:
        """See :meth:`Staged.target`."""
        graph = self.of.graph([t if d is None else t.select(0, 0) for t, d in zip(x, self.dims)])
        y = torch.vmap(lambda *z: tuple(graph(*z)), in_dims=tuple(self.dims))(*x)
        return [z.sum(0) if j in self.summed else z for j, z in enumerate(y)]

    @property
    def unshared(self) -> Sequence[int]:
        """The arguments that are carried."""
        return self.of.unshared

    def vjp(self, arity: int, wanted: list[int], given: list[int]) -> Staged:
        """The mapped product; the cotangents of an argument that all samples share are summed."""
        derived = self.of.vjp(arity, wanted, given)
        dims = [*self.dims, *(None if j in self.summed else 0 for j in given)]
        return derived._once(_StagedBatch, dims, [k for k, i in enumerate(wanted) if self.dims[i] is None])

    def jvp(self, arity: int, moving: list[int], outputs: list[int]) -> Staged:
        """The mapped product."""
        derived = self.of.jvp(arity, moving, outputs)
        dims = [*self.dims, *(self.dims[i] for i in moving)]
        return derived._once(_StagedBatch, dims, [k for k, j in enumerate(outputs) if j in self.summed])


def _signature(x: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple([(t.shape, t.dtype, t.device) for t in x])


def as_compiled(x: Tensor) -> Tensor:
    """The tensor in the layout for which functions are compiled."""
    if x.is_complex() or x.is_neg():
        x = x.resolve_conj().resolve_neg()
    return x.contiguous()


def _trace(fun: Callable[..., Leaves], x: Sequence[Tensor]) -> torch.fx.GraphModule:
    """The operations of a function on arguments like these, below autograd, without those in place.

    A graph that writes into its own tensors could not be mapped over a batch of some arguments, nor split into two.
    """

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(fun(*tensors))

    # The tracer identifies tensors by their ids, so the examples must be distinct objects.  Our hooks of modules, to
    # which graphs belong, would compute with the constants of a graph.
    with torch.no_grad(), without_autocast(['cpu', *(t.device.type for t in x)]), _same_hooks(), unhooked():
        graph = _recorded(run, [t.detach() for t in x])
        _check(graph)
        if any(map(_writes, graph.graph.nodes)):
            examples = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in x]
            graph = _recorded(torch.func.functionalize(graph, remove='mutations'), examples)
    return graph


def _recorded(fun: Callable[..., Any], x: Leaves) -> torch.fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx  # takes long to import

    return make_fx(fun, tracing_mode='fake')(*x)


def _writes(node: torch.fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _check(graph: torch.fx.GraphModule) -> None:
    """Refuse what gives other results when it is run again."""
    inputs: set[torch.fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == 'placeholder':
            inputs.add(node)
        if node.op != 'call_function' or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise RuntimeError(
                f'compile: the function draws random numbers ({node.target}), which its recomputation could not '
                f'repeat. Draw them before, and pass them as tensors, one row for each step.'
            )
        if torch.Tag.data_dependent_output in node.target.tags:
            raise RuntimeError(
                f'compile: the function reads the value of a tensor ({node.target}), such as by item() or float(). '
                f'Compute with the tensor instead.'
            )
        for declared, x in zip(node.target._schema.arguments, node.args):
            used = x if isinstance(x, (list, tuple)) else [x]
            if declared.alias_info is None or not any(isinstance(y, torch.fx.Node) and y in inputs for y in used):
                continue
            if declared.alias_info.is_write:
                raise RuntimeError(_MUTATION.format(node.target))
            inputs.add(node)  # a view
        if node.target is torch.ops.aten.native_batch_norm.default and node.args[5] and node.args[3] is not None:
            raise RuntimeError(_MUTATION.format(node.target))


_MUTATION = (
    'compile: the function changes a tensor from outside in place ({}), such as a running statistic of batch '
    'normalization. Return the new value as a part of the carry, or set `track_running_stats=False`.'
)


@contextlib.contextmanager
def _same_hooks() -> Iterator[None]:
    """Restore whether saved-tensor hooks are allowed.

    A gradient of ``torch.func`` forbids them for its duration, and a captured graph that contains one ends with the
    state in which it was captured, which may have been inside of another gradient.
    """
    message = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()
    try:
        yield
    finally:
        if message is None:
            torch._C._autograd._saved_tensors_hooks_enable()
        else:
            torch._C._autograd._saved_tensors_hooks_disable(message)
