# SPDX-License-Identifier: Apache-2.0
"""Ridge regression as an inner problem, in several modules, and its closed form, which torch differentiates."""

from __future__ import annotations

import torch
from torch import nn

from torchopt.linear_solve import solve_lu
from torchopt.nn import ImplicitMetaGradientModule

f64 = torch.float64
X = torch.tensor([[1.0, 0.2, 0.0], [0.1, 0.9, -0.3], [0.3, 0.0, 1.1], [-0.5, 0.4, 0.2]], dtype=f64)
Y = torch.tensor([1.0, -2.0, 0.5, 0.7], dtype=f64)


def penalty(value: float = 0.7, dtype: torch.dtype = f64) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def ridge(x, y, penalty):
    """The solution of ridge regression in closed form, which torch differentiates."""
    matrix = x.mT @ x + torch.diag(penalty.expand(x.shape[-1]).to(x))
    return torch.linalg.solve(matrix, x.mT @ y)


class Ridge(ImplicitMetaGradientModule, linear_solve=solve_lu()):
    """Ridge regression, solved in closed form, so that tests check only the derivative."""

    def __init__(self, penalty, dtype=f64):
        super().__init__()
        self.penalty = penalty
        self.w = nn.Parameter(torch.zeros(3, dtype=dtype))

    def objective(self, x, y):
        return ((x @ self.w - y) ** 2).sum() / 2 + (self.penalty * self.w**2).sum() / 2

    def solve(self, x, y):
        with torch.no_grad():
            self.w.copy_(ridge(x, y, self.penalty))


def close(actual, expected, **options):
    torch.testing.assert_close(actual, expected, **({'rtol': 1e-9, 'atol': 1e-11} | options))


def gradient(loss, *inputs, **options):
    return torch.autograd.grad(loss, inputs, **options)


class OnBackbone(ImplicitMetaGradientModule, linear_solve=solve_lu()):
    """Ridge regression on the features of a borrowed network, which gets the gradient."""

    def __init__(self, backbone, penalty):
        super().__init__()
        self.backbone = backbone
        self.penalty = penalty
        self.head = nn.Linear(3, 1, bias=False, dtype=f64)

    def forward(self, x):
        return self.head(torch.tanh(self.backbone(x)))[:, 0]

    def objective(self, x, y):
        return ((self(x) - y) ** 2).sum() / 2 + self.penalty * self.head.weight.square().sum() / 2

    def solve(self, x, y):
        with torch.no_grad():
            self.head.weight.copy_(ridge(torch.tanh(self.backbone(x)), y, self.penalty))
        self.objective(x, y).backward()


class Normed(ImplicitMetaGradientModule, linear_solve=solve_lu()):
    """An inner problem with batch normalization, whose buffers change with every evaluation in training mode."""

    def __init__(self, penalty):
        super().__init__()
        self.penalty = penalty
        self.norm = nn.BatchNorm1d(3, dtype=f64)

    def objective(self, x, y):
        penalty = self.penalty * sum(p.square().sum() for p in self.parameters())
        return (self.norm(x) - y).square().sum() / 2 + penalty / 2

    def solve(self, x, y, steps=0):
        for _ in range(steps):
            self.norm(x)
        with torch.no_grad():
            for p, value in zip(self.parameters(), normed(self.norm, x, y, self.penalty), strict=True):
                p.copy_(value)


def normed(norm, x, y, penalty):
    if norm.training:
        mean, var = x.mean(0), x.var(0, correction=0)
    else:
        mean, var = norm.running_mean, norm.running_var
    z = (x - mean) / (var + norm.eps).sqrt()
    designs = [torch.stack([column, torch.ones_like(column)], dim=1) for column in z.unbind(1)]
    return torch.stack([ridge(d, t, penalty) for d, t in zip(designs, y.unbind(1), strict=True)]).unbind(1)
