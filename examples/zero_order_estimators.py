# SPDX-License-Identifier: Apache-2.0
"""Measure the bias and the standard deviation of the zero-order estimators.

The function is the loss of a logistic regression with 64 weights, which separates images of zeros from other digits.
It is differentiable, so the true gradient is known.  Each estimator is run many times, for several scales sigma and
several numbers of function values.  Its error has two parts: the bias due to smoothing, which grows with sigma, and the
standard deviation, which decreases with the number of function values.
At the end the example checks the order of the estimators, and how both parts change.

    python examples/zero_order_estimators.py
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

from torchopt.zero_order_diff import ESTIMATORS, zero_order

NORMAL = torch.distributions.Normal(0.0, 1.0)
COLORS = dict(zip(ESTIMATORS, ('tab:gray', 'tab:orange', 'tab:blue', 'tab:green', 'tab:red')))
MARKERS = dict(zip(ESTIMATORS, 'xosDv'))


class Error(NamedTuple):
    """Errors relative to the norm of the true gradient; ``resolution`` is the smallest significant bias."""

    bias: float
    scatter: float
    resolution: float


def make_loss() -> tuple[Tensor, Tensor, Tensor]:
    """Images, whether they show a zero, and weights after a little training."""
    digits = load_digits()
    images = torch.tensor(digits.data) / 16.0
    labels = torch.tensor(digits.target == 0, dtype=torch.float64)
    w = torch.zeros(64, dtype=torch.float64, requires_grad=True)
    for _ in range(5):
        (g,) = torch.autograd.grad(loss(w, images, labels), w)
        w = (w - 0.2 * g).detach().requires_grad_()
    return images, labels, w


def loss(w: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(images @ w, labels)


def measure(method: str, values: int, sigma: float, repeats: int, problem: tuple[Tensor, Tensor, Tensor]) -> Error:
    """Run one estimator many times, each time with the given number of function values."""
    images, labels, w = problem
    (truth,) = torch.autograd.grad(loss(w, images, labels), w)
    samples = values // len(ESTIMATORS[method].signs)
    generator = torch.Generator().manual_seed(0)
    estimate = zero_order(NORMAL, method, num_samples=samples, sigma=sigma, generator=generator)(loss)
    found = torch.stack([torch.autograd.grad(estimate(w, images, labels), w)[0] for _ in range(repeats)])
    scatter = found.var(0).sum().sqrt() / truth.norm()
    bias = (found.mean(0) - truth).norm() / truth.norm()
    return Error(bias.item(), scatter.item(), scatter.item() / repeats**0.5)


def plot(
    sigmas: list[float],
    by_sigma: dict[str, list[Error]],
    counts: list[int],
    by_count: dict[str, list[Error]],
    path: Path,
) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), layout='constrained')
    for method, errors in by_sigma.items():
        style = {'color': COLORS[method], 'marker': MARKERS[method], 'ms': 5, 'lw': 1.4, 'label': method}
        left.plot(sigmas, [e.bias if e.bias > 2 * e.resolution else math.nan for e in errors], **style)
        middle.plot(sigmas, [e.scatter for e in errors], **style)
        right.plot(counts, [e.scatter for e in by_count[method]], **style)
    left.set(title='Bias, where it can be told from chance', xlabel=r'step length $\sigma$')
    middle.set(title=f'Scatter of one estimate from {counts[-2]} values', xlabel=r'step length $\sigma$')
    right.set(title=rf'Scatter at $\sigma$ = {sigmas[len(sigmas) // 2]:g}', xlabel='function values in an estimate')
    for axes in (left, middle, right):
        axes.set(xscale='log', yscale='log')
        axes.grid(alpha=0.25, which='major')
    left.set_xlim(middle.get_xlim())
    right.set_xticks(counts, [str(n) for n in counts])
    right.minorticks_off()
    left.set_ylabel('relative to the true gradient')
    middle.axhline(1, color='black', lw=0.8, ls=':')
    right.axhline(1, color='black', lw=0.8, ls=':')
    right.legend(fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, list[Error]]:
    """Measure and plot; return the errors by method, for each scale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=150, help='runs of each estimator')
    parser.add_argument('--quick', action='store_true', help='quick test: few runs, no figures to rely on')
    parser.add_argument('--output', type=Path, default=Path('zero_order_estimators.png'), help='file of the plot')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        parser.set_defaults(repeats=4)
        args = parser.parse_args(argv)
    torch.set_num_threads(1)
    problem = make_loss()
    sigmas, counts = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0], [16, 32, 64, 128, 256]
    by_sigma: dict[str, list[Error]] = {method: [] for method in ESTIMATORS}
    by_count: dict[str, list[Error]] = {method: [] for method in ESTIMATORS}
    runs = [(m, counts[-2], s, by_sigma) for m in ESTIMATORS for s in sigmas]
    runs += [(m, n, sigmas[len(sigmas) // 2], by_count) for m in ESTIMATORS for n in counts]
    for method, count, sigma, table in tqdm(runs, unit='estimator'):
        table[method].append(measure(method, count, sigma, args.repeats, problem))
    print(f'relative error from {counts[-2]} function values:  bias / scatter')
    print('sigma       ' + ''.join(f'{s:<16g}' for s in sigmas))
    for method, errors in by_sigma.items():
        print(f'{method:12s}' + ''.join(f'{f"{e.bias:.3f} / {e.scatter:.2f}":16s}' for e in errors))
    plot(sigmas, by_sigma, counts, by_count, args.output)
    print(f'picture: {args.output}')
    scatter = {method: errors[0].scatter for method, errors in by_sigma.items()}
    assert scatter['naive'] > 10 * scatter['forward'], 'the baseline of forward samples does not help'
    assert scatter['orthogonal'] < scatter['antithetic'], 'orthogonal directions do not help'
    for method, errors in by_count.items():
        assert errors[0].scatter > 2 * errors[-1].scatter, f'{method}: more function values do not help'
    biases = [error.bias for error in by_sigma['antithetic']]
    assert args.quick or biases[-1] > 2 * biases[0], 'the bias does not grow with sigma'
    return by_sigma


if __name__ == '__main__':
    main()
