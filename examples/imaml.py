# SPDX-License-Identifier: Apache-2.0
"""Meta-learning of glyphs by implicit gradients (iMAML), which stores no inner steps.

The tasks, the network and the test are those of `maml.py`.  The inner problem is defined by its solution rather than by
a number of steps: fit the network to the support of a task, and stay close to the initial weights phi,

    theta(phi) = argmin over theta of  loss(theta, support) + penalty / 2 * |theta - phi|^2.

So theta is an implicit function of phi.  Its derivative uses a few products with the Hessian, by conjugate gradients.
It does not depend on how theta was computed, so no inner step is stored: the memory does not grow with the steps.
At the end the example checks that iMAML is better than fitting from scratch by more than the confidence intervals.

    python examples/imaml.py                  functions, custom_root
    python examples/imaml.py --form object    modules, ImplicitMetaGradientModule

Paper: Rajeswaran, Finn, Kakade and Levine, Meta-learning with implicit gradients, 2019 (arXiv 1909.04630).
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from glyphs import Alphabet, Task, hershey_alphabets, omniglot_alphabets
from maml import Score, accuracy, draw, evaluate_from_scratch, make_network, outer_optimizer, plot, score
from torch import Tensor, nn
from tqdm import tqdm

import torchopt
from torchopt.implicit_diff import custom_root
from torchopt.linear_solve import solve_cg

Adapt = Callable[[Task], Callable[[Tensor], Tensor]]
"""A function that fits to the support of a task; returns a function from images to logits with implicit gradients."""


def few_iterations(matvec: Any, b: Any, *, iterations: int) -> Any:
    """Conjugate gradients with few iterations, since an approximate meta-gradient suffices.

    ``return_status`` turns off the warning about the missed tolerance.
    """
    solution, _ = solve_cg(matvec, b, maxiter=iterations, return_status=True)
    return solution


def cg(args: argparse.Namespace) -> Callable[[Any, Any], Any]:
    """The linear solver with its options.

    Few iterations are also more robust: the Hessian of a network may have negative eigenvalues larger than the penalty,
    which do not affect the first iterations of conjugate gradients.  With five iterations, training diverged.
    """
    return functools.partial(few_iterations, iterations=args.cg_iterations)


def squared_distance(a: Iterable[Tensor], b: Iterable[Tensor]) -> Tensor:
    """The squared distance between two sets of weights."""
    return torch.stack([(x - y).square().sum() for x, y in zip(a, b, strict=True)]).sum()


def functional_form(net: nn.Module, args: argparse.Namespace) -> Adapt:
    """The weights are a tree; the solver is a function of the initial weights, with ``custom_root``."""
    optimizer = torchopt.sgd(args.inner_lr, momentum=args.inner_momentum)

    def objective(theta: dict[str, Tensor], phi: dict[str, Tensor], task: Task) -> Tensor:
        logits = torch.func.functional_call(net, theta, (task.support,))
        distance = squared_distance(theta.values(), phi.values())
        return F.cross_entropy(logits, task.support_labels) + 0.5 * args.penalty * distance

    @custom_root(torch.func.grad(objective), solve=cg(args))
    def fit(theta: dict[str, Tensor], phi: dict[str, Tensor], task: Task) -> dict[str, Tensor]:
        state = optimizer.init(theta)
        for _ in range(args.inner_steps):
            leaves = {name: p.detach().requires_grad_() for name, p in theta.items()}
            with torch.enable_grad():
                grads = torch.autograd.grad(objective(leaves, phi, task), list(leaves.values()))
            updates, state = optimizer.update(dict(zip(leaves, grads, strict=True)), state)
            theta = {name: p.detach() + updates[name] for name, p in leaves.items()}
        return theta

    def adapt(task: Task) -> Callable[[Tensor], Tensor]:
        phi = dict(net.named_parameters())
        theta = fit(phi, phi, task)
        return lambda images: torch.func.functional_call(net, theta, (images,))

    return adapt


def object_form(net: nn.Module, args: argparse.Namespace) -> Adapt:
    """The inner network is a module; the network given to its constructor is the meta-parameter."""

    class Adapted(torchopt.nn.ImplicitMetaGradientModule, linear_solve=cg(args)):
        def __init__(self, initial: nn.Module) -> None:
            super().__init__()
            self.initial = initial
            self.net = copy.deepcopy(initial)

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images)

        def objective(self, task: Task) -> Tensor:
            distance = squared_distance(self.net.parameters(), self.initial.parameters())
            return F.cross_entropy(self(task.support), task.support_labels) + 0.5 * args.penalty * distance

        def solve(self, task: Task) -> None:
            with torch.no_grad():
                for theta, phi in zip(self.net.parameters(), self.initial.parameters(), strict=True):
                    theta.copy_(phi)
            optimizer = torchopt.SGD(self.net.parameters(), args.inner_lr, momentum=args.inner_momentum)
            for _ in range(args.inner_steps):
                optimizer.zero_grad()
                self.objective(task).backward()
                optimizer.step()

    adapted = Adapted(net)

    def adapt(task: Task) -> Callable[[Tensor], Tensor]:
        adapted.solve(task)
        return adapted

    return adapt


FORMS = {'functional': functional_form, 'object': object_form}


def meta_train(net: nn.Module, adapt: Adapt, alphabets: list[Alphabet], args: argparse.Namespace) -> list[float]:
    """Learn the initial weights; return the accuracy after adaptation at each outer step."""
    generator = torch.Generator().manual_seed(args.seed)
    outer = outer_optimizer(net.parameters(), args)

    curve = []
    for _ in (bar := tqdm(range(args.steps), desc='meta-training', unit='step')):
        outer.zero_grad()
        losses, accuracies = [], []
        for _ in range(args.tasks_per_batch):
            task = draw(alphabets, 'training', args, generator)
            logits = adapt(task)(task.query)
            loss = F.cross_entropy(logits, task.query_labels)
            (loss / args.tasks_per_batch).backward()
            losses.append(loss.item())
            accuracies.append(accuracy(logits, task.query_labels))
        outer.step()
        curve.append(sum(accuracies) / len(accuracies))
        bar.set_postfix(loss=f'{sum(losses) / len(losses):.2f}', accuracy=f'{sum(curve[-50:]) / len(curve[-50:]):.0%}')
    return curve


def evaluate(adapt: Adapt, tasks: list[Task]) -> list[Tensor]:
    """Logits for the queries of every task, after adaptation from the learned weights."""
    return [adapt(task)(task.query).detach() for task in tqdm(tasks, desc='test: iMAML', unit='task')]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--form', choices=FORMS, default='functional', help='how it is written; the result is the same')
    parser.add_argument('--data', type=Path, help='folder of images, alphabet/character/*.png, such as Omniglot')
    parser.add_argument('--ways', type=int, default=5, help='characters in a task')
    parser.add_argument('--shots', type=int, default=1, help='drawings of each to learn from')
    parser.add_argument('--steps', type=int, default=350, help='outer steps')
    parser.add_argument('--tasks-per-batch', type=int, default=4, help='tasks in an outer step')
    parser.add_argument('--test-tasks', type=int, default=200, help='tasks of the test')
    parser.add_argument('--penalty', type=float, default=0.5, help='weight of the distance to the initial weights')
    parser.add_argument('--inner-lr', type=float, default=0.05, help='learning rate of the inner SGD')
    parser.add_argument('--inner-momentum', type=float, default=0.8, help='its momentum')
    parser.add_argument('--inner-steps', type=int, default=12, help='its steps')
    parser.add_argument('--cg-iterations', type=int, default=3, help='products with the Hessian per meta-gradient')
    parser.add_argument('--outer-lr', type=float, default=2e-3, help='first learning rate of the outer Adam')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--quick', action='store_true', help='quick test: few steps, no figures')
    parser.add_argument('--output', type=Path, default=Path('imaml.png'), help='file of the plot')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        parser.set_defaults(steps=3, test_tasks=4)
        args = parser.parse_args(argv)
    return args


def main(argv: list[str] | None = None) -> dict[str, Score]:
    """Train, test, and plot."""
    args = parse(argv)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the tensors are so small that a second thread would only slow the first
    training, test = omniglot_alphabets(args.data) if args.data else hershey_alphabets()
    net = make_network(args.ways).to(args.device)
    adapt = FORMS[args.form](net, args)
    curve = meta_train(net, adapt, training, args)
    generator = torch.Generator().manual_seed(args.seed + 1)
    tasks = [draw(test, 'test', args, generator) for _ in range(args.test_tasks)]
    predictions = evaluate(adapt, tasks)
    scores = {'iMAML': score(predictions, tasks), 'from scratch': score(evaluate_from_scratch(tasks, args), tasks)}
    print(f'\naccuracy on {len(tasks)} tasks of held-out alphabets, {args.ways}-way {args.shots}-shot, 95% interval')
    for name, value in scores.items():
        print(f'  {name:12s} {value}')
    plot(curve, scores, tasks, predictions, args.output)
    print(f'picture: {args.output}')
    assert args.quick or scores['iMAML'].exceeds(scores['from scratch']), 'iMAML is no better than fitting from scratch'
    return scores


if __name__ == '__main__':
    main()
