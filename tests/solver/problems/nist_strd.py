# SPDX-License-Identifier: Apache-2.0
"""Nonlinear regression with certified answers: the Statistical Reference Datasets of NIST.

The files in ``tests/data/nist_strd`` are those of https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml, works of the
US government in the public domain. Each gives two starting points and the certified parameters, to 11 digits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

DATA = Path(__file__).resolve().parents[2] / 'data' / 'nist_strd'


class Regression(NamedTuple):
    """A regression: ``residual(b)`` is the difference between model and data."""

    name: str
    model: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    y: Tensor
    starts: tuple[Tensor, Tensor]
    certified: Tensor
    residual_sum_of_squares: float

    def residual(self, b: Tensor) -> Tensor:
        return self.model(b, self.x) - self.y

    def digits(self, b: Tensor) -> float:
        """How many digits of the worst parameter are right: the log relative error, at most 11."""
        error = ((b.double() - self.certified) / self.certified).abs().max().item()
        return 0.0 if not math.isfinite(error) else min(11.0, max(0.0, -math.log10(max(error, 1e-300))))


def _rational(numerator: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A quotient of polynomials, with so many coefficients above and the rest below, where the constant one is 1."""

    def model(b: Tensor, x: Tensor) -> Tensor:
        above = sum(b[i] * x**i for i in range(numerator))
        return above / (1 + sum(b[numerator + i] * x ** (i + 1) for i in range(len(b) - numerator)))

    return model


def _bell(b: Tensor, i: int, x: Tensor) -> Tensor:
    return b[i] * torch.exp(-((x - b[i + 1]) ** 2) / b[i + 2] ** 2)


def _decays(b: Tensor, x: Tensor) -> Tensor:
    return sum(b[i] * torch.exp(-b[i + 1] * x) for i in (0, 2, 4))


def _wave(b: Tensor, i: int, period: Tensor | float, x: Tensor) -> Tensor:
    phase = 2 * math.pi * x / period
    return b[i] * torch.cos(phase) + b[i + 1] * torch.sin(phase)


MODELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    'Chwirut1': lambda b, x: torch.exp(-b[0] * x) / (b[1] + b[2] * x),
    'Chwirut2': lambda b, x: torch.exp(-b[0] * x) / (b[1] + b[2] * x),
    'DanWood': lambda b, x: b[0] * x ** b[1],
    'ENSO': lambda b, x: b[0] + _wave(b, 1, 12.0, x) + _wave(b, 4, b[3], x) + _wave(b, 7, b[6], x),
    'Eckerle4': lambda b, x: b[0] / b[1] * torch.exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
    'Gauss2': lambda b, x: b[0] * torch.exp(-b[1] * x) + _bell(b, 2, x) + _bell(b, 5, x),
    'Gauss3': lambda b, x: b[0] * torch.exp(-b[1] * x) + _bell(b, 2, x) + _bell(b, 5, x),
    'Hahn1': _rational(4),
    'Kirby2': _rational(3),
    'Lanczos1': _decays,
    'Lanczos2': _decays,
    'MGH09': lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    'MGH10': lambda b, x: b[0] * torch.exp(b[1] / (x + b[2])),
    'MGH17': lambda b, x: b[0] + b[1] * torch.exp(-x * b[3]) + b[2] * torch.exp(-x * b[4]),
    'Misra1c': lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    'Misra1d': lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    'Nelson': lambda b, x: b[0] - b[1] * x[:, 0] * torch.exp(-b[2] * x[:, 1]),
    'Rat43': lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x)) ** (1 / b[3]),
}


def load(name: str) -> Regression:
    """Read a file, in float64."""
    text = (DATA / f'{name}.dat').read_text(encoding='ascii')
    parameters = torch.tensor(
        [[float(v) for v in row.split()] for row in re.findall(r'^ *b\d+ =(.*)$', text, re.MULTILINE)],
        dtype=torch.float64,
    )
    header, rows = re.split(r'^Data: +y.*$', text, flags=re.MULTILINE)
    data = torch.tensor(
        [[float(v) for v in row.split()] for row in rows.split('\n') if row.strip()], dtype=torch.float64
    )
    y, x = data[:, 0], data[:, 1:].squeeze(-1)
    found = re.search(r'^Residual Sum of Squares: *(\S+)', header, re.MULTILINE)
    assert found is not None
    return Regression(
        name,
        MODELS[name],
        x,
        y.log() if name == 'Nelson' else y,
        (parameters[:, 0], parameters[:, 1]),
        parameters[:, 2],
        float(found.group(1)),
    )
