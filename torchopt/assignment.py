# SPDX-License-Identifier: Apache-2.0
"""The linear assignment problem: match rows to columns with minimal total cost.

The search is sequential and its control flow depends on values, so it runs on the host: a tensor on another device is
copied once.  The search is one custom operator, which works under ``torch.compile`` and which ``torch.func.vmap`` runs
in a loop over the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ['base_hungarian_algorithm', 'hungarian_algorithm']


def base_hungarian_algorithm(cost_matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Solve the assignment problem; the pairs are in the order of their rows.

    It is :func:`hungarian_algorithm` with another order of the result.

    Args:
        cost_matrix: The costs :math:`C`, of shape ``[n, m]``, of any real dtype.

    Returns:
        The rows, in ascending order, and their columns: two int64 tensors of :math:`\min(n, m)` elements.

    Raises:
        TypeError: If the costs are complex.
        ValueError: If ``cost_matrix`` is no matrix, holds NaN or ``-inf``, or admits no assignment.

    Example:
        >>> import torch, torchopt
        >>> cost = torch.tensor([[8, 4, 7], [5, 2, 3], [9, 6, 7], [9, 4, 8]])
        >>> i, j = torchopt.assignment.base_hungarian_algorithm(cost)
        >>> i, j, cost[i, j].sum()
        (tensor([0, 1, 3]), tensor([0, 2, 1]), tensor(15))

    References:
        Crouse, `On implementing 2D rectangular assignment algorithms
        <https://doi.org/10.1109/TAES.2016.140952>`_, 2016.
    """
    column_of_row, wide = _solve(cost_matrix)
    order = torch.arange(len(column_of_row), device=column_of_row.device)
    if wide:
        return order, column_of_row
    # The matrix was transposed: the result contains the row of each column.
    by_row = column_of_row.argsort()
    return column_of_row[by_row], by_row


def hungarian_algorithm(cost_matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Solve the assignment problem.

    .. math::
        \min_X \sum_{ij} C_{ij} X_{ij} \quad \text{subject to} \quad X_{ij} \in \{0, 1\}, \;
        \sum_i X_{ij} \le 1, \; \sum_j X_{ij} \le 1, \; \sum_{ij} X_{ij} = \min(n, m)

    The rows are matched one after another, along shortest augmenting paths (found by Dijkstra's algorithm) with respect
    to the costs minus the dual variables of rows and columns.  The total time is :math:`O(n m \min(n, m))`.

    A cost of ``inf`` forbids a pair.  If several assignments are optimal, any of them may be returned.

    Args:
        cost_matrix: The costs :math:`C`, of shape ``[n, m]``, of any real dtype.  Integers beyond :math:`2^{53}` are
            rounded.

    Returns:
        The rows :math:`i` and the columns :math:`j` of the pairs: two int64 tensors of :math:`\min(n, m)` elements,
        so that ``cost_matrix[i, j].sum()`` is the cost.  The order is that of Optax: columns ascending for a square
        matrix; otherwise the shorter side descending.

    Raises:
        TypeError: If the costs are complex.
        ValueError: If ``cost_matrix`` is no matrix, holds NaN or ``-inf``, or admits no assignment.

    Example:
        >>> import torch, torchopt
        >>> cost = torch.tensor([[8, 4, 7], [5, 2, 3], [9, 6, 7], [9, 4, 8]])
        >>> i, j = torchopt.assignment.hungarian_algorithm(cost)
        >>> i, j, cost[i, j].sum()
        (tensor([1, 3, 0]), tensor([2, 1, 0]), tensor(15))

    References:
        Kuhn, `The Hungarian method for the assignment problem <https://doi.org/10.1002/nav.3800020109>`_, 1955.
        Crouse, `On implementing 2D rectangular assignment algorithms
        <https://doi.org/10.1109/TAES.2016.140952>`_, 2016.
    """
    found, wide = _solve(cost_matrix)
    if cost_matrix.shape[0] == cost_matrix.shape[1]:
        by_column = found.argsort()
        return by_column, found[by_column]
    short = torch.arange(len(found), device=found.device).flip(0)
    return (short, found.flip(0)) if wide else (found.flip(0), short)


def _solve(cost_matrix: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """The partner of each index of the shorter side, and whether the rows are the shorter side."""
    cost = cost_matrix if isinstance(cost_matrix, torch.Tensor) else torch.as_tensor(cost_matrix)
    if cost.ndim != 2:
        raise ValueError(
            f'cost_matrix has shape {tuple(cost.shape)}; expected [rows, columns]. For a batch, use torch.func.vmap.'
        )
    if cost.is_complex():
        raise TypeError(f'cost_matrix has dtype {cost.dtype}; expected real numbers. Pass the real part.')
    wide = cost.shape[0] <= cost.shape[1]
    return _columns_of_rows((cost if wide else cost.T).detach()), wide


@torch.library.custom_op('torchopt::assign_columns', mutates_args=(), schema='(Tensor cost) -> Tensor')
def _columns_of_rows(cost: torch.Tensor) -> torch.Tensor:
    """The column of each row of a matrix with at most as many rows as columns."""
    found = _shortest_augmenting_paths(cost.to(device='cpu', dtype=torch.float64).numpy())
    return torch.from_numpy(found).to(cost.device)


@_columns_of_rows.register_fake
def _(cost: torch.Tensor) -> torch.Tensor:
    return cost.new_empty(cost.shape[0], dtype=torch.int64)


@_columns_of_rows.register_vmap
def _(info: Any, in_dims: tuple[int], cost: torch.Tensor) -> tuple[torch.Tensor, int]:
    batch = cost.movedim(in_dims[0], 0)
    if not len(batch):
        return batch.new_empty(batch.shape[:2], dtype=torch.int64), 0
    return torch.stack([_columns_of_rows(one) for one in batch]), 0


def _shortest_augmenting_paths(cost: Any) -> Any:
    r"""Assign a column to each row, one row after the other.

    The dual variables :math:`u_i, v_j` satisfy :math:`c_{ij} - u_i - v_j \ge 0`, with equality for assigned pairs.  The
    search from a new row uses edges from rows to columns with this reduced cost, and edges from assigned columns to
    their rows with cost 0.  It ends at the nearest free column; the pairs along the path are then exchanged.  Let
    :math:`d` be the distance of that column.  The dual variables of a column with distance :math:`d_j < d` and of its
    row change by :math:`d - d_j`.
    """
    rows, columns = cost.shape
    if np.isnan(cost).any() or np.isneginf(cost).any():
        raise ValueError('cost_matrix contains NaN or -inf; expected finite numbers, or inf for forbidden pairs.')
    u, v = np.zeros(rows), np.zeros(columns)
    column_of, row_of = np.full(rows, -1), np.full(columns, -1)
    for new in range(rows):
        distance, previous = np.full(columns, np.inf), np.full(columns, -1)
        done, visited, row, reached = np.zeros(columns, dtype=bool), [new], new, 0.0
        while True:
            through = reached + (cost[row] - u[row] - v)
            nearer = ~done & (through < distance)
            distance[nearer], previous[nearer] = through[nearer], row
            column = int(np.where(done, np.inf, distance).argmin())
            reached = distance[column]
            if done[column] or np.isinf(reached):
                raise ValueError(
                    'cost_matrix admits no assignment: its infinite costs forbid too many pairs. Allow more pairs.'
                )
            done[column] = True
            if row_of[column] < 0:
                break
            row = row_of[column]
            visited.append(row)
        u[new] += reached
        for i in visited[1:]:
            u[i] += reached - distance[column_of[i]]
        v[done] -= reached - distance[done]
        while column >= 0:
            row = previous[column]
            row_of[column] = row
            column_of[row], column = column, column_of[row]
    return column_of
