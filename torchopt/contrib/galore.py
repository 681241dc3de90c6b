# SPDX-License-Identifier: Apache-2.0
"""GaLore: an optimizer whose moments are in a low-dimensional subspace of large gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    TransformationLike,
    factory,
    with_extra_args_support,
)
from torchopt.combine import chain
from torchopt.contrib.matrix_axes import MatrixShape, matrices_of_leaves
from torchopt.kinds import described
from torchopt.loop.branches import branch
from torchopt.numerics import as_scalar_like, increment, zero_count
from torchopt.preconditions import required_by_all, state_of
from torchopt.spelling import suggesting
from torchopt.transform import add_decayed_weights, scale_by_adam, scale_by_learning_rate


class GaLoreDimensionNumbers(NamedTuple):
    """Which axes of a tensor are the rows of a matrix, and which are its columns; every axis must be one of them.

    Attributes:
        reduction_axis: The axes of the rows.
        output_axis: The axes of the columns.
    """

    reduction_axis: Sequence[int] | int = 0
    output_axis: Sequence[int] | int = 1


@tree.safe_to_load
class GaLoreState(NamedTuple):
    """State of :func:`scale_by_galore`.

    Attributes:
        count: The step count.
        base_optimizer_state: The state of the optimizer of the projected gradients.
        projector: An orthonormal basis of the subspace for each leaf, of shape (long side, rank); an empty matrix for
            leaves that are not projected.
    """

    count: Any
    base_optimizer_state: Any
    projector: Any


@factory
def scale_by_galore(
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Any = 1.0,
    base_optimizer: TransformationLike | None = None,
    weight_dimension_numbers: Any = None,
) -> GradientTransformationExtraArgs:
    r"""Apply an optimizer to gradients projected onto a low-dimensional subspace.

    Every :math:`T` steps the first :math:`r` singular vectors :math:`P` of the gradient, along its long side, are
    computed.  For an :math:`m \times n` matrix with :math:`m \ge n` (otherwise likewise from the right),

    .. math::
        u_t = \alpha\, P\, \rho_t(P^\top g_t), \qquad P = U_{:, :r} \quad \text{for} \quad g = U \Sigma V^\top.

    The moments of the optimizer :math:`\rho` have the shape :math:`r \times n` instead of :math:`m \times n`.  They do
    not change when :math:`P` changes.

    Args:
        rank: The rank :math:`r \ge 1`, at most the short side.
        update_proj_gap: The number :math:`T \ge 1` of steps after which the subspace is recomputed.
        scale: The factor :math:`\alpha` of projected updates.
        base_optimizer: The optimizer :math:`\rho`; None means :func:`torchopt.transform.scale_by_adam`.  It does not
            receive the parameters, whose shapes differ from those of its gradients.
        weight_dimension_numbers: Which leaves are projected, and which of their axes are rows and columns.  None
            projects all matrices.  One :class:`GaLoreDimensionNumbers` applies to all leaves with at least two axes.  A
            tree of them with the structure of the parameters or a prefix of it, or a function that makes one from the
            parameters, may contain None for leaves that are not projected.

    Returns:
        A transformation with state :class:`GaLoreState`.  Singular vectors are computed at least in float32.  A leaf
        whose gradient is None in a step that computes the subspace keeps its old one; if it has none, its updates are
        zero until the next such step.

    Raises:
        TypeError: If ``rank`` is not an int.
        ValueError: If a hyper-parameter is out of its range; in ``init``, if dimension numbers do not match.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.contrib.scale_by_galore(rank=1, base_optimizer=torchopt.transform.scale(1.0))
        >>> g = [torch.tensor([[3.0, 0.0], [0.0, 1.0]])]
        >>> tx.update(g, tx.init(g))[0]
        [tensor([[3., 0.], [0., 0.]])]

    References:
        Zhao et al., `GaLore: memory-efficient LLM training by gradient low-rank projection
        <https://arxiv.org/abs/2403.03507>`_, ICML 2024.
    """
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise TypeError(f'Invalid rank: {described(rank)}; expected an int.')
    checks.at_least('rank', rank, 1)
    checks.at_least('update_proj_gap', update_proj_gap, 1)
    checks.number('scale', scale)
    wide = with_extra_args_support(scale_by_adam() if base_optimizer is None else base_optimizer)

    def matrices(updates: Any) -> list[MatrixShape | None]:
        def applies(x: Tensor) -> bool:
            return x.dim() == 2 if weight_dimension_numbers is None else x.dim() >= 2

        return matrices_of_leaves(weight_dimension_numbers, updates, GaLoreDimensionNumbers, applies, batch=False)

    def init(params: Any) -> GaLoreState:
        elementwise.check_inexact(params, name='params')
        leaves, spec = tree.flatten(params)
        pairs = [_first(rank, p, shape) for p, shape in zip(leaves, matrices(params))]
        projectors, proxies = (tree.unflatten(spec, column) for column in (zip(*pairs) if pairs else ((), ())))
        return GaLoreState(zero_count(), wide.init(proxies), projectors)

    def update(
        updates: Any, state: GaLoreState, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, GaLoreState]:
        elementwise.check_inexact(updates, name='updates')
        shapes = matrices(updates)
        leaves, spec = tree.flatten(updates)
        old = tree.flatten_up_to(spec, state.projector, name='state', like='updates')
        rows = list(zip(leaves, old, shapes))

        def seek(inplace: bool) -> list[Any]:
            return [p if shape is None else _basis(g, shape, p) for g, p, shape in rows]

        new = branch(state.count % update_proj_gap == 0, seek, lambda inplace: old)
        low = [g if shape is None else _project(g, p, shape) for g, p, shape in zip(leaves, new, shapes)]
        steps, base_state = wide.update(
            tree.unflatten(spec, low), state.base_optimizer_state, None, inplace=inplace, **extra
        )
        found = tree.flatten_up_to(spec, steps, name='new updates', like='updates')
        full = [
            u if shape is None or u is None else _bring_back(u, p, shape, scale).to(g.dtype)
            for u, g, p, shape in zip(found, leaves, new, shapes)
        ]
        count = increment(state.count)
        return tree.unflatten(spec, full), GaLoreState(count, base_state, tree.unflatten(spec, new))

    return GradientTransformationExtraArgs.requiring(
        init,
        update,
        state_of(GaLoreState),
        required_by_all(lambda state, params: [(state.base_optimizer_state, None)], wide),
    )


def _first(rank: int, p: Any, shape: MatrixShape | None) -> tuple[Any, Any]:
    """The initial projector of a leaf, and the projected leaf, with which the optimizer is initialized."""
    if p is None:
        return None, None
    if shape is None:
        return p.new_zeros(0, 0), torch.zeros_like(p)
    _, m, n = shape.sizes
    r = min(rank, m, n)
    return p.new_zeros(max(m, n), r), p.new_zeros((r, n) if m >= n else (m, r))


def _basis(g: Tensor, shape: MatrixShape, like: Tensor) -> Tensor:
    matrix = shape.to_matrices(g)[0]
    wide = torch.promote_types(matrix.dtype, torch.float32)
    left, _, right = torch.linalg.svd(matrix.to(wide), full_matrices=False)
    basis = left if shape.sizes[1] >= shape.sizes[2] else right.mH
    return basis[:, : like.shape[1]].to(like.dtype)


def _project(g: Tensor, p: Tensor, shape: MatrixShape) -> Tensor:
    matrix = shape.to_matrices(g)[0]
    return p.mH @ matrix if shape.sizes[1] >= shape.sizes[2] else matrix @ p


def _bring_back(u: Tensor, p: Tensor, shape: MatrixShape, scale: Any) -> Tensor:
    wide = torch.promote_types(u.dtype, p.dtype)  # moments may be more precise than gradients
    u, p = u.to(wide), p.to(wide)
    full = p @ u if shape.sizes[1] >= shape.sizes[2] else u @ p.mH
    return shape.from_matrices(full * as_scalar_like(scale, full))


@suggesting
def galore(
    learning_rate: Any,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Any = 1.0,
    base_optimizer: TransformationLike | None = None,
    weight_decay: Any = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
) -> GradientTransformation:
    r"""GaLore: an optimizer whose moments are in a low-dimensional subspace of large gradients.

    With :math:`u_t` as in :func:`scale_by_galore`, :math:`p_t = p_{t-1} - \eta\,(u_t + \lambda p_{t-1})`.

    Args:
        learning_rate: :math:`\eta`; see :func:`torchopt.transform.scale_by_learning_rate`.
        rank: The rank :math:`r \ge 1` of the subspace.
        update_proj_gap: The number :math:`T \ge 1` of steps after which the subspace is recomputed.
        scale: The factor :math:`\alpha` of projected updates.
        base_optimizer: The optimizer in the subspace; None means :func:`torchopt.transform.scale_by_adam`.
        weight_decay: :math:`\lambda \ge 0`; if nonzero, ``update`` requires ``params``.
        mask: Which parameters decay; see :func:`torchopt.transform.add_decayed_weights`.
        weight_dimension_numbers: Which leaves are projected, and how; see :func:`scale_by_galore`.

    Raises:
        TypeError: If ``rank`` is not an int.
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.galore(0.1, rank=2)
        >>> p = {'w': torch.ones(8, 4), 'b': torch.ones(4)}
        >>> state = optimizer.init(p)
        >>> state[0].base_optimizer_state.mu['w'].shape
        torch.Size([2, 4])

    References:
        Zhao et al., `GaLore: memory-efficient LLM training by gradient low-rank projection
        <https://arxiv.org/abs/2403.03507>`_, ICML 2024.
    """
    return chain(
        scale_by_galore(rank, update_proj_gap, scale, base_optimizer, weight_dimension_numbers),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
