# SPDX-License-Identifier: Apache-2.0
"""Learning with opponent-learning awareness: two learners of the iterated prisoner's dilemma find tit-for-tat.

A policy is five probabilities of cooperation: at the start, and after each of the four outcomes of the last round.
Play is a Markov chain, so the discounted returns are exact, by one linear system, and can be differentiated.  A naive
learner ascends its own return.  A LOLA learner ascends the return that it will have after its opponent's next step,

    max over a of  V_A(a, b + rate * dV_B(a, b)/db) ,

and differentiates through this step, a step of `torchopt.sgd`.  Naive learners end in mutual defection.  LOLA learners
cooperate, and punish defection: the example checks both claims at the end, for many pairs of players that are trained
at once by `torch.vmap`.

    python examples/lola.py

Paper: Foerster et al., Learning with opponent-learning awareness, 2018 (arXiv 1709.04326).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from tqdm import tqdm

import torchopt

STATES = ('start', 'CC', 'CD', 'DC', 'DD')
# My reward for (mine, theirs): CC, CD, DC, DD.
REWARDS = torch.tensor([-1.0, -3.0, 0.0, -2.0])
# The second player sees the outcomes CD and DC the other way round.
SWAPPED = torch.tensor([0, 1, 3, 2, 4])


def returns(first: Tensor, second: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """The mean reward per round of both players, discounted; policies are logits of cooperation, of shape [5]."""
    p, q = first.sigmoid(), second.sigmoid()[SWAPPED]
    outcomes = torch.stack([p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q)], dim=-1)
    start, transition = outcomes[0], outcomes[1:]
    visits = torch.linalg.solve(torch.eye(4) - discount * transition.T, (1 - discount) * start)
    return visits @ REWARDS, visits @ REWARDS[SWAPPED[1:] - 1]


def naive(own: Tensor, other: Tensor, args: argparse.Namespace) -> Tensor:
    """The objective of a naive learner: its return against the current opponent."""
    return returns(own, other, args.discount)[0]


def lola(own: Tensor, other: Tensor, args: argparse.Namespace) -> Tensor:
    """The objective of a LOLA learner: its return after the opponent's next step, which depends on ``own``."""
    optimizer = torchopt.sgd(args.lookahead, maximize=True)
    grads = torch.func.grad(lambda other: returns(own, other, args.discount)[1])(other)
    updates, _ = optimizer.update(grads, optimizer.init(other), other)
    return returns(own, torchopt.apply_updates(other, updates), args.discount)[0]


Objective = Callable[[Tensor, Tensor, argparse.Namespace], Tensor]


def play(first: Objective, second: Objective, args: argparse.Namespace, name: str) -> tuple[Tensor, Tensor]:
    """Train pairs of players; return the policies [2, pairs, 5], and the returns [steps, 2, pairs]."""
    generator = torch.Generator().manual_seed(args.seed)
    policies = torch.randn(2, args.pairs, 5, generator=generator)
    optimizer = torchopt.sgd(args.lr, maximize=True)
    state = optimizer.init(policies)

    def ascent(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([torch.func.grad(first)(a, b, args), torch.func.grad(second)(b, a, args)])

    history = []
    for _ in (bar := tqdm(range(args.steps), desc=name, unit='step')):
        grads = torch.vmap(ascent, out_dims=1)(*policies)
        updates, state = optimizer.update(grads, state, policies)
        policies = torchopt.apply_updates(policies, updates)
        history.append(torch.stack(torch.vmap(lambda a, b: returns(a, b, args.discount))(*policies)))
        bar.set_postfix(reward=f'{history[-1].mean():.2f}')
    return policies.sigmoid(), torch.stack(history)


def interval(values: Tensor) -> float:
    """Half the length of the 95% interval of the mean."""
    return 1.96 * values.std().item() / len(values) ** 0.5


def plot(results: dict[str, tuple[Tensor, Tensor]], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    for (name, (_, history)), color in zip(results.items(), ('tab:gray', 'tab:blue', 'tab:orange'), strict=True):
        players = history if 'against' in name else history.mean(1, keepdim=True)
        for player, style in zip(range(players.shape[1]), ('-', ':')):
            label = name if players.shape[1] == 1 else f'{name}: {name.split(" against ")[player]}'
            left.plot(players[:, player].mean(1), style, color=color, label=label)
    for value, label in ((-1.0, 'both cooperate'), (-2.0, 'both defect')):
        left.axhline(value, color='black', lw=0.6)
        left.text(len(results['naive'][1]), value + 0.02, label, fontsize=8, ha='right')
    left.set(xlabel='step', ylabel='mean reward per round', title='Returns')
    left.set_ylim(-2.1, -0.9)
    left.legend(fontsize=8, loc='center right')
    policies = results['LOLA'][0].flatten(0, 1)
    right.boxplot(policies.T.tolist(), tick_labels=STATES)
    right.set(ylabel='probability of cooperation', title='Learned by LOLA, after (mine, theirs)', ylim=(-0.05, 1.05))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--pairs', type=int, default=64, help='pairs of players, each with its own start')
    parser.add_argument('--lr', type=float, default=5.0, help='learning rate of both players')
    parser.add_argument('--lookahead', type=float, default=8.0, help='learning rate that LOLA expects of its opponent')
    parser.add_argument('--discount', type=float, default=0.96)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--quick', action='store_true', help='a trial: few pairs and steps')
    parser.add_argument('--output', type=Path, default=Path('lola.png'), help='where the picture goes')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        parser.set_defaults(steps=120, pairs=16)
        args = parser.parse_args(argv)
    return args


def main(argv: list[str] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Three kinds of pairs; return policies and returns of each."""
    args = parse(argv)
    torch.set_num_threads(1)
    pairs = {'naive': (naive, naive), 'LOLA': (lola, lola), 'LOLA against naive': (lola, naive)}
    results = {name: play(*objectives, args, name) for name, objectives in pairs.items()}
    print(f'\nmean reward per round of {args.pairs} pairs, 95% interval (both cooperate: -1, both defect: -2)')
    for name, (_, history) in results.items():
        print(f'  {name:20s}', '  '.join(f'{player.mean():.2f} +- {interval(player):.2f}' for player in history[-1]))
    policy = results['LOLA'][0].flatten(0, 1).mean(0)
    print('cooperation of LOLA learners:', '  '.join(f'{s} {p:.0%}' for s, p in zip(STATES, policy, strict=True)))
    plot(results, args.output)
    print(f'picture: {args.output}')
    selfish, aware = (results[name][1][-1].mean().item() for name in ('naive', 'LOLA'))
    assert selfish < -1.7, 'naive learners do not defect'
    assert aware > selfish + 0.4, 'LOLA learners do not cooperate more than naive ones'
    assert policy[1] > policy[2] + 0.3, 'LOLA learners do not answer cooperation and defection in kind'
    return results


if __name__ == '__main__':
    main()
