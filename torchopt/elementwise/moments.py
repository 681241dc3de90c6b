# SPDX-License-Identifier: Apache-2.0
"""Moments of the gradient: their initial values, and the function that updates them.

Only this module implements ``inplace``: :func:`apply_rule` writes the new moments into the
storage of the old ones.  Rules themselves are pure functions of single leaves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from torchopt.dtypes import is_inexact, real_dtype
from torchopt.graphs import detach_graph
from torchopt.kinds import kind_of
from torchopt.levels import is_tracing
from torchopt.numerics import in_single
from torchopt.tree.ops import describe_shapes, map, map_with_path
from torchopt.tree.registry import flatten, flatten_up_to, flatten_with_path, unflatten


def zero_moment(
    params: Any, *, dtype: torch.dtype | None = None, real: bool = False, requires_grad: bool = False
) -> Any:
    """A tree of zeros like ``params``, the usual initial value of a moment.

    Args:
        params: Tree of floating or complex tensors; ``None`` leaves stay ``None``.
        dtype: Real dtype of the zeros, and of the two parts of complex ones; that of each parameter by default.
        real: Whether the moments of complex parameters are real, as for second moments.
        requires_grad: Whether the moments are leaves that require grad, so that they can be learned.

    Raises:
        TypeError: If a leaf is not a tensor of a floating or complex dtype; the message names its path.

    Example:
        >>> import torch, torchopt
        >>> torchopt.elementwise.zero_moment({'w': torch.ones(2, dtype=torch.complex64)}, real=True)
        {'w': tensor([0., 0.])}
    """
    return full_moment(params, 0.0, dtype=dtype, real=real, requires_grad=requires_grad)


def full_moment(
    params: Any,
    value: float | torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    real: bool = False,
    requires_grad: bool = False,
) -> Any:
    """Like :func:`zero_moment`, filled with ``value``, a number or a 0-d tensor, which may be learned.

    Example:
        >>> import torch, torchopt
        >>> torchopt.elementwise.full_moment([torch.ones(2)], 0.5)
        [tensor([0.5000, 0.5000])]
    """
    check_inexact(params, name='params')

    def fill(p: torch.Tensor) -> torch.Tensor:
        kind = dtype or real_dtype(p.dtype)
        if p.is_complex() and not real:
            kind = kind.to_complex()
        if isinstance(value, torch.Tensor):
            moment = torch.zeros_like(p, dtype=kind) + value.to(p.device, kind)
        else:
            moment = torch.full_like(p, value, dtype=kind) if value else torch.zeros_like(p, dtype=kind)
        return moment.requires_grad_() if requires_grad else moment

    return map(fill, params)


def check_inexact(tree: Any, *, name: str) -> None:
    """Require that every leaf is a tensor of a floating or complex dtype."""

    def check(path: str, x: Any) -> None:
        if not isinstance(x, torch.Tensor):
            raise TypeError(f'{name}{path} is {kind_of(x)}; expected a tensor. {_remedy(x)}')
        if not (x.is_floating_point() or x.is_complex()):
            raise TypeError(
                f'{name}{path} has dtype {x.dtype}; expected a floating or complex dtype. Leave integer tensors '
                f'out of the tree, or put None in their place.'
            )

    if not all(x is None or is_inexact(x) for x in flatten(tree)[0]):
        map_with_path(check, tree)


def require_real(given: Any, method: str, name: str = 'params') -> None:
    """Raise for complex tensors, for a method that compares numbers.

    Raises:
        TypeError: If there are any; the message names the path of the first.
    """
    for path, x in flatten_with_path(given):
        if isinstance(x, torch.Tensor) and x.is_complex():
            raise TypeError(
                f'{name}{path} is complex ({x.dtype}), but {method} requires real numbers. Wrap it in '
                f'torchopt.contrib.split_real_and_imaginary.'
            )


def _remedy(x: Any) -> str:
    if isinstance(x, torch.nn.Module):
        return 'Pass dict(module.named_parameters()).'
    if isinstance(x, Iterator):
        return 'Pass a tree of tensors, such as dict(module.named_parameters()) or list(module.parameters()).'
    return 'Convert it with torch.as_tensor, or put None in its place.'


def check_updates(updates: Any, params: Any, *, inplace: bool = False) -> None:
    """Require that updates can be added to parameters: same structure and shapes, complex only for complex parameters.

    Args:
        updates: Tree of tensors; leaves of None are skipped.
        params: Tree of tensors.
        inplace: Whether the updates will be added in place.

    Raises:
        ValueError: If structures or shapes differ; the message names the path of the first mismatch.
        TypeError: If an update or its parameter is not a tensor of a floating or complex dtype, or if the update is
            complex while the parameter is real.
        RuntimeError: If ``inplace`` and a parameter is not writable.
    """
    leaves, spec = flatten(updates)
    columns = flatten_up_to(spec, params, name='params', like='updates')
    for i, (g, p) in enumerate(zip(leaves, columns)):
        if g is None:
            continue
        if (
            getattr(g, 'shape', None) != getattr(p, 'shape', ())
            or not is_inexact(p)
            or (g.is_complex() and not p.is_complex())
        ):
            check_inexact(updates, name='updates')
            path = flatten_with_path(updates)[i][0]
            if not isinstance(p, torch.Tensor) or g.shape != p.shape:
                raise ValueError(describe_shapes(g, p, f'updates{path}', f'params{path}'))
            check_inexact(p, name=f'params{path}')
            raise TypeError(describe_complex(g, p, f'updates{path}', f'params{path}'))
        if inplace and _overlaps(p):
            path = flatten_with_path(updates)[i][0]
            raise RuntimeError(
                f'params{path} cannot be written to in place: several of its elements share memory, as in expanded '
                f'tensors. Pass its clone(), or take the step with inplace=False.'
            )
    if inplace:
        check_writable([p for g, p in zip(leaves, columns) if g is not None])


def describe_complex(x: torch.Tensor, y: torch.Tensor, name: str, like: str) -> str:
    """The error message for a complex ``x`` and a real ``y``."""
    return (
        f'{name} is complex ({x.dtype}), but {like} is real ({y.dtype}). Pass a real update, or make the parameter '
        f'complex.'
    )


def apply_rule(
    rule: Callable[..., Any],
    updates: Any,
    *moments: Any,
    reads: Sequence[Any] = (),
    inplace: bool = False,
    whole: bool = False,
) -> tuple[Any, ...]:
    """Apply a rule to every leaf of a tree.

    The rule maps one leaf of each tree to the new leaves: ``rule(g, *moments, *reads) -> (u, *moments)``.  If an update
    is ``None``, the rule is not called, the update stays ``None`` and the moments do not change.

    Args:
        rule: Pure function of tensors of one shape, returning a tuple of tensors of that shape.
        updates: Tree of tensors, the gradients or the updates of earlier transformations.
        *moments: Trees of the same structure, which the rule updates.
        reads: Trees of the same structure, which the rule only reads (parameters).
        inplace: Write the new moments into the storage of the old ones, outside autograd.  Expanded
            moments are not writable, and are replaced instead.
        whole: Whether the rule is not elementwise.  Then the moment of a leaf may be any object, also a tree; nothing
            is written in place or converted.

    Returns:
        The new updates, followed by the new moments, each a tree.  Moments keep their dtype.

    Raises:
        ValueError: If structures or shapes differ; the message names the path of the first mismatch.
        TypeError: If an update has an integer or boolean dtype, or is complex while its moment is real.
        RuntimeError: If an update is sparse.

    Example:
        >>> import torch, torchopt
        >>> g, m = {'b': None, 'w': torch.tensor(1.0)}, {'b': torch.tensor(4.0), 'w': torch.tensor(4.0)}
        >>> torchopt.elementwise.apply_rule(lambda g, m: (-g, m + g), g, m)
        ({'b': None, 'w': tensor(-1.)}, {'b': tensor(4.), 'w': tensor(5.)})
    """
    leaves, spec = flatten(updates)
    columns = [flatten_up_to(spec, m, name='state', like='updates') for m in moments]
    columns += [flatten_up_to(spec, r, name='params', like='updates') for r in reads]
    if whole:
        check_inexact(updates, name='updates')
        for params in reads:
            check_updates(updates, params)
    else:
        check_columns(updates, leaves, columns, len(moments))
        rule = in_single(rule)
    moved = move_columns(rule, leaves, columns, len(moments), replace if whole else lay_into if inplace else keep_dtype)
    return tuple(unflatten(spec, column) for column in moved)


def check_columns(updates: Any, leaves: Sequence[Any], columns: Sequence[Sequence[Any]], moments: int) -> None:
    """Require that all tensors of a leaf have its shape, and that updates are dense and floating or complex.

    Args:
        updates: The tree, for the paths in error messages.
        leaves: Its leaves.
        columns: Lists with a tensor for each leaf; the moments come first.
        moments: The number of columns that are moments.
    """
    for i, g in enumerate(leaves):
        if g is None:
            continue
        if not is_inexact(g) or g.layout is not torch.strided:
            _raise_mismatch(updates, i, (g, *(column[i] for column in columns)), moments + 1)
        shape = g.shape
        for column in columns:
            if getattr(column[i], 'shape', None) != shape:
                _raise_mismatch(updates, i, (g, *(column[i] for column in columns)), moments + 1)


def check_writable(leaves: Sequence[Any]) -> None:
    """Require that tensors can be written to in the current mode.

    Raises:
        RuntimeError: If a tensor was created in inference mode, and this is not inference mode.
    """
    if is_tracing() or torch.is_inference_mode_enabled():
        return
    if any(isinstance(x, torch.Tensor) and x.is_inference() for x in leaves):
        raise RuntimeError(
            'inplace=True, but a moment or a parameter was created under torch.inference_mode() and is writable '
            'only there. Call update with inplace=False, or create the state outside inference mode.'
        )


def move_columns(
    rule: Callable[..., Any],
    leaves: Sequence[Any],
    columns: Sequence[Sequence[Any]],
    moments: int,
    store: Callable[[Any, Any], Any],
) -> list[Sequence[Any]]:
    """Apply a rule to checked leaves, and return the columns of updates and moments."""
    n = moments + 1
    rows: list[Any] = list(zip(leaves, *columns))
    with torch.no_grad() if store is lay_into else contextlib.nullcontext():
        for i, row in enumerate(rows):
            if row[0] is None:
                rows[i] = row[:n]
            else:
                new = rule(*row)
                rows[i] = (new[0], *map(store, row[1:n], new[1:]))
    return list(zip(*rows)) if rows else [()] * n


def add_to_leaf(p: Any, u: Any, *, inplace: bool) -> Any:
    """Add an update to one parameter, in the dtype of the parameter; None keeps it unchanged."""
    if p is None or u is None:
        return p
    if inplace:
        with torch.no_grad():
            return p.add_(u)
    new = p + u
    return new if new.dtype == p.dtype else new.to(p.dtype)


def replace(old: Any, new: Any) -> Any:
    """The new moment."""
    return new


def keep_dtype(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The new moment, in the dtype of the old one."""
    if new.dtype == old.dtype:
        return new
    if new.is_complex() and not old.is_complex():
        raise TypeError(describe_complex(new, old, 'The update of a parameter', 'its moment in the state'))
    return new.to(old.dtype)


def lay_into(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The new moment, in the storage of the old one."""
    new = keep_dtype(old, new)
    if _overlaps(old):
        return new
    old.copy_(new)
    return old if old.grad_fn is None else detach_graph(old)  # its graph belongs to the old value


def _overlaps(x: torch.Tensor) -> bool:
    """Whether several elements of ``x`` may share memory, as in expanded tensors."""
    return not x.is_contiguous() and any(step == 0 and n > 1 for step, n in zip(x.stride(), x.shape))


def _raise_mismatch(updates: Any, i: int, row: tuple[Any, ...], n: int) -> None:
    path = flatten_with_path(updates)[i][0]
    g = row[0]
    check_inexact(updates, name='updates')
    if g.layout is not torch.strided:
        raise RuntimeError(
            f'updates{path} has layout {g.layout}; only dense tensors are supported. Pass sparse=False to the layer '
            f'that creates it, or its to_dense().'
        )
    for j, x in enumerate(row[1:], 1):
        like = 'state' if j < n else 'params'
        if not isinstance(x, torch.Tensor) or x.shape != g.shape:
            raise ValueError(describe_shapes(g, x, f'updates{path}', f'its {like}'))
