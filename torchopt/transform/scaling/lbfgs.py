# SPDX-License-Identifier: Apache-2.0
"""L-BFGS: a quasi-Newton method that approximates the inverse Hessian from the last few steps."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import GradientTransformation, factory
from torchopt.elementwise import as_constant
from torchopt.elementwise.moments import check_writable
from torchopt.levels import runs_directly
from torchopt.numerics import advance, zero_count
from torchopt.preconditions import params_for, state_of
from torchopt.quasi_newton import Memory, Ring, first_scale, inverse_hessian_product, remember_step
from torchopt.scalars import where


@tree.safe_to_load
class ScaleByLBFGSState(NamedTuple):
    r"""State of :func:`scale_by_lbfgs`; the memories are ring buffers.

    Attributes:
        count: The step count.
        params: The parameters at the last step.
        updates: The gradients at the last step.
        diff_params_memory: The last differences of parameters, stacked along a new first dimension of each leaf.
        diff_updates_memory: The last differences of gradients, likewise.
        weights_memory: The weights :math:`\rho_j` of the pairs, in double precision; zero for skipped pairs.
    """

    count: Any
    params: Any
    updates: Any
    diff_params_memory: Any
    diff_updates_memory: Any
    weights_memory: Any


@factory
def scale_by_lbfgs(memory_size: int = 10, scale_init_precond: bool = True) -> GradientTransformation:
    r"""Multiply gradients by an approximation of the inverse Hessian, computed from the last :math:`m` steps.

    With the differences of parameters :math:`s_j = w_{j+1} - w_j` and of gradients :math:`y_j = g_{j+1} - g_j`, and
    the weights :math:`\rho_j = 1 / \langle y_j, s_j \rangle`, the approximation is :math:`H_k = H_k^{(m)}` of

    .. math::
        H_k^{(0)} = \gamma_k I, \qquad
        H_k^{(i+1)} = (I - \rho_j s_j y_j^\mathsf{T})\, H_k^{(i)}\, (I - \rho_j y_j s_j^\mathsf{T})
        + \rho_j s_j s_j^\mathsf{T}, \qquad j = k - m + i,

    where :math:`\gamma_k = \langle s_{k-1}, y_{k-1} \rangle / \lVert y_{k-1} \rVert^2`, and
    :math:`\gamma_0 = \min(1, 1 / \lVert g_0 \rVert)`, so that the length of the first step is at most 1; as in Optax,
    :math:`\gamma_0` is a constant in derivatives.  The product :math:`H_k g_k` takes :math:`4 m` vector operations.

    A pair without positive curvature, :math:`\langle y_j, s_j \rangle \le \epsilon \lVert y_j \rVert
    \lVert s_j \rVert` with the machine precision :math:`\epsilon`, would make :math:`H_k` indefinite.  It is replaced
    by zeros with the weight zero, and :math:`\gamma_k = 1`.  So :math:`H_k` is positive definite; if rounding prevents
    this, the updates are :math:`\gamma_k g_k`.  Internal scaling avoids overflow and underflow.

    The updates are :math:`H_k g_k`.  Negate them for a descent direction, and use a line search for the step size,
    like :func:`torchopt.lbfgs`.  For complex parameters, inner products are replaced by their real parts.

    Args:
        memory_size: :math:`m`, at least 1.
        scale_init_precond: Whether to start from :math:`\gamma_k I`; otherwise from :math:`I`.

    Returns:
        A transformation whose ``update`` requires ``params``.  Parameters without gradients do not contribute.

    Raises:
        ValueError: If ``memory_size`` is less than 1; in ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.chain(torchopt.transform.scale_by_lbfgs(), torchopt.transform.scale(-1.0))
        >>> p = torch.tensor(4.0)
        >>> state = tx.init(p)
        >>> for _ in range(2):
        ...     updates, state = tx.update(3 * p, state, p)
        ...     p = p + updates
        >>> p  # of a parabola the second step knows the Hessian
        tensor(0.)

    References:
        Liu and Nocedal, `On the limited memory BFGS method for large scale optimization
        <https://doi.org/10.1007/BF01589116>`_, 1989.  Nocedal and Wright, `Numerical optimization
        <https://doi.org/10.1007/978-0-387-40065-5>`_, algorithm 7.4, 2006.
    """
    checks.integer('memory_size', memory_size, 1)

    def init(params: Any) -> ScaleByLBFGSState:
        last_p, last_g = elementwise.zero_moment(params), elementwise.zero_moment(params)
        return ScaleByLBFGSState(zero_count(), last_p, last_g, *Memory.like(last_p, memory_size))

    def update(
        updates: Any, state: ScaleByLBFGSState, params: Any = None, *, inplace: bool = False
    ) -> tuple[Any, ScaleByLBFGSState]:
        elementwise.check_inexact(updates, name='updates')
        elementwise.check_updates(updates, params)
        inplace = inplace and runs_directly()
        if inplace:
            check_writable([*tree.leaves(state), *tree.leaves(updates)])
        with torch.no_grad() if inplace else contextlib.nullcontext():
            return _step(updates, state, params, memory_size, scale_init_precond, inplace)

    return GradientTransformation.requiring(init, update, state_of(ScaleByLBFGSState), params_for('L-BFGS'))


def _step(
    updates: Any, state: ScaleByLBFGSState, params: Any, size: int, scaled: bool, inplace: bool
) -> tuple[Any, ScaleByLBFGSState]:
    gradients, spec = tree.flatten(updates)
    columns = [tree.flatten_up_to(spec, x, name='state', like='updates') for x in state[1:5]]
    moved = [i for i, g in enumerate(gradients) if g is not None]
    given = tree.flatten_up_to(spec, params, name='params', like='updates')
    g = [gradients[i] for i in moved]
    p = [as_constant(given[i], gradients[i]) for i in moved]
    last_p, last_g, old_s, old_y = ([column[i] for i in moved] for column in columns)

    # The pair of the last step.  Leaves without a previous gradient do not contribute.
    ring, memory = Ring(state.count, size), Memory(old_s, old_y, state.weights_memory)
    memory, scale = remember_step(memory, ring, (last_p, p), (last_g, g), inplace=inplace)
    for i, column in ((i, column) for column in columns[2:] for i, x in enumerate(gradients) if x is None):
        if column[i] is not None:
            column[i] = ring.write(column[i], torch.zeros_like(column[i][0]), inplace=inplace)

    gamma: Any = scale if scaled else 1.0
    if scaled and not ring.count:
        begin = first_scale(g)
        gamma = begin if ring.count == 0 else where(state.count > 0, gamma, begin)
    direction = inverse_hessian_product(g, memory, ring, gamma)

    count, _ = advance(state.count)
    keep = Tensor.copy_ if inplace else _copy
    for column, new in zip(columns, (map(keep, last_p, p), map(keep, last_g, g), memory.s, memory.y)):
        for i, x in zip(moved, new):
            column[i] = x
    for i, x in zip(moved, direction):
        gradients[i] = x
    new_p, new_g, new_s, new_y = (tree.unflatten(spec, column) for column in columns)
    return tree.unflatten(spec, gradients), ScaleByLBFGSState(count, new_p, new_g, new_s, new_y, memory.weights)


def _copy(old: Tensor, new: Tensor) -> Tensor:
    """A copy for the state, since the caller may change parameters and gradients in place."""
    return new.to(old.dtype, copy=True)
