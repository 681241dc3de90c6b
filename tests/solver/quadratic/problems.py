# SPDX-License-Identifier: Apache-2.0
"""Quadratic programs for the tests, as numpy arrays: minimize x'Qx / 2 + c'x subject to l <= Ax <= u."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

INF = np.inf


class Problem(NamedTuple):
    """A problem, and its optimal value if it is known."""

    Q: Any
    c: Any
    A: Any
    l: Any
    u: Any
    value: float | None = None

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
        return [torch.tensor(v, dtype=dtype) for v in self[:5]]


def random_problem(seed: int, n: int = 5, equations: int = 2, inequalities: int = 4) -> Problem:
    """A strictly convex problem with some active constraints."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((n, n))
    A = rng.standard_normal((equations + inequalities, n))
    inside = A @ rng.standard_normal(n)
    l = np.concatenate([inside[:equations], inside[equations:] - rng.uniform(0.05, 0.5, inequalities)])
    u = np.concatenate([inside[:equations], inside[equations:] + rng.uniform(0.05, 0.5, inequalities)])
    l[-1] = -INF
    return Problem(root @ root.T + 0.1 * np.eye(n), 2.0 * rng.standard_normal(n), A, l, u)


def array(*rows: Any) -> Any:
    return np.array(rows, dtype=np.float64)


# From Hock and Schittkowski, Test examples for nonlinear programming codes (1981), and from Maros and Meszaros, A
# repository of convex quadratic programming problems (1999), whose problems of these names are the same.  Constants in
# the objectives are left out of the values.
KNOWN = {
    # minimize 0.01 x1^2 + x2^2 - 100, 10 x1 - x2 >= 10, 2 <= x1 <= 50, |x2| <= 50
    'HS21': Problem(
        np.diag([0.02, 2.0]), array(0, 0), array([10, -1], [1, 0], [0, 1]), array(10, 2, -50), array(INF, 50, 50), 0.04
    ),
    # minimize 9 - 8 x1 - 6 x2 - 4 x3 + 2 x1^2 + 2 x2^2 + x3^2 + 2 x1 x2 + 2 x1 x3, x1 + x2 + 2 x3 <= 3, x >= 0
    'HS35': Problem(
        array([4, 2, 2], [2, 4, 0], [2, 0, 2]),
        array(-8, -6, -4),
        array([1, 1, 2], [1, 0, 0], [0, 1, 0], [0, 0, 1]),
        array(-INF, 0, 0, 0),
        array(3, INF, INF, INF),
        1 / 9 - 9,
    ),
    # minimize (x1 - x2)^2 + (x2 + x3 - 2)^2 + (x4 - 1)^2 + (x5 - 1)^2, three equations
    'HS51': Problem(
        2 * array([1, -1, 0, 0, 0], [-1, 2, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]),
        array(0, -4, -4, -2, -2),
        array([1, 3, 0, 0, 0], [0, 0, 1, 1, -2], [0, 1, 0, 0, -1]),
        array(4, 0, 0),
        array(4, 0, 0),
        -6.0,
    ),
    # minimize x1^2 + x2^2 / 2 + x3^2 + x4^2 / 2 - x1 x3 + x3 x4 - x1 - 3 x2 + x3 - x4
    'HS76': Problem(
        array([2, 0, -1, 0], [0, 1, 0, 0], [-1, 0, 2, 1], [0, 0, 1, 1]),
        array(-1, -3, 1, -1),
        array([1, 2, 1, 1], [3, 1, 2, -1], [0, 1, 4, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]),
        array(-INF, -INF, 1.5, 0, 0, 0, 0),
        array(5, 4, INF, INF, INF, INF, INF),
        -4.681818181818,
    ),
    # minimize (x - y)^2 / 2, x + y = 1: the matrix is singular
    'TAME': Problem(
        array([2, -2], [-2, 2]), array(0, 0), array([1, 1], [1, 0], [0, 1]), array(1, 0, 0), array(1, INF, INF), 0.0
    ),
    # a linear program, whose multipliers and variables are very different in size
    'linear': Problem(
        np.zeros((2, 2)),
        array(-1e-4, -2e-4),
        array([1, 1], [1, 0], [0, 1]),
        array(-INF, 0, 0),
        array(1e3, INF, 600),
        -0.16,
    ),
    # the same equation twice
    'repeated': Problem(np.eye(2), array(0, 0), array([1, 1], [1, 1]), array(2, 2), array(2, 2), 1.0),
    # constraints that do not bind, on a badly scaled objective
    'scaled': Problem(
        np.diag([1e-4, 1e4]), array(-1e-4, 1e4), array([1, 0], [0, 1e3]), array(-INF, -INF), array(9, 9e3), -5000.00005
    ),
}
