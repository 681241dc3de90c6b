# SPDX-License-Identifier: Apache-2.0
"""MAML on several processes, each with a part of the tasks: the example maml.py with collectives.

Every process runs this program.  All have the same network, since they start with the same seed.  Each adapts it to its
own tasks, and `map_tasks` returns the loss and the meta-gradient of all tasks in every process.  A task is identified
by its number, so that any number of processes trains on the same tasks; only rounding differs, with a growing effect.

    torchrun --nproc-per-node 2 examples/distributed_maml.py
    torchrun --nproc-per-node 2 --max-restarts 3 examples/distributed_maml.py --checkpoint maml_checkpoint

With --checkpoint it continues an interrupted run.

Paper: Finn, Abbeel and Levine, Model-agnostic meta-learning for fast adaptation of deep networks, 2017.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from glyphs import Alphabet, hershey_alphabets, omniglot_alphabets
from maml import Score, accuracy, adapt, draw, inner_optimizer, make_network, outer_optimizer, parse
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from tqdm import tqdm

import torchopt
import torchopt.distributed as todist


class TaskLoss:
    """The loss and the accuracy on the queries of a task, given by its number, after adaptation to its support."""

    def __init__(self, alphabets: list[Alphabet], kind: str, args: argparse.Namespace) -> None:
        self.alphabets, self.kind, self.args = alphabets, kind, args

    def __call__(self, net: nn.Module, number: int) -> tuple[Tensor, float]:
        generator = torch.Generator().manual_seed(number)
        task = draw(self.alphabets, self.kind, self.args, generator)
        start = torchopt.extract_state_dict(net, by='reference')
        with torch.enable_grad():
            adapt(net, inner_optimizer(net, self.args), task, self.args.inner_steps)
        logits = net(task.query)
        loss = F.cross_entropy(logits, task.query_labels)
        torchopt.recover_state_dict(net, start)
        return loss, accuracy(logits, task.query_labels)


class Spent(NamedTuple):
    """Wall-clock seconds, and CPU seconds of this process."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        """Readable text."""
        return f'{self.wall:.1f} s, {self.cpu:.1f} s of CPU on this one'

    def write(self, path: Path | None, rank: int) -> None:
        """Write a file per rank, for benchmarks/distributed.py."""
        if path is not None:
            path.with_name(f'{path.name}.{rank}').write_text(json.dumps(self._asdict()))


def save(path: Path, net: nn.Module, outer: torchopt.Optimizer, step: int) -> None:
    """Write a checkpoint with a new name, so that the last complete one stays; every process writes its part."""
    state = {'net': net.state_dict(), 'outer': get_optimizer_state_dict(net, outer), 'step': step}
    dcp.save(state, checkpoint_id=path / f'{step:08d}')


def resume(path: Path, net: nn.Module, outer: torchopt.Optimizer) -> int:
    """Load the last complete checkpoint, if there is one; return its number of steps."""
    whole = sorted(p.parent for p in path.glob('*/.metadata'))  # written last
    if not whole:
        return 0
    state = {'net': net.state_dict(), 'outer': get_optimizer_state_dict(net, outer), 'step': 0}
    dcp.load(state, checkpoint_id=whole[-1])
    net.load_state_dict(state['net'])
    set_optimizer_state_dict(net, outer, state['outer'])
    return int(state['step'])


@todist.auto_init_process_group(backend='gloo')
def main(argv: list[str] | None = None) -> Score:
    """Train and test."""
    args = parse(argv, extend)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    training, test = omniglot_alphabets(args.data) if args.data else hershey_alphabets()
    net = make_network(args.ways)
    outer = outer_optimizer(net.parameters(), args)
    first = resume(args.checkpoint, net, outer) if args.checkpoint else 0

    quiet = todist.get_rank() != 0
    task_loss = TaskLoss(training, 'training', args)
    wall, cpu = time.perf_counter(), time.process_time()
    for step in (bar := tqdm(range(first, args.steps), desc='meta-training', unit='step', disable=quiet)):
        numbers = range(step * args.tasks_per_batch, (step + 1) * args.tasks_per_batch)
        outer.zero_grad()
        loss = todist.map_tasks(lambda net, number: task_loss(net, number)[0], numbers, net)
        loss.backward()
        outer.step()
        bar.set_postfix(loss=f'{loss.item():.2f}')
        if args.checkpoint and (step + 1) % args.checkpoint_every == 0:
            save(args.checkpoint, net, outer, step + 1)
    spent = Spent(time.perf_counter() - wall, time.process_time() - cpu)
    spent.write(args.report, todist.get_rank())

    with torch.no_grad():
        numbers = range(-args.test_tasks, 0)
        _, accuracies = todist.map_tasks(TaskLoss(test, 'test', args), numbers, net, has_aux=True)
    score = Score.of(accuracies)
    if not quiet:
        print(f'{todist.get_world_size()} processes: meta-training took {spent}')
        print(f'accuracy on {len(accuracies)} tasks of held-out alphabets: {score}')
    return score


def extend(parser: argparse.ArgumentParser) -> None:
    """Add to the command line of maml.py."""
    parser.add_argument('--report', type=Path, help='where the seconds of each rank go')
    parser.add_argument('--checkpoint', type=Path, help='folder of checkpoints')
    parser.add_argument('--checkpoint-every', type=int, default=100, help='steps between two checkpoints')


if __name__ == '__main__':
    main()
