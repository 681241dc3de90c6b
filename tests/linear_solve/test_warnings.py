# SPDX-License-Identifier: Apache-2.0
"""Warnings of linear solvers: once for each place, from the caller's line, and none of what was asked for."""

from __future__ import annotations

import logging
import pathlib
import warnings
from typing import Any

import pytest
import torch

from tests.linear_solve.test_solutions import matrix, vector
from torchopt.implicit_diff import custom_root
from torchopt.linear_solve import (
    LinearSolveWarning,
    solve_bicgstab,
    solve_cg,
    solve_gmres,
    solve_inv,
    solve_iterative_refinement,
    solve_normal_cg,
)


def meta_gradient(solve: Any, seed: int) -> None:
    """A gradient through an inner problem, as iMAML has it."""
    A, w = matrix(9, seed), vector(9, seed=seed).requires_grad_()
    inner = custom_root(lambda x, w: A @ x - w, solve=solve)(lambda x, w: torch.linalg.solve(A, w))
    inner(None, w).sum().backward()  # the line that warns
    assert w.grad is not None


def test_one_warning_for_each_place_whatever_the_numbers() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('default')
        for seed in range(4):
            meta_gradient(solve_normal_cg(maxiter=2, tol=1e-10), seed)
            solve_cg(matrix(9, seed).matmul, vector(9, seed=seed), maxiter=2 + seed // 2, tol=1e-10)
    assert [w.category for w in caught] == [LinearSolveWarning] * 2
    lines = pathlib.Path(__file__).read_text().split('\n')
    for warning in caught:
        assert warning.filename == __file__
        assert 'solve_cg(' in lines[warning.lineno - 1] or 'the line that warns' in lines[warning.lineno - 1]


@pytest.mark.parametrize(
    'solve',
    [
        solve_normal_cg(maxiter=2, atol=0),
        solve_cg(maxiter=2, atol=0.0),
        solve_cg(maxiter=2, tol=0),
        solve_bicgstab(maxiter=2, rtol=0.0, atol=0.0),
        solve_gmres(maxiter=1, restart=2, atol=0.0),
        solve_iterative_refinement(maxiter=2, tol=0, solve=solve_cg(maxiter=2)),
        solve_inv(ns=True, maxiter=2, alpha=0.01),
    ],
    ids=['normal_cg', 'cg', 'cg without tol', 'bicgstab', 'gmres', 'refinement', 'neumann'],
)
def test_a_truncation_that_was_asked_for_goes_to_the_log(solve: Any, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG, logger='torchopt'):
        warnings.simplefilter('error', LinearSolveWarning)
        meta_gradient(solve, 0)
    assert 'MAXITER in 1 of 1 systems, after 2 iterations' in caplog.text


@pytest.mark.parametrize(
    'options',
    [
        {'maxiter': 2},
        {'maxiter': 2, 'tol': 1e-9},
        {'maxiter': 2, 'tol': 1e-9, 'atol': 0},
        {'tol': 0, 'M': lambda r: 0 * r},
    ],
)
def test_what_was_not_asked_for_warns(options: dict[str, Any]) -> None:
    with pytest.warns(LinearSolveWarning):
        solve_cg(matrix(9).matmul, vector(9), **options)


def test_a_rough_solver_does_not_warn_and_leaves_the_filters_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        before = list(warnings.filters)
        x = solve_iterative_refinement(matrix(5).matmul, vector(5), solve=solve_cg(maxiter=2, tol=1e-9), maxiter=50)
        assert warnings.filters == before
    torch.testing.assert_close(matrix(5) @ x, vector(5), rtol=0.0, atol=1e-6)
    with pytest.warns(LinearSolveWarning):
        solve_cg(matrix(5).matmul, vector(5), maxiter=1, tol=1e-9)
