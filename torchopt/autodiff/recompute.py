# SPDX-License-Identifier: Apache-2.0
"""A call of a user's function as a pure function of tensors, which can be run again.

The first run records the inputs of the function: the tensors that it closes over, which become arguments, its variables
(:mod:`torchopt.autodiff.variables`) and its surroundings (:mod:`torchopt.autodiff.surroundings`).  Each later run
restores them.  An error is raised for the inputs that cannot be restored:

- a tensor from outside that the function changes in place, or that is changed in place afterwards (its version
  differs);
- a tensor that was not recorded, but has a derivative (it occurs in the graph of the result);
- any other change, such as that of a Python object (the value or the gradient differs).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.autodiff.comparison import SHORT, SameGradient, check_same, sums_of
from torchopt.autodiff.modes import Capture, Replace, allow_unused, matters, replacement_of, version_of
from torchopt.autodiff.products import GRADIENT_REMEDY, calls_autograd, gradients_of, is_autograd_off, put
from torchopt.autodiff.pure import Pure, apply_pure, own_hooks
from torchopt.autodiff.surroundings import Surroundings
from torchopt.autodiff.tape import Leaves
from torchopt.autodiff.variables import Remembered
from torchopt.graphs import depend, leaves_of
from torchopt.levels import in_transform, is_plain_level, is_tensor, is_tracing
from torchopt.sharding import refuse_fsdp
from torchopt.spelling import takes_only_a_function

_P = ParamSpec('_P')
_T = TypeVar('_T')


class Call(Pure):
    """``fun(*args, **kwargs)`` as a function of the tensors in its arguments and closures.

    Args:
        fun: A function of trees that returns a tree.
        leaves: The leaves of the pair of its positional and its keyword arguments.
        spec: The structure of this pair.
        keep_flags: Whether the tensors in the arguments require grad in every run if they do in the first.
        everywhere: Whether the tensors in the arguments are replaced wherever the function uses them, also in closures.
        call: ``call(fun, *args, **kwargs)`` calls the function in another way.

    Attributes:
        captured: The tensors that it closes over and that are differentiated or mapped over.
        needed: The ids of those that every run must use.
        shown: The ids of tensors in its variables that the function gets as views, which are results of an operation,
            since it uses some where modes do not intercept: in a ``torch.autograd.Function``, or as the result of a
            ``torch.vmap``.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        leaves: Sequence[Any],
        spec: Any,
        *,
        keep_flags: bool = False,
        everywhere: bool = False,
        call: Callable[..., Any] | None = None,
    ) -> None:
        self.fun = fun
        self.call = call
        self.spec = spec
        self.others: Sequence[Any] = ()
        self.places: Sequence[int] = range(len(leaves))
        if not all(map(is_tensor, leaves)):
            self.others = [None if isinstance(x, Tensor) else x for x in leaves]
            self.places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
        tensors = [leaves[i] for i in self.places]
        self.flags = [x.requires_grad for x in tensors] if keep_flags else []
        self.originals = tensors if everywhere else []
        self.captured: list[Tensor] = []
        self.needed: set[int] = set()
        self.constants: list[tuple[Any, int | None]] = []
        self.surroundings = Surroundings()
        self.shown: set[int] = set()
        self.sums: tuple[float, float] | None = None
        self.outputs: int | None = None

    def first(self, inside: Leaves) -> Leaves:
        """Run the function, and record its inputs."""
        self.remembered = Remembered(self.fun)
        seen = self._recorder(inside)
        with refuse_fsdp(lambda p: p.requires_grad), self.surroundings.noted(inside, seen), seen:
            outputs = seen.returned(self._run(self.fun, inside))
        self.surroundings.keep_changed(seen.statistics)
        if self._misses(seen, inside, outputs):
            del outputs
            self.shown = {id(x) for x in self._variables() if matters(x)}
            allow_unused(self.shown.difference(map(id, self._captured_by(seen, inside))))
            seen = self._recorder(inside)
            with self.surroundings.restored(), seen:
                outputs = seen.returned(self._run(self._again(), inside))
            if not in_transform() and self._misses(seen, inside, outputs):
                raise _HiddenTensorError
        if not seen.used:  # then no run needs a mode for them
            self.originals = []
        self.captured = self._captured_by(seen, inside)
        if seen.has_hidden:  # it may come from any of them, which runs under torch.func cannot detect
            self.shown |= set(map(id, self.captured))
        self.needed = set(map(id, self.captured)) - seen.optional
        self.seen: Capture | None = seen
        return outputs

    def _recorder(self, inside: Leaves) -> Capture:
        return Capture(inside, {id(x): t for x, t in zip(self.originals, inside)})

    def _captured_by(self, seen: Capture, inside: Leaves) -> list[Tensor]:
        mine = set(map(id, inside))
        return [x for i, x in seen.captured.items() if i not in mine]

    def _misses(self, seen: Capture, inside: Leaves, outputs: Leaves) -> bool:
        """Whether the result depends on tensors that were not recorded; in a transform, whether this is possible."""
        captured = self._captured_by(seen, inside)
        if in_transform():
            known = {id(x) for x in (*inside, *captured, *self.originals)}
            return any(id(x) not in known and matters(x) for x in self._variables())
        if seen.has_seen_all_nodes:
            return False
        ends = [*inside, *map(replacement_of, captured)]
        known = set(map(id, ends))
        until = [x.grad_fn for x in ends if x.grad_fn is not None]
        origins = leaves_of(_with_graph(outputs), until)
        return seen.uses_a_graph or any(id(x) not in known and not seen.has_made(x) for x in origins)

    def _variables(self) -> Iterator[Tensor]:
        """The tensors in the variables of the function."""
        for value in self.remembered.values():
            yield from (x for x in tree.leaves(value) if isinstance(x, Tensor))

    def _again(self) -> Callable[..., Any]:
        """The function with the variables of the first run; to be called within a mode, which intercepts the views."""
        if not self.shown:
            return self.remembered.again()
        views: dict[int, Tensor] = {}

        def view(x: Any) -> Any:
            if id(x) not in self.shown:
                return x
            if id(x) not in views:
                views[id(x)] = x.view_as(x)
            return views[id(x)]

        def replace(value: Any) -> Any:
            return tree.map(view, value) if any(id(x) in self.shown for x in tree.leaves(value)) else value

        return self.remembered.with_values(replace)

    def assemble(self, outputs: Leaves) -> Any:
        """The tree that the function returned, with these tensors."""
        rest = iter(outputs)
        return tree.unflatten(self.result_spec, [next(rest) if isinstance(x, _Hole) else x for x in self.result])

    def settle(self, outputs: Leaves) -> None:
        """Record what later runs are compared with: the constants, and sums over these outputs without a graph.

        To be called when the graph of the first run is gone, and with it the results of transforms that ended inside,
        which look like constants.
        """
        self._note_constants()
        self.sums = sums_of(outputs) if outputs else None

    def __call__(self, *x: Tensor) -> Leaves:
        """Run the function again with the recorded inputs."""
        self._check_constants()
        try:
            outputs = self._once_more(x)
        except _HiddenTensorError:
            if self.shown or not self.captured:
                raise
            self.shown = set(map(id, self.captured))
            outputs = self._once_more(x)
        check_same('value', outputs, self.sums)
        return outputs

    def _once_more(self, x: Leaves) -> Leaves:
        n = len(self.places)
        replacement = {id(c): t for c, t in zip(self.captured, x[n:])}
        replacement.update((id(c), t) for c, t in zip(self.originals, x))
        if True in self.flags and torch.is_grad_enabled() and not in_transform():
            x = tuple(
                t.detach().requires_grad_() if f and not t.requires_grad else t for t, f in zip_longest(x, self.flags)
            )
        try:
            with self.surroundings.restored() as buffers:
                # Buffers too, since functional_call may put the originals into a module again.
                mode = Replace({**buffers, **replacement})
                with mode if mode.ids else contextlib.nullcontext():
                    outputs = mode.returned(self._run(self._again(), x[:n]))
        except RuntimeError as error:
            if 'INTERNAL ASSERT FAILED' in str(error):  # a tensor of a transform that has ended
                raise _HiddenTensorError from error
            raise
        if not mode.used.issuperset(self.needed):
            raise RuntimeError(_OTHER)
        if not in_transform():
            self._check_graph(outputs, x)
        return outputs

    def _run(self, fun: Callable[..., Any], tensors: Leaves) -> Leaves:
        if self.others:
            tensors = put(self.others, self.places, tensors)
        args, kwargs = tree.unflatten(self.spec, tensors)
        result = fun(*args, **kwargs) if self.call is None else self.call(fun, *args, **kwargs)
        found, self.result_spec = tree.flatten(result)
        self.result = [_HOLE if isinstance(y, Tensor) else y for y in found]
        outputs = [y for y in found if isinstance(y, Tensor)]
        if self.outputs not in (None, len(outputs)):
            raise RuntimeError(
                f'The function returns {len(outputs)} tensors when it is recomputed, and {self.outputs} in the first '
                f'run. Its result must have the same structure with and without gradients: return tensors instead of '
                f'numbers.'
            )
        self.outputs = len(outputs)
        return outputs

    def _note_constants(self) -> None:
        assert self.seen is not None
        seen, self.seen = self.seen, None
        for reference, version in seen.constants.values():
            x = reference()
            if x is None or self.surroundings.owns(x):
                continue
            if version_of(x) != version or id(x) in seen.statistics:
                raise RuntimeError(
                    f'The function changes a tensor of shape {tuple(x.shape)} from outside in place, so it cannot '
                    f'be recomputed. Return the new value instead; buffers are restored for modules that are called.'
                )
            self.constants.append((reference, version))

    def _check_constants(self) -> None:
        for reference, version in self.constants:
            x = reference()
            if x is not None and version_of(x) != version:
                raise self.surroundings.changed_later(x)

    def _check_graph(self, outputs: Leaves, x: Leaves) -> None:
        """Raise if the result still depends on the tensors that were replaced."""
        until = [t.grad_fn for t in x if t.grad_fn is not None]
        if self.captured and depend(_with_graph(outputs), self.captured, until):
            raise _HiddenTensorError


_OTHER = (
    'The function uses other tensors when it is recomputed. It depends on an object that was changed after the first '
    'run, such as a module whose parameters were replaced. Pass this object as an argument.'
)


class _Hole:
    """The place of a tensor in a result."""


_HOLE = _Hole()


class _HiddenTensorError(RuntimeError):
    """The result depends on a tensor from outside that is not replaced."""

    def __init__(self) -> None:
        super().__init__(
            'The function depends on a tensor that is neither its argument nor its variable in a way that cannot be '
            'recomputed: through a torch.autograd.Function, as the result of a torch.vmap inside, or through a graph '
            'that was recorded before the call. Pass the tensor as an argument.'
        )


@takes_only_a_function
def checkpoint(fun: Callable[_P, _T]) -> Callable[_P, _T]:
    """Transform a function to keep only its inputs for the backward pass, and to recompute everything else there.

    This is ``jax.checkpoint``.  Unlike ``torch.utils.checkpoint``, it works for derivatives of every order, in forward
    mode, under every transform of ``torch.func`` and under ``torch.vmap``.

    The function may return any tree.  The result is differentiable with respect to the arguments, the tensors that the
    function closes over, and the parameters of the modules that it calls.  A recomputation uses the random numbers, the
    Python variables, and the parameters, buffers, training flags and autocast settings of the first run.  Under
    ``torch.compile`` this transform has no effect, since the compiler decides which tensors to keep.

    Args:
        fun: A function of trees.  It may be called several times.

    Returns:
        A function with the arguments and the value of ``fun``.

    Raises:
        TypeError: If ``fun`` is not callable.
        RuntimeError: Raised by the new function if it changes a tensor from outside in place, depends on one that is
            not a variable, such as an attribute, through a ``torch.autograd.Function``, or calls a module under FSDP.
            Raised in the backward pass if a tensor that it uses was changed in place after the first run, if the
            recomputed value differs, or if the derivative of an operation is not differentiable.

    Example:
        >>> import torch, torchopt
        >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> layer = torchopt.checkpoint(lambda x: torch.sin(weight * x))
        >>> y = layer(layer(torch.ones(2)))
        >>> torch.autograd.grad(y.sum(), weight)[0]
        tensor([ 0.9208, -0.0189])
    """
    checks.function('fun', fun)

    @functools.wraps(fun, updated=())
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if is_tracing() or is_autograd_off():
            return fun(*args, **kwargs)
        return _recomputed(fun, args, kwargs)

    return run


def _recomputed(fun: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """``fun(*args, **kwargs)`` with one autograd node, which recomputes it in the backward pass."""
    leaves, spec = tree.flatten((tuple(args), dict(kwargs)))
    call = Call(fun, leaves, spec, keep_flags=True)
    x = [leaves[i] for i in call.places]
    if is_plain_level():  # a single run suffices for the value and the inputs
        inside = [t.detach().requires_grad_(t.requires_grad) for t in x]
        with own_hooks():
            found = call.first(inside)
            outputs = [y.detach() for y in found]
        call.constant = [j for j, y in enumerate(found) if not y.requires_grad]
        del found
        call.settle(outputs)
    else:
        outputs = None
        _explore(call, x)
    return call.assemble(_with_node(call, call, x, outputs))


def recomputed_gradient(
    fun: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    wrt: Sequence[int],
    *,
    mixed: bool,
    total: bool = False,
    call: Callable[..., Any] | None = None,
) -> tuple[Any, list[Tensor | None]]:
    """The result of a function and the gradients of its first output, a scalar, with one autograd node.

    Args:
        fun: A function of trees that returns a scalar tensor and anything else.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        wrt: The tensors to differentiate with respect to, as indices among the tensors of the arguments.
        mixed: Whether products with the Hessian are computed forward over reverse.
        total: Whether the gradients also include the dependence through closures: on the same tensors, and on tensors
            that were computed from them before.  Transforms of ``torch.func`` do not support the latter.
        call: ``call(fun, *args, **kwargs)`` calls the function in another way; it has no variables that may change.

    Returns:
        The result and the gradients.  A gradient is None if the scalar is known not to depend on the tensor.
    """
    leaves, spec = tree.flatten((tuple(args), dict(kwargs)))
    run = Call(fun, leaves, spec, everywhere=total, call=call)
    x = [leaves[i] for i in run.places]
    known: list[Tensor] | None = None
    used = list(wrt)
    if is_plain_level():  # a single run suffices for the value and the inputs
        inside = [t.detach() for t in x]
        for i in wrt:
            inside[i].requires_grad_()
        with own_hooks(), torch.enable_grad():
            value, *aux = run.first(inside)
            ends = {i: inside[i] for i in wrt}
            if total:
                arguments = [x[i] for i in wrt]  # from which closed-over tensors may have been computed
                ends |= {
                    len(x) + j: c
                    for j, c in enumerate(run.captured)
                    if c.grad_fn is not None and depend([c], arguments)
                }
            found: Sequence[Tensor | None] = [None] * len(ends)
            if value.requires_grad and ends:
                one = [torch.ones_like(value)]
                found = gradients_of([value], one, list(ends.values()), retain_graph=False, create_graph=False)
        used = [i for i, g in zip(ends, found) if g is not None]
        results = [y.detach() for y in (value, *aux)]
        del value, aux
        run.settle(results)
        known = [*_moved([g for g in found if g is not None]), *results]
    else:
        _explore(run, x)
    compared = known[: len(used)] if known is not None and _needs_node(run, x) else None
    gradient = SameGradient(run, used, mixed, run.sums, compared)
    outputs = _with_node(run, gradient, x, known)
    partial = dict(zip(used, outputs))
    gradients = [partial.get(i) for i in wrt]
    if through := [i for i in used if i >= len(x)]:
        more = torch.autograd.grad(
            [run.captured[i - len(x)] for i in through],
            [x[i] for i in wrt],
            [partial[i] for i in through],
            create_graph=torch.is_grad_enabled(),
            retain_graph=True,
            allow_unused=True,
        )
        gradients = [g if m is None else m if g is None else g + m for g, m in zip(gradients, more)]
    return run.assemble(outputs[len(used) :]), gradients


def _moved(gradients: list[Tensor]) -> list[Tensor]:
    """Copies of large gradients, when the results of the run are freed.

    They outlive the run, and would lie between the places of its results, which the next run then could not use whole:
    one step of Adam more took 2.4 times as much memory as its parameters, its gradient and its moments need.
    """
    return gradients if sum(map(Tensor.numel, gradients)) <= SHORT else [g.clone() for g in gradients]


def _explore(call: Call, x: Leaves) -> None:
    """Run a function only to record its inputs."""
    try:
        with torch.no_grad() if in_transform() else contextlib.nullcontext():
            # Of other identity, since a function that closes over its argument itself depends on it in two ways.
            call.first([t.view_as(t) for t in x])
            call.settle([])
    except RuntimeError as error:
        if not (in_transform() and calls_autograd(error)):
            raise
        raise RuntimeError(
            f'A function that is recomputed within a transform of torch.func calls torch.autograd.grad or backward(). '
            f'{GRADIENT_REMEDY} Or pass checkpoint=None, which records its graph.'
        ) from error


def _needs_node(call: Call, x: Leaves) -> bool:
    """Whether the result of a first run outside of transforms is differentiated."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in (*x, *call.captured))


def _with_node(call: Call, fun: Pure, x: Leaves, known: Leaves | None) -> Leaves:
    if known is not None and not _needs_node(call, x):
        return known
    return apply_pure(fun, *x, *call.captured, known=known)


def _with_graph(outputs: Leaves) -> list[Tensor]:
    return [y for y in outputs if y.requires_grad]
