# SPDX-License-Identifier: Apache-2.0
"""JAXopt under jax.jit: the implicit gradient through conjugate gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
from jaxopt.implicit_diff import custom_root
from jaxopt.linear_solve import solve_cg
from problems import Case, Cases
from workloads import CG_ITERATIONS, RIDGE_PENALTY, Workload


def cases(work: Workload) -> Cases:
    if work.kind != 'implicit':
        return {}
    return {
        'jit': functools.partial(_implicit, work, True),
        'jit, Hessian product by autodiff': functools.partial(_implicit, work, False),
    }


def _implicit(work: Workload, closed_form: bool) -> Case:
    """The same root and the same solver twice: for the solution, and by ``custom_root`` for its derivative."""
    solve = functools.partial(solve_cg, tol=0.0, maxiter=CG_ITERATIONS)

    @jax.jit
    @jax.grad
    def meta_gradient(log_penalty: jax.Array, *data: jax.Array) -> jax.Array:
        X, y, X_val, y_val = data
        n, zero = len(y), jnp.zeros(X.shape[1])

        def objective(w: jax.Array, penalty: jax.Array) -> jax.Array:
            return 0.5 * jnp.sum((X @ w - y) ** 2) / n + 0.5 * penalty * w @ w

        def gradient(w: jax.Array, penalty: jax.Array) -> jax.Array:
            return (X @ w - y) @ X / n + penalty * w  # (X.T @ r would transpose X in memory)

        def fit(init: None, penalty: jax.Array) -> jax.Array:
            if closed_form:
                return solve(lambda v: (X @ v) @ X / n + penalty * v, y @ X / n)
            of_w = functools.partial(jax.grad(objective), penalty=penalty)
            return solve(lambda v: jax.jvp(of_w, (zero,), (v,))[1], y @ X / n)

        optimality = gradient if closed_form else jax.grad(objective)
        w = custom_root(optimality, solve=solve)(fit)(None, jnp.exp(log_penalty))
        return jnp.mean((X_val @ w - y_val) ** 2)

    arguments = [jnp.log(jnp.float32(RIDGE_PENALTY)), *(jnp.array(a) for a in problems.ridge(work.tree))]
    return Case(
        run=lambda: meta_gradient(*arguments).block_until_ready(),
        check=lambda: [np.asarray(meta_gradient(*arguments)).reshape(1)],
    )
