# SPDX-License-Identifier: Apache-2.0
"""Distil a data set: learn one synthetic image per digit, on which a classifier of real digits is trained.

The optimal weights for the synthetic images are an implicit function of the pixels, since the gradient of the
regularized loss is zero.  Gradient descent optimizes the pixels with the implicit gradient of the loss on real images.
At the end the example checks that the synthetic images teach more than real ones and than the mean images.

    python examples/dataset_distillation.py

Data: digits of scikit-learn.  Paper: Wang, Zhu, Torralba and Efros, Dataset distillation, 2018 (arXiv 1811.10959).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

import torchopt
from torchopt.implicit_diff import custom_root
from torchopt.linear_solve import solve_cg

PENALTY = 1e-2
CLASSES = torch.arange(10)


class Data(NamedTuple):
    """Images of 64 pixels with mean zero, and their digits."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


class Result(NamedTuple):
    """The images, and the accuracy on held-out digits after training on these images."""

    images: Tensor
    accuracy: float


def load(seed: int) -> Data:
    """Load the digits; a quarter of them is held out."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(bunch.data)[order] / 16 - 0.5, torch.tensor(bunch.target)[order]
    held_out = len(y) // 4
    return Data(x[held_out:], y[held_out:], x[:held_out], y[:held_out])


def objective(w: Tensor, images: Tensor) -> Tensor:
    """The objective of multinomial logistic regression: the cross entropy of the images, and an l2 penalty."""
    return F.cross_entropy(images @ w, CLASSES) + 0.5 * PENALTY * w.square().sum()


gradient = torch.func.grad(objective)


@custom_root(gradient, solve=solve_cg(tol=1e-6))
def fit(w: Tensor, images: Tensor) -> Tensor:
    """Minimize by gradient descent with Nesterov momentum for strongly convex functions."""
    smoothness = 0.5 * float(torch.linalg.matrix_norm(images, 2)) ** 2 / len(CLASSES) + PENALTY
    ratio = (PENALTY / smoothness) ** 0.5
    momentum, ahead = (1 - ratio) / (1 + ratio), w
    for _ in range(1000):
        g = gradient(ahead, images)
        if float(g.norm()) < 1e-8:
            break
        w, before = ahead - g / smoothness, w
        ahead = w + momentum * (w - before)
    return w


def accuracy(images: Tensor, data: Data) -> float:
    """The accuracy on held-out digits of the classifier trained on the images."""
    w = fit(images.new_zeros(64, 10), images.detach())
    return ((data.x_test @ w).argmax(1) == data.y_test).double().mean().item()


def distil(images: Tensor, data: Data, steps: int, lr: float) -> tuple[list[float], Tensor]:
    """Optimize the pixels; return the losses on real images, and the synthetic images."""
    images = images.clone().requires_grad_()
    optimizer = torchopt.Adam([images], lr=lr)
    w, losses = images.new_zeros(64, 10), []
    for _ in (bar := tqdm(range(steps), desc='distilling', unit='step')):
        w = fit(w.detach(), images)  # start from the last weights, which are close
        loss = F.cross_entropy(data.x @ w, data.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f'{losses[-1]:.3f}')
    return losses, images.detach()


def real_images(data: Data, trials: int, seed: int) -> Result:
    """One random real image of each digit: the mean accuracy over several draws, and the last draw."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in tqdm(range(trials), desc='real images', unit='trial'):
        order = torch.randperm(len(data.y), generator=generator)
        rows = torch.stack([order[data.y[order] == c][0] for c in CLASSES.tolist()])
        found.append(accuracy(data.x[rows], data))
    return Result(data.x[rows], sum(found) / trials)


def plot(results: dict[str, Result], losses: list[float], path: Path) -> None:
    """The images in rows, and the loss."""
    figure = plt.figure(figsize=(11, 5), layout='constrained')
    axes = figure.add_gridspec(len(results) + 1, 1, height_ratios=(*[1] * len(results), 1.7))
    for i, (name, result) in enumerate(results.items()):
        cells = figure.add_subfigure(axes[i]).subplots(1, 10)
        limit = float(result.images.abs().max())
        cells[0].figure.suptitle(f'{name}: a classifier trained on these gets {result.accuracy:.1%}', fontsize=10)
        for axis, image in zip(cells, result.images, strict=True):
            axis.imshow(image.reshape(8, 8), cmap='Greys', vmin=-limit, vmax=limit)
            axis.set(xticks=[], yticks=[])
    axis = figure.add_subfigure(axes[-1]).subplots()
    axis.semilogy(losses, color='tab:green')
    axis.set(xlabel='step', ylabel='loss on real digits', xlim=(0, len(losses)))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, Result]:
    """Distil, compare with real images, and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=150, help='steps on the pixels')
    parser.add_argument('--lr', type=float, default=0.05, help='learning rate of the pixels')
    parser.add_argument('--trials', type=int, default=20, help='draws of real images')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--quick', action='store_true', help='quick test: few steps, no figures')
    parser.add_argument('--output', type=Path, default=Path('dataset_distillation.png'), help='file of the plot')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        parser.set_defaults(steps=10, trials=2)
        args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the tensors are so small that a second thread would only slow the first
    data = load(args.seed)
    means = torch.stack([data.x[data.y == c].mean(0) for c in CLASSES.tolist()])
    results = {
        'one real image of each digit': real_images(data, args.trials, args.seed),
        'the mean of all images of each digit': Result(means, accuracy(means, data)),
    }
    generator = torch.Generator().manual_seed(args.seed)
    noise = 0.02 * torch.randn(means.shape, dtype=means.dtype, generator=generator)
    losses, images = distil(noise, data, args.steps, args.lr)
    results['ten distilled images'] = Result(images, accuracy(images, data))
    print(f'\naccuracy on {len(data.y_test)} held-out digits, trained on ten images')
    for name, result in results.items():
        print(f'  {name:38s} {result.accuracy:.1%}')
    plot(results, losses, args.output)
    print(f'picture: {args.output}')
    real, means, distilled = (result.accuracy for result in results.values())
    assert distilled > real, 'distilled images teach less than real ones'
    assert args.quick or distilled > means, 'distilled images teach less than the mean images'
    return results


if __name__ == '__main__':
    main()
