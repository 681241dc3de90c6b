# SPDX-License-Identifier: Apache-2.0
"""Train a network on the 0-1 loss, the error rate, whose gradient is zero almost everywhere.

The network classifies handwritten digits.  One run minimizes the cross entropy by backpropagation; two others minimize
the 0-1 loss by zero-order gradients, from many perturbed copies of the network that are evaluated in parallel.  Some of
the training labels are wrong.  At the end the example checks that both zero-order runs learn, and that pairs of
antithetic samples learn more than forward samples.

    python examples/zero_order_accuracy.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

import torchopt
from torchopt.zero_order_diff import zero_order

NORMAL = torch.distributions.Normal(0.0, 1.0)
Params = dict[str, Tensor]


class Data(NamedTuple):
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load(wrong: float, generator: torch.Generator) -> Data:
    """Load 1200 training images, some of them with a wrong label, and 597 test images."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=generator)
    images, labels = torch.tensor(digits.data, dtype=torch.float32)[order] / 16.0, torch.tensor(digits.target)[order]
    train, test = labels[:1200].clone(), labels[1200:]
    flip = torch.rand(1200, generator=generator) < wrong
    train[flip] = (train[flip] + torch.randint(1, 10, (int(flip.sum()),), generator=generator)) % 10
    return Data(images[:1200], train, images[1200:], test)


def make_network(hidden: int, generator: torch.Generator) -> tuple[nn.Module, Params]:
    net = nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10))
    params = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in params.values():
        p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5 if p.dim() > 1 else torch.zeros(()))
    return net, params


def train(
    loss: Callable[[Params, Tensor, Tensor], Tensor],
    start: Params,
    data: Data,
    score: Callable[[Params], float],
    args: argparse.Namespace,
    name: str,
    lr: float,
) -> list[float]:
    """Train with Adam and a decaying rate; return the score after every tenth step."""
    params = {key: p.clone().requires_grad_() for key, p in start.items()}
    rate = torchopt.schedule.cosine_decay_schedule(lr, args.steps)
    optimizer = torchopt.Optimizer(params.values(), torchopt.adam(rate))
    generator = torch.Generator().manual_seed(args.seed)
    curve = []
    for step in (bar := tqdm(range(args.steps), desc=name, unit='step')):
        batch = torch.randint(len(data.images), (args.batch,), generator=generator)
        optimizer.zero_grad()
        loss(params, data.images[batch], data.labels[batch]).backward()
        optimizer.step()
        if step % 10 == 9 or step == args.steps - 1:
            curve.append(score(params))
            bar.set_postfix(test=f'{curve[-1]:.1%}')
    return curve


def plot(curves: dict[str, list[float]], args: argparse.Namespace, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout='constrained')
    for (name, curve), color in zip(curves.items(), ('tab:gray', 'tab:orange', 'tab:blue'), strict=True):
        steps = [min(10 * (i + 1), args.steps) for i in range(len(curve))]
        axes.plot(steps, curve, color=color, lw=1.6, label=f'{name}: {curve[-1]:.1%}')
    axes.axhline(0.1, color='black', lw=0.8, ls=':', label='guessing')
    axes.set(
        xlabel='step',
        ylabel='right answers on test images',
        ylim=(0, 1),
        title=f'Digits, {args.wrong:.0%} of the training labels wrong',
    )
    axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    axes.grid(alpha=0.25)
    axes.legend(loc='lower right')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=600)
    parser.add_argument('--batch', type=int, default=200, help='images in a step')
    parser.add_argument('--hidden', type=int, default=16, help='hidden units of the network')
    parser.add_argument('--samples', type=int, default=100, help='pairs of perturbed networks in a step')
    parser.add_argument('--sigma', type=float, default=0.3, help='length of the perturbations')
    parser.add_argument('--lr', type=float, default=0.1, help='first learning rate on the 0-1 loss')
    parser.add_argument('--cross-entropy-lr', type=float, default=0.01, help='the same on the cross-entropy')
    parser.add_argument('--wrong', type=float, default=0.3, help='share of training labels that are made wrong')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--quick', action='store_true', help='quick test: few steps')
    parser.add_argument('--output', type=Path, default=Path('zero_order_accuracy.png'), help='file of the plot')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        parser.set_defaults(steps=10, samples=5)
        args = parser.parse_args(argv)
    return args


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train three times; return the final accuracies."""
    args = parse(argv)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(args.seed)
    data = load(args.wrong, generator)
    net, start = make_network(args.hidden, generator)

    def logits(params: Params, images: Tensor) -> Tensor:
        return torch.func.functional_call(net, params, (images,))

    def cross_entropy(params: Params, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits(params, images), labels)

    def errors(params: Params, images: Tensor, labels: Tensor) -> Tensor:
        return (logits(params, images).argmax(-1) != labels).float().mean()

    def score(params: Params) -> float:
        with torch.no_grad():
            return 1.0 - errors(params, data.test_images, data.test_labels).item()

    options = {'num_samples': args.samples, 'sigma': args.sigma, 'generator': generator}
    losses = {
        'cross-entropy, backpropagation': cross_entropy,
        '0-1 loss, forward': zero_order(NORMAL, 'forward', **options)(errors),
        '0-1 loss, antithetic': zero_order(NORMAL, 'antithetic', **options)(errors),
    }
    rates = [args.cross_entropy_lr, args.lr, args.lr]
    curves = {
        name: train(loss, start, data, score, args, name, lr)
        for (name, loss), lr in zip(losses.items(), rates, strict=True)
    }
    print('\nright answers on test images')
    for name, curve in curves.items():
        print(f'  {name:32s} {curve[-1]:.1%}')
    plot(curves, args, args.output)
    print(f'picture: {args.output}')
    scores = {name: curve[-1] for name, curve in curves.items()}
    _, forward, antithetic = scores.values()
    assert args.quick or antithetic > forward > 0.4, 'zero-order gradients of the 0-1 loss do not learn'
    return scores


if __name__ == '__main__':
    main()
