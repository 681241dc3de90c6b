# SPDX-License-Identifier: Apache-2.0
"""Tune thirty hyper-parameters together: an l2 penalty for each feature of a logistic regression.

The optimal weights for the training set are an implicit function of the penalties, since the gradient of the
regularized loss is zero.  Gradient descent optimizes the logarithms of the penalties with the implicit gradient of the
loss on a validation set.  Grid search can only tune one penalty for all features.

Thirty penalties can overfit the validation set, so there are only a few steps; the plot also shows the test loss.
At the end the example checks that both losses are lower than those of the best shared penalty.

    python examples/hyperparameter_tuning.py

Data: breast cancer of scikit-learn.  Paper: Bengio, Gradient-based optimization of hyperparameters, 2000.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from tqdm import tqdm

import torchopt
from torchopt.implicit_diff import custom_root
from torchopt.linear_solve import solve_cg


class Data(NamedTuple):
    """Standardized features with an additional constant feature, labels in {0, 1}, and the names of the features."""

    training: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    features: list[str]


def load(seed: int) -> Data:
    """Load 100 training samples (few, so that regularization matters), 285 for validation, and 184 for the test."""
    bunch = load_breast_cancer()
    X, y = torch.tensor(bunch.data), torch.tensor(bunch.target, dtype=torch.float64)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
    X, y = X[order], y[order]
    X = (X - X[:100].mean(0)) / X[:100].std(0)
    X = torch.cat([X, torch.ones(len(X), 1, dtype=X.dtype)], 1)
    parts = [(X[i:j], y[i:j]) for i, j in ((0, 100), (100, 385), (385, None))]
    return Data(*parts, list(bunch.feature_names))


def objective(w: Tensor, log_penalty: Tensor, X: Tensor, y: Tensor) -> Tensor:
    """The cross entropy, and a penalty for each weight except the last, the intercept."""
    return F.binary_cross_entropy_with_logits(X @ w, y) + 0.5 * (log_penalty.exp() * w[:-1].square()).sum()


@custom_root(torch.func.grad(objective), solve=solve_cg(tol=1e-8))
def fit(w: Tensor, log_penalty: Tensor, X: Tensor, y: Tensor) -> Tensor:
    """Minimize by Newton's method; the derivative does not depend on the method."""
    for _ in range(12):
        g = torch.func.grad(objective)(w, log_penalty, X, y)
        H = torch.func.hessian(objective)(w, log_penalty, X, y)
        w = w - torch.linalg.solve(H, g)
    return w


def losses(log_penalty: Tensor, data: Data) -> tuple[Tensor, Tensor, Tensor]:
    """The validation loss of the weights that fit the training set, the test loss, and the accuracy on the test set."""
    X, y = data.training
    w = fit(X.new_zeros(X.shape[1]), log_penalty, X, y)
    X_test, y_test = data.test
    logits = X_test @ w.detach()
    right = (logits > 0) == (y_test > 0)
    X, y = data.validation
    of_validation = F.binary_cross_entropy_with_logits(X @ w, y)
    return of_validation, F.binary_cross_entropy_with_logits(logits, y_test), right.double().mean()


class Result(NamedTuple):
    """The losses and the accuracy for some penalties, and the number of fits used to choose them."""

    penalty: Tensor
    validation: float
    test: float
    accuracy: float
    fits: int


def judge(log_penalty: Tensor, data: Data, fits: int) -> Result:
    """Fit once more and evaluate on the test set."""
    log_penalty = log_penalty.detach()
    return Result(log_penalty.exp(), *(value.item() for value in losses(log_penalty, data)), fits)


def grid_search(data: Data, points: int) -> tuple[Tensor, Tensor, Result]:
    """Search one penalty for all features; return the grid, its losses, and the best result."""
    grid = torch.linspace(-12.0, 2.0, points, dtype=torch.float64)
    features = len(data.features)
    found = torch.stack([losses(g.expand(features), data)[0] for g in tqdm(grid, desc='grid', unit='fit')])
    return grid, found, judge(grid[found.argmin()].expand(features), data, points)


def descend(start: Tensor, data: Data, steps: int, lr: float) -> tuple[Tensor, Result]:
    """Run Adam on the logarithms of all penalties, from the best shared penalty; return the losses and the result."""
    log_penalty = start.clone().requires_grad_()
    optimizer = torchopt.Adam([log_penalty], lr=lr)
    curves = []
    for _ in (bar := tqdm(range(steps), desc='implicit gradient', unit='step')):
        of_validation, of_test, _ = losses(log_penalty, data)
        optimizer.zero_grad()
        of_validation.backward()
        optimizer.step()
        curves.append((of_validation.item(), of_test.item()))
        bar.set_postfix(loss=f'{curves[-1][0]:.4f}')
    return torch.tensor(curves), judge(log_penalty, data, steps)


def plot(grid: Tensor, on_grid: Tensor, curves: Tensor, results: dict[str, Result], data: Data, path: Path) -> None:
    """Plot the grid, the descent, and the final penalties."""
    shared, tuned = results.values()
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.6), layout='constrained', width_ratios=(5, 6))
    for curve, shared_loss, color, name in zip(
        curves.T, (shared.validation, shared.test), ('tab:green', 'tab:blue'), ('validation', 'test'), strict=True
    ):
        left.plot(curve, color=color, label=f'{name}, 30 penalties by their implicit gradient')
        left.axhline(
            shared_loss, color=color, ls='--', lw=1, label=f'{name}, 1 penalty, best of a grid of {shared.fits}'
        )
    left.set(xlabel='step', ylabel='loss', title='Descending on thirty penalties at once')
    left.set_ylim(0.0, 1.9 * float(curves.max()))
    left.legend(loc='lower left', fontsize=8.5)
    inset = left.inset_axes((0.52, 0.68, 0.45, 0.29))
    inset.loglog(grid.exp(), on_grid, '.-', color='tab:gray', markersize=4)
    inset.set_xlabel('one penalty for all features', fontsize=8)
    inset.set_ylabel('validation loss', fontsize=8)
    inset.tick_params(which='both', labelsize=7)

    order = tuned.penalty.argsort()
    rows = torch.arange(len(order))
    right.hlines(rows, float(shared.penalty[0]), tuned.penalty[order], color='tab:green', alpha=0.4)
    right.plot(tuned.penalty[order], rows, 'o', color='tab:green', markersize=5, label='tuned')
    right.axvline(float(shared.penalty[0]), color='tab:gray', label='shared')
    right.set_xscale('log')
    right.set_yticks(rows, [data.features[i] for i in order.tolist()], fontsize=7.5)
    right.set(xlabel='penalty', title='Which features are trusted (left) and which are silenced (right)')
    right.legend(loc='lower right', fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, Result]:
    """Search the grid, run gradient descent, compare, and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=30, help='steps on the penalties')
    parser.add_argument('--grid', type=int, default=29, help='points of the grid')
    parser.add_argument('--lr', type=float, default=0.05, help='learning rate of the penalties')
    parser.add_argument('--seed', type=int, default=0, help='seed of the split')
    parser.add_argument('--quick', action='store_true', help='quick test: few steps, no figures')
    parser.add_argument('--output', type=Path, default=Path('hyperparameter_tuning.png'), help='file of the plot')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        parser.set_defaults(steps=8, grid=8)
        args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the tensors are so small that a second thread would only slow the first
    data = load(args.seed)
    grid, on_grid, shared = grid_search(data, args.grid)
    curves, tuned = descend(shared.penalty.log(), data, args.steps, args.lr)
    results = {'one penalty, grid': shared, '30 penalties, gradient': tuned}
    print(f'\n{"":24s}validation loss   test loss   test accuracy   fits')
    for name, r in results.items():
        print(f'{name:24s}{r.validation:15.4f}{r.test:12.4f}{r.accuracy:16.1%}{r.fits:7d}')
    plot(grid, on_grid, curves, results, data, args.output)
    print(f'picture: {args.output}')
    assert tuned.validation < shared.validation, 'the gradient does not improve the validation loss'
    assert args.quick or tuned.test < shared.test, 'the penalties overfit the validation set'
    return results


if __name__ == '__main__':
    main()
