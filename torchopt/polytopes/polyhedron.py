# SPDX-License-Identifier: Apache-2.0
"""The projection onto a polyhedron, a quadratic program."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchopt.kinds import kind_of
from torchopt.levels import eager, is_readable
from torchopt.projections.leaves import check_vector
from torchopt.solver import OSQP, Status


@eager
def projection_polyhedron(x: Tensor, hyperparams: tuple[Any, Any, Any, Any], check_feasible: bool = True) -> Tensor:
    r"""Project onto the polyhedron :math:`A p = b, \; G p \le h`.

    The quadratic program is solved by :class:`torchopt.OSQP`, to nearly the precision of the dtype.

    Args:
        x: A floating vector of :math:`n` elements.
        hyperparams: :math:`(A, b, G, h)`: matrices of :math:`n` columns, and vectors.  A pair of None means no
            equations, or no inequalities.
        check_feasible: Whether to raise if the polyhedron is empty, which reads values and synchronizes.

    Returns:
        The projection, of the shape of ``x``.

    Raises:
        ValueError: If the shapes do not match; with ``check_feasible``, if the polyhedron is empty.

    Example:
        >>> import torch, torchopt
        >>> A, b = torch.tensor([[1.0, 1.0]]), torch.tensor([1.0])
        >>> G, h = torch.tensor([[1.0, 0.0]]), torch.tensor([0.25])
        >>> torchopt.polytopes.projection_polyhedron(torch.tensor([1.0, 0.0]), (A, b, G, h)).round(decimals=3)
        tensor([0.2500, 0.7500])
    """
    check_vector(x)
    if not isinstance(hyperparams, (tuple, list)) or len(hyperparams) != 4:
        raise ValueError(f'Invalid hyperparams: {kind_of(hyperparams)}; expected (A, b, G, h).')
    A, b, G, h = hyperparams
    # Larger than the rounding errors of residuals, also for large matrices.
    solver = OSQP(tol=1e3 * torch.finfo(x.dtype).eps ** 0.75, maxiter=10000)
    objective = torch.eye(len(x), dtype=x.dtype, device=x.device), -x
    found, state = solver.run(None, objective, None if A is None else (A, b), None if G is None else (G, h))
    if check_feasible and is_readable(state.status) and int(state.status) == Status.INFEASIBLE:
        raise ValueError(
            'The polyhedron is empty: no point satisfies hyperparams = (A, b, G, h). Relax or remove constraints, or '
            'pass check_feasible=False.'
        )
    primal: Tensor = found.primal
    return primal
