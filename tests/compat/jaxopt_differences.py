# SPDX-License-Identifier: Apache-2.0
"""The differences between JAXopt and ``torchopt.compat.jaxopt``, all of them intended."""

from __future__ import annotations

# Internal methods of JAXopt, which are parts of one step.
INTERNAL = frozenset(
    {
        'jaxopt.LevenbergMarquardt.update_state_using_delta_params',
        'jaxopt.LevenbergMarquardt.update_state_using_gain_ratio',
    }
)

_OPTIONS = 'the options are named, and more of them; without a matvec it returns the configured solver'

_SOLVE = 'the linear solver is None by default, which is a factorization where the system is small'

# Functions and methods whose signature differs, with the reason.
OTHER_SIGNATURES = {
    'jaxopt.base.IterativeSolver.log_info': 'by default it prints what the solver has to say',
    'jaxopt.base.StochasticSolver.log_info': 'the same',
    'jaxopt.base.LinearOperator.tree_flatten': 'trees are registered with torchopt.tree.register_node',
    'jaxopt.implicit_diff.custom_fixed_point': _SOLVE,
    'jaxopt.implicit_diff.custom_root': _SOLVE,
    'jaxopt.implicit_diff.root_jvp': _SOLVE,
    'jaxopt.implicit_diff.root_vjp': _SOLVE,
    'jaxopt.linear_solve.solve_bicgstab': _OPTIONS,
    'jaxopt.linear_solve.solve_cg': _OPTIONS,
    'jaxopt.linear_solve.solve_cholesky': _OPTIONS,
    'jaxopt.linear_solve.solve_gmres': _OPTIONS,
    'jaxopt.linear_solve.solve_inv': _OPTIONS,
    'jaxopt.linear_solve.solve_iterative_refinement': _OPTIONS,
    'jaxopt.linear_solve.solve_lu': _OPTIONS,
    'jaxopt.linear_solve.solve_normal_cg': _OPTIONS,
    'jaxopt.linear_solve.solve_qr': _OPTIONS,
    'jaxopt.loop.while_loop': 'maxiter may be left out',
    'jaxopt.perturbations.Gumbel.sample': 'a tensor has a dtype and is on a device',
    'jaxopt.perturbations.Normal.sample': 'the same',
}
