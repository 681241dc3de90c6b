# SPDX-License-Identifier: Apache-2.0
r"""Linear systems over trees of tensors, solved by matrix-vector products, with exact derivatives.

A solver takes a linear function and a right-hand side, ``x = solve_cg(matvec, b)``.  Called with options only, it
returns itself with the options bound, ``solve = solve_cg(maxiter=20)``, to pass to a function that needs a solver.

Every solution is an implicit function of ``b`` and of the tensors that ``matvec`` closes over.  Its derivatives, of any
order, in reverse and forward mode, are solves of the same kind: the iterations are not recorded, so memory does not
grow with them.  All solvers work under ``torch.func`` (``vmap`` solves many systems at once, each to its own tolerance)
and on any device.  Solvers rescale systems to order one, so scales do not matter.  A solve that misses its tolerance
warns, reports it in the status, or raises.  Under ``torch.compile`` a solve is a graph break, since the number
of its iterations depends on data.

The column "work" counts matrix-vector products.

================================== =================================== ================================================
solver                             matrix                              work
================================== =================================== ================================================
:func:`solve_cg`                   symmetric, positive definite        one product per iteration
:func:`solve_normal_cg`            any, also singular or not square    two products per iteration
:func:`solve_bicgstab`             nonsingular                         two products per iteration
:func:`solve_gmres`                nonsingular                         one product and one stored vector per iteration
:func:`solve_lu`, :func:`solve_qr` nonsingular                         n products, a factorization
:func:`solve_cholesky`             symmetric, positive definite        n products, a factorization
:func:`solve_inv`                  nonsingular, or near the identity   n products, or a Neumann series
:func:`solve_iterative_refinement` nonsingular                         several approximate solves
================================== =================================== ================================================
"""

from torchopt._old_paths import register_old_paths
from torchopt.linear_solve.cg import solve_cg, solve_normal_cg
from torchopt.linear_solve.direct import solve_cholesky, solve_inv, solve_lu, solve_qr
from torchopt.linear_solve.krylov import solve_bicgstab, solve_gmres
from torchopt.linear_solve.refinement import solve_iterative_refinement
from torchopt.linear_solve.status import LinearSolveWarning, Outcome, SolveStatus

__all__ = [
    'LinearSolveWarning',
    'Outcome',
    'SolveStatus',
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

register_old_paths(__name__)
