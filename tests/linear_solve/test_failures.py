# SPDX-License-Identifier: Apache-2.0
"""Nothing fails silently: warnings or a status for what did not converge, errors for what cannot be solved."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.linear_solve.test_solutions import Case, every_solver, matrix, vector
from torchopt import linear_solve
from torchopt.linear_solve import LinearSolveWarning, Outcome, SolveStatus, solve_cg

SINGULAR = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
ONES = torch.ones(3, dtype=torch.float64)
ITERATIVE = ['solve_cg', 'solve_normal_cg', 'solve_bicgstab', 'solve_gmres', 'solve_iterative_refinement']
DIRECT = ['solve_lu', 'solve_cholesky', 'solve_qr', 'solve_inv']


@pytest.mark.parametrize('name', DIRECT)
def test_direct_solvers_refuse_singular_matrices(name: str) -> None:
    with pytest.raises(torch.linalg.LinAlgError, match=rf'{name}: the matrix is (singular|not positive definite)'):
        getattr(linear_solve, name)(SINGULAR.matmul, ONES)
    matrices = torch.stack([torch.eye(3, dtype=torch.float64), SINGULAR])
    with pytest.raises(torch.linalg.LinAlgError):
        torch.vmap(lambda A: getattr(linear_solve, name)(A.matmul, ONES))(matrices)


@pytest.mark.parametrize('name', ['solve_cg', 'solve_bicgstab', 'solve_gmres', 'solve_iterative_refinement'])
def test_iterative_solvers_warn_of_singular_matrices(name: str) -> None:
    with pytest.warns(LinearSolveWarning, match='singular'):
        getattr(linear_solve, name)(SINGULAR.matmul, ONES)


def test_normal_equations_solve_what_can_be_solved() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        x = linear_solve.solve_normal_cg(SINGULAR.matmul, ONES)
    assert x.tolist() == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parametrize('name', ITERATIVE[:-1])
def test_too_few_iterations(name: str) -> None:
    solve = getattr(linear_solve, name)
    few = {'maxiter': 2, 'tol': 1e-10, **({'restart': 1} if name == 'solve_gmres' else {})}
    with pytest.warns(LinearSolveWarning, match=rf'{name} reached maxiter'):
        warned = solve(matrix(9).matmul, vector(9), **few)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        told, status = solve(matrix(9).matmul, vector(9), **few, return_status=True)
    assert torch.equal(warned, told)
    assert isinstance(status, SolveStatus)
    assert (int(status.iterations), int(status.outcome), bool(status.converged)) == (2, Outcome.MAXITER, False)
    matmul = matrix(9).mT @ matrix(9) if name == 'solve_normal_cg' else matrix(9)
    b = matrix(9).mT @ vector(9) if name == 'solve_normal_cg' else vector(9)
    torch.testing.assert_close(status.residual, (b - matmul @ told).norm())


def test_no_iterations_at_all() -> None:
    with pytest.warns(LinearSolveWarning):
        assert solve_cg(matrix(3).matmul, vector(3), maxiter=0).tolist() == [0, 0, 0]


def test_the_status_of_each_system_in_a_batch() -> None:
    As, b = torch.stack([torch.eye(5, dtype=torch.float64), matrix(5)]), vector(5)
    solve = lambda A: solve_cg(A.matmul, b, tol=1e-12, maxiter=2, return_status=True)  # noqa: E731
    _, status = torch.vmap(solve)(As)
    assert status.outcome.tolist() == [Outcome.CONVERGED, Outcome.MAXITER]
    with pytest.warns(LinearSolveWarning, match='some of the systems of a batch'):
        torch.vmap(lambda A: solve_cg(A.matmul, b, tol=1e-12, maxiter=2))(As)


@every_solver
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_one_right_hand_side_of_a_batch_that_is_not_finite(case: Case, bad: float) -> None:
    """Direct solvers called the matrix singular, the warning spoke of the Neumann series, and refinement failed."""
    b = torch.stack([2.0 * ONES, ONES, ONES])
    b[1, 2] = bad
    with pytest.warns(LinearSolveWarning, match='some of the systems.* right-hand side .* not finite') as caught:
        x = torch.vmap(lambda b: case.solve(lambda x: 2.0 * x, b))(b)
    assert ('radius' in str(caught[0].message)) == ('ns' in case.options)
    torch.testing.assert_close(x[[0, 2]], b[[0, 2]] / 2.0)
    assert not torch.isfinite(x[1]).all()


def test_breakdown_and_divergence() -> None:
    # p'Ap = 0 in the first step; the symmetric matrix is indefinite
    exchange = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    with pytest.warns(LinearSolveWarning, match='broke down'):
        solve_cg(exchange.matmul, torch.tensor([1.0, 0.0], dtype=torch.float64))
    with pytest.warns(LinearSolveWarning, match=r'solve_inv\(ns=True\) diverged.* spectral radius .* alpha'):
        linear_solve.solve_inv(lambda v: 3 * v, ONES, ns=True)


def test_a_failing_derivative_warns() -> None:
    A = matrix(9).requires_grad_()
    with pytest.warns(LinearSolveWarning, match='maxiter'):
        x = solve_cg(A.matmul, vector(9), maxiter=2, tol=1e-10)
    with pytest.warns(LinearSolveWarning, match='maxiter'):
        torch.autograd.grad(x.sum(), A)


@every_solver
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_right_hand_sides_that_are_not_finite(case: Case, bad: float) -> None:
    b = {'a': torch.ones(2), 'b': torch.tensor([1.0, bad])}
    with pytest.raises(ValueError, match=r'right-hand side .* not finite'):
        case.solve(lambda x: x, b)


@every_solver
def test_matrices_that_are_not_finite(case: Case) -> None:
    with pytest.raises((ValueError, torch.linalg.LinAlgError)):
        case.solve(lambda x: x * float('nan'), torch.ones(2))


@every_solver
@pytest.mark.parametrize(
    ('matvec', 'message'),
    [
        (lambda x: {'b': x['a']}, r'matvec\(x\) does not have the structure of b'),
        (lambda x: {'a': x['a'][:1]}, r"\['a'\] has shape \(1,\), but b\['a'\] has shape \(2,\)"),
        (lambda x: {'a': 1.0}, r"\['a'\] is a float"),
    ],
    ids=['structure', 'shape', 'kind'],
)
def test_products_that_do_not_match(case: Case, matvec: Callable[..., Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        case.solve(matvec, {'a': torch.ones(2)})


@pytest.mark.parametrize(
    ('call', 'error', 'message'),
    [
        (lambda: solve_cg(SINGULAR, ONES), TypeError, 'matvec is a Tensor'),
        (lambda: solve_cg(SINGULAR.matmul), TypeError, 'b is missing'),
        (lambda: solve_cg(b=ONES), TypeError, 'matvec is not'),
        (lambda: solve_cg(maxit=3), TypeError, 'maxit'),
        (lambda: solve_cg(SINGULAR.matmul, ONES, maxiter=-1), ValueError, 'maxiter'),
        (lambda: solve_cg(SINGULAR.matmul, ONES, maxiter=2.5), ValueError, 'maxiter'),
        (lambda: solve_cg(SINGULAR.matmul, ONES, tol=-1.0), ValueError, 'tol'),
        (lambda: solve_cg(SINGULAR.matmul, ONES, atol=-1.0), ValueError, 'atol'),
        (lambda: solve_cg(SINGULAR.matmul, ONES, tol=0.1, rtol=0.1), TypeError, 'tol and rtol'),
        (lambda: solve_cg(SINGULAR.matmul, ONES, ridge=ONES), ValueError, 'ridge'),
        (lambda: solve_cg(SINGULAR.matmul, ONES, init=ONES[:2]), ValueError, 'init'),
        (lambda: linear_solve.solve_gmres(SINGULAR.matmul, ONES, restart=0), ValueError, 'restart'),
        (lambda: linear_solve.solve_inv(SINGULAR.matmul, ONES, alpha=0.1), TypeError, 'ns=True'),
        (lambda: linear_solve.solve_cholesky(lambda v: v.roll(1) + 3 * v, ONES), torch.linalg.LinAlgError, 'symmetric'),
        (lambda: solve_cg(lambda v: 1j * v, ONES), TypeError, 'complex'),
    ],
)
def test_bad_arguments(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
