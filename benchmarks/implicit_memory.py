# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a meta-gradient as a function of the number of inner steps, for iMAML and MAML, in new processes.

    python benchmarks/implicit_memory.py --output implicit_memory.png

The inner problem is that of examples/imaml.py, with wider layers, so that the memory of the inner loop dominates.  The
peak is the largest resident set size of the process during the meta-gradient, minus the size before it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = (1, 2, 4, 8, 16, 32, 64)


def measure(method: str, steps: int) -> dict[str, float]:
    """One meta-gradient in this process: the MiB that it adds to the peak, and its time in seconds."""
    sys.path[:0] = [str(ROOT), str(ROOT / 'examples')]
    import imaml
    import maml
    import torch
    import torch.nn.functional as F
    from glyphs import Task

    import torchopt

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = maml.make_network(5, channels=64)
    labels = torch.arange(5)
    task = Task(torch.rand(5, 1, 20, 20), labels, torch.rand(25, 1, 20, 20), labels.repeat_interleave(5), '')
    args = imaml.parse(['--inner-steps', str(steps), '--cg-iterations', '5'])

    def meta_gradient(count: int) -> None:
        args.inner_steps = count
        if method == 'imaml':
            loss = F.cross_entropy(imaml.functional_form(net, args)(task)(task.query), task.query_labels)
            torch.autograd.grad(loss, list(net.parameters()))
            return
        start = torchopt.extract_state_dict(net, by='reference')
        optimizer = torchopt.MetaSGD(net, lr=args.inner_lr, momentum=args.inner_momentum)
        first = list(net.parameters())
        for _ in range(count):
            loss = F.cross_entropy(net(task.support), task.support_labels)
            pairs = zip(net.parameters(), first)
            optimizer.step(loss + 0.5 * args.penalty * sum((a - b).square().sum() for a, b in pairs))
        torch.autograd.grad(F.cross_entropy(net(task.query), task.query_labels), first)
        torchopt.recover_state_dict(net, start)

    meta_gradient(1)  # warm-up: kernels, threads, caches
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    meta_gradient(steps)
    seconds = time.perf_counter() - begin
    return {'MiB': (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 'seconds': seconds}


def main() -> None:
    """Measure, print a table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--one', nargs=2, metavar=('METHOD', 'STEPS'), help='measure in this process, for internal use')
    parser.add_argument('--repeat', type=int, default=3, help='processes for each point; the median is reported')
    parser.add_argument('--output', type=Path, default=Path('implicit_memory.png'), help='the file of the figure')
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
        return
    import matplotlib as mpl

    mpl.use('agg')
    import matplotlib.pyplot as plt
    from tqdm import tqdm

    points = [(method, steps) for method in ('maml', 'imaml') for steps in STEPS]
    found: dict[tuple[str, int], dict[str, float]] = {}
    for method, steps in tqdm(points):
        command = [sys.executable, __file__, '--one', method, str(steps)]
        # Without arenas and caching, freed memory is returned to the system.
        variables = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536'}
        runs = [json.loads(subprocess.check_output(command, env=variables)) for _ in range(args.repeat)]
        found[method, steps] = {key: sorted(run[key] for run in runs)[len(runs) // 2] for key in runs[0]}
    print('| inner steps | ' + ' | '.join(map(str, STEPS)) + ' |\n' + '|---' * (1 + len(STEPS)) + '|')
    for method in ('maml', 'imaml'):
        for key, form in (('MiB', '.0f'), ('seconds', '.2f')):
            print(f'| {method}, {key} | ' + ' | '.join(f'{found[method, s][key]:{form}}' for s in STEPS) + ' |')

    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout='constrained')
    for method, name, color in (('maml', 'MAML, unrolled', 'tab:gray'), ('imaml', 'iMAML, implicit', 'tab:green')):
        axis.plot(STEPS, [found[method, s]['MiB'] for s in STEPS], 'o-', color=color, label=name)
    axis.set_xscale('log', base=2)
    axis.set_xticks(STEPS, [str(s) for s in STEPS])
    axis.set(xlabel='inner steps', ylabel='peak memory, MiB', title='Memory of a meta-gradient')
    axis.set_ylim(bottom=0)
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(args.output, dpi=110)


if __name__ == '__main__':
    main()
