# SPDX-License-Identifier: Apache-2.0
"""Meta-gradients whose steps are compiled once, against steps that run as they are and against jitted JAX.

    python benchmarks/compiled_steps.py
    python benchmarks/compiled_steps.py --only mlp-5,conv-tasks --rounds 30
    python benchmarks/compiled_steps.py --only mlp-5 --whole  # also torch.compile(fullgraph=True) of the whole loop

- ``mlp-K``: the MLP and the batches of the suite's kind ``meta``, K steps of Adam, the derivative with respect to the
  initial weights;
- ``mlp-tasks``: the same with K = 5 for 25 tasks, each with its own batches, under ``vmap``;
- ``conv-tasks``: the network of ``examples/maml.py``, 5 classes, 5 images to learn from and 25 to classify, 5 steps of
  gradient descent, 25 tasks under ``vmap``.

All variants run in one process with one thread, by turns.  A figure is the median CPU time of a call, and in
parentheses the median of its ratio to JAX in the same round.  The garbage collector is off, as in the suite.  The first
calls of the variants ``graph``, ``inductor`` and ``whole``, which make the graphs, are timed separately: CPU time of
the process and of its compilers, and time on the clock.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ['OMP_NUM_THREADS'] = '1'
os.environ['XLA_FLAGS'] = '--xla_cpu_multi_thread_eigen=false'
os.environ['TORCHINDUCTOR_FORCE_DISABLE_CACHES'] = '1'
os.environ['TORCHINDUCTOR_COMPILE_THREADS'] = '1'  # so that the compilers are children of this process
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import problems  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from workloads import META_EPS, META_LR  # noqa: E402

import torchopt  # noqa: E402

TASKS, STEPS, CONV_LR = 25, 5, 0.2
Run = Callable[[], list[np.ndarray]]


def torch_mlp(params: Any, x: torch.Tensor) -> torch.Tensor:
    for i in range(0, len(params), 2):
        x = F.linear(x, params[i], params[i + 1])
        x = torch.tanh(x) if i + 2 < len(params) else x
    return x


def jax_mlp(params: Any, x: Any) -> Any:
    for i in range(0, len(params), 2):
        x = x @ params[i].T + params[i + 1]
        x = jnp.tanh(x) if i + 2 < len(params) else x
    return x


def torch_conv(params: Any, x: torch.Tensor) -> torch.Tensor:
    w1, b1, w2, b2, w3, b3, w4, b4 = params
    x = torch.relu(F.conv2d(x, w1, b1, stride=2, padding=1))
    x = F.max_pool2d(torch.relu(F.conv2d(x, w2, b2, padding=1)), 2)
    x = F.max_pool2d(torch.relu(F.conv2d(x, w3, b3, padding=1)), 2, ceil_mode=True)
    return F.linear(x.flatten(1), w4, b4)


def jax_conv(params: Any, x: Any) -> Any:
    def conv(x: Any, w: Any, b: Any, stride: int = 1) -> Any:
        return jax.lax.conv_general_dilated(x, w, (stride, stride), ((1, 1), (1, 1))) + b[:, None, None]

    def pool(x: Any) -> Any:
        odd = [(0, 0), (0, 0), (0, x.shape[2] % 2), (0, x.shape[3] % 2)]
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), odd)

    w1, b1, w2, b2, w3, b3, w4, b4 = params
    x = jax.nn.relu(conv(x, w1, b1, 2))
    x = pool(jax.nn.relu(conv(x, w2, b2)))
    x = pool(jax.nn.relu(conv(x, w3, b3)))
    return x.reshape(len(x), -1) @ w4.T + b4


def conv_weights(channels: int = 32) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(channels, 1, 3, 3), (channels, channels, 3, 3), (channels, channels, 3, 3), (5, 9 * channels)]
    found = []
    for shape in shapes:
        bound = np.prod(shape[1:]) ** -0.5
        found += [rng.uniform(-bound, bound, shape).astype(np.float32), np.zeros(shape[0], np.float32)]
    return found


def conv_tasks() -> Any:
    rng = np.random.default_rng(1)
    support, query = (rng.standard_normal((TASKS, 5 * n, 1, 20, 20), dtype=np.float32) for n in (1, 5))
    classes = np.arange(5)
    return (support, np.tile(classes, (TASKS, 1))), (query, np.tile(np.repeat(classes, 5), (TASKS, 1)))


def mlp_tasks() -> Any:
    rng = np.random.default_rng(3)

    def batch() -> Any:
        (x, y), _ = problems.batches()
        return rng.standard_normal((TASKS, *x.shape), dtype=np.float32), rng.integers(0, 10, (TASKS, *y.shape))

    return batch(), batch()


def torch_runs(net: Any, weights: Any, data: Any, steps: int, adam: bool, tasks: bool) -> dict[str, Run]:
    transform = torchopt.adam(META_LR, eps=META_EPS) if adam else torchopt.sgd(CONV_LR)
    as_tensors = [[torch.tensor(x) for x in batch] for batch in data]
    params = [torch.tensor(w) for w in weights]

    def outer(params: Any, inner: Any, query: Any, compile: Any) -> torch.Tensor:
        def loss(params: Any) -> torch.Tensor:
            return F.cross_entropy(net(params, inner[0]), inner[1])

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            updates, state = transform.update(torchopt.grad(loss)(params), state, params)
            return (torchopt.apply_updates(params, updates), state), None

        start = (params, transform.init(params))
        (params, _), _ = torchopt.loop.scan(step, start, length=steps, compile=compile)
        return F.cross_entropy(net(params, query[0]), query[1])

    def run(compile: Any, outer: Any = outer) -> list[np.ndarray]:
        if tasks:
            each = torch.vmap(torch.func.grad(lambda p, a, b: outer(p, a, b, compile)), (None, 0, 0))
            return [g.numpy() for g in each(params, *as_tensors)]
        leaves = [p.detach().requires_grad_() for p in params]
        return [g.numpy() for g in torch.autograd.grad(outer(leaves, *as_tensors, compile), leaves)]

    whole = torch.compile(outer, fullgraph=True)
    return {
        'eager': lambda: run(False),
        'graph': lambda: run('graph'),
        'inductor': lambda: run('inductor'),
        'whole': lambda: run(False, whole),
    }


def jax_run(net: Any, weights: Any, data: Any, steps: int, adam: bool, tasks: bool) -> Run:
    tx = optax.adam(META_LR, eps=META_EPS) if adam else optax.sgd(CONV_LR)

    def cross_entropy(params: Any, batch: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(net(params, batch[0]), batch[1]).mean()

    def outer(params: Any, inner: Any, query: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            updates, state = tx.update(jax.grad(cross_entropy)(params, inner), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, steps)
        return cross_entropy(params, query)

    gradient = jax.grad(outer)
    jitted = jax.jit(jax.vmap(gradient, (None, 0, 0)) if tasks else gradient)
    arguments = jax.tree.map(jnp.array, (weights, *data))
    return lambda: [np.asarray(g) for g in jax.block_until_ready(jitted(*arguments))]


def workload(name: str) -> tuple[Any, ...]:
    if name.startswith('conv'):
        return torch_conv, jax_conv, conv_weights(), conv_tasks(), STEPS, False, True
    if name == 'mlp-tasks':
        return torch_mlp, jax_mlp, problems.mlp_weights(), mlp_tasks(), STEPS, True, True
    return torch_mlp, jax_mlp, problems.mlp_weights(), problems.batches(), int(name.split('-')[1]), True, False


def timed(run: Run, repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - start) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default='mlp-5,mlp-20,mlp-tasks,conv-tasks', help='default: %(default)s')
    parser.add_argument('--rounds', type=int, default=15, help='default: %(default)s')
    parser.add_argument(
        '--whole', action='store_true', help='for one task, also compile the whole loop, which takes minutes'
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only.split(','):
        net, jax_net, *problem = workload(name)
        runs = {**torch_runs(net, *problem), 'jax': jax_run(jax_net, *problem)}
        compiled = ['graph', 'inductor', *(['whole'] if args.whole and not problem[-1] else [])]
        runs = {variant: runs[variant] for variant in ('eager', *compiled, 'jax')}
        for variant in compiled:
            start, clock = os.times(), time.perf_counter()
            runs[variant]()
            spent = [b - a for a, b in zip(start, os.times())]
            clock = time.perf_counter() - clock
            print(f'{name} {variant}: first call {sum(spent[:4]):.1f} s CPU, {clock:.1f} s', flush=True)
        results = {variant: run() for variant, run in runs.items()}
        repeats = {variant: max(1, int(0.1 / timed(run, 2))) for variant, run in runs.items()}
        gc.collect()
        gc.disable()
        times: dict[str, list[float]] = {variant: [] for variant in runs}
        for _ in range(args.rounds):
            for variant, run in runs.items():
                times[variant].append(timed(run, repeats[variant]))
        gc.enable()
        for variant, found in times.items():
            ratio = statistics.median(a / b for a, b in zip(found, times['jax']))
            error = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(results[variant], results['jax']))
            print(
                f'{name} {variant:9} {1e3 * statistics.median(found):8.2f} ms ({ratio:.2f})  error {error:.1e}',
                flush=True,
            )


if __name__ == '__main__':
    main()
