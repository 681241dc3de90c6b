# SPDX-License-Identifier: Apache-2.0
"""MAML for reinforcement learning with continuous actions: one step of policy gradients turns a pendulum to a goal.

The tasks are environments of `gymnasium`: its pendulum in weak gravity, and a reward of minus the distance between the
angular speed and a goal that the agent cannot see. A task is a goal between -4 and 4 rad/s. The policy is a small
network, with a normal distribution of torques. In each task the agent plays 20 episodes, takes one step of policy
gradients, and is judged by 20 new episodes. The outer loop differentiates through this step, with `torchopt.sgd`, and
trains the initial weights and the step size of every weight. A batch of tasks is one tensor and one vectorized
environment. `maml_rl.py` has the same method on grids, with a table.

Baselines with such a step, of the best of several lengths, are random weights, and weights that were trained on the
mean reward of all tasks, without a step. At the end the example checks that the learned weights gain by their step, and
are better after it than both baselines, by more than the intervals.

    pip install 'torchopt[gymnasium]'; python examples/maml_rl_pendulum.py

Papers: Finn, Abbeel and Levine, Model-agnostic meta-learning for fast adaptation of deep networks, 2017 (arXiv
1703.03400); Li, Zhou, Chen and Li, Meta-SGD, 2017 (arXiv 1707.09835), for the step sizes.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import torchopt

WIDTH = 16
GRAVITY, FASTEST, TORQUE, DT = 2.0, 8.0, 2.0, 0.05  # gymnasium's pendulum, but for the gravity
GOALS = 4.0
Params = dict[str, Tensor]


class Pendulums(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A pendulum for every goal, each rewarded for turning at its speed. Episodes end when you reset."""

    def __init__(self, goals: np.ndarray) -> None:
        self.goals, self.num_envs = goals, len(goals)
        top = np.array([1.0, 1.0, FASTEST], np.float32)
        self.single_observation_space = gymnasium.spaces.Box(-top, top)
        self.single_action_space = gymnasium.spaces.Box(-TORQUE, TORQUE, (1,))
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, self.num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.angle = self.np_random.uniform(-np.pi, np.pi, self.num_envs)
        self.speed = self.np_random.uniform(-1.0, 1.0, self.num_envs)
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        return np.stack([np.cos(self.angle), np.sin(self.angle), self.speed], axis=-1, dtype=np.float32)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        torque = actions[:, 0].clip(-TORQUE, TORQUE)
        # A rod of mass 1 and length 1, whose moment of inertia is 1 / 3; the angle is zero where it stands upright.
        acceleration = 3.0 * (0.5 * GRAVITY * np.sin(self.angle) + torque)
        self.speed = (self.speed + DT * acceleration).clip(-FASTEST, FASTEST)
        self.angle = self.angle + DT * self.speed
        never = np.zeros(self.num_envs, dtype=bool)
        return self.observe(), -abs(self.speed - self.goals), never, never, {}


class Episodes(NamedTuple):
    """Observations [tasks, episodes, steps, 3], torques, and the sums of the rewards still to come."""

    observations: Tensor
    torques: Tensor
    to_go: Tensor


def initialize(generator: torch.Generator) -> Params:
    """One hidden layer, and the logarithm of the standard deviation."""
    hidden, out = (torch.randn(s, generator=generator) for s in ((3, WIDTH), (WIDTH, 1)))
    weights = {'hidden': hidden / 3**0.5, 'bias': torch.zeros(1, WIDTH), 'out': 0.1 * out, 'offset': torch.zeros(1, 1)}
    return weights | {'log_std': torch.zeros(1, 1)}


def policy(params: Params, observations: Tensor) -> torch.distributions.Normal:
    """The distribution of torques for observations [tasks, anything, 3]."""
    speed_scaled = observations * torch.tensor([1.0, 1.0, 1 / GOALS])
    mean = (speed_scaled @ params['hidden'] + params['bias']).tanh() @ params['out'] + params['offset']
    return torch.distributions.Normal(mean[..., 0], params['log_std'][..., 0].exp().expand_as(mean[..., 0]), False)


@torch.no_grad()
def play(params: Params, goals: Tensor, args: argparse.Namespace, generator: torch.Generator) -> Episodes:
    """Play episodes with the policies of all tasks."""
    env = Pendulums(goals.repeat_interleave(args.episodes).numpy())
    observation, _ = env.reset(seed=int(torch.randint(2**31, (), generator=generator)))
    history = []
    for _ in range(args.horizon):
        seen = torch.from_numpy(observation).view(len(goals), args.episodes, 3)
        normal = policy(params, seen)
        torques = normal.mean + normal.stddev * torch.randn(seen.shape[:2], generator=generator)
        observation, rewards, *_ = env.step(torques.reshape(-1, 1).numpy())
        history.append((seen, torques, torch.from_numpy(rewards).float().view_as(torques) / args.horizon))
    observations, torques, rewards = (torch.stack(x, dim=2) for x in zip(*history, strict=True))
    return Episodes(observations, torques, rewards.flip(-1).cumsum(-1).flip(-1))


def surrogate(params: Params, episodes: Episodes) -> Tensor:
    """A loss for each task, whose gradient is that of minus the expected reward."""
    chosen = policy(params, episodes.observations.flatten(1, 2)).log_prob(episodes.torques.flatten(1))
    advantages = episodes.to_go - episodes.to_go.mean(dim=1, keepdim=True)
    return -(chosen * advantages.flatten(1)).sum(-1) / episodes.to_go.shape[1]


def adapt(params: Params, rates: Any, goals: Tensor, args: argparse.Namespace, generator: torch.Generator) -> Params:
    """One step of policy gradients for each task, which can be differentiated through."""
    params = {name: p.expand(len(goals), *p.shape[-2:]) for name, p in params.items()}
    episodes = play(params, goals, args, generator)
    grads = torch.func.grad(lambda p: surrogate(p, episodes).sum())(params)
    scaled = {name: g * rates[name] for name, g in grads.items()}
    optimizer = torchopt.sgd(1.0)
    updates, _ = optimizer.update(scaled, optimizer.init(params), params)
    return torchopt.apply_updates(params, updates)


def sample_goals(count: int, generator: torch.Generator) -> Tensor:
    return GOALS * (2 * torch.rand(count, generator=generator) - 1)


def meta_train(args: argparse.Namespace, is_adapted: bool) -> tuple[Params, Params, list[float]]:
    """Learn the initial weights and step sizes for the reward after the step, or for the reward without one."""
    generator = torch.Generator().manual_seed(args.seed)
    params = {name: p.requires_grad_() for name, p in initialize(generator).items()}
    log_rates = {name: torch.full_like(p, math.log(args.inner_lr), requires_grad=True) for name, p in params.items()}
    schedule = torchopt.schedule.linear_schedule(args.outer_lr, 0.0, args.steps)
    outer = torchopt.Adam([*params.values(), *log_rates.values()], lr=schedule)
    curve = []
    for _ in (bar := tqdm(range(args.steps), desc='MAML' if is_adapted else 'without a step', unit='step')):
        goals = sample_goals(args.tasks_per_batch, generator)
        adapted = {name: p.expand(len(goals), -1, -1) for name, p in params.items()}
        if is_adapted:
            adapted = adapt(params, {k: r.exp() for k, r in log_rates.items()}, goals, args, generator)
        episodes = play(adapted, goals, args, generator)
        outer.zero_grad()
        surrogate(adapted, episodes).mean().backward()
        outer.step()
        curve.append(episodes.to_go[..., 0].mean().item())
        bar.set_postfix(reward=f'{sum(curve[-20:]) / len(curve[-20:]):.2f}')
    rates = {name: r.detach().exp() for name, r in log_rates.items()}
    return {name: p.detach() for name, p in params.items()}, rates, curve


def test(params: Params, rates: Params | dict[str, float], args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The mean reward of every test task, before and after the step."""
    generator = torch.Generator().manual_seed(args.seed + 1)
    goals = sample_goals(args.test_tasks, generator)
    before = {name: p.expand(len(goals), -1, -1) for name, p in params.items()}
    after = adapt(params, rates, goals, args, generator)
    first, second = (play(p, goals, args, generator).to_go[..., 0].mean(1) for p in (before, after))
    return first, second


def interval(values: Tensor) -> float:
    """Half the length of the 95% interval of the mean."""
    return 1.96 * values.std().item() / len(values) ** 0.5


def plot(
    scores: dict[str, tuple[Tensor, Tensor]],
    curve: list[float],
    learned: tuple[Params, Params],
    args: argparse.Namespace,
) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout='constrained')
    left.plot(torch.tensor(curve).unfold(0, min(10, len(curve)), 1).mean(1))
    left.set(xlabel='outer step', ylabel='reward after the step', title='Meta-training')
    for offset, moment, color in ((-0.2, 0, 'tab:gray'), (0.2, 1, 'tab:blue')):
        values = [score[moment] for score in scores.values()]
        places = [i + offset for i in range(len(scores))]
        label = ('before the step', 'after the step')[moment]
        errors = [interval(v) for v in values]
        middle.bar(places, [v.mean().item() for v in values], 0.38, yerr=errors, capsize=3, color=color, label=label)
    middle.set_xticks(range(len(scores)), list(scores))
    middle.set(ylabel='reward', title='New goals')
    middle.set_ylim(bottom=1.3 * min(v.mean().item() for score in scores.values() for v in score))
    middle.legend(loc='lower left')
    generator = torch.Generator().manual_seed(args.seed + 2)
    goals = torch.tensor([-3.0, 0.0, 3.0])
    played = play(adapt(*learned, goals, args, generator), goals, args, generator)
    for goal, observations, color in zip(goals, played.observations, ('tab:red', 'tab:green', 'tab:blue'), strict=True):
        seconds = DT * torch.arange(args.horizon)
        right.plot(seconds, observations[:6, :, 2].T, color=color, lw=0.8)
        right.axhline(goal, color=color, ls='--', label=f'goal {goal:.0f}')
    right.set(xlabel='seconds', ylabel='angular speed', title='Episodes after the step')
    right.legend(loc='lower right', fontsize=8)
    figure.savefig(args.output, dpi=110)
    plt.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=200, help='outer steps')
    parser.add_argument('--tasks-per-batch', type=int, default=20)
    parser.add_argument('--episodes', type=int, default=20, help='before the step, and again after it')
    parser.add_argument('--horizon', type=int, default=40, help='steps of an episode')
    parser.add_argument('--inner-lr', type=float, default=0.3, help='the first step size of every weight')
    parser.add_argument('--outer-lr', type=float, default=0.01, help='falls linearly to zero')
    parser.add_argument('--test-tasks', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--quick', action='store_true', help='a trial: few steps')
    parser.add_argument('--output', type=Path, default=Path('maml_rl_pendulum.png'), help='where the picture goes')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        parser.set_defaults(steps=30, test_tasks=100, outer_lr=0.03)
        args = parser.parse_args(argv)
    return args


def main(argv: list[str] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Train twice, test three times; return the rewards before and after the step."""
    args = parse(argv)
    torch.set_num_threads(1)
    *learned, curve = meta_train(args, is_adapted=True)
    joint, _, _ = meta_train(args, is_adapted=False)
    scores = {'MAML': test(*learned, args)}
    for name, params in {
        'trained without': joint,
        'random': initialize(torch.Generator().manual_seed(args.seed)),
    }.items():
        steps = [test(params, dict.fromkeys(params, rate), args) for rate in (0.03, 0.1, 0.3, 1.0, 3.0)]
        scores[name] = max(steps, key=lambda score: score[1].mean())
    print(f'\nreward in {args.test_tasks} new tasks before and after one step, 95% interval')
    for name, score in scores.items():
        print(f'  {name:16s}', '  ->  '.join(f'{value.mean():.2f} +- {interval(value):.2f}' for value in score))
    plot(scores, curve, tuple(learned), args)
    print(f'picture: {args.output}')
    before, after = scores['MAML']
    assert (after - before).mean() > interval(after - before), 'the step does not help'
    for name in ('trained without', 'random'):
        other = scores[name][1]
        assert (after - other).mean() > interval(after - other), f'no better than: {name}'
    return scores


if __name__ == '__main__':
    main()
