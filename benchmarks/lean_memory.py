# SPDX-License-Identifier: Apache-2.0
"""Peak memory and CPU time of a meta-gradient through steps of Adam on a transformer, kept and recomputed.

    python benchmarks/lean_memory.py --steps 8
    python benchmarks/lean_memory.py --steps 32 --methods graph,reverse,mixed,segments

By default four layers of width 128, and batches of 8 sequences of 256 tokens; ``--size small`` is two layers of width
64, and 4 sequences of 128 tokens.  The learned quantities are weights of the examples.
Each figure is one meta-gradient in a fresh process with one thread: the growth of its largest resident set beyond that
of a warm start (a meta-gradient through one step of a small model), and its CPU time.  With ``--return-memory``, glibc
returns tensors of 1 MiB and more to the system as soon as they are freed, so that the resident set has no gaps between
tensors; without it, glibc keeps freed blocks of up to 32 MiB, most of which are too small or too large for the next.
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
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIZES = {'large': (128, 4, 256, 8), 'small': (64, 2, 128, 4)}  # width, layers, length, batch
METHODS = ('graph', 'reverse', 'mixed', 'segments', 'closure')


def build(width: int, layers: int, length: int, batch: int, vocabulary: int = 256) -> tuple[Any, Any, Any]:
    """The transformer, its tokens, and the learned weights of the examples."""
    import torch
    from torch import nn

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(vocabulary, width)
            self.place = nn.Parameter(torch.randn(length, width) / 50)
            block = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, 'gelu', batch_first=True, norm_first=True)
            self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
            self.head = nn.Linear(width, vocabulary)
            self.register_buffer('mask', nn.Transformer.generate_square_subsequent_mask(length))

        def forward(self, tokens: Any) -> Any:
            return self.head(self.blocks(self.embed(tokens) + self.place, mask=self.mask))

    torch.manual_seed(0)
    net = Transformer()
    tokens = torch.randint(vocabulary, (batch, length + 1))
    return net, tokens, torch.zeros(batch, requires_grad=True)


def meta_gradient(method: str, steps: int, net: Any, tokens: Any, weights: Any) -> Any:
    """The derivative of the loss after the steps with respect to the weights of the examples."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    import torchopt

    x, y = tokens[:, :-1], tokens[:, 1:]

    def loss_of(logits: Any) -> Any:
        each = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction='none').reshape(y.shape).mean(1)
        return (each * weights.exp()).mean()

    with sdpa_kernel(SDPBackend.MATH):
        if method == 'closure':
            optimizer = torchopt.MetaAdam(net, lr=1e-3, eps_root=1e-8)
            for _ in range(steps):
                optimizer.step(lambda: loss_of(net(x)))
            return torch.autograd.grad(loss_of(net(x)), weights)[0]
        params = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
        transform = torchopt.adam(1e-3, eps_root=1e-8)

        def loss(params: Any) -> Any:
            return loss_of(torch.func.functional_call(net, params, (x,)))

        def gradient(params: Any) -> Any:
            if method != 'graph':
                return torchopt.grad(loss, checkpoint='reverse' if method == 'reverse' else 'mixed')(params)
            found = torch.autograd.grad(loss(params), list(params.values()), create_graph=True)
            return dict(zip(params, found))

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            updates, state = transform.update(gradient(params), state, params)
            return (torchopt.apply_updates(params, updates, inplace=False), state), None

        segments = 'auto' if method == 'segments' else None
        start = (params, transform.init(params))
        (params, _), _ = torchopt.loop.scan(step, start, length=steps, checkpoint=segments)
        return torch.autograd.grad(loss(params), weights)[0]


def measure(method: str, steps: int, size: str) -> dict[str, float]:
    """One meta-gradient in this process."""
    sys.path[:0] = [str(ROOT)]
    import torch

    torch.set_num_threads(1)
    meta_gradient(method, 2, *build(32, 1, 16, 2))  # what comes once: kernels, decompositions, caches
    problem = build(*SIZES[size])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = meta_gradient(method, steps, *problem)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {'MiB': (peak - before) / 1024, 'seconds': seconds, 'norm': float(found.norm())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', default='8', help='numbers of inner steps (default: %(default)s)')
    parser.add_argument('--methods', default=','.join(METHODS), help='out of %(default)s')
    parser.add_argument('--size', choices=SIZES, default='large', help='default: %(default)s')
    parser.add_argument('--return-memory', action='store_true', help='set MALLOC_MMAP_THRESHOLD_ to 1 MiB')
    parser.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    methods, counts = args.methods.split(','), [int(k) for k in args.steps.split(',')]
    if args.child:
        print(json.dumps(measure(methods[0], counts[0], args.size)))
        return
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}
    if args.return_memory:
        environment['MALLOC_MMAP_THRESHOLD_'] = str(2**20)
    for steps in counts:
        for method in methods:
            command = [sys.executable, __file__, '--child', '--methods', method, '--steps', str(steps)]
            command += ['--size', args.size]
            answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            figures = json.loads(answer.stdout.splitlines()[-1])
            print(f'K={steps} {method:9}', *(f'{name} {value:.4g}' for name, value in figures.items()), flush=True)


if __name__ == '__main__':
    main()
