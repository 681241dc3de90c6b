# SPDX-License-Identifier: Apache-2.0
"""A batch of runs under ``torch.vmap``: each sample ends where, when and how its own run does."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch

import torchopt
from torchopt.solver import Status

SOLVERS: dict[str, Any] = {
    'LBFGS': torchopt.LBFGS,
    'LBFGS, three pairs': lambda fun, **options: torchopt.LBFGS(fun, history_size=3, **options),
    'LBFGS, no pairs': lambda fun, **options: torchopt.LBFGS(fun, history_size=0, **options),
    'LBFGS, no scale': lambda fun, **options: torchopt.LBFGS(fun, use_gamma=False, **options),
    'LBFGS, backtracking': lambda fun, **options: torchopt.LBFGS(fun, linesearch='backtracking', **options),
    'LBFGS, Hager-Zhang': lambda fun, **options: torchopt.LBFGS(fun, linesearch='hager-zhang', maxls=6, **options),
    'LBFGS, longer and longer': lambda fun, **options: torchopt.LBFGS(fun, linesearch_init='increase', **options),
    'LBFGS, fixed steps': lambda fun, **options: torchopt.LBFGS(fun, stepsize=0.5, **options),
    'LBFGS, ends': lambda fun, **options: torchopt.LBFGS(fun, stop_if_linesearch_fails=True, **options),
    'BFGS': torchopt.BFGS,
    'BFGS, backtracking': lambda fun, **options: torchopt.BFGS(fun, linesearch='backtracking', **options),
    'GradientDescent': torchopt.GradientDescent,
    'GradientDescent, plain': lambda fun, **options: torchopt.GradientDescent(fun, acceleration=False, **options),
    'GradientDescent, fixed steps': lambda fun, **options: torchopt.GradientDescent(fun, stepsize=0.1, **options),
}


def bowl(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (torch.arange(1.0, 5.0, dtype=x.dtype) * (x - 1.0) ** 2).sum() * scale + 0.01 * (x**4).sum()


def wells(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A double well for each element: most starts have negative curvature."""
    return ((x**2 - scale) ** 2 + 0.1 * x).sum()


def log_barrier(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """NaN beyond the barrier."""
    return (scale * x - torch.log(x + 0.5) - torch.log(3.0 - x)).sum()


def fails(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Finite at the start only if the scale is small."""
    return (x**2).sum() + torch.where((scale > 2.0) & (x != 0.1).any(), math.nan, 0.0)


def falls(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Without a lower bound if the scale is negative."""
    return (scale - 1.0) * (x**2).sum() - x.sum()


FUNCTIONS = {f.__name__: f for f in (bowl, wells, log_barrier, fails, falls)}
SCALES = (0.3, 1.0, 4.0)


@pytest.mark.parametrize('name', SOLVERS)
@pytest.mark.parametrize('fun', FUNCTIONS)
def test_samples_are_runs_of_their_own(fun: str, name: str) -> None:
    solver = SOLVERS[name](FUNCTIONS[fun], maxiter=12, tol=1e-6)
    scales, start = torch.tensor(SCALES, dtype=torch.float64), torch.full((4,), 0.1, dtype=torch.float64)
    params, state = torch.vmap(lambda scale: solver.run(start, scale))(scales)
    for i, scale in enumerate(scales):
        alone = solver.run(start, scale)
        status = Status(int(alone.state.status))
        assert Status(int(state.status[i])) is status
        if not alone.params.abs().max() < 1e3:  # on the way to infinity, rounding grows too
            continue
        torch.testing.assert_close(params[i], alone.params, rtol=1e-6, atol=1e-8, equal_nan=True)
        assert int(state.iter_num[i]) == int(alone.state.iter_num)
        torch.testing.assert_close(state.error[i], alone.state.error, rtol=1e-3, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize('name', ['LBFGS', 'LBFGS, three pairs', 'BFGS'])
def test_the_memory_of_a_sample_is_that_of_its_run(name: str) -> None:
    for fun in (bowl, wells):
        solver = SOLVERS[name](fun, maxiter=6, tol=1e-3)
        scales, start = torch.tensor(SCALES, dtype=torch.float64), torch.full((4,), 0.1, dtype=torch.float64)
        found = torch.vmap(lambda scale, solver=solver, start=start: solver.run(start, scale))(scales)
        for i, scale in enumerate(scales):
            alone = solver.run(start, scale)
            fields = ('s_history', 'y_history', 'rho_history', 'gamma', 'H', 'grad', 'value', 'stepsize')
            for field in fields:
                if hasattr(alone.state, field):
                    x, y = getattr(found.state, field)[i], getattr(alone.state, field)
                    torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-9)
        resumed = torch.vmap(lambda step, scale, solver=solver: solver.run(step, scale))(found, scales)
        assert resumed.state.error.max() < 1e-3


@pytest.mark.parametrize('name', ['LBFGS', 'BFGS', 'GradientDescent'])
def test_float32_and_trees(name: str) -> None:
    def fun(p: Any, scale: torch.Tensor) -> torch.Tensor:
        return scale * ((p['a'] - 2.0) ** 2).sum() + (p['b'][0] - scale) ** 2

    start = {'a': torch.zeros(2, 2), 'b': [torch.tensor(0.0)]}
    scales = torch.tensor(SCALES)
    params, state = torch.vmap(lambda scale: SOLVERS[name](fun, tol=1e-4).run(start, scale))(scales)
    assert params['a'].dtype == state.error.dtype == torch.float32
    torch.testing.assert_close(params['a'], torch.full((3, 2, 2), 2.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(params['b'][0], scales, atol=1e-3, rtol=0)


@pytest.mark.parametrize('name', ['LBFGS', 'BFGS'])
def test_complex_leaves(name: str) -> None:
    """Their real and imaginary parts are elements of the arrays."""

    def fun(p: Any, scale: torch.Tensor) -> torch.Tensor:
        return ((p['a'] - scale * (1.0 + 2.0j)).abs() ** 2 * torch.tensor([1.0, 5.0])).sum() + (p['b'] - scale) ** 2

    start = {'a': torch.zeros(2, dtype=torch.complex128), 'b': torch.tensor(0.0, dtype=torch.float64)}
    scales, solver = torch.tensor(SCALES, dtype=torch.float64), SOLVERS[name](fun, tol=1e-8)
    params, state = torch.vmap(lambda scale: solver.run(start, scale))(scales)
    torch.testing.assert_close(params['a'], (scales * (1.0 + 2.0j))[:, None].expand(3, 2))
    for i, scale in enumerate(scales):
        alone = solver.run(start, scale)
        assert int(state.iter_num[i]) == int(alone.state.iter_num)
        torch.testing.assert_close(params['b'][i], alone.params['b'])
    assert state.grad['a'].dtype == torch.complex128


@pytest.mark.parametrize('name', ['LBFGS', 'BFGS', 'GradientDescent'])
def test_tiny_and_huge_samples(name: str) -> None:
    """Squares of the gradients underflow in one sample, and overflow in another."""
    scales = torch.tensor([1e-200, 1.0, 1e200], dtype=torch.float64)
    solver = SOLVERS[name](lambda x, scale: scale * (x**2).sum(), tol=0.0, maxiter=3)
    start = torch.ones(2, dtype=torch.float64)
    error = torch.vmap(lambda scale: SOLVERS[name](solver.fun, maxiter=0).run(start, scale).state.error)(scales)
    if not name.startswith('Gradient'):
        torch.testing.assert_close(error, scales * 8.0**0.5)
    found = torch.vmap(lambda scale: solver.run(start, scale))(scales)
    for i, scale in enumerate(scales):
        torch.testing.assert_close(found.params[i], solver.run(start, scale).params)


@pytest.mark.parametrize('name', ['LBFGS', 'BFGS', 'GradientDescent'])
def test_auxiliary_output_reports_and_no_steps(name: str) -> None:
    scales, start = torch.tensor(SCALES, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    seen: list[Any] = []
    options = {'has_aux': True, 'callback': lambda params, state: seen.append((params, state)), 'maxiter': 3}

    def fun(x: torch.Tensor, scale: torch.Tensor) -> Any:
        return bowl(x, scale), {'twice': 2.0 * scale, 'none': None}

    params, state = torch.vmap(lambda scale: SOLVERS[name](fun, tol=0.0, **options).run(start, scale))(scales)
    torch.testing.assert_close(state.aux['twice'], 2.0 * scales)
    assert len(seen) == 3
    assert all(isinstance(x, torch.Tensor) for x in (seen[0][1].error, seen[0][1].stepsize))
    options['maxiter'] = 0
    params, state = torch.vmap(lambda scale: SOLVERS[name](fun, **options).run(start, scale))(scales)
    assert state.status.tolist() == [Status.MAXITER] * 3
    assert torch.equal(params, start.expand(3, 4))


@pytest.mark.parametrize('name', ['LBFGS', 'BFGS'])
def test_derivatives_and_batches_of_batches(name: str) -> None:
    scales, start = torch.tensor([SCALES] * 2, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    solver = SOLVERS[name](bowl, tol=1e-9, maxiter=400)

    def solution(scale: torch.Tensor) -> torch.Tensor:
        return solver.run(start, scale).params  # type: ignore[no-any-return]

    expected = torch.stack([solution(scale) for scale in scales[0]])
    torch.testing.assert_close(torch.vmap(torch.vmap(solution))(scales), expected.expand(2, 3, 4), rtol=0, atol=1e-7)
    jacobian = torch.stack([torch.func.jacrev(solution)(scale) for scale in scales[0]])
    for derivative in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(torch.vmap(derivative(solution))(scales[0]), jacobian, rtol=0, atol=1e-6)
        total = derivative(torch.vmap(solution))(scales[0])
        torch.testing.assert_close(total.diagonal(dim1=0, dim2=2).T, jacobian, rtol=0, atol=1e-6)


@pytest.mark.parametrize('name', ['LBFGS', 'BFGS'])
def test_a_sample_that_has_ended_does_not_search(name: str) -> None:
    calls = []

    def fun(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return bowl(x, scale)

    solver = SOLVERS[name](fun, maxiter=20, tol=1e-6)
    start, counts = torch.full((4,), 0.1, dtype=torch.float64), []
    for bad in (1.0, math.nan):
        calls.clear()
        state = torch.vmap(lambda scale: solver.run(start, scale).state)(torch.tensor([0.3, bad, 4.0]).double())
        counts.append(len(calls))
    assert state.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    assert counts[1] <= counts[0]


def test_bounds_that_cross_in_one_sample() -> None:
    lower, upper = torch.tensor([[-1.0, -1.0], [2.0, 2.0]]), torch.ones(2, 2)
    solver = torchopt.LBFGSB(lambda w: ((w - 3.0) ** 2).sum())
    params, state = torch.vmap(lambda *bounds: solver.run(torch.zeros(2), bounds))(lower, upper)
    assert state.status.tolist() == [Status.CONVERGED, Status.INFEASIBLE]
    assert params[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize('place', ['Q', 'c'])
@pytest.mark.parametrize('kind', ['OSQP', 'BoxOSQP', 'BoxCDQP'])
def test_quadratic_programs_with_a_sample_that_is_not_finite(kind: str, place: str) -> None:
    eye, one = torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    Q, c = eye.repeat(3, 1, 1), one.repeat(3, 1)
    {'Q': Q, 'c': c}[place][1] = math.nan

    def solve(Q: torch.Tensor, c: torch.Tensor) -> Any:
        if kind == 'OSQP':
            found = torchopt.OSQP().run(params_obj=(Q, c), params_ineq=(eye, one))
            return found.params.primal, found.state.status
        if kind == 'BoxOSQP':
            found = torchopt.BoxOSQP().run(None, (Q, c), eye, (-one, one))
            return found.params.primal[0], found.state.status
        found = torchopt.BoxCDQP().run(None, (Q, c), (-one, one))
        return found.params, found.state.status

    x, status = torch.vmap(solve)(Q, c)
    assert status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    torch.testing.assert_close(x[[0, 2]], -one.repeat(2, 1), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    'name', ['LBFGS', 'LBFGSB', 'BFGS', 'NonlinearCG', 'GradientDescent', 'ProximalGradient', 'ProjectedGradient']
)
def test_single_steps_in_a_batch(name: str) -> None:
    """``torch.vmap(solver.update)``, whose state has no auxiliary output."""
    required = (torchopt.projections.projection_l2_ball,) if name == 'ProjectedGradient' else ()
    solver = getattr(torchopt, name)(bowl, *required, maxiter=50, tol=1e-6)
    more = (None,) if name in ('LBFGSB', 'ProximalGradient', 'ProjectedGradient') else ()
    scales, start = torch.tensor(SCALES, dtype=torch.float64), torch.full((4,), 0.1, dtype=torch.float64)
    begin = torch.vmap(lambda scale: solver.init_state(start, *more, scale))(scales)
    params, state = start.expand(3, 4), begin
    for _ in range(3):
        params, state = torch.vmap(lambda p, s, scale: solver.update(p, s, *more, scale))(params, state, scales)
    for i, scale in enumerate(scales):
        alone, one = start, solver.init_state(start, *more, scale)
        for _ in range(3):
            alone, one = solver.update(alone, one, *more, scale)
        torch.testing.assert_close(params[i], alone, rtol=1e-6, atol=1e-9)
    assert state.iter_num.tolist() == [3, 3, 3]


class Counted(torch.autograd.Function):
    """The identity, which notes for how many samples it was called."""

    generate_vmap_rule = False
    sizes: ClassVar[list[int]] = []

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return grad

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: torch.Tensor) -> Any:  # type: ignore[override]
        Counted.sizes.append(info.batch_size)
        return Counted.apply(x), in_dims[0]


def well(x: torch.Tensor, scale: torch.Tensor, shift: Any = 0.5) -> torch.Tensor:
    """Some scales need more trials of a step, and more steps, than others."""
    x = Counted.apply(x)
    return ((scale * x**2 - 1.0) ** 2 + (x - shift) ** 2).sum()


def ways_to_give_data(solver: Any, fun: Any) -> dict[str, Any]:
    start, shift = torch.full((4,), 0.1, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    options = {'maxiter': 40, 'tol': 1e-7}
    return {
        'argument': lambda scale: solver(fun, **options).run(start, scale),
        'keyword': lambda scale: solver(fun, **options).run(start, shift=shift, scale=scale),
        'tree': lambda scale: solver(lambda x, d: fun(x, **d), **options).run(start, {'shift': shift, 'scale': scale}),
        'closure': lambda scale: solver(lambda x: fun(x, scale, shift), **options).run(start),
        'half': lambda scale: solver(lambda x, s: fun(x, s, shift + 0.0 * scale), **options).run(start, scale),
        'gradient': lambda scale: solver(
            lambda x, s: torch.func.grad_and_value(fun)(x, s)[::-1], value_and_grad=True, **options
        ).run(start, scale),
        'auxiliary': lambda scale: solver(lambda x, s: (fun(x, s), s), has_aux=True, **options).run(start, scale),
    }


@pytest.mark.parametrize('way', ways_to_give_data(torchopt.LBFGS, well))
@pytest.mark.parametrize('name', ['LBFGS', 'LBFGS, backtracking', 'BFGS'])
def test_only_samples_that_move_are_evaluated(name: str, way: str) -> None:
    run = ways_to_give_data(SOLVERS[name], well)[way]
    scales = torch.linspace(0.2, 6.0, 12, dtype=torch.float64)
    Counted.sizes.clear()
    found = torch.vmap(run)(scales)
    sizes = list(Counted.sizes)
    for i, scale in enumerate(scales):
        alone = run(scale)
        torch.testing.assert_close(found.params[i], alone.params, rtol=1e-6, atol=1e-8)
        assert int(found.state.iter_num[i]) == int(alone.state.iter_num)
        assert int(found.state.num_fun_eval[i]) == int(alone.state.num_fun_eval)
        assert Status(int(found.state.status[i])) is Status.CONVERGED
    if way in ('closure', 'half'):  # values of the batch that are not among the data: found out with one sample, once
        assert [size for size in sizes if size < 12] == [1]
    elif way == 'auxiliary':
        assert set(sizes) == {12}
    else:
        assert sum(sizes) < 0.8 * 12 * len(sizes)
        assert all(size <= 6 for size in sizes if size < 12)
