# SPDX-License-Identifier: Apache-2.0
"""Meta-gradient reinforcement learning: an agent learns its own discount and bootstrapping while it learns to act.

The task is a chain of five states. The action "right" moves to the next state, with a reward of 1 at the last one; the
action "left" has a reward of 0.05 and moves to the first state. An agent with discount 0.5 prefers the small reward.
Actor and critic are tables, trained on the lambda-returns

    G_t = r_t + gamma * ((1 - lambda) * v(s_(t+1)) + lambda * G_(t+1)) ,

so the updated tables are functions of gamma and lambda. The outer objective is the return, with discount 0.99, of the
policy after the update, in new episodes. It is differentiated through the update, a step of `torchopt.sgd`, with
respect to gamma and lambda. There is a single run of training: after each outer step, `torchopt.stop_gradient` cuts
the history. At the end the example checks that the agent has increased its discount, and that its return is more than
twice that of an agent with the fixed discount.

    python examples/mgrl.py

Paper: Xu, van Hasselt and Silver, Meta-gradient reinforcement learning, 2018 (arXiv 1805.09801).
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

STATES = 5
SMALL = 0.05
OUTER_DISCOUNT = 0.99
Tables = dict[str, Tensor]


class Play(NamedTuple):
    """States [runs, actors, steps + 1], actions and rewards [runs, actors, steps]."""

    states: Tensor
    actions: Tensor
    rewards: Tensor


@torch.no_grad()
def play(tables: Tables, states: Tensor, steps: int, generator: torch.Generator) -> Play:
    """Go on from ``states`` [runs, actors], with the policies of all runs."""
    right = tables['policy'].sigmoid()
    path, actions, rewards = [states], [], []
    for _ in range(steps):
        goes_right = torch.rand(states.shape, generator=generator) < right.gather(1, states)
        is_end = states == STATES - 1
        rewards.append(torch.where(goes_right, is_end.float(), SMALL))
        states = torch.where(goes_right & ~is_end, states + 1, 0)
        actions.append(goes_right)
        path.append(states)
    return Play(torch.stack(path, -1), torch.stack(actions, -1), torch.stack(rewards, -1))


def returns(values: Tensor, rewards: Tensor, discount: Tensor, trace: Tensor) -> Tensor:
    """The lambda-returns of every step; ``values`` are those of the next states."""
    result, total = [], values[..., -1]
    for t in reversed(range(rewards.shape[-1])):
        total = rewards[..., t] + discount * ((1 - trace) * values[..., t] + trace * total)
        result.append(total)
    return torch.stack(result[::-1], dim=-1)


def actor_critic(tables: Tables, data: Play, discount: Tensor, trace: Tensor, entropy: float) -> Tensor:
    """The loss of A2C, summed over runs. It depends on discount and trace through the returns."""
    values = tables['value'].gather(1, data.states.flatten(1)).view_as(data.states)
    logits = tables['policy'].gather(1, data.states[..., :-1].flatten(1)).view_as(data.actions)
    targets = returns(values[..., 1:].detach(), data.rewards, discount, trace)
    chosen = torch.nn.functional.logsigmoid(torch.where(data.actions, logits, -logits))
    advantages = targets - values[..., :-1].detach()
    # The entropy of a coin by its logit: smooth where a policy is certain.
    randomness = torch.nn.functional.softplus(logits) - logits * logits.sigmoid()
    critic = 0.5 * (targets - values[..., :-1]).square()
    return (critic - chosen * advantages - entropy * randomness).mean((1, 2)).sum()


def run(args: argparse.Namespace, is_learned: bool) -> tuple[Tensor, Tensor]:
    """Reward per step [steps, runs], and the learned pair (gamma, lambda) [steps, 2, runs]."""
    generator = torch.Generator().manual_seed(args.seed)
    tables = {name: torch.zeros(args.runs, STATES) for name in ('policy', 'value')}
    optimizer = torchopt.sgd({'policy': args.lr, 'value': args.critic_lr})
    state = optimizer.init(tables)
    eta = torch.zeros(2, args.runs, requires_grad=True)  # logits of gamma and lambda: both begin at 0.5
    outer = torchopt.Adam([eta], lr=args.meta_lr)
    states = torch.zeros(args.runs, args.actors, dtype=torch.long)
    rewards, history = [], []
    name = 'learned' if is_learned else 'fixed at 0.5'
    for _ in (bar := tqdm(range(args.steps), desc=f'discount {name}', unit='step')):
        discount, trace = eta.sigmoid()[:, :, None]
        data = play(tables, states, args.horizon, generator)
        grads = torch.func.grad(actor_critic)(tables, data, discount, trace, args.entropy)
        updates, state = optimizer.update(grads, state, tables)
        tables = torchopt.apply_updates(tables, updates)
        if is_learned:
            again = play(tables, data.states[..., -1], args.horizon, generator)
            fixed = torch.tensor(OUTER_DISCOUNT), torch.tensor(1.0)
            outer.zero_grad()
            actor_critic(tables | {'value': tables['value'].detach()}, again, *fixed, entropy=0.0).backward()
            outer.step()
            torchopt.stop_gradient((tables, state))
        states = data.states[..., -1]
        rewards.append(data.rewards.mean((1, 2)))
        history.append(eta.detach().sigmoid())
        bar.set_postfix(reward=f'{rewards[-1].mean():.3f}', discount=f'{history[-1][0].mean():.2f}')
    return torch.stack(rewards), torch.stack(history)


def interval(values: Tensor) -> float:
    """Half the length of the 95% interval of the mean."""
    return 1.96 * values.std().item() / len(values) ** 0.5


def plot(rewards: dict[str, Tensor], history: Tensor, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    for (name, values), color in zip(rewards.items(), ('tab:gray', 'tab:blue'), strict=True):
        mean, width = values.mean(1), 1.96 * values.std(1) / values.shape[1] ** 0.5
        left.plot(mean, color=color, label=f'discount {name}')
        left.fill_between(range(len(mean)), mean - width, mean + width, color=color, alpha=0.2)
    left.axhline(1 / STATES, color='black', lw=0.8, ls=':', label='always right')
    left.axhline(SMALL, color='black', lw=0.8, ls='--', label='always left')
    left.set(xlabel='update', ylabel='reward per step', title='Reward', ylim=(0, None))
    left.legend()
    for values, label in zip(history.unbind(1), (r'$\gamma$', r'$\lambda$'), strict=True):
        right.plot(values.mean(1), label=label)
        right.fill_between(range(len(values)), *values.quantile(torch.tensor([0.1, 0.9]), dim=1), alpha=0.2)
    right.set(xlabel='update', ylim=(0, 1), title='What the agent learned about learning')
    right.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=400, help='updates')
    parser.add_argument('--runs', type=int, default=20, help='agents, trained at once')
    parser.add_argument('--actors', type=int, default=32, help='copies of the chain that an agent plays')
    parser.add_argument('--horizon', type=int, default=20, help='steps between updates')
    parser.add_argument('--lr', type=float, default=5.0)
    parser.add_argument('--critic-lr', type=float, default=1.0)
    parser.add_argument('--meta-lr', type=float, default=0.1)
    parser.add_argument('--entropy', type=float, default=0.02)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--quick', action='store_true', help='a trial: fewer agents and updates')
    parser.add_argument('--output', type=Path, default=Path('mgrl.png'), help='where the picture goes')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        parser.set_defaults(steps=100, runs=4, meta_lr=0.3)
        args = parser.parse_args(argv)
    return args


def main(argv: list[str] | None = None) -> dict[str, Tensor]:
    """Both agents; return the reward per step at the end of every run."""
    args = parse(argv)
    torch.set_num_threads(1)
    rewards, histories = {}, {}
    for name, is_learned in (('fixed at 0.5', False), ('learned', True)):
        rewards[name], histories[name] = run(args, is_learned)
    last = max(1, args.steps // 10)
    final = {name: values[-last:].mean(0) for name, values in rewards.items()}
    print(f'\nreward per step in the last {last} updates of {args.runs} agents, 95% interval')
    for name, values in final.items():
        print(f'  discount {name:14s} {values.mean():.3f} +- {interval(values):.3f}')
    discounts = histories['learned'][-1, 0]
    print(f'learned discount {discounts.mean():.2f} +- {interval(discounts):.2f}')
    plot(rewards, histories['learned'], args.output)
    print(f'picture: {args.output}')
    assert discounts.mean() > 0.6, 'the discount did not rise'
    assert final['learned'].mean() > 2 * final['fixed at 0.5'].mean(), 'the learned discount does not pay'
    return final


if __name__ == '__main__':
    main()
