# SPDX-License-Identifier: Apache-2.0
"""Meta-gradient reinforcement learning on CartPole: an agent learns its own discount while it learns to balance a pole.

The agent is an actor-critic network. It starts with discount gamma = 0.5 and lambda = 0.5, so it looks two steps ahead,
but a pole that falls needs many more to be caught. Actor and critic are trained with Adam on the lambda-returns

    G_t = r_t + gamma * ((1 - lambda) * v(s_(t+1)) + lambda * G_(t+1)) ,

so the network after an update is a function of gamma and lambda. The outer objective judges it in the next episodes by
returns with discount 0.99. It is differentiated through the update with respect to gamma and lambda, in a single run
of training. All agents are one batch: a matrix of weights for each, and one vectorized environment of `gymnasium`.

At the end the example checks that the discount has increased, and that new episodes are longer than those of an agent
with the fixed discount, by more than the intervals. `mgrl.py` is the same method on a chain of five states.

    pip install 'torchopt[gymnasium]'; python examples/mgrl_cartpole.py

Paper: Xu, van Hasselt and Silver, Meta-gradient reinforcement learning, 2018 (arXiv 1805.09801).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import gymnasium
import matplotlib.pyplot as plt
import torch
from torch import Tensor
from tqdm import tqdm

import torchopt

OUTER_DISCOUNT = 0.99
WIDTH = 32
LONGEST = 500  # where CartPole ends an episode
Params = dict[str, Tensor]


class Play(NamedTuple):
    """What happened in consecutive steps: [steps, runs, actors], and one more observation, with 4 numbers each.

    ``goes_on`` is false where the pole fell, ``is_last`` is true there and at the time limit. A step that only starts a
    new episode is not ``counted``.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    goes_on: Tensor
    is_last: Tensor
    counted: Tensor


class Poles:
    """CartPole for all actors of all agents; an episode that has ended starts again."""

    def __init__(self, runs: int, actors: int, seed: int) -> None:
        self.shape = runs, actors
        self.env = gymnasium.make_vec('CartPole-v1', runs * actors, vectorization_mode='vector_entry_point')
        self.observation = self.of(self.env.reset(seed=seed)[0])
        self.starts_again = torch.zeros(self.shape, dtype=torch.bool)

    def of(self, array: object) -> Tensor:
        """An array of the environment, by run and actor."""
        tensor = torch.as_tensor(array)
        return tensor.view(*self.shape, *tensor.shape[1:])

    @torch.no_grad()
    def play(self, params: Params, steps: int, generator: torch.Generator) -> Play:
        """Go on, with the policies of all runs."""
        observations, history = [self.observation], []
        for _ in range(steps):
            probabilities = network(params, self.observation)[0].sigmoid()
            actions = torch.rand(self.shape, generator=generator) < probabilities
            observation, rewards, fell, timed_out, _ = self.env.step(actions.flatten().long().numpy())
            self.observation, fell, timed_out = self.of(observation), self.of(fell), self.of(timed_out)
            history.append((actions, self.of(rewards).float(), ~fell, fell | timed_out, ~self.starts_again))
            self.starts_again = fell | timed_out
            observations.append(self.observation)
        return Play(torch.stack(observations), *(torch.stack(column) for column in zip(*history, strict=True)))


def initialize(runs: int, generator: torch.Generator) -> Params:
    """Weights of one hidden layer for the actor and the critic of each run."""
    shapes = {'hidden': (4, 2 * WIDTH), 'actor': (WIDTH, 1), 'critic': (WIDTH, 1)}
    weights = {k: torch.randn(runs, *s, generator=generator) / s[0] ** 0.5 for k, s in shapes.items()}
    return weights | {
        'bias': torch.zeros(runs, 1, 2 * WIDTH),
        'actor': 0.1 * weights['actor'],
        'offset': torch.zeros(runs, 1),
    }


def network(params: Params, observations: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of "push to the right" and the value, for observations [..., runs, actors, 4]."""
    actor, critic = (observations @ params['hidden'] + params['bias']).tanh().chunk(2, -1)
    return (actor @ params['actor'])[..., 0], (critic @ params['critic'])[..., 0] + params['offset']


def returns(values: Tensor, data: Play, discount: Tensor, trace: Tensor) -> Tensor:
    """The lambda-returns of every step; ``values`` are those of the next observations."""
    result, total = [], values[-1]
    discounts, traces = discount * data.goes_on, trace * ~data.is_last
    for reward, gamma, lambda_, value in reversed(list(zip(data.rewards, discounts, traces, values, strict=True))):
        total = reward + gamma * ((1 - lambda_) * value + lambda_ * total)
        result.append(total)
    return torch.stack(result[::-1])


def actor_critic(params: Params, data: Play, discount: Tensor, trace: Tensor, entropy: float) -> Tensor:
    """The loss of A2C, summed over runs. It depends on discount and trace through the returns."""
    logits, values = network(params, data.observations)
    logits = logits[:-1]
    targets = returns(values[1:].detach(), data, discount, trace)
    chosen = torch.nn.functional.logsigmoid(torch.where(data.actions, logits, -logits))
    advantages = targets - values[:-1].detach()
    # Agents with another discount see other numbers: their steps should not be larger for that.
    advantages = advantages / (advantages.square().mean((0, 2), keepdim=True).sqrt() + 1e-6)
    randomness = torch.nn.functional.softplus(logits) - logits * logits.sigmoid()
    critic = 0.5 * (1 - discount) * (targets - values[:-1]).square()
    return ((critic - chosen * advantages - entropy * randomness) * data.counted).mean((0, 2)).sum()


class Result(NamedTuple):
    """Of every run: the curve of steps per fall and of (gamma, lambda), [updates, runs] and [updates, 2, runs]; the
    mean length of new episodes at the end, [runs]."""

    balance: Tensor
    eta: Tensor
    final: Tensor


def run(args: argparse.Namespace, is_learned: bool) -> Result:
    """Train all agents of one kind, then let each play new episodes."""
    generator = torch.Generator().manual_seed(args.seed)
    poles = Poles(args.runs, args.actors, args.seed)
    params = initialize(args.runs, generator)
    rate = torchopt.schedule.linear_schedule(args.lr, 0.0, args.steps)
    optimizer = torchopt.adam(rate, eps_root=1e-10)
    state = optimizer.init(params)
    eta = torch.zeros(2, args.runs, requires_grad=True)  # logits of gamma and lambda: both begin at 0.5
    outer = torchopt.Adam([eta], lr=args.meta_lr)
    balance, history = [], []
    name = 'learned' if is_learned else 'fixed at 0.5'
    data = poles.play(params, args.horizon, generator)
    for _ in (bar := tqdm(range(args.steps), desc=f'discount {name}', unit='update')):
        discount, trace = eta.sigmoid()[:, :, None]
        grads = torch.func.grad(actor_critic)(params, data, discount, trace, args.entropy)
        updates, state = optimizer.update(grads, state, params)
        params = torchopt.apply_updates(params, updates)
        # What comes next judges this update, and is what the next update learns from.
        data = poles.play(params, args.horizon, generator)
        if is_learned:
            outer.zero_grad()
            far = torch.tensor(OUTER_DISCOUNT), torch.tensor(1.0)
            actor_critic(params, data, *far, entropy=0.0).backward()
            outer.step()
            torchopt.stop_gradient((params, state))
        balance.append(data.counted.sum((0, 2)) / (~data.goes_on).sum((0, 2)).clamp(min=1))
        history.append(eta.detach().sigmoid())
        bar.set_postfix(steps=f'{balance[-1].mean():.0f}', discount=f'{history[-1][0].mean():.2f}')
    return Result(torch.stack(balance), torch.stack(history), evaluate(params, args, generator))


def evaluate(params: Params, args: argparse.Namespace, generator: torch.Generator) -> Tensor:
    """The mean length of the first episode of every actor, [runs]."""
    lasts = Poles(args.runs, args.actors, args.seed + 1).play(params, LONGEST, generator).is_last
    return (lasts.long().cumsum(0) == 0).sum(0).float().mean(1) + 1


def interval(values: Tensor) -> float:
    """Half the length of the 95% interval of the mean."""
    return 1.96 * values.std().item() / len(values) ** 0.5


def plot(results: dict[str, Result], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    for (name, result), color in zip(results.items(), ('tab:gray', 'tab:blue'), strict=True):
        smooth = result.balance.unfold(0, min(10, len(result.balance)), 1).mean(-1)
        mean, width = smooth.mean(1), 1.96 * smooth.std(1) / smooth.shape[1] ** 0.5
        left.plot(mean, color=color, label=f'discount {name}')
        left.fill_between(range(len(mean)), mean - width, mean + width, color=color, alpha=0.2)
    left.set(xlabel='update', ylabel='steps per fall', title='CartPole', yscale='log')
    left.legend()
    for values, label in zip(results['learned'].eta.unbind(1), (r'$\gamma$', r'$\lambda$'), strict=True):
        right.plot(values.mean(1), label=label)
        right.fill_between(range(len(values)), *values.quantile(torch.tensor([0.1, 0.9]), dim=1), alpha=0.2)
    right.set(xlabel='update', ylim=(0, 1), title='What the agent learned about learning')
    right.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=250, help='updates')
    parser.add_argument('--runs', type=int, default=10, help='agents, trained at once')
    parser.add_argument('--actors', type=int, default=16, help='poles of an agent')
    parser.add_argument('--horizon', type=int, default=32, help='steps between updates')
    parser.add_argument('--lr', type=float, default=0.005, help='falls linearly to zero')
    parser.add_argument('--meta-lr', type=float, default=0.05)
    parser.add_argument('--entropy', type=float, default=0.01)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--quick', action='store_true', help='a trial: fewer agents and updates')
    parser.add_argument('--output', type=Path, default=Path('mgrl_cartpole.png'), help='where the picture goes')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        parser.set_defaults(steps=60, runs=4, meta_lr=0.2, lr=0.02)
        args = parser.parse_args(argv)
    return args


def main(argv: list[str] | None = None) -> dict[str, Result]:
    """Train both kinds of agents; return their curves and results."""
    args = parse(argv)
    torch.set_num_threads(1)
    results = {name: run(args, is_learned) for name, is_learned in (('fixed at 0.5', False), ('learned', True))}
    print(f'\nmean length of new episodes of {args.runs} agents, at most {LONGEST}, 95% interval')
    for name, result in results.items():
        print(f'  discount {name:14s} {result.final.mean():.0f} +- {interval(result.final):.0f}')
    discounts = results['learned'].eta[-1, 0]
    print(f'learned discount {discounts.mean():.2f} +- {interval(discounts):.2f}')
    plot(results, args.output)
    print(f'picture: {args.output}')
    fixed, learned = (result.final for result in results.values())
    assert discounts.mean() > 0.6, 'the discount did not rise'
    gain = learned.mean() - fixed.mean()
    assert gain > interval(fixed) + interval(learned), 'the learned discount does not pay'
    return results


if __name__ == '__main__':
    main()
