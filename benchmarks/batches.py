# SPDX-License-Identifier: Apache-2.0
"""Many small problems under ``torch.vmap``, and one lasso, beside JAXopt, jitted and under ``jax.vmap``.

    python benchmarks/batches.py [NAME ...]

A row has the CPU time of a solution and of a solution with its implicit gradient in the data, on one thread in float64,
by turns, and the median of the ratios.  The first call, which compiles the functions of JAX, is not measured.  The last
column is the largest difference between both solutions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import torch
from torch import Tensor

import torchopt

COUNT, SIZE, SAMPLES, TOL = 1000, 20, 40, 1e-5


class Problem(NamedTuple):
    """One comparison.

    Attributes:
        data: The tensors that solutions depend on, with a first dimension for the problems of a batch.
        ours: ``ours(*data)``, the solution of one problem by torchopt.
        theirs: The same by JAXopt.
        batched: Whether there is a batch.
    """

    data: tuple[np.ndarray, ...]
    ours: Callable[..., Tensor]
    theirs: Callable[..., Any]
    batched: bool = True


def box_qp() -> tuple[np.ndarray, ...]:
    """Convex quadratic programs, about half of whose bounds of [-1, 1] are active."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((COUNT, SIZE, SAMPLES))
    return A @ A.swapaxes(1, 2) / SAMPLES, 1.5 * rng.standard_normal((COUNT, SIZE))


def ridge() -> tuple[np.ndarray, ...]:
    """Least squares with a penalty."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((COUNT, SAMPLES, SIZE))
    return X, X.sum(-1) + rng.standard_normal((COUNT, SAMPLES)), np.full(COUNT, 0.1)


def lasso() -> tuple[np.ndarray, ...]:
    """1000 samples and 5000 features, of which 50 matter."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1000, 5000))
    w = np.zeros(5000)
    w[:50] = rng.standard_normal(50)
    return X, X @ w + 0.1 * rng.standard_normal(1000), np.array(0.1)


def quadratic(x: Any, data: tuple[Any, Any]) -> Any:
    """The objective of a quadratic program, in torch or JAX."""
    Q, c = data
    return 0.5 * (x @ (Q @ x)) + c @ x


def into_box(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The projection on a box, with the arguments of JAXopt."""
    return torchopt.projections.projection_box(x, *bounds)


def penalized(w: Any, X: Any, y: Any, penalty: Any) -> Any:
    """The objective of ridge regression."""
    return 0.5 * ((X @ w - y) ** 2).mean() + 0.5 * penalty * (w @ w)


def squares(w: Any, X: Any, y: Any) -> Any:
    """The smooth part of the lasso's objective."""
    return 0.5 * ((X @ w - y) ** 2).mean()


def problems() -> dict[str, Problem]:
    """The comparisons by name."""
    start, there = torch.zeros(SIZE, dtype=torch.float64), jnp.zeros(SIZE)
    options: dict[str, Any] = {'tol': TOL, 'maxiter': 1000}

    def smooth(name: str, **more: Any) -> Problem:
        ours = getattr(torchopt, name)(penalized, **options, **more)
        theirs = getattr(jaxopt, name)(penalized, **options, **more)
        return Problem(
            ridge(), lambda *data: ours.run(start, *data).params, lambda *data: theirs.run(there, *data).params
        )

    osqp, their_osqp = torchopt.BoxOSQP(**options), jaxopt.BoxOSQP(**options)
    cd, their_cd = torchopt.BoxCDQP(**options), jaxopt.BoxCDQP(**options)
    projected = torchopt.ProjectedGradient(quadratic, into_box, **options)
    their_projected = jaxopt.ProjectedGradient(quadratic, jaxopt.projection.projection_box, **options)
    proximal = torchopt.ProximalGradient(squares, torchopt.prox.prox_lasso, **options)
    their_proximal = jaxopt.ProximalGradient(squares, jaxopt.prox.prox_lasso, **options)
    box, eye = (-1.0, 1.0), jnp.eye(SIZE)
    their_box = (-jnp.ones(SIZE), jnp.ones(SIZE))
    wide, their_wide = torch.zeros(5000, dtype=torch.float64), jnp.zeros(5000)
    return {
        'box QP, BoxOSQP': Problem(
            box_qp(),
            lambda Q, c: osqp.run(params_obj=(Q, c), params_ineq=box).params.primal[0],
            lambda Q, c: their_osqp.run(params_obj=(Q, c), params_eq=eye, params_ineq=their_box).params.primal[0],
        ),
        'box QP, BoxCDQP': Problem(
            box_qp(),
            lambda Q, c: cd.run(start, params_obj=(Q, c), params_ineq=box).params,
            lambda Q, c: their_cd.run(there, params_obj=(Q, c), params_ineq=their_box).params,
        ),
        'box QP, ProjectedGradient': Problem(
            box_qp(),
            lambda Q, c: projected.run(start, box, (Q, c)).params,
            lambda Q, c: their_projected.run(there, their_box, (Q, c)).params,
        ),
        'ridge, GradientDescent': smooth('GradientDescent'),
        'ridge, LBFGS': smooth('LBFGS'),
        'ridge, BFGS': smooth('BFGS'),
        'ridge, NonlinearCG': smooth('NonlinearCG'),
        'lasso, ProximalGradient': Problem(
            lasso(),
            lambda X, y, penalty: proximal.run(wide, penalty, X, y).params,
            lambda X, y, penalty: their_proximal.run(their_wide, penalty, X, y).params,
            batched=False,
        ),
    }


def runs(problem: Problem) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """What is timed: ours and theirs, for the value and for the value with a gradient."""
    tensors = [torch.from_numpy(x) for x in problem.data]
    tracked = [x.clone().requires_grad_() for x in tensors]
    ours = torch.vmap(problem.ours) if problem.batched else problem.ours

    def gradient() -> Any:
        found = ours(*tracked)
        torch.autograd.grad(found.sum(), tracked)
        return found.detach()

    def value() -> Any:
        return ours(*tensors)

    arrays = [jnp.asarray(x) for x in problem.data]
    theirs = jax.vmap(problem.theirs) if problem.batched else problem.theirs

    def total(*data: Any) -> Any:
        found = theirs(*data)
        return found.sum(), found

    solved = jax.jit(theirs)
    differentiated = jax.jit(jax.value_and_grad(total, argnums=tuple(range(len(arrays))), has_aux=True))

    def their_gradient() -> Any:
        (_, found), gradients = differentiated(*arrays)
        jax.block_until_ready(gradients)
        return found

    return {'value': (value, lambda: jax.block_until_ready(solved(*arrays))), 'gradient': (gradient, their_gradient)}


def measured(
    pair: tuple[Callable[[], Any], Callable[[], Any]], rounds: int
) -> tuple[list[float], list[float], list[Any]]:
    """The ratio's quartiles, the median times, and the solutions."""
    found = [np.asarray(run()) for run in pair]
    times: list[list[float]] = [[], []]
    for i in range(rounds):
        for k in (0, 1) if i % 2 else (1, 0):
            begin = time.process_time()
            pair[k]()
            times[k].append(time.process_time() - begin)
    quartiles = statistics.quantiles([a / b for a, b in zip(*times)], n=4)
    return quartiles, [statistics.median(t) for t in times], found


def main() -> None:
    """Print a row for each problem, and for its gradient."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', help='only the rows whose names contain one of these')
    parser.add_argument('--rounds', type=int, default=9)
    args = parser.parse_args()
    # JAX reads them when it makes its first array.
    os.environ['XLA_FLAGS'] = '--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1'
    jax.config.update('jax_enable_x64', True)
    torch.set_num_threads(1)
    print(f'load {os.getloadavg()[0]:.1f}; CPU time in ms, medians of {args.rounds} rounds; ratio (quartiles)')
    for name, problem in problems().items():
        if args.names and not any(part in name for part in args.names):
            continue
        for kind, pair in runs(problem).items():
            (low, median, high), times, (ours, theirs) = measured(pair, args.rounds)
            apart = np.abs(ours - theirs).max()
            print(
                f'{name:28} {kind:9} {1e3 * times[0]:8.1f} {1e3 * times[1]:8.1f}   {median:5.2f} ({low:.2f} to '
                f'{high:.2f})   largest difference {apart:.0e}',
                flush=True,
            )


if __name__ == '__main__':
    main()
