# SPDX-License-Identifier: Apache-2.0
"""Linear solvers, as ``jaxopt.linear_solve`` has them."""

from torchopt.linear_solve import (
    solve_bicgstab,
    solve_cg,
    solve_cholesky,
    solve_gmres,
    solve_inv,
    solve_iterative_refinement,
    solve_lu,
    solve_normal_cg,
    solve_qr,
)

__all__ = [
    'solve_bicgstab',
    'solve_cg',
    'solve_cholesky',
    'solve_gmres',
    'solve_inv',
    'solve_iterative_refinement',
    'solve_lu',
    'solve_normal_cg',
    'solve_qr',
]
