# SPDX-License-Identifier: Apache-2.0
"""The inputs of all peers as NumPy arrays, equal in every process and framework."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from workloads import BATCH, LAYERS, RIDGE, SHARE_LEAVES, SHARE_SHAPE, SMALL_TREES, TREES, ZERO_SAMPLES


@dataclass(kw_only=True)
class Case:
    """The functions of one contestant.

    ``run`` is timed; it is None for an oracle, which only provides reference results.  ``before`` is called before each
    run and is not timed.  ``check`` is called once, before all others, and returns arrays that must agree between the
    contestants of a workload; it is None if there is nothing to compare.  ``memory`` counts bytes.
    """

    run: Callable[[], Any] | None
    check: Callable[[], list[Any]] | None = None
    before: Callable[[], Any] | None = None
    memory: Callable[[], dict[str, float]] | None = None


Cases = dict[str, Callable[[], Case]]


@functools.lru_cache(maxsize=1)
def params_and_grads(tree: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return tuple(
        [rng.standard_normal(shape, dtype=np.float32) for shape in {**TREES, **SMALL_TREES}[tree]] for _ in range(2)
    )


def mlp_weights() -> list[np.ndarray]:
    """Weight and bias of each layer, one after another."""
    rng = np.random.default_rng(1)
    weights = []
    for i, o in itertools.pairwise(LAYERS):
        weights += [rng.standard_normal((o, i), dtype=np.float32) / np.float32(i**0.5), np.zeros(o, np.float32)]
    return weights


def batches() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The batches of the inner and of the outer loss, each with inputs and classes."""
    rng = np.random.default_rng(2)

    def batch() -> tuple[np.ndarray, np.ndarray]:
        return rng.standard_normal((BATCH, LAYERS[0]), dtype=np.float32), rng.integers(0, LAYERS[-1], BATCH)

    return batch(), batch()


def directions() -> list[np.ndarray]:
    """Fixed directions, to compare zero-order gradients; timed runs draw their own directions."""
    rng = np.random.default_rng(4)
    return [rng.standard_normal((ZERO_SAMPLES, *w.shape), dtype=np.float32) for w in mlp_weights()]


@functools.lru_cache(maxsize=1)
def ridge(size: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs and targets for training, and a quarter of this number for validation."""
    rng = np.random.default_rng(5)
    n, d = RIDGE[size]
    truth = rng.standard_normal(d, dtype=np.float32) / np.float32(d**0.5)
    X = rng.standard_normal((n + n // 4, d), dtype=np.float32)
    y = X @ truth + rng.standard_normal(len(X), dtype=np.float32)
    return X[:n].copy(), y[:n].copy(), X[n:].copy(), y[n:].copy()


def share_weights() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.standard_normal(SHARE_SHAPE, dtype=np.float32) for _ in range(SHARE_LEAVES)]


def nested_dict(leaf: Callable[[], Any]) -> dict[str, Any]:
    """200 leaves, three levels deep."""
    names = ('weight', 'bias', 'scale', 'shift')
    return {f'block{i}': {f'layer{j}': {name: leaf() for name in names} for j in range(5)} for i in range(10)}
