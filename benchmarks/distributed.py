# SPDX-License-Identifier: Apache-2.0
"""Measure how tasks scale over processes: MAML on glyphs with both engines, and a model of many workers.

    python benchmarks/distributed.py            # everything; needs an idle machine with two cores
    python benchmarks/distributed.py --quick    # a trial

The first part runs examples/distributed_maml.py and its counterpart for RPC with one and with two single-threaded
processes, in turns, and measures the wall-clock time of meta-training and the CPU time of each process.  The second
part measures the cost of a step besides the tasks, and the cost of a message of the size of the network for each
engine; the model in docs/distributed.md uses these numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchopt
import torchopt.distributed as todist

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = {'collectives': 'distributed_maml.py', 'rpc': 'distributed_maml_rpc.py'}


def launch(script: Path, processes: int, *arguments: str) -> None:
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [*command, str(script), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f'{script.name} failed:\n{done.stdout}{done.stderr}')


def training(engine: str, processes: int, steps: int) -> dict[str, Any]:
    """One run of an example: wall-clock seconds, and CPU seconds of each process."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report'
        options = ['--steps', str(steps), '--test-tasks', '2', '--report', str(report)]
        launch(ROOT / 'examples' / EXAMPLES[engine], processes, *options)
        ranks = [json.loads(report.with_name(f'report.{rank}').read_text()) for rank in range(processes)]
    return {'wall': ranks[0]['wall'], 'cpu': [rank['cpu'] for rank in ranks]}


def overhead(found: dict[str, float], step: float) -> dict[str, float]:
    """The CPU time of two workers besides the tasks, relative to a step of one process; a measure with little noise.

    In a step of two workers, each repeats the work that one process does once (the step of the optimizer), and
    communicates.
    """
    besides = found['CPU of map_tasks of nothing'] - found['CPU of one such task by hand']
    shares = {
        'collectives': (2 * besides + found['outer step']) / step,
        'rpc': found['CPU of all for two workers'] / step,
    }
    for engine, share in shares.items():
        print(f'{engine:12s} CPU of two workers besides the tasks: {share:.1%} of a step of {1e3 * step:.1f} ms')
    return shares


def scaling(rounds: int, steps: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for engine in EXAMPLES:
        runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
        for _ in range(rounds):
            for processes, found_so_far in runs.items():
                found_so_far.append(training(engine, processes, steps))
        speedups = [one['wall'] / two['wall'] for one, two in zip(runs[1], runs[2])]
        # The CPU time of two workers together, relative to that of one process for all tasks.
        overheads = [sum(two['cpu']) / sum(one['cpu']) - 1 for one, two in zip(runs[1], runs[2])]
        found[engine] = {'runs': runs, 'speedup': speedups, 'overhead': overheads}
        print(
            f'{engine:12s} speed-up with 2 workers {statistics.median(speedups):.2f} '
            f'({min(speedups):.2f} to {max(speedups):.2f}), CPU seconds beyond one process '
            f'{statistics.median(overheads):+.1%} ({min(overheads):+.1%} to {max(overheads):+.1%}); '
            f'one process {statistics.median(r["wall"] for r in runs[1]):.2f} s',
            flush=True,
        )
    return found


# --- The cost of a message; this part runs in two processes -------------------------------------


def network() -> nn.Module:
    sys.path.insert(0, str(ROOT / 'examples'))
    from maml import make_network

    return make_network(5)


def nothing(net: nn.Module, x: Tensor) -> Tensor:
    """A task that takes almost no time, with a gradient of the size of the network."""
    return sum(p.sum() for p in net.parameters()) * x.sum()


parallel_nothing = todist.parallelize()(nothing)


def on_worker_1(net: nn.Module, x: Tensor, shares: int = 1) -> Tensor:
    return sum(todist.remote_sync_call(nothing, args=(net, x), partitioner=lambda *args: [(1, args, {})] * shares))


def lap(call: Any, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def cpu_of_all(call: Any, repeats: int) -> float:
    """The CPU time of a call in all processes together."""

    def used() -> float:
        return sum(todist.remote_sync_call(time.process_time, partitioner=i)[0] for i in range(2))

    start = used()
    for _ in range(repeats):
        call()
    return (used() - start) / repeats


def cpu_of(call: Any, repeats: int) -> float:
    """The CPU time of a call in all threads of this process, in seconds."""
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats


@todist.auto_init_process_group(backend='gloo')
def latency_of_collectives(repeats: int) -> dict[str, float]:
    torch.set_num_threads(1)
    net = network()
    size = sum(p.numel() for p in net.parameters())
    small, large, pair = torch.zeros(1), torch.zeros(size), [torch.ones(1)] * 2
    return {
        'elements': size,
        'all_reduce of one number': lap(lambda: todist.all_reduce(small), repeats),
        'all_reduce of a gradient': lap(lambda: todist.all_reduce(large), repeats),
        'map_tasks of nothing': lap(lambda: todist.map_tasks(nothing, pair, net).backward(), repeats),
        'CPU of map_tasks of nothing': cpu_of(lambda: todist.map_tasks(nothing, pair, net).backward(), repeats),
        'CPU of one such task by hand': cpu_of(lambda: nothing(net, pair[0]).backward(), repeats),
    }


@todist.auto_init_rpc(lambda: torch.set_num_threads(1))
@todist.rank_zero_only
def latency_of_rpc(repeats: int) -> dict[str, float]:
    net, x = network(), torch.ones(2)
    return {
        'a call': lap(lambda: todist.remote_sync_call(max, args=(1, 2), partitioner=1), repeats),
        'parallelize nothing': lap(lambda: parallel_nothing(net, x).backward(), repeats),
        'parallelize nothing, by one worker': lap(lambda: on_worker_1(net, x).backward(), repeats),
        # Arguments for several workers are packed only once.
        'CPU of rank 0 for each worker': cpu_of(lambda: on_worker_1(net, x, 2).backward(), repeats)
        - cpu_of(lambda: on_worker_1(net, x).backward(), repeats),
        'CPU of all for two workers': cpu_of_all(lambda: parallel_nothing(net, x).backward(), repeats)
        - 2 * cpu_of(lambda: nothing(net, x[:1]).backward(), repeats),
    }


def step_of_optimizer(repeats: int) -> float:
    """Time a step of the outer optimizer, which every process takes besides its tasks."""
    torch.set_num_threads(1)
    net = network()
    F.cross_entropy(net(torch.randn(2, 1, 20, 20)), torch.zeros(2, dtype=torch.long)).backward()
    outer = torchopt.Optimizer(net.parameters(), torchopt.chain(torchopt.clip_grad_norm(0.3), torchopt.adam(1e-3)))
    return lap(outer.step, repeats)


def latencies(repeats: int) -> dict[str, float]:
    found = {'outer step': step_of_optimizer(repeats)}
    for part in ('collectives', 'rpc'):
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / 'report'
            launch(Path(__file__), 2, '--part', part, '--repeats', str(repeats), '--report', str(report))
            found |= json.loads(report.read_text())
    for name, value in found.items():
        print(f'{name:36s} {value:.0f}' if name == 'elements' else f'{name:36s} {1e6 * value:8.0f} us')
    return found


# --- A model of many workers --------------------------------------------------------------------


def predict(workers: int, tasks: int, task: float, cost: dict[str, float]) -> dict[str, float]:
    """Predict the seconds of a step for each engine.

    Collectives: a tree of messages, with one level for two workers, and the bytes of the gradient, which every worker
    sends and receives about twice, for any number of workers.  Remote calls: rank 0 packs once, sends to and reads
    from one worker after another, and then waits for the last.
    """
    work = math.ceil(tasks / workers) * task + cost['outer step']
    hops = math.ceil(math.log2(workers)) if workers > 1 else 0
    small, large = cost['all_reduce of one number'], cost['all_reduce of a gradient']
    besides = cost['map_tasks of nothing'] - large
    each = cost['CPU of rank 0 for each worker']
    return {
        'collectives': work + besides + hops * small + (large - small) * 2 * (workers - 1) / workers,
        'rpc': work + workers * each + cost['parallelize nothing, by one worker'] - each,
    }


def model(found: dict[str, Any], steps: int, tasks: int = 512) -> list[dict[str, float]]:
    """Predict a step with tasks like those of the example, for an increasing number of workers."""
    cost = found['latencies']
    wall = statistics.median(run['wall'] for run in found['scaling']['collectives']['runs'][1])
    task = (wall / steps - cost['outer step']) / 4
    print(f'model: {tasks} tasks of {1e3 * task:.1f} ms')
    rows = []
    for workers in (1, 2, 8, 64, 512):
        times = predict(workers, tasks, task, cost)
        alone = tasks * task + cost['outer step']
        rows.append({'workers': workers, **times, **{f'speed-up, {k}': alone / t for k, t in times.items()}})
        print('  '.join(f'{k} {v:.3g}' for k, v in rows[-1].items()))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='few short runs: a trial, not reliable')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=150)
    parser.add_argument('--repeats', type=int, default=200)
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'out' / 'distributed.json')
    parser.add_argument('--part', choices=['collectives', 'rpc'], help=argparse.SUPPRESS)
    parser.add_argument('--report', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        found = (latency_of_collectives if args.part == 'collectives' else latency_of_rpc)(args.repeats)
        if todist.get_rank() == 0:
            args.report.write_text(json.dumps(found))
        return
    rounds, steps, repeats = (1, 20, 20) if args.quick else (args.rounds, args.steps, args.repeats)
    print(machine.describe())
    result = {'machine': machine.describe(), 'latencies': latencies(repeats), 'scaling': scaling(rounds, steps)}
    wall = statistics.median(run['wall'] for run in result['scaling']['collectives']['runs'][1]) / steps
    result['overhead'] = overhead(result['latencies'], wall)
    result['model'] = model(result, steps)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1))
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
