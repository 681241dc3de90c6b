# SPDX-License-Identifier: Apache-2.0
"""Compute medians, ratios and verdicts from the times of single runs."""

from __future__ import annotations

import math
import statistics
from typing import Any

from workloads import Workload

TOLERANCE = 1e-3  # for float32 results of different algorithms


def distance(a: list[float], b: list[float]) -> float:
    """The relative error of a result in the Euclidean norm."""
    return math.dist(a, b) / max(math.hypot(*b), 1e-30) if len(a) == len(b) else math.inf


def summary(rounds: list[list[float]]) -> dict[str, Any]:
    """Seconds: the median and the minimum of all runs, the median of each round, and the relative quartile range."""
    times = [t for times in rounds for t in times]
    low, median, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {
        'median': median,
        'minimum': min(times),
        'spread': (high - low) / median,
        'runs': len(times),
        'rounds': [statistics.median(times) for times in rounds],
    }


def judge(work: Workload, stats: dict[str, dict[str, Any]], wrong: dict[str, float]) -> list[dict[str, Any]]:
    """The ratios that have a target, each as the median over the rounds of the ratio within a round.

    A wrong result misses its target, and is not used as a reference.
    """
    target = work.target
    if target is None:
        return []
    verdicts = []
    for ours in target.ours:
        names = [name for name in (ours, target.reference, target.base) if name]
        missing = [name for name in names if name not in stats or name in wrong]
        verdict = {
            'ours': ours,
            'reference': target.reference,
            'base': target.base,
            'limit': target.limit,
            'missing': missing,
        }
        if not missing:
            ratios = [_ratio(*medians) for medians in zip(*(stats[name]['rounds'] for name in names))]
            verdict['ratio'] = statistics.median(ratios)
            verdict['ratio of minima'] = _ratio(*(stats[name]['minimum'] for name in names))
            verdict['met'] = verdict['ratio'] <= target.limit
        verdicts.append(verdict)
    return verdicts


def _ratio(ours: float, reference: float, base: float = 0.0) -> float:
    return (ours - base) / max(reference - base, 1e-12)
