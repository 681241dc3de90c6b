# SPDX-License-Identifier: Apache-2.0
r"""Linear systems over trees of tensors, solved by matrix-vector products, with exact derivatives.

A solver takes a linear function and a right-hand side, ``x = solve_cg(matvec, b)``; or options alone, and returns
itself with the options bound, ``solve = solve_cg(maxiter=20)``, to be passed on to what needs a solver.

Every solution is an implicit function of ``b`` and of the tensors that ``matvec`` closes over.  Its derivatives, of any
order, in reverse and forward mode, are solves of the same kind: the iteration itself is not recorded, and its memory
does not grow. All work under ``torch.func`` (``vmap`` solves many systems at once, each to its own tolerance) and on
any device.  Systems are brought to order one first, so that their scales do not matter.  What is not solved to its
tolerance warns, shows in the status, or is refused.  Under ``torch.compile`` a solve is a graph break, since the number
of its iterations depends on data.

================================== =================================== ================================================
solver                             matrix                              work
================================== =================================== ================================================
:func:`solve_cg`                   symmetric, positive definite        one product an iteration
:func:`solve_normal_cg`            any, also not square or not regular two products an iteration
:func:`solve_bicgstab`             regular                             two products an iteration
:func:`solve_gmres`                regular                             one product an iteration, and a vector of memory
:func:`solve_lu`, :func:`solve_qr` regular                             n products, a factorization
:func:`solve_cholesky`             symmetric, positive definite        n products, a factorization
:func:`solve_inv`                  regular, or close to the identity   n products, or a Neumann series
:func:`solve_iterative_refinement` regular                             several rough solves
================================== =================================== ================================================
"""

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
