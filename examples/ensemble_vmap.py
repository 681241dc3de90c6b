# SPDX-License-Identifier: Apache-2.0
"""Train an ensemble as one program: a training loop is a function, and `torch.vmap` runs it for many networks at once.

Each member reads handwritten digits from its own initial weights and its own bootstrap sample of 300 images.  The
optimizer is a pair of pure functions, so `vmap` maps over its state as over any other argument.  At the end the example
checks that a member trained alone gets the same weights, and that the ensemble makes fewer mistakes than its average
member.

    python examples/ensemble_vmap.py
"""

from __future__ import annotations

import argparse
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

Params = dict[str, Tensor]
NET = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


class Data(NamedTuple):
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load(generator: torch.Generator) -> Data:
    """300 images to train on, and 1497 to test."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=generator)
    images, labels = torch.tensor(digits.data, dtype=torch.float32)[order] / 16.0, torch.tensor(digits.target)[order]
    return Data(images[:300], labels[:300], images[300:], labels[300:])


def logits(params: Params, images: Tensor) -> Tensor:
    return torch.func.functional_call(NET, params, (images,))


def initialize(members: int, generator: torch.Generator) -> Params:
    """Initial weights, with the members along the first dimension."""
    return {
        name: torch.randn((members, *p.shape), generator=generator) / max(1, p[0].numel()) ** 0.5
        for name, p in NET.named_parameters()
    }


def train(params: Params, images: Tensor, labels: Tensor, steps: int, progress: bool = False) -> Params:
    """Adam on all images, for one network."""
    optimizer = torchopt.adam(3e-2)
    state = optimizer.init(params)

    def loss(params: Params) -> Tensor:
        return F.cross_entropy(logits(params, images), labels)

    for _ in tqdm(range(steps), desc='all members', unit='step', disable=not progress):
        updates, state = optimizer.update(torch.func.grad(loss)(params), state, params)
        params = torchopt.apply_updates(params, updates)
    return params


def plot(errors: Tensor, ensembles: Tensor, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6.5, 4), layout='constrained')
    sizes = torch.arange(1, len(ensembles) + 1)
    axes.plot(sizes, ensembles, 'o-', label='ensemble of the first $n$ members')
    axes.plot(sizes, errors, 'x', color='tab:gray', label='member $n$ alone')
    axes.axhline(errors.mean(), color='tab:gray', ls='--', lw=1, label='average member')
    axes.set(xlabel='$n$', ylabel='wrong answers on test images', title='An ensemble, trained by one vmap')
    axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    axes.legend()
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--members', type=int, default=20)
    parser.add_argument('--steps', type=int, default=100)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--quick', action='store_true', help='a trial: few members, few steps')
    parser.add_argument('--output', type=Path, default=Path('ensemble_vmap.png'), help='where the picture goes')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        parser.set_defaults(members=5, steps=40)
        args = parser.parse_args(argv)
    return args


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, compare, draw; return the shares of wrong answers."""
    args = parse(argv)
    generator = torch.Generator().manual_seed(args.seed)
    data = load(generator)
    start = initialize(args.members, generator)
    samples = torch.randint(len(data.labels), (args.members, len(data.labels)), generator=generator)
    images, labels = data.images[samples], data.labels[samples]

    params = torch.vmap(lambda *arguments: train(*arguments, args.steps, progress=True))(start, images, labels)
    alone = train({name: p[0] for name, p in start.items()}, images[0], labels[0], args.steps)
    difference = max((alone[name] - p[0]).abs().max().item() for name, p in params.items())

    probabilities = torch.vmap(logits, in_dims=(0, None))(params, data.test_images).softmax(-1)
    wrong = (probabilities.argmax(-1) != data.test_labels).float().mean(1)
    averages = probabilities.cumsum(0) / torch.arange(1, args.members + 1)[:, None, None]
    ensembles = (averages.argmax(-1) != data.test_labels).float().mean(1)
    plot(wrong, ensembles, args.output)
    result = {'average member': wrong.mean().item(), 'ensemble': ensembles[-1].item()}
    print(f'wrong answers on {len(data.test_labels)} test images: ', end='')
    print(', '.join(f'{name} {value:.1%}' for name, value in result.items()))
    print(f'member 0 trained alone differs by {difference:.1e}; picture: {args.output}')
    assert difference < 1e-2, 'vmap computed something else than the loop'
    assert result['ensemble'] < 0.9 * result['average member'], 'the ensemble is no better than its members'
    return result


if __name__ == '__main__':
    main()
