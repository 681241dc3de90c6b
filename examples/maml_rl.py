# SPDX-License-Identifier: Apache-2.0
"""MAML for reinforcement learning: a policy that one step of policy gradients adapts to a new goal.

The tasks are Markov decision processes on a grid of 7 x 7 cells. An episode begins in the centre and has 10 steps; a
task is a goal on the right half of the border, which the agent cannot see, and a reward is minus the distance to the
goal. A policy is a table of logits. The agent plays 20 episodes, takes one step of policy gradients, and is judged by
20 new episodes. The outer loop differentiates through this step, with `torchopt.sgd`, and trains the initial table. A
batch of tasks is one tensor, [tasks, states, actions].

Baselines with such a step, of the best of several lengths, are a uniform policy, and a table that was trained on the
mean reward of all tasks, without a step. At the end the example checks that the learned table gains by its step, and is
better after it than both baselines, by more than the intervals.

    python examples/maml_rl.py

Paper: Finn, Abbeel and Levine, Model-agnostic meta-learning for fast adaptation of deep networks, 2017 (arXiv
1703.03400).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from tqdm import tqdm

import torchopt

SIZE = 7
MOVES = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]])


class Episodes(NamedTuple):
    """States, actions and the sums of the rewards still to come; each has the shape [tasks, episodes, steps]."""

    states: Tensor
    actions: Tensor
    to_go: Tensor


def sample_goals(count: int, generator: torch.Generator) -> Tensor:
    """Cells of the right half of the border, [tasks, 2]."""
    cells = [
        (x, y) for x in range(SIZE) for y in range(SIZE) if x == SIZE - 1 or (x > SIZE // 2 and y in (0, SIZE - 1))
    ]
    return torch.tensor(cells)[torch.randint(len(cells), (count,), generator=generator)]


@torch.no_grad()
def play(logits: Tensor, goals: Tensor, args: argparse.Namespace, generator: torch.Generator) -> Episodes:
    """Play episodes with the policies of all tasks."""
    probabilities = logits.softmax(-1)
    tasks = torch.arange(len(goals))[:, None]
    place = torch.full((len(goals), args.episodes, 2), SIZE // 2)
    history = []
    for _ in range(args.horizon):
        states = place[..., 0] * SIZE + place[..., 1]
        choices = probabilities[tasks, states].flatten(0, 1)
        actions = torch.multinomial(choices, 1, generator=generator).view_as(states)
        place = (place + MOVES[actions]).clamp(0, SIZE - 1)
        rewards = -(place - goals[:, None]).abs().sum(-1).float() / SIZE
        history.append((states, actions, rewards))
    states, actions, rewards = (torch.stack(x, dim=-1) for x in zip(*history, strict=True))
    return Episodes(states, actions, rewards.flip(-1).cumsum(-1).flip(-1))


def surrogate(logits: Tensor, episodes: Episodes) -> Tensor:
    """A loss for each task, whose gradient is that of minus the expected reward."""
    tasks = torch.arange(len(logits))[:, None, None]
    chosen = logits.log_softmax(-1)[tasks, episodes.states, episodes.actions]
    advantages = episodes.to_go - episodes.to_go.mean(dim=1, keepdim=True)
    return -(chosen * advantages).sum(-1).mean(-1)


def adapt(logits: Tensor, goals: Tensor, args: argparse.Namespace, generator: torch.Generator) -> Tensor:
    """One step of policy gradients for each task, which can be differentiated through."""
    optimizer = torchopt.sgd(args.inner_lr)
    episodes = play(logits, goals, args, generator)
    grads = torch.func.grad(lambda logits: surrogate(logits, episodes).sum())(logits)
    updates, _ = optimizer.update(grads, optimizer.init(logits), logits)
    return torchopt.apply_updates(logits, updates)


def meta_train(args: argparse.Namespace, is_adapted: bool) -> tuple[Tensor, list[float]]:
    """Learn the initial table for the reward after the step, or for the reward without one."""
    generator = torch.Generator().manual_seed(args.seed)
    table = torch.zeros(SIZE * SIZE, 4, requires_grad=True)
    outer = torchopt.Adam([table], lr=args.outer_lr)
    curve = []
    for _ in (bar := tqdm(range(args.steps), desc='MAML' if is_adapted else 'without a step', unit='step')):
        goals = sample_goals(args.tasks_per_batch, generator)
        logits = table.expand(len(goals), -1, -1)
        if is_adapted:
            logits = adapt(logits, goals, args, generator)
        episodes = play(logits, goals, args, generator)
        outer.zero_grad()
        surrogate(logits, episodes).mean().backward()
        outer.step()
        curve.append(episodes.to_go[..., 0].mean().item())
        bar.set_postfix(reward=f'{sum(curve[-20:]) / len(curve[-20:]):.2f}')
    return table.detach(), curve


def test(table: Tensor, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The mean reward of every test task, before and after the step, of length ``args.inner_lr``."""
    generator = torch.Generator().manual_seed(args.seed + 1)
    goals = sample_goals(args.test_tasks, generator)
    before = table.expand(len(goals), -1, -1)
    after = adapt(before, goals, args, generator)
    first, second = (play(logits, goals, args, generator).to_go[..., 0].mean(1) for logits in (before, after))
    return first, second


def interval(values: Tensor) -> float:
    """Half the length of the 95% interval of the mean."""
    return 1.96 * values.std().item() / len(values) ** 0.5


def plot(scores: dict[str, tuple[Tensor, Tensor]], curve: list[float], table: Tensor, path: Path) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout='constrained')
    left.plot(torch.tensor(curve).unfold(0, 10, 1).mean(1))
    left.set(xlabel='outer step', ylabel='reward after the step', title='Meta-training')
    for offset, moment, color in ((-0.2, 0, 'tab:gray'), (0.2, 1, 'tab:blue')):
        values = [score[moment] for score in scores.values()]
        places = [i + offset for i in range(len(scores))]
        errors = [interval(v) for v in values]
        label = ('before the step', 'after the step')[moment]
        middle.bar(places, [v.mean().item() for v in values], 0.38, yerr=errors, capsize=3, color=color, label=label)
    middle.set_xticks(range(len(scores)), list(scores))
    middle.set(ylabel='reward', title='New goals')
    middle.legend(loc='lower left')
    arrows = (table.softmax(-1)[:, :, None] * MOVES).sum(1).view(SIZE, SIZE, 2)
    x, y = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing='ij')
    right.quiver(x, y, arrows[..., 0], arrows[..., 1], pivot='mid')
    right.plot(SIZE // 2, SIZE // 2, 'o', color='tab:orange')
    right.set(title='The learned initial policy', aspect='equal', xticks=[], yticks=[])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=400, help='outer steps')
    parser.add_argument('--tasks-per-batch', type=int, default=40)
    parser.add_argument('--episodes', type=int, default=20, help='before the step, and again after it')
    parser.add_argument('--horizon', type=int, default=10, help='steps of an episode')
    parser.add_argument('--inner-lr', type=float, default=10.0)
    parser.add_argument('--outer-lr', type=float, default=0.1)
    parser.add_argument('--test-tasks', type=int, default=400)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--quick', action='store_true', help='a trial: few steps')
    parser.add_argument('--output', type=Path, default=Path('maml_rl.png'), help='where the picture goes')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        parser.set_defaults(steps=40, test_tasks=200)
        args = parser.parse_args(argv)
    return args


def main(argv: list[str] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Train twice, test three times; return the rewards before and after the step."""
    args = parse(argv)
    torch.set_num_threads(1)
    learned, curve = meta_train(args, is_adapted=True)
    joint, _ = meta_train(args, is_adapted=False)
    tables = {'trained without': joint, 'uniform': torch.zeros_like(learned)}
    scores = {'MAML': test(learned, args)}
    for name, table in tables.items():
        options = [argparse.Namespace(**vars(args) | {'inner_lr': rate}) for rate in (2.0, 5.0, 10.0, 20.0, 40.0)]
        scores[name] = max((test(table, option) for option in options), key=lambda score: score[1].mean())
    print(f'\nreward in {args.test_tasks} new tasks before and after one step, 95% interval')
    for name, score in scores.items():
        print(f'  {name:16s}', '  ->  '.join(f'{value.mean():.2f} +- {interval(value):.2f}' for value in score))
    plot(scores, curve, learned, args.output)
    print(f'picture: {args.output}')
    before, after = scores.pop('MAML')
    assert (after - before).mean() > interval(after - before), 'the step does not help'
    for name, (_, other) in scores.items():
        assert (after - other).mean() > interval(after - other), f'no better than: {name}'
    return {'MAML': (before, after), **scores}


if __name__ == '__main__':
    main()
