# SPDX-License-Identifier: Apache-2.0
"""MAML on several processes with remote calls: one has the network and the optimizer, all adapt it to tasks.

The meta-loss is an ordinary function of the network and of the numbers of tasks.  `parallelize` divides the numbers
among the workers, sends the network to each, and returns the mean of the results; `loss.backward()` continues on the
workers.  The tasks are those of distributed_maml.py.

    torchrun --nproc-per-node 2 examples/distributed_maml_rpc.py

Paper: Finn, Abbeel and Levine, Model-agnostic meta-learning for fast adaptation of deep networks, 2017.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time

import torch
from distributed_maml import Spent, TaskLoss, extend
from glyphs import hershey_alphabets, omniglot_alphabets
from maml import Score, make_network, outer_optimizer, parse
from torch import Tensor, nn
from tqdm import tqdm

import torchopt.distributed as todist


@functools.cache
def task_loss(kind: str) -> TaskLoss:
    """The data and the options, which every worker creates once from its command line."""
    args = parse(sys.argv[1:], extend)
    training, test = omniglot_alphabets(args.data) if args.data else hershey_alphabets()
    return TaskLoss(training if kind == 'training' else test, kind, args)


@todist.parallelize(todist.batch_partitioner, todist.mean_reducer)
def meta_loss(net: nn.Module, numbers: Tensor) -> Tensor:
    """The mean of the losses of some tasks."""
    losses = [task_loss('training')(net, number)[0] for number in numbers.tolist()]
    return torch.stack(losses).mean()


def join(lists: list[list[float]]) -> list[float]:
    """Concatenate lists."""
    return [x for part in lists for x in part]


@todist.parallelize(todist.batch_partitioner, join)
def test_accuracies(net: nn.Module, numbers: Tensor) -> list[float]:
    """The accuracies on test tasks."""
    return [task_loss('test')(net, number)[1] for number in numbers.tolist()]


def cpu_seconds() -> list[float]:
    """The CPU seconds of every worker."""
    return [todist.remote_sync_call(time.process_time, partitioner=i)[0] for i in range(todist.get_world_size())]


def start_worker() -> None:
    """Run on every worker before any main function."""
    torch.set_num_threads(1)
    task_loss('training')


@todist.auto_init_rpc(start_worker)
@todist.rank_zero_only
def main(args: argparse.Namespace) -> Score:
    """Train and test."""
    torch.manual_seed(args.seed)
    net = make_network(args.ways)
    outer = outer_optimizer(net.parameters(), args)
    wall, cpu = time.perf_counter(), cpu_seconds()
    for step in (bar := tqdm(range(args.steps), desc='meta-training', unit='step')):
        numbers = torch.arange(step * args.tasks_per_batch, (step + 1) * args.tasks_per_batch)
        outer.zero_grad()
        loss = meta_loss(net, numbers)
        loss.backward()
        outer.step()
        bar.set_postfix(loss=f'{loss.item():.2f}')
    wall = time.perf_counter() - wall
    spent = [Spent(wall, after - before) for before, after in zip(cpu, cpu_seconds(), strict=True)]
    for rank, of_rank in enumerate(spent):
        of_rank.write(args.report, rank)

    with torch.no_grad():
        accuracies = test_accuracies(net, torch.arange(-args.test_tasks, 0))
    score = Score.of(accuracies)
    print(f'{todist.get_world_size()} processes: meta-training took {spent[0]}')
    print(f'accuracy on {len(accuracies)} tasks of held-out alphabets: {score}')
    return score


if __name__ == '__main__':
    main(parse(sys.argv[1:], extend))
