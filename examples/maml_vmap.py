# SPDX-License-Identifier: Apache-2.0
"""MAML in functions: the inner loop of one task is a function, and `torch.vmap` runs it for all tasks at once.

The tasks are the sine waves of the paper: amplitude and phase differ, ten points are known, and the loss is that of ten
other points after one step of gradient descent.  Nothing is written for a batch of tasks; `vmap` adds that dimension.
The baseline is the same network trained on all tasks without an inner step.  At the end the example checks that one
step from the learned initialization removes more than half of the loss, and that one step from the baseline does not
come near.

    python examples/maml_vmap.py

Paper: Finn, Abbeel and Levine, Model-agnostic meta-learning for fast adaptation of deep networks, 2017 (arXiv
1703.03400).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import torchopt

Params = dict[str, Tensor]
NET = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))


class Tasks(NamedTuple):
    """A batch of tasks: every tensor has the shape [tasks, points, 1]."""

    x: Tensor
    y: Tensor
    x_query: Tensor
    y_query: Tensor


def sample(count: int, generator: torch.Generator, points: int = 10) -> Tasks:
    """Sine waves with amplitudes in [0.1, 5] and phases in [0, pi], on [-5, 5]."""
    amplitude = 0.1 + 4.9 * torch.rand(count, 1, 1, generator=generator)
    phase = math.pi * torch.rand(count, 1, 1, generator=generator)
    x = 10.0 * torch.rand(count, 2 * points, 1, generator=generator) - 5.0
    y = amplitude * torch.sin(x + phase)
    return Tasks(x[:, :points], y[:, :points], x[:, points:], y[:, points:])


def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(torch.func.functional_call(NET, params, (x,)), y)


def adapt(params: Params, x: Tensor, y: Tensor, lr: float, steps: int = 1) -> Params:
    """Gradient descent on one task."""
    optimizer = torchopt.sgd(lr)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(torch.func.grad(loss)(params, x, y), state, params)
        params = torchopt.apply_updates(params, updates)
    return params


def meta_train(params: Params, args: argparse.Namespace, inner_steps: int) -> tuple[Params, list[float]]:
    """Learn the initialization; without inner steps this is ordinary training on all tasks."""

    def task_loss(params: Params, x: Tensor, y: Tensor, x_query: Tensor, y_query: Tensor) -> Tensor:
        return loss(adapt(params, x, y, args.inner_lr, inner_steps), x_query, y_query)

    def batch_loss(params: Params, tasks: Tasks) -> Tensor:
        return torch.vmap(task_loss, in_dims=(None, 0, 0, 0, 0))(params, *tasks).mean()

    generator = torch.Generator().manual_seed(args.seed)
    optimizer = torchopt.adam(torchopt.schedule.cosine_decay_schedule(args.outer_lr, args.steps))
    state = optimizer.init(params)
    curve = []
    for _ in (bar := tqdm(range(args.steps), desc=f'{inner_steps} inner steps', unit='step')):
        grads, value = torch.func.grad_and_value(batch_loss)(params, sample(args.tasks_per_batch, generator))
        updates, state = optimizer.update(grads, state, params)
        params = torchopt.apply_updates(params, updates)
        curve.append(value.item())
        if len(curve) % 20 == 0:
            bar.set_postfix(loss=f'{sum(curve[-20:]) / 20:.2f}')
    return params, curve


def test(params: Params, tasks: Tasks, args: argparse.Namespace, most: int = 3) -> Tensor:
    """The mean query loss after 0, 1, ..., ``most`` steps."""

    def one(x: Tensor, y: Tensor, x_query: Tensor, y_query: Tensor) -> Tensor:
        steps = range(most + 1)
        return torch.stack([loss(adapt(params, x, y, args.inner_lr, k), x_query, y_query) for k in steps])

    return torch.vmap(one)(*tasks).mean(0)


def plot(losses: dict[str, Tensor], params: Params, args: argparse.Namespace) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    for (name, values), style in zip(losses.items(), ('o-', 's--', '^:'), strict=True):
        left.plot(values, style, label=name)
    left.set(xlabel='steps on the ten points of a task', ylabel='loss on other points', title='New tasks')
    left.legend()
    task = sample(1, torch.Generator().manual_seed(args.seed + 2))
    grid = torch.linspace(-5, 5, 200).unsqueeze(1)
    for steps, style in ((0, ':'), (1, '-')):
        adapted = adapt(params, task.x[0], task.y[0], args.inner_lr, steps)
        prediction = torch.func.functional_call(NET, adapted, (grid,))
        right.plot(grid, prediction, style, label=f'MAML after {steps} steps')
    right.plot(task.x[0], task.y[0], 'k^', label='known points')
    right.set(title='One of them')
    right.legend()
    figure.savefig(args.output, dpi=110)
    plt.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=400, help='outer steps')
    parser.add_argument('--tasks-per-batch', type=int, default=10)
    parser.add_argument('--test-tasks', type=int, default=500)
    parser.add_argument('--inner-lr', type=float, default=0.05)
    parser.add_argument('--outer-lr', type=float, default=1e-2, help='first learning rate of the outer Adam')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--quick', action='store_true', help='a trial: few steps')
    parser.add_argument('--output', type=Path, default=Path('maml_vmap.png'), help='where the picture goes')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        parser.set_defaults(steps=120, test_tasks=100, tasks_per_batch=10, inner_lr=0.1, outer_lr=1e-2)
        args = parser.parse_args(argv)
    return args


def main(argv: list[str] | None = None) -> dict[str, Tensor]:
    """Train twice, test three times; return the losses after 0, 1, ... steps."""
    args = parse(argv)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    NET.apply(lambda module: module.reset_parameters() if isinstance(module, nn.Linear) else None)
    start = {name: p.detach().clone() for name, p in NET.named_parameters()}
    learned, _ = meta_train(start, args, inner_steps=1)
    joint, _ = meta_train(start, args, inner_steps=0)
    tasks = sample(args.test_tasks, torch.Generator().manual_seed(args.seed + 1))
    with torch.no_grad():
        starts = {'MAML': learned, 'trained on all tasks': joint, 'random': start}
        losses = {name: test(params, tasks, args) for name, params in starts.items()}
    print(f'loss on new points of {len(tasks.x)} new tasks after 0, 1, ... inner steps')
    for name, values in losses.items():
        print(f'  {name:22s}', '  '.join(f'{value:.2f}' for value in values))
    plot(losses, learned, args)
    print(f'picture: {args.output}')
    assert losses['MAML'][1] < 0.5 * losses['MAML'][0], 'one step does not remove half of the loss'
    assert losses['MAML'][1] < 0.7 * losses['trained on all tasks'][1], 'no better than training on all tasks'
    return losses


if __name__ == '__main__':
    main()
