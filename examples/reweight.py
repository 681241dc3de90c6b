# SPDX-License-Identifier: Apache-2.0
"""Learning to reweight: learn the weight of every training image from a few clean images.

Handwritten digits with wrong labels, in two ways. *Background*: half of the images of every digit are labelled 0, so
that the labels are also imbalanced, as when a detector misses objects. *Uniform*: half of the labels are replaced by
random ones. In both, 5 images of each class are known to be right; they are part of the training images. A step of
training has weights for its images,

    theta'(w) = theta - rate * sum over i of  w_i * gradient of loss_i(theta),

and the loss of the clean images at theta'(w) is differentiated with respect to the weights at w = 0. If the derivative
of an image is negative, its weight is proportional to the size of the derivative; otherwise it is 0. The baseline
trains on the same batches with equal weights. All repetitions are trained at once by `torch.vmap`. At the end the
example checks that reweighting is better by more than the 95% confidence interval of the difference.

    python examples/reweight.py

Paper: Ren, Zeng, Yang and Urtasun, Learning to reweight examples for robust deep learning, 2018 (arXiv 1803.09050).
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
CLEAN = 5  # clean images of each class
PROBLEMS = ('background', 'uniform')


class Data(NamedTuple):
    """One repetition; ``genuine`` says which training labels are right."""

    images: Tensor
    labels: Tensor
    genuine: Tensor
    clean_images: Tensor
    clean_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def split(seed: int, counts: dict[int, int], test: int) -> tuple[Data, torch.Generator]:
    """Some images of each class to train on, of which the first are clean, and as many of each to test."""
    digits = load_digits()
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16.0, torch.tensor(digits.target)
    parts = []
    for c, count in counts.items():
        own = images[labels == c]
        own = own[torch.randperm(len(own), generator=generator)]
        parts.append((own[:count], own[:CLEAN], own[-test:]))
    train, clean, held_out = map(torch.cat, zip(*parts))
    classes = torch.tensor(list(counts))
    repeated = classes.repeat_interleave(torch.tensor(list(counts.values())))
    right = torch.ones(len(train), dtype=torch.bool)
    data = Data(
        train, repeated, right, clean, classes.repeat_interleave(CLEAN), held_out, classes.repeat_interleave(test)
    )
    return data, generator


def mislabelled(seed: int, kind: str) -> Data:
    """80 images of each digit, half of which get another label, save the clean ones; 80 of each to test."""
    data, generator = split(seed, dict.fromkeys(range(10), 80), test=80)
    is_clean = torch.arange(len(data.labels)) % 80 < CLEAN
    replaced = (torch.rand(len(data.labels), generator=generator) < 0.5) & ~is_clean
    others = torch.randint(10, data.labels.shape, generator=generator) if kind == 'uniform' else torch.tensor(0)
    labels = torch.where(replaced, others, data.labels)
    return data._replace(labels=labels, genuine=labels == data.labels)


def losses(params: Params, images: Tensor, labels: Tensor) -> Tensor:
    """The loss of every image."""
    return F.cross_entropy(torch.func.functional_call(NET, params, (images,)), labels, reduction='none')


def learned_weights(params: Params, images: Tensor, labels: Tensor, data: Data, rate: float) -> Tensor:
    """The weights of one batch: how much each image would help the clean ones, in one step."""
    step = torchopt.sgd(rate)

    def clean_loss(weights: Tensor) -> Tensor:
        grads = torch.func.grad(lambda p: (weights * losses(p, images, labels)).sum())(params)
        updates, _ = step.update(grads, step.init(params), params)
        return losses(torchopt.apply_updates(params, updates), data.clean_images, data.clean_labels).mean()

    help_given = -torch.func.grad(clean_loss)(torch.zeros(len(images)))
    weights = help_given.clamp(min=0.0)
    return weights / weights.sum().clamp(min=1e-12)


def train(
    data: Data, batches: Tensor, start: Params, args: argparse.Namespace, reweight: bool
) -> tuple[Tensor, Tensor]:
    """SGD with momentum on one repetition; the test accuracy and the share of weight that genuine images got."""
    optimizer = torchopt.sgd(args.lr, momentum=0.9)
    params, state = start, optimizer.init(start)
    shares = []
    for batch in tqdm(batches.unbind(), desc='reweighted' if reweight else 'equal weights', unit='step'):
        images, labels = data.images[batch], data.labels[batch]
        if reweight:
            weights = learned_weights(params, images, labels, data, args.lr)
        else:
            weights = torch.full((args.batch,), 1.0 / args.batch)
        shares.append((weights * data.genuine[batch]).sum())

        def loss(params: Params, x: Tensor = images, y: Tensor = labels, w: Tensor = weights) -> Tensor:
            return (w * losses(params, x, y)).sum()

        updates, state = optimizer.update(torch.func.grad(loss)(params), state, params)
        params = torchopt.apply_updates(params, updates)
    answers = torch.func.functional_call(NET, params, (data.test_images,)).argmax(-1)
    return (answers == data.test_labels).float().mean(), torch.stack(shares)


def run(problem: str, args: argparse.Namespace) -> dict[str, tuple[Tensor, Tensor]]:
    """Both ways of training, on the same repetitions, batches and initial weights."""
    data = Data(*map(torch.stack, zip(*(mislabelled(seed, problem) for seed in range(args.repetitions)))))
    generator = torch.Generator().manual_seed(args.seed)
    start = {
        name: torch.randn((args.repetitions, *p.shape), generator=generator) / max(1, p[0].numel()) ** 0.5
        for name, p in NET.named_parameters()
    }
    shape = (args.repetitions, args.steps, args.batch)
    batches = torch.randint(data.images.shape[1], shape, generator=generator)
    return {
        name: torch.vmap(lambda d, b, p, r=reweight: train(Data(*d), b, p, args, r))(tuple(data), batches, start)
        for name, reweight in (('equal weights', False), ('reweighted', True))
    }


def interval(values: Tensor) -> float:
    """Half the length of the 95% interval of the mean."""
    return 1.96 * values.std().item() / len(values) ** 0.5


def plot(results: dict[str, dict[str, tuple[Tensor, Tensor]]], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    for offset, name, color in ((-0.2, 'equal weights', 'tab:gray'), (0.2, 'reweighted', 'tab:blue')):
        scores = [result[name][0] for result in results.values()]
        places = [i + offset for i in range(len(results))]
        left.bar(places, [s.mean().item() for s in scores], 0.38, color=color, label=name)
        left.errorbar(
            places, [s.mean() for s in scores], [interval(s) for s in scores], fmt='none', color='k', capsize=3
        )
    left.set_xticks(range(len(results)), list(results))
    left.set(ylabel='right answers on test images', ylim=(0.4, 1.0), title='Accuracy, with 95% interval')
    left.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    left.legend(loc='lower left')
    for (problem, result), color in zip(results.items(), ('tab:orange', 'tab:green')):
        smooth = result['reweighted'][1].mean(0).unfold(0, 10, 10).mean(1)
        right.plot(torch.arange(len(smooth)) * 10, smooth, color=color, label=f'{problem}: right labels')
        right.axhline(result['equal weights'][1].mean(), color=color, ls=':', label='with equal weights')
    right.set(xlabel='step', ylabel='share of the weight', ylim=(0, 1), title='What the weights learned')
    right.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=200)
    parser.add_argument('--batch', type=int, default=60, help='images in a step')
    parser.add_argument('--repetitions', type=int, default=10, help='splits of the data, trained at once')
    parser.add_argument('--lr', type=float, default=0.1)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--quick', action='store_true', help='a trial: few steps and repetitions')
    parser.add_argument('--output', type=Path, default=Path('reweight.png'), help='where the picture goes')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        parser.set_defaults(steps=30, repetitions=2)
        args = parser.parse_args(argv)
    return args


def main(argv: list[str] | None = None) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """Both problems, both ways; return accuracies and shares of weight."""
    args = parse(argv)
    torch.set_num_threads(1)
    results = {problem: run(problem, args) for problem in PROBLEMS}
    plot(results, args.output)
    for problem, result in results.items():
        difference = result['reweighted'][0] - result['equal weights'][0]
        scores = (f'{name} {s.mean():.1%} +- {interval(s):.1%}' for name, (s, _) in result.items())
        print(f'{problem}: ', ', '.join(scores), f', difference {difference.mean():.1%} +- {interval(difference):.1%}')
        before, after = (result[name][1].mean() for name in ('equal weights', 'reweighted'))
        print(f'  share of the weight of right labels: {before:.0%} -> {after:.0%}')
        assert after > before + 0.05, f'{problem}: the weights do not find the right labels'
        assert args.quick or difference.mean() > interval(difference), f'{problem}: reweighting does not win'
    print(f'picture: {args.output}')
    return results


if __name__ == '__main__':
    main()
