# SPDX-License-Identifier: Apache-2.0
"""Gradients and checks for the optimizer classes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, TypeGuard

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.autodiff.products import gradients_of, is_autograd_off
from torchopt.autodiff.recompute import recomputed_gradient
from torchopt.base import EmptyState, UninitializedState
from torchopt.dtypes import is_inexact
from torchopt.graphs import detach_graph
from torchopt.kinds import kind_of
from torchopt.levels import in_transform, is_tracing, runs_directly
from torchopt.sharding import check_gradients


def differentiable_gradients(loss: Any, params: Any, *, create_graph: bool = True) -> Any:
    """:func:`gradients_of_leaves` for a tree of parameters."""
    leaves, spec = tree.flatten(params)
    return tree.unflatten(spec, gradients_of_leaves(loss, leaves, create_graph=create_graph))


def gradients_of_leaves(loss: Any, leaves: Sequence[Any], *, create_graph: bool = True) -> list[Tensor | None]:
    """The gradient of a loss for each parameter, with a graph if ``create_graph``.

    It is ``None`` for parameters that do not require grad, and for those on which the loss does not depend.

    Raises:
        TypeError: If the loss is not a tensor, or complex.
        ValueError: If the loss has more than one element, or if no parameter requires grad.
        RuntimeError: If the loss has no graph, or the parameters are gathered parameters of FSDP.
    """
    _check_scalar(loss)
    _check_graph(loss)
    trainable = [p for p in leaves if isinstance(p, Tensor) and p.requires_grad]
    _check_any(trainable)
    found = gradients_of(
        (loss,), (torch.ones_like(loss),), trainable, retain_graph=create_graph, create_graph=create_graph
    )
    check_gradients(trainable, found)
    if len(trainable) == len(leaves):
        return list(found)
    gradient_of = dict(zip(map(id, trainable), found))
    return [gradient_of.get(id(p)) for p in leaves]


def is_closure(loss: Any, checkpoint: str | None) -> TypeGuard[Callable[..., Any]]:
    """Whether the loss of a step is a function, and not a tensor.

    Raises:
        ValueError: If ``checkpoint`` is unknown, or would have no effect on a tensor.
    """
    if checkpoint not in (None, 'reverse', 'mixed'):
        raise ValueError(f"Invalid checkpoint: {checkpoint!r}; expected None, 'reverse' or 'mixed'.")
    if callable(loss) and not isinstance(loss, Tensor):
        return True
    if checkpoint == 'mixed':
        raise ValueError(
            "checkpoint='mixed' has no effect on a loss that is a tensor, whose graph exists already. Pass a function "
            'that computes the loss.'
        )
    return False


@contextlib.contextmanager
def _without_own_backward() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if 'backward through the graph a second time' not in str(error):
            raise
        raise RuntimeError(
            'The graph of the loss was freed before the step could differentiate it. The function must only return the '
            'loss: leave out loss.backward(), since the step computes the gradients itself; and compute in it what an '
            'earlier backward pass has freed.'
        ) from error


def recomputed_gradients(
    closure: Callable[..., Any],
    params: Any,
    *,
    checkpoint: str | None,
    create_graph: bool = True,
    call: Callable[[Callable[..., Any], Any], Any] | None = None,
) -> tuple[Tensor, Any]:
    """The value of a loss and its gradients, whose graph is computed in the backward pass.

    Args:
        closure: ``closure(params)`` returns a tensor of one element.
        call: ``call(closure, params)`` calls the closure in another way.
        params: Tree of tensors; those that do not require grad are frozen, except under transforms of ``torch.func``.
        checkpoint: As for :func:`torchopt.value_and_grad`; :func:`is_closure` has checked it.
        create_graph: Whether value and gradients are differentiable.

    Returns:
        The value, and a tree like ``params``: ``None`` for frozen parameters, and for those that the loss does not
        depend on; under transforms, where this is not known, zeros for the latter.

    Raises:
        TypeError: If the loss is not a tensor, or complex.
        ValueError: If it has more than one element, or no parameter requires grad.
        RuntimeError: If the loss has no graph, and as :func:`torchopt.checkpoint`.
    """
    call = call or _call
    if checkpoint is None or is_tracing() or is_autograd_off():
        recorded = create_graph and torch.is_grad_enabled()
        with torch.enable_grad():
            loss = call(closure, params)
        with _without_own_backward():
            gradients = differentiable_gradients(loss, params, create_graph=recorded)
        return (loss if recorded else loss.detach()), gradients
    chosen = tree.Selection(params, lambda p: isinstance(p, Tensor))
    tensors = chosen.selected
    trained = [i for i, p in enumerate(tensors) if p.requires_grad or (in_transform() and is_inexact(p))]
    _check_any(trained)

    def loss_of(closure: Callable[..., Any], params: Any) -> Tensor:
        loss = call(closure, params)
        with torch._C.DisableTorchFunction():  # modes need not see what is read here
            _check_scalar(loss)
            if torch.is_grad_enabled() and not in_transform():
                _check_graph(loss)
        return loss

    with torch.set_grad_enabled(create_graph and torch.is_grad_enabled()), _without_own_backward():
        value, found = recomputed_gradient(
            closure, (params,), {}, trained, mixed=checkpoint == 'mixed', total=True, call=loss_of
        )
    check_gradients(tensors, found)
    by_number = dict(zip(trained, found))
    if len(set(map(id, tensors))) < len(tensors):
        by_number = _whole(tensors, by_number)
    return value, chosen.alone(by_number.get(i) for i in range(len(tensors)))


def _whole(tensors: Sequence[Tensor], gradients: Mapping[int, Tensor | None]) -> dict[int, Tensor | None]:
    """The gradients where a tensor occurs several times: at each place the sum of those for all of its places."""
    sums: dict[int, Tensor] = {}
    for i, g in gradients.items():
        if g is not None:
            before = sums.get(id(tensors[i]))
            sums[id(tensors[i])] = g if before is None else before + g
    return {i: sums.get(id(tensors[i])) for i in gradients}


def warn_of_repeated(params: Any) -> None:
    """Warn if a tensor occurs more than once: a step in place moves it as often."""
    tensors = [x for x in tree.leaves(params) if isinstance(x, torch.Tensor)]
    if len(set(map(id, tensors))) < len(tensors):
        checks.warn(
            'A tensor occurs more than once in params, and a step in place moves it once for each occurrence. Pass it '
            'once, or take the step out of place.'
        )


def _call(closure: Callable[..., Any], params: Any) -> Any:
    return closure(params)


def warn_of_no_gradient() -> None:
    """Warn that there is no gradient at all: the loss was probably computed from other parameters."""
    checks.warn(
        'The loss does not depend on any parameter of the optimizer, so that all gradients are None. Compute the loss '
        'from the current parameters: those of the last step, not copies or those of another module.'
    )


def _check_scalar(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(f'loss is {kind_of(loss)}; expected a scalar tensor. Pass the tensor, not its item().')
    if loss.numel() != 1:
        raise ValueError(f'loss has shape {tuple(loss.shape)}; expected a scalar. Reduce it, e.g. by loss.mean().')
    if loss.is_complex():
        raise TypeError(f'loss is complex ({loss.dtype}); expected a real scalar. Take its real part or its abs().')


def _check_graph(loss: Tensor) -> None:
    if not loss.requires_grad:
        raise RuntimeError(
            'loss has no graph: it does not depend on anything that requires grad. Compute it from the parameters, '
            'outside torch.no_grad(), and do not detach it.'
        )


def _check_any(trained: Sized) -> None:
    if not trained:
        raise ValueError(
            'No parameter requires grad, so there is nothing to optimize. Call requires_grad_() on the parameters to '
            'train.'
        )


def without_integers(params: Any) -> Any:
    """The same parameters, with None for those with an integer dtype, which never have gradients."""
    leaves, spec = tree.flatten(params)
    return tree.unflatten(spec, hide_integers(leaves, [None] * len(leaves)))


def hide_integers(params: Iterable[Any], grads: Iterable[Any]) -> list[Any]:
    """Like :func:`without_integers` for a sequence; only parameters without a gradient are checked."""
    return [None if g is None and isinstance(p, Tensor) and not is_inexact(p) else p for p, g in zip(params, grads)]


def with_integers(new: Any, params: Any) -> Any:
    """The new parameters, with the old ones where :func:`without_integers` put None."""
    leaves, spec = tree.flatten(params)
    moved = tree.flatten_up_to(spec, new, name='new parameters', like='params')
    return tree.unflatten(spec, [p if n is None else n for p, n in zip(leaves, moved)])


def as_leaf(p: Any, new: Any) -> Any:
    """A new leaf that requires grad if the old parameter did; an unchanged leaf stays the same tensor."""
    if not isinstance(new, Tensor) or (new is p and p.is_leaf):
        return new
    return detach_graph(new).requires_grad_(p.requires_grad)


def is_unrecorded() -> bool:
    """Whether a step is taken under ``torch.no_grad()``, so that its results would no longer require grad."""
    return not torch.is_grad_enabled() and runs_directly()


def check_states(state_dict: Any, count: int, first_state: Callable[[int], Any]) -> list[Any]:
    """Require a sequence with one state, of the kind of ``first_state(i)``, for each of ``count`` groups.

    Raises:
        TypeError: If it is not a sequence.
        ValueError: If the number of states, or the kind of one, differs.
    """
    if not isinstance(state_dict, (tuple, list)):
        raise TypeError(
            f'state_dict is {kind_of(state_dict)}; expected a tuple with one state for each group. Pass the '
            f'result of state_dict() of such an optimizer; states of torch.optim have another layout.'
        )
    if len(state_dict) != count:
        raise ValueError(
            f'state_dict holds {len(state_dict)} states, but this optimizer has {count} groups. First add the '
            f'groups with which it was saved.'
        )
    for i, state in enumerate(state_dict):
        if not isinstance(state, UninitializedState):
            check_same_kind(state, first_state(i), name=f'state_dict[{i}]')
    return list(state_dict)


_REMEDY = 'Load a state that this optimizer, with these options, saved for these parameters.'


def continued(state: Any, expected: Any, *, name: str, changed: Iterable[str]) -> Any:
    """The state with which an optimizer goes on after the options ``changed``; ``expected`` is a first state for them.

    Raises:
        ValueError: If the optimizer keeps another state with the new options.
    """
    state = _without_stateless_changes(state, expected)
    remedy = (
        f"The group's {', '.join(changed)} changed, and with this value the optimizer keeps another state. Restore the "
        f'value, or create a new optimizer.'
    )
    check_same_kind(state, expected, name=name, remedy=remedy)
    return state


def _without_stateless_changes(state: Any, expected: Any) -> Any:
    """The state of a chain, with parts that have no state, such as weight decay, only where ``expected`` has them."""
    if type(state) is tuple and type(expected) is tuple and len(state) != len(expected):
        parts = [part for part in state if not isinstance(part, EmptyState)]
        if len(parts) == sum(not isinstance(part, EmptyState) for part in expected):
            stateful = iter(parts)
            return tuple(part if isinstance(part, EmptyState) else next(stateful) for part in expected)
    return state


def check_same_kind(state: Any, expected: Any, *, name: str, remedy: str = _REMEDY) -> None:
    """Require that a state belongs to the same optimizer and to parameters of the same shapes.

    Raises:
        ValueError: If it does not; the message gives the path of the difference.
    """
    found, spec = tree.flatten(expected)
    values = tree.flatten_up_to(spec, state, name=name, like='the state of this optimizer', remedy=remedy)
    for i, (x, y) in enumerate(zip(found, values)):
        if getattr(x, 'shape', None) != getattr(y, 'shape', None) or _is_complex(x) != _is_complex(y):
            path = tree.flatten_with_path(expected)[i][0]
            raise ValueError(f'{name}{path} does not match: expected {_kind(x)}, found {_kind(y)}. {remedy}')


def _is_complex(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_complex()


def _kind(x: Any) -> str:
    if not isinstance(x, Tensor):
        return repr(x)
    return f'{"complex numbers of " if x.is_complex() else ""}shape {tuple(x.shape)}'
