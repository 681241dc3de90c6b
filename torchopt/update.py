# SPDX-License-Identifier: Apache-2.0
"""Update parameters."""

from __future__ import annotations

from typing import Any

import torch

from torchopt import checks, elementwise, tree
from torchopt._C import dispatch
from torchopt.base import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    TransformationLike,
    check_impl,
    with_extra_args_support,
)
from torchopt.dtypes import is_inexact
from torchopt.graphs import as_non_leaf, carries_no_graph
from torchopt.kinds import kind_of
from torchopt.numerics import as_python_scalar, as_scalar_like, one_minus

__all__ = ['apply_updates', 'incremental_update', 'periodic_update', 'update_params']


def apply_updates(params: Any, updates: Any, *, inplace: bool | None = None) -> Any:
    """Add updates to parameters, the last operation of a step.

    With ``inplace=None``, a parameter is updated in place if it is a leaf that requires grad, its update has no graph,
    and the code runs outside of ``torch.func`` transforms and compilation.  This is plain training, and the module that
    owns the parameter is trained.  All other parameters are updated out of place and differentiably.

    Pass ``inplace=False`` in a loop through which you differentiate (``create_graph=True``).  The first update of some
    transformations has no graph: ``rprop``, ``adopt``, ``apply_every`` and ``MultiSteps``.  With ``inplace=None`` it
    would be written into the initial parameters, and the backward pass would raise torch's error that a variable needed
    for gradient computation has been modified by an inplace operation.

    Args:
        params: Tree of tensors.
        updates: Tree of the same structure and shapes; ``None`` keeps a parameter unchanged.
        inplace: True updates every parameter in place (outside autograd), False none.  A tensor that occurs in several
            places is updated for each of them, as by ``torch.optim``.

    Returns:
        The new parameters, in the dtype of the old ones.

    Raises:
        ValueError: If structures or shapes differ; the message names the path of the first such leaf.
        TypeError: If a parameter with an update has an integer dtype, or is real and its update is complex.
        RuntimeError: If ``inplace=True`` and a parameter is not writable, such as an expanded tensor.

    Example:
        >>> import torch, torchopt
        >>> torchopt.apply_updates({'w': torch.tensor(1.0)}, {'w': torch.tensor(-0.25)})
        {'w': tensor(0.7500)}
    """
    leaves, spec = tree.flatten(params)
    deltas = tree.flatten_up_to(spec, updates, name='updates', like='params')
    present = [i for i, u in enumerate(deltas) if u is not None]
    plain = inplace
    if plain is None:
        roles = {
            is_inexact(p) and is_inexact(u) and carries_no_graph(p, u) for p, u in zip(leaves, deltas) if u is not None
        }
        plain = roles.pop() if len(roles) == 1 else None
    if plain is not None and present:
        moved = dispatch.step(
            (), (), [deltas[i] for i in present], (), [leaves[i] for i in present], inplace=plain, onto_params=True
        )
        if not isinstance(moved, dispatch.Unsupported):
            for i, x in zip(present, moved[0]):
                leaves[i] = x
            return tree.unflatten(spec, leaves)
    for i, (p, u) in enumerate(zip(leaves, deltas)):
        if u is not None and not _fits(p, u):
            _raise_misfit(params, i, p, u)
    return tree.unflatten(spec, [_apply(p, u, inplace) for p, u in zip(leaves, deltas)])


def incremental_update(new_tensors: Any, old_tensors: Any, step_size: Any) -> Any:
    r"""Move slow copies of parameters towards the parameters: :math:`\eta\, x_\text{new} + (1 - \eta)\, x_\text{old}`.

    Args:
        new_tensors: Tree of tensors; a leaf of None gives None.
        old_tensors: The slow copies, a tree of the same structure.
        step_size: :math:`\eta`, a number or a 0-d tensor.

    Raises:
        ValueError: If structures differ.

    Example:
        >>> import torch, torchopt
        >>> torchopt.update.incremental_update([torch.tensor(1.0)], [torch.tensor(3.0)], 0.25)
        [tensor(2.5000)]

    References:
        Polyak and Juditsky, `Acceleration of stochastic approximation by averaging
        <https://doi.org/10.1137/0330046>`_, 1992.
    """
    rest = one_minus(step_size)
    return tree.map(
        lambda x, y: as_scalar_like(step_size, x) * x + as_scalar_like(rest, y) * y, new_tensors, old_tensors
    )


def periodic_update(new_tensors: Any, old_tensors: Any, steps: Any, update_period: Any) -> Any:
    """Replace slow copies of parameters periodically.

    Args:
        new_tensors: Tree of tensors.
        old_tensors: The slow copies, a tree of the same structure.
        steps: The number of steps so far, an int or a 0-d tensor.
        update_period: The copies are replaced if ``steps`` is a multiple of it.

    Returns:
        One of the two given trees if ``steps`` is available on the host without synchronization; otherwise, on a
        device and in transforms, a new tree.

    Raises:
        ValueError: If ``update_period`` is less than 1.

    Example:
        >>> import torchopt
        >>> [torchopt.update.periodic_update('new', 'old', steps, 2) for steps in range(4)]
        ['new', 'old', 'new', 'old']

    References:
        Mnih et al., `Human-level control through deep reinforcement learning <https://doi.org/10.1038/nature14236>`_,
        2015.
    """
    checks.at_least('update_period', update_period, 1)
    due = steps % update_period == 0
    known = as_python_scalar(due) if isinstance(due, torch.Tensor) else due
    if known is not None:
        return new_tensors if known else old_tensors
    return tree.where(due, new_tensors, old_tensors)


def update_params(
    optimizer: TransformationLike, grads: Any, state: Any, params: Any, *, inplace: bool = False, **extra: Any
) -> tuple[Any, Any]:
    r"""Take one step: the new parameters :math:`p + u(g, s, p)` and the new state.

    This is ``optimizer.update`` followed by :func:`apply_updates`, in one pass over the parameters where the last
    members of the transformation are elementwise, as in most optimizers; otherwise in two.

    Out of place, the step is a differentiable function of the gradients, the state and the parameters, also if these
    are leaves.  So in a loop of plain training, pass ``inplace=True``, or call it under ``torch.no_grad()``; otherwise
    the graph grows with every step.

    Args:
        optimizer: The transformation.
        grads: Tree of gradients; ``None`` keeps a parameter, and its state, unchanged.
        state: The state of the transformation, from ``optimizer.init`` or the last step.
        params: Tree of the same structure and shapes.
        inplace: True writes into the parameters, and into the state where possible, outside autograd.  A tensor that
            occurs in several places is updated for each of them, as by ``torch.optim``.
        **extra: Extra arguments of ``optimizer.update``, such as ``value``.  Transformations that do not accept them
            ignore them.

    Returns:
        The new parameters, in the dtypes of the old ones, and the new state.

    Raises:
        TypeError: If ``optimizer`` is not a GradientTransformation, a parameter with a gradient has an integer dtype,
            or a gradient is complex and its parameter is real.
        ValueError: If structures or shapes differ, or ``params`` is None.
        RuntimeError: If ``inplace=True`` and a parameter is not writable, such as an expanded tensor.

    Example:
        >>> import torch, torchopt
        >>> optimizer, params = torchopt.sgd(0.5), {'w': torch.tensor(3.0)}
        >>> torchopt.update_params(optimizer, {'w': torch.tensor(1.0)}, optimizer.init(params), params)
        ({'w': tensor(2.5000)}, (EmptyState(),))
    """
    if not isinstance(optimizer, GradientTransformation):
        optimizer = check_impl(optimizer)
    if params is None:
        raise ValueError('params is None; expected the parameters to update. Pass the tree for which init was called.')
    if optimizer.adds_to_params:
        if not extra or not isinstance(optimizer, GradientTransformationExtraArgs):
            return optimizer.update(grads, state, params, inplace=inplace, onto_params=True)
        return optimizer.update(grads, state, params, inplace=inplace, onto_params=True, **extra)
    read = params if inplace else tree.map(as_non_leaf, params)
    if inplace and tree.structure(grads) == tree.structure(params):  # they differ for lookahead, which checks its own
        elementwise.check_updates(grads, params, inplace=True)
    updates, state = with_extra_args_support(optimizer).update(grads, state, read, inplace=inplace, **extra)
    return apply_updates(params, updates, inplace=inplace), state


def _fits(p: Any, u: Any) -> bool:
    return (
        isinstance(p, torch.Tensor)
        and getattr(u, 'shape', None) == p.shape
        and (p.is_complex() or (p.is_floating_point() and not u.is_complex()))
    )


def _apply(p: Any, u: Any, inplace: bool | None) -> Any:
    if inplace is None:
        inplace = p is not None and u is not None and carries_no_graph(p, u)
    return elementwise.add_to_leaf(p, u, inplace=inplace)


def _raise_misfit(params: Any, i: int, p: Any, u: Any) -> None:
    path = tree.flatten_with_path(params)[i][0]
    if p is None:
        raise ValueError(f'params{path} is None, but its update is not. Pass None as its update.')
    elementwise.check_inexact(p, name=f'params{path}')
    if not isinstance(u, torch.Tensor) or u.shape != p.shape:
        shape = tuple(u.shape) if hasattr(u, 'shape') else f'none, it is {kind_of(u)}'
        raise ValueError(
            f'updates{path} and params{path} must have the same shape: {shape} and {tuple(p.shape)}. '
            f'Pass the gradients of these parameters.'
        )
    raise TypeError(
        f'updates{path} is complex ({u.dtype}), but params{path} is real ({p.dtype}). Pass a real update, '
        f'or make the parameter complex.'
    )
