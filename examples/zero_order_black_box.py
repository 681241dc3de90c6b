# SPDX-License-Identifier: Apache-2.0
"""Tune the hyper-parameters of a gradient-boosting model, which is not differentiable.

Model and diabetes data are those of scikit-learn; the objective is the cross-validated error.  Three numbers are tuned
on a logarithmic scale: learning rate, leaf size and penalty.  Each step evaluates the error at pairs of random
neighbours, in parallel worker processes, and passes the estimated gradient to Adam.  For comparison, random search uses
the same number of evaluations.  At the end the example checks that the descent reduces the error by more than 5 %.

    python examples/zero_order_black_box.py
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import KFold, cross_val_score
from torch import Tensor
from tqdm import tqdm

import torchopt
from torchopt.zero_order_diff import zero_order

NORMAL = torch.distributions.Normal(0.0, 1.0)
# Each hyper-parameter is exp(center + width * u); u is tuned, and begins at START.
SCALES = {
    'learning_rate': (math.log(0.05), 1.0),
    'min_samples_leaf': (math.log(15.0), 0.7),
    'l2_regularization': (math.log(1.0), 2.0),
}
START = torch.tensor([1.5, -1.5, -1.0])
BOUND = 2.5


def settings(u: Tensor) -> dict[str, float]:
    """The hyper-parameters at a point."""
    values = [math.exp(c + w * x) for (c, w), x in zip(SCALES.values(), u.clamp(-BOUND, BOUND).tolist())]
    named = dict(zip(SCALES, values))
    return {**named, 'min_samples_leaf': max(1, round(named['min_samples_leaf']))}


def error(u: Tensor, iterations: int) -> Tensor:
    """The root mean square error in five-fold cross-validation.  This could be any Python code."""
    x, y = load_diabetes(return_X_y=True)
    model = HistGradientBoostingRegressor(max_iter=iterations, early_stopping=False, random_state=0, **settings(u))
    folds = KFold(5, shuffle=True, random_state=0)
    scores = cross_val_score(model, x, y, cv=folds, scoring='neg_root_mean_squared_error')
    return torch.tensor(-scores.mean(), dtype=torch.float32)


def one_thread() -> None:
    """Use one thread per worker, since there is one worker per core."""
    torch.set_num_threads(1)
    os.environ['OMP_NUM_THREADS'] = '1'


def tune(executor: ProcessPoolExecutor, args: argparse.Namespace) -> list[tuple[float, dict[str, float]]]:
    """Run gradient descent; return the error and the hyper-parameters before each step and at the end."""
    objective = zero_order(
        NORMAL,
        'orthogonal',
        num_samples=args.samples,
        sigma=args.sigma,
        executor=executor,
        generator=torch.Generator().manual_seed(args.seed),
    )(error)
    u = START.clone().requires_grad_()
    rate = torchopt.schedule.cosine_decay_schedule(args.lr, args.steps)
    optimizer = torchopt.Optimizer([u], torchopt.adam(rate, betas=(0.7, 0.99)))
    path = []
    for _ in (bar := tqdm(range(args.steps), desc='zero-order descent', unit='step')):
        value = objective(u, args.iterations)
        path.append((value.item(), settings(u.detach())))
        bar.set_postfix(error=f'{value.item():.2f}')
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        with torch.no_grad():
            u.clamp_(-BOUND, BOUND)
    path.append((error(u.detach(), args.iterations).item(), settings(u.detach())))
    return path


def random_search(executor: ProcessPoolExecutor, evaluations: int, args: argparse.Namespace) -> list[float]:
    """The error at points drawn uniformly from the search space."""
    generator = torch.Generator().manual_seed(args.seed)
    points = (2 * torch.rand(evaluations, len(SCALES), generator=generator) - 1) * BOUND
    # Send numbers, since each tensor would need a file descriptor.
    found = executor.map(error_at, [(p.tolist(), args.iterations) for p in points])
    return list(tqdm(found, total=evaluations, desc='random search', unit='point'))


def error_at(point: tuple[list[float], int]) -> float:
    return error(torch.tensor(point[0]), point[1]).item()


def plot(path: list[tuple[float, dict[str, float]]], random: list[float], per_step: int, file: Path) -> None:
    figure, (left, *rest) = plt.subplots(1, 4, figsize=(13, 3.6), layout='constrained', width_ratios=(2.2, 1, 1, 1))
    errors = [value for value, _ in path]
    evaluations = [per_step * i for i in range(len(path))]
    best = torch.tensor(random).cummin(0).values
    left.plot(range(1, len(random) + 1), random, '.', color='tab:gray', ms=2.5, alpha=0.5)
    left.plot(range(1, len(random) + 1), best, color='tab:gray', label=f'random search, best so far: {best[-1]:.2f}')
    left.plot(evaluations, errors, 'o-', color='tab:blue', ms=3, label=f'zero-order descent: {errors[-1]:.2f}')
    top = max(errors)
    left.set(
        xlabel='evaluations of the model',
        ylabel='cross-validated error',
        ylim=(min(*errors, best[-1].item()) - 0.5, top + 0.05 * (top - min(errors))),
        title='Diabetes, gradient boosting',
    )
    left.legend(fontsize=9)
    for axes, name in zip(rest, SCALES):
        axes.plot([values[name] for _, values in path], color='tab:blue')
        axes.set(title=name.replace('_', ' '), xlabel='step', yscale='log')
    for axes in (left, *rest):
        axes.grid(alpha=0.25)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--samples', type=int, default=3, help='pairs of neighbours in a step')
    parser.add_argument('--sigma', type=float, default=0.3, help='how far the neighbours are')
    parser.add_argument('--lr', type=float, default=0.3, help='first learning rate')
    parser.add_argument('--iterations', type=int, default=40, help='trees of a model')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='processes')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--quick', action='store_true', help='quick test: few steps, few trees')
    parser.add_argument('--output', type=Path, default=Path('zero_order_black_box.png'), help='file of the plot')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        parser.set_defaults(steps=2, samples=1, iterations=3)
        args = parser.parse_args(argv)
    return args


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Tune, and run random search; return the initial error and the final error of both."""
    args = parse(argv)
    one_thread()
    per_step = 2 * args.samples + 1
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(args.workers, mp_context=context, initializer=one_thread) as executor:
        path = tune(executor, args)
        random = random_search(executor, per_step * args.steps + 1, args)
    result = {'start': path[0][0], 'zero-order descent': path[-1][0], 'random search': min(random)}
    print(f'\ncross-validated error after {len(random)} evaluations')
    for name, value in result.items():
        print(f'  {name:20s} {value:.2f}')
    print('  ' + ', '.join(f'{name} = {value:.3g}' for name, value in path[-1][1].items()))
    plot(path, random, per_step, args.output)
    print(f'picture: {args.output}')
    assert args.quick or path[-1][0] < 0.95 * path[0][0], 'the descent does not reduce the error'
    return result


if __name__ == '__main__':
    main()
