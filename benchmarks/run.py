# SPDX-License-Identifier: Apache-2.0
"""Measure torchopt and its peers: the command of the benchmark suite.

    python benchmarks/run.py
    python benchmarks/run.py --quick --only step,meta

Every peer has its own process. In each round, every peer takes one short measurement, in a random order, so that drifts
of the machine affect all peers equally.
"""

from __future__ import annotations

import argparse
import os
import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import imports
import machine
import report
from environments import HERE, NotToBeHad
from peer import Peer
from tqdm import tqdm
from verdicts import TOLERANCE, distance, judge, summary
from workloads import CUDA_PEERS, KINDS, PEERS, WORKLOADS, Workload

# The reference results, in order of preference, with which the others must agree.
ORACLES = (
    'torch_optim/plain',
    'torch_optim/default',
    'torch_optim/oracle',
    'by_hand/Adam',
    'by_hand/CG',
    'torchopt/update, plain torch',
)


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        'machine': machine.describe(),
        'settings': {name: getattr(args, name) for name in ('rounds', 'seconds', 'device', 'keep_memory')},
        'peers': {},
        'absent': {},
        'workloads': [],
        'import': {},
    }
    plans = {threads: [work for work in WORKLOADS.values() if wanted(work, threads, args)] for threads in args.threads}
    with tqdm(total=sum(map(len, plans.values())), unit='workload', dynamic_ncols=True) as progress:
        for threads, works in plans.items():
            with ExitStack() as stack:
                peers = start(args, threads, results, stack) if works else []
                for work in works:
                    progress.set_description(f'{threads} threads, {work.name}')
                    results['workloads'].append(measure(work, threads, peers, args))
                    progress.update()
            report.write(results, args.out)  # in every round, so that an interrupted run has results
    if 'import' in args.only and args.device == 'cpu':
        results['import'] = imports.measure(args.peers, args.rounds, results['absent'])
    print(report.write(results, args.out))


def arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default=','.join(KINDS), help='kinds of workloads, out of %(default)s')
    parser.add_argument('--peers', default=','.join(PEERS), help='out of %(default)s')
    parser.add_argument('--threads', default='1,all', help='thread counts to measure with (default: %(default)s)')
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'], help='cuda: torchopt and torch.optim only')
    parser.add_argument('--keep-memory', action='store_true', help='never return memory to the system (glibc)')
    parser.add_argument('--quick', action='store_true', help='few short rounds: a trial, not reliable')
    parser.add_argument('--out', type=Path, default=HERE / 'out', help='folder for the results (default: %(default)s)')
    args = parser.parse_args()
    args.only, args.peers = args.only.split(','), args.peers.split(',')
    for name, known in [*((kind, KINDS) for kind in args.only), *((peer, PEERS) for peer in args.peers)]:
        if name not in known:
            parser.error(f'{name!r} is unknown; expected one of {", ".join(known)}')
    if args.device == 'cuda':
        args.peers = [peer for peer in args.peers if peer in CUDA_PEERS]
    args.threads = sorted({cores if count == 'all' else int(count) for count in args.threads.split(',')})
    args.rounds, args.seconds = (3, 0.02) if args.quick else (9, 0.15)
    return args


def wanted(work: Workload, threads: int, args: argparse.Namespace) -> bool:
    return work.kind in args.only or counts_memory(work, threads, args)


def counts_memory(work: Workload, threads: int, args: argparse.Namespace) -> bool:
    """Memory does not depend on threads, and hardly on the optimizer."""
    asked = 'memory' in args.only and threads == args.threads[0] and args.device == 'cpu'
    return asked and (work.kind == 'meta' or (work.kind in ('step', 'functional') and work.optimizer == 'adam'))


def start(args: argparse.Namespace, threads: int, results: dict[str, Any], stack: ExitStack) -> list[Peer]:
    peers = []
    for name in args.peers:
        if name in results['absent']:
            continue
        try:
            peer = Peer(name, threads, args.device, args.out / f'{name}.log', args.keep_memory)
        except NotToBeHad as error:
            results['absent'][name] = str(error)
            continue
        stack.callback(peer.close)
        results['peers'][name] = peer.versions
        peers.append(peer)
    return peers


def measure(work: Workload, threads: int, peers: list[Peer], args: argparse.Namespace) -> dict[str, Any]:
    failed: dict[str, str] = {}
    fingerprints: dict[str, list[float] | None] = {}
    contestants: dict[str, tuple[Peer, str]] = {}
    for peer in list(peers):
        try:
            answer = peer.ask('prepare', work.name)
        except NotToBeHad as error:
            failed[peer.name] = str(error)
            peers.remove(peer)
            continue
        failed.update({f'{peer.name}/{variant}': why for variant, why in answer['failed'].items()})
        fingerprints.update({f'{peer.name}/{variant}': marks for variant, marks in answer['fingerprints'].items()})
        contestants.update({f'{peer.name}/{variant}': (peer, variant) for variant in answer['contestants']})
    wrong = disagreeing(fingerprints)

    times: dict[str, list[list[float]]] = {name: [] for name in contestants}
    shuffle = random.Random(0).shuffle
    timed = work.kind in args.only
    for _ in range(args.rounds if timed else 0):
        order = [name for name in contestants if name not in failed]
        shuffle(order)
        for name in order:
            peer, variant = contestants[name]
            try:
                times[name].append(peer.ask('measure', variant, args.seconds))
            except NotToBeHad as error:
                failed[name] = str(error)
    stats = {name: summary(rounds) for name, rounds in times.items() if rounds and name not in failed}
    memory = {}
    if counts_memory(work, threads, args):
        counted = {
            name: peer.ask('memory', variant) for name, (peer, variant) in contestants.items() if name not in failed
        }
        memory = {name: amounts for name, amounts in counted.items() if amounts}
    return {
        'name': work.name,
        'threads': threads,
        'contestants': stats,
        'failed': failed,
        'differs': wrong,
        'targets': judge(work, stats, wrong) if timed else [],
        'memory': memory,
    }


def disagreeing(fingerprints: dict[str, list[float] | None]) -> dict[str, float]:
    """The relative errors of the results that differ from the reference by more than rounding."""
    known = {name: marks for name, marks in fingerprints.items() if marks is not None}
    oracle = next((name for name in (*ORACLES, *known) if name in known), None)
    distances = {name: distance(marks, known[oracle]) for name, marks in known.items()}
    return {name: far for name, far in distances.items() if not far <= TOLERANCE}


if __name__ == '__main__':
    main()
