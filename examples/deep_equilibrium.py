# SPDX-License-Identifier: Apache-2.0
"""A layer of infinite depth: a deep equilibrium model that classifies digits.

The output of the layer is the fixed point of z = tanh(W z + U x + b), computed by Anderson acceleration.  Its
derivative is that of the fixed point, by one linear system, so that training stores no iterations.  For comparison, the
same layer is unrolled, with backpropagation through all its steps, and a network with one hidden layer of the same
width, the first step of the iteration, is trained.  At the end the example checks that the equilibrium and the
unrolled layer are equally accurate.

    python examples/deep_equilibrium.py

Data: digits of scikit-learn.  Paper: Bai, Kolter and Koltun, Deep equilibrium models, 2019 (arXiv 1909.01377).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

import torchopt
from torchopt.implicit_diff import custom_fixed_point
from torchopt.linear_solve import solve_bicgstab

WIDTH, STEPS, TOLERANCE = 64, 30, 1e-5
Weights = dict[str, Tensor]


def cell(z: Tensor, weights: Weights, x: Tensor) -> Tensor:
    """One step of the layer.  W is scaled to a norm of at most 0.9, so that the iteration is a contraction."""
    W = weights['W']
    W = W * (0.9 / torch.linalg.matrix_norm(W).clamp(min=0.9))
    return torch.tanh(z @ W.T + x @ weights['U'].T + weights['b'])


def residuals(weights: Weights, x: Tensor, steps: int, memory: int) -> list[float]:
    """The relative residual of the solver after each step."""
    found: list[float] = []
    anderson(lambda z: cell(z, weights, x), torch.zeros(len(x), WIDTH), steps, memory, 0.0, found)
    return found


def anderson(
    f: Callable[[Tensor], Tensor],
    z: Tensor,
    steps: int,
    memory: int = 5,
    tolerance: float = TOLERANCE,
    history: list[float] | None = None,
) -> Tensor:
    """Anderson acceleration of z <- f(z), separately for each row; the plain iteration if ``memory`` is 1.

    The next iterate is a linear combination of the last values of ``f``.  The coefficients sum to one and minimize the
    norm of the same combination of the residuals.
    """
    values: list[Tensor] = []
    residuals: list[Tensor] = []
    for _ in range(steps):
        fz = f(z)
        values, residuals = [*values, fz][-memory:], [*residuals, fz - z][-memory:]
        distance = (residuals[-1].norm() / fz.norm()).item()
        if history is not None:
            history.append(distance)
        if distance < tolerance:
            return fz
        R = torch.stack(residuals, 1)
        gram = R @ R.mT
        gram = gram + 1e-6 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(len(residuals))
        a = torch.linalg.solve(gram + 1e-20 * torch.eye(len(residuals)), torch.ones(len(z), len(residuals)))
        z = ((a / a.sum(1, keepdim=True))[:, None] @ torch.stack(values, 1))[:, 0]
    return z


@custom_fixed_point(cell, solve=solve_bicgstab(tol=1e-4, maxiter=50))
def equilibrium(z: Tensor, weights: Weights, x: Tensor) -> Tensor:
    """The fixed point; only weights and inputs get gradients."""
    return anderson(lambda z: cell(z, weights, x), z, STEPS)


def unrolled(z: Tensor, weights: Weights, x: Tensor) -> Tensor:
    """The same number of plain steps, all of them recorded."""
    for _ in range(STEPS):
        z = cell(z, weights, x)
    return z


LAYERS = {'equilibrium': equilibrium, 'unrolled': unrolled, 'one hidden layer': cell}


class Data(NamedTuple):
    """Images in [0, 1] and their digits."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


class Result(NamedTuple):
    """The weights, the accuracy on held-out digits after each epoch, and the training time in seconds."""

    weights: Weights
    accuracies: list[float]
    seconds: float


def load(seed: int) -> Data:
    """Load the digits; a quarter of them is held out."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(bunch.data, dtype=torch.float32)[order] / 16, torch.tensor(bunch.target)[order]
    held_out = len(y) // 4
    return Data(x[held_out:], y[held_out:], x[:held_out], y[:held_out])


def logits(layer: Callable[..., Tensor], weights: Weights, x: Tensor) -> Tensor:
    """The layer, followed by a linear layer."""
    z = layer(torch.zeros(len(x), WIDTH), {k: weights[k] for k in ('W', 'U', 'b')}, x)
    return z @ weights['V'].T + weights['c']


def train(name: str, data: Data, epochs: int, seed: int, batch: int = 96) -> Result:
    """Train with Adam on the cross entropy."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {'W': (WIDTH, WIDTH), 'U': (WIDTH, 64), 'b': (WIDTH,), 'V': (10, WIDTH), 'c': (10,)}
    weights = {
        k: (0.1 * torch.randn(shape, generator=generator) * (len(shape) > 1)).requires_grad_()
        for k, shape in shapes.items()
    }
    optimizer = torchopt.Adam(list(weights.values()), lr=3e-3)
    accuracies = []
    start = time.perf_counter()
    for _ in (bar := tqdm(range(epochs), desc=name, unit='epoch')):
        for rows in torch.randperm(len(data.y), generator=generator).split(batch):
            loss = F.cross_entropy(logits(LAYERS[name], weights, data.x[rows]), data.y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = logits(LAYERS[name], weights, data.x_test).argmax(1) == data.y_test
        accuracies.append(right.float().mean().item())
        bar.set_postfix(loss=f'{loss.item():.3f}', accuracy=f'{accuracies[-1]:.1%}')
    return Result({k: w.detach() for k, w in weights.items()}, accuracies, time.perf_counter() - start)


def plot(results: dict[str, Result], curves: dict[str, list[float]], path: Path) -> None:
    """Plot the convergence of the solvers, and the training curves."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout='constrained')
    for (name, curve), color in zip(curves.items(), ('tab:green', 'tab:gray'), strict=True):
        left.semilogy(range(1, len(curve) + 1), curve, 'o-', markersize=4, color=color, label=name)
    left.set(xlabel='evaluations of the layer', ylabel='relative residual', title='On the way to the fixed point')
    left.legend(fontsize=9)
    for (name, result), style in zip(results.items(), ('-', '--', ':'), strict=True):
        label = f'{name}: {result.accuracies[-1]:.1%}, {result.seconds:.0f} s'
        right.plot(range(1, len(result.accuracies) + 1), result.accuracies, style, label=label)
    right.set(xlabel='epoch', ylabel='accuracy on held-out digits', title='Training')
    right.yaxis.set_major_formatter(plt.matplotlib.ticker.PercentFormatter(1))
    right.set_ylim(0.85, 1.0) if len(results['equilibrium'].accuracies) > 5 else None
    right.legend(loc='lower right', fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, Result]:
    """Train all three, and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--epochs', type=int, default=60)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--quick', action='store_true', help='quick test: few epochs, no figures')
    parser.add_argument('--output', type=Path, default=Path('deep_equilibrium.png'), help='file of the plot')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        parser.set_defaults(epochs=2)
        args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the tensors are so small that a second thread would only slow the first
    data = load(args.seed)
    results = {name: train(name, data, args.epochs, args.seed) for name in LAYERS}
    print(f'\naccuracy on {len(data.y_test)} held-out digits')
    for name, result in results.items():
        print(f'  {name:17s} {result.accuracies[-1]:.1%}, trained in {result.seconds:.0f} s')
    weights = results['equilibrium'].weights
    curves = {
        'Anderson acceleration': residuals(weights, data.x_test, 14, 5),
        'plain iteration': residuals(weights, data.x_test, 14, 1),
    }
    plot(results, curves, args.output)
    print(f'picture: {args.output}')
    implicit, unrolled = (results[name].accuracies[-1] for name in ('equilibrium', 'unrolled'))
    assert implicit > 0.5, 'the equilibrium layer does not learn'
    assert abs(implicit - unrolled) < 0.02, 'the equilibrium layer is not as accurate as the unrolled one'
    return results


if __name__ == '__main__':
    main()
