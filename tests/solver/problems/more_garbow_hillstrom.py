# SPDX-License-Identifier: Apache-2.0
"""The 35 test functions of Moré, Garbow and Hillstrom, *Testing Unconstrained Optimization Software*, ACM TOMS, 1981.

Each is a vector of residuals; the objective of minimization is its sum of squares. The numbers are those of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# The measurements that some of the functions are fitted to.
# fmt: off
BARD = (0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39)

GAUSSIAN = (
    0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989,
    0.3521, 0.2420, 0.1295, 0.0540, 0.0175, 0.0044, 0.0009,
)

MEYER = (
    34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872,
)

KOWALIK_OSBORNE_Y = (0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246)
KOWALIK_OSBORNE_U = (4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625)

OSBORNE_1 = (
    0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751, 0.718, 0.685, 0.658, 0.628, 0.603,
    0.580, 0.558, 0.538, 0.522, 0.506, 0.490, 0.478, 0.467, 0.457, 0.448, 0.438, 0.431, 0.424, 0.420, 0.414, 0.411,
    0.406,
)

OSBORNE_2 = (
    1.366, 1.191, 1.112, 1.013, 0.991, 0.885, 0.831, 0.847, 0.786, 0.725, 0.746, 0.679, 0.608, 0.655, 0.616, 0.606,
    0.602, 0.626, 0.651, 0.724, 0.649, 0.649, 0.694, 0.644, 0.624, 0.661, 0.612, 0.558, 0.533, 0.495, 0.500, 0.423,
    0.395, 0.375, 0.372, 0.391, 0.396, 0.405, 0.428, 0.429, 0.523, 0.562, 0.607, 0.653, 0.672, 0.708, 0.633, 0.668,
    0.645, 0.632, 0.591, 0.559, 0.597, 0.625, 0.739, 0.710, 0.729, 0.720, 0.636, 0.581, 0.428, 0.292, 0.162, 0.098,
    0.054,
)
# fmt: on


class Problem(NamedTuple):
    """A sum of squares.

    Attributes:
        number: Its number in the paper.
        residual: A function from ``n`` unknowns to ``m`` residuals.
        start: The standard starting point, float64.
        minima: The values of the sum of squares at the known minima, the global one first.
    """

    number: int
    name: str
    residual: Callable[[Tensor], Tensor]
    start: Tensor
    minima: tuple[float, ...]

    def objective(self, x: Tensor) -> Tensor:
        return self.residual(x).square().sum()


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def count(n: int, first: int = 1) -> Tensor:
    return torch.arange(first, first + n, dtype=torch.float64)


def joined(*parts: Tensor) -> Tensor:
    return torch.cat([torch.atleast_1d(part) for part in parts])


def rosenbrock(x: Tensor) -> Tensor:
    odd, even = x[0::2], x[1::2]
    return torch.stack([10 * (even - odd**2), 1 - odd], 1).flatten()


def freudenstein_roth(x: Tensor) -> Tensor:
    a, b = x
    return torch.stack([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])


def powell_badly_scaled(x: Tensor) -> Tensor:
    a, b = x
    return torch.stack([1e4 * a * b - 1, torch.exp(-a) + torch.exp(-b) - 1.0001])


def brown_badly_scaled(x: Tensor) -> Tensor:
    a, b = x
    return torch.stack([a - 1e6, b - 2e-6, a * b - 2])


def beale(x: Tensor) -> Tensor:
    a, b = x
    return vector(1.5, 2.25, 2.625) - a * (1 - b ** count(3))


def jennrich_sampson(x: Tensor) -> Tensor:
    i = count(10)
    return 2 + 2 * i - (torch.exp(i * x[0]) + torch.exp(i * x[1]))


def helical_valley(x: Tensor) -> Tensor:
    a, b, c = x
    turn = torch.atan(b / a) / (2 * math.pi) + torch.where(a > 0, 0.0, 0.5)
    return torch.stack([10 * (c - 10 * turn), 10 * (torch.sqrt(a**2 + b**2) - 1), c])


def bard(x: Tensor) -> Tensor:
    u = count(15)
    v = 16 - u
    return vector(*BARD) - (x[0] + u / (v * x[1] + torch.minimum(u, v) * x[2]))


def gaussian(x: Tensor) -> Tensor:
    t = (8 - count(15)) / 2
    return x[0] * torch.exp(-x[1] * (t - x[2]) ** 2 / 2) - vector(*GAUSSIAN)


def meyer(x: Tensor) -> Tensor:
    return x[0] * torch.exp(x[1] / (45 + 5 * count(16) + x[2])) - vector(*MEYER)


def gulf(x: Tensor) -> Tensor:
    # With |y - x2|, which the authors' program has, and not the |y m i x2| that the paper prints.
    t = count(99) / 100
    y = 25 + (-50 * torch.log(t)) ** (2 / 3)
    return torch.exp(-((y - x[1]).abs() ** x[2]) / x[0]) - t


def box(x: Tensor) -> Tensor:
    t = 0.1 * count(10)
    return torch.exp(-t * x[0]) - torch.exp(-t * x[1]) - x[2] * (torch.exp(-t) - torch.exp(-10 * t))


def powell_singular(x: Tensor) -> Tensor:
    a, b, c, d = x[0::4], x[1::4], x[2::4], x[3::4]
    rows = [a + 10 * b, math.sqrt(5) * (c - d), (b - 2 * c) ** 2, math.sqrt(10) * (a - d) ** 2]
    return torch.stack(rows, 1).flatten()


def wood(x: Tensor) -> Tensor:
    a, b, c, d = x
    rows = [10 * (b - a**2), 1 - a, math.sqrt(90) * (d - c**2), 1 - c]
    return torch.stack([*rows, math.sqrt(10) * (b + d - 2), (b - d) / math.sqrt(10)])


def kowalik_osborne(x: Tensor) -> Tensor:
    u = vector(*KOWALIK_OSBORNE_U)
    return vector(*KOWALIK_OSBORNE_Y) - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def brown_dennis(x: Tensor) -> Tensor:
    t = count(20) / 5
    return (x[0] + t * x[1] - torch.exp(t)) ** 2 + (x[2] + x[3] * torch.sin(t) - torch.cos(t)) ** 2


def osborne_1(x: Tensor) -> Tensor:
    t = 10 * count(33, 0)
    return vector(*OSBORNE_1) - (x[0] + x[1] * torch.exp(-t * x[3]) + x[2] * torch.exp(-t * x[4]))


def biggs(x: Tensor) -> Tensor:
    t = 0.1 * count(13)
    y = torch.exp(-t) - 5 * torch.exp(-10 * t) + 3 * torch.exp(-4 * t)
    return x[2] * torch.exp(-t * x[0]) - x[3] * torch.exp(-t * x[1]) + x[5] * torch.exp(-t * x[4]) - y


def osborne_2(x: Tensor) -> Tensor:
    t = count(65, 0) / 10
    bells = sum(x[i] * torch.exp(-((t - x[i + 7]) ** 2) * x[i + 4]) for i in (1, 2, 3))
    return vector(*OSBORNE_2) - (x[0] * torch.exp(-t * x[4]) + bells)


def watson(x: Tensor) -> Tensor:
    t = (count(29) / 29)[:, None]
    j = count(len(x), 0)
    rows = (j[1:] * x[1:] * t ** (j[1:] - 1)).sum(1) - (x * t**j).sum(1) ** 2 - 1
    return joined(rows, x[0], x[1] - x[0] ** 2 - 1)


def penalty_1(x: Tensor) -> Tensor:
    return joined(math.sqrt(1e-5) * (x - 1), x.square().sum() - 0.25)


def penalty_2(x: Tensor) -> Tensor:
    n, a = len(x), math.sqrt(1e-5)
    e, i = torch.exp(x / 10), count(len(x))
    y = torch.exp(i / 10) + torch.exp((i - 1) / 10)
    weighted = ((n - i + 1) * x**2).sum() - 1
    return joined(x[0] - 0.2, a * (e[1:] + e[:-1] - y[1:]), a * (e[1:] - math.exp(-0.1)), weighted)


def variably_dimensioned(x: Tensor) -> Tensor:
    s = (count(len(x)) * (x - 1)).sum()
    return joined(x - 1, s, s**2)


def trigonometric(x: Tensor) -> Tensor:
    return len(x) - torch.cos(x).sum() + count(len(x)) * (1 - torch.cos(x)) - torch.sin(x)


def brown_almost_linear(x: Tensor) -> Tensor:
    return joined(x[:-1] + x.sum() - (len(x) + 1), x.prod() - 1)


def _neighbours(x: Tensor) -> tuple[Tensor, Tensor]:
    zero = x.new_zeros(1)
    return torch.cat([zero, x[:-1]]), torch.cat([x[1:], zero])


def boundary_value(x: Tensor) -> Tensor:
    h = 1 / (len(x) + 1)
    before, after = _neighbours(x)
    return 2 * x - before - after + h**2 * (x + h * count(len(x)) + 1) ** 3 / 2


def integral_equation(x: Tensor) -> Tensor:
    n, h = len(x), 1 / (len(x) + 1)
    t = h * count(n)
    cubes = (x + t + 1) ** 3
    below = torch.tril(torch.ones(n, n, dtype=torch.float64))
    kernel = below * torch.outer(1 - t, t) + (1 - below) * torch.outer(t, 1 - t)
    return x + h * (kernel @ cubes) / 2


def broyden_tridiagonal(x: Tensor) -> Tensor:
    before, after = _neighbours(x)
    return (3 - 2 * x) * x - before - 2 * after + 1


def broyden_banded(x: Tensor) -> Tensor:
    n = len(x)
    lag = count(n)[:, None] - count(n)
    band = ((lag <= 5) & (lag >= -1) & (lag != 0)).double()
    return x * (2 + 5 * x**2) + 1 - band @ (x * (1 + x))


def linear_full_rank(x: Tensor) -> Tensor:
    m = 2 * len(x)
    return joined(x, x.new_zeros(m - len(x))) - 2 / m * x.sum() - 1


def linear_rank_1(x: Tensor) -> Tensor:
    return count(2 * len(x)) * (count(len(x)) * x).sum() - 1


def linear_rank_1_zeros(x: Tensor) -> Tensor:
    inner = (count(len(x)) * x)[1:-1].sum()
    weights = count(2 * len(x), 0)
    return torch.cat([weights[:-1], weights.new_zeros(1)]) * inner - 1


def chebyquad(x: Tensor) -> Tensor:
    n, y = len(x), 2 * x - 1
    before, now, rows = torch.ones_like(x), y, []
    for i in range(1, n + 1):
        integral = 0.0 if i % 2 else -1 / (i**2 - 1)
        rows.append(now.mean() - integral)
        before, now = now, 2 * y * now - before
    return torch.stack(rows)


def _of_rank_1(m: int) -> float:
    return m * (m - 1) / (2 * (2 * m + 1))


def _grid(n: int) -> Tensor:
    t = count(n) / (n + 1)
    return t * (t - 1)


def problems() -> list[Problem]:
    """All functions, with the dimensions of the paper's examples (10 for those of any dimension)."""
    rows: list[tuple[str, Callable[[Tensor], Tensor], Tensor, tuple[float, ...]]] = [
        ('Rosenbrock', rosenbrock, vector(-1.2, 1), (0.0,)),
        ('Freudenstein and Roth', freudenstein_roth, vector(0.5, -2), (0.0, 48.9842536792)),
        ('Powell badly scaled', powell_badly_scaled, vector(0, 1), (0.0,)),
        ('Brown badly scaled', brown_badly_scaled, vector(1, 1), (0.0,)),
        ('Beale', beale, vector(1, 1), (0.0,)),
        ('Jennrich and Sampson', jennrich_sampson, vector(0.3, 0.4), (124.362182356,)),
        ('Helical valley', helical_valley, vector(-1, 0, 0), (0.0,)),
        ('Bard', bard, vector(1, 1, 1), (8.21487730658e-3, 17.4286933353)),
        ('Gaussian', gaussian, vector(0.4, 1, 0), (1.12793276962e-8,)),
        ('Meyer', meyer, vector(0.02, 4000, 250), (87.9458551712,)),
        ('Gulf research and development', gulf, vector(5, 2.5, 0.15), (0.0,)),
        ('Box three-dimensional', box, vector(0, 10, 20), (0.0,)),
        ('Powell singular', powell_singular, vector(3, -1, 0, 1), (0.0,)),
        ('Wood', wood, vector(-3, -1, -3, -1), (0.0,)),
        ('Kowalik and Osborne', kowalik_osborne, vector(0.25, 0.39, 0.415, 0.39), (3.07505603849e-4, 1.02734e-3)),
        ('Brown and Dennis', brown_dennis, vector(25, 5, -5, -1), (85822.2016264,)),
        ('Osborne 1', osborne_1, vector(0.5, 1.5, -1, 0.01, 0.02), (5.46489469748e-5,)),
        ('Biggs EXP6', biggs, vector(1, 2, 1, 1, 1, 1), (0.0, 5.65564992574e-3)),
        ('Osborne 2', osborne_2, vector(1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5), (4.01377362935e-2,)),
        ('Watson', watson, vector(0, 0, 0, 0, 0, 0), (2.28767005355e-3,)),
        ('Extended Rosenbrock', rosenbrock, vector(-1.2, 1).repeat(5), (0.0,)),
        ('Extended Powell singular', powell_singular, vector(3, -1, 0, 1).repeat(3), (0.0,)),
        ('Penalty I', penalty_1, count(10), (7.08765146709e-5,)),
        ('Penalty II', penalty_2, vector(*[0.5] * 4), (9.37629322801e-6,)),
        ('Variably dimensioned', variably_dimensioned, 1 - count(10) / 10, (0.0,)),
        ('Trigonometric', trigonometric, vector(*[0.1] * 10), (0.0, 2.79506e-5)),
        ('Brown almost-linear', brown_almost_linear, vector(*[0.5] * 10), (0.0, 1.0)),
        ('Discrete boundary value', boundary_value, _grid(10), (0.0,)),
        ('Discrete integral equation', integral_equation, _grid(10), (0.0,)),
        ('Broyden tridiagonal', broyden_tridiagonal, vector(*[-1.0] * 10), (0.0,)),
        ('Broyden banded', broyden_banded, vector(*[-1.0] * 10), (0.0,)),
        ('Linear, full rank', linear_full_rank, vector(*[1.0] * 10), (10.0,)),
        ('Linear, rank 1', linear_rank_1, vector(*[1.0] * 10), (_of_rank_1(20),)),
        (
            'Linear, rank 1, zero columns and rows',
            linear_rank_1_zeros,
            vector(*[1.0] * 10),
            ((20**2 + 3 * 20 - 6) / (2 * (2 * 20 - 3)),),
        ),
        ('Chebyquad', chebyquad, count(8) / 9, (3.51687372568e-3,)),
    ]
    return [Problem(i, *row) for i, row in enumerate(rows, 1)]


SQUARE = frozenset({1, 2, 3, 7, 13, 21, 22, 26, 27, 28, 29, 30, 31, 35})
"""The numbers of those with as many residuals as unknowns, which are systems of equations."""
