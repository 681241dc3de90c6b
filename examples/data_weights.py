# SPDX-License-Identifier: Apache-2.0
"""Which texts should a language model learn from? Weights of the training data, by gradients through 32 steps of Adam.

A small transformer reads characters. Its training data are pieces of the documentation of Python's standard library,
one half of them in Base64, as attachments of mails are, and nobody says which. It shall predict documentation. Every
piece has a weight in the training loss. An outer step trains a new network for 32 steps of Adam, measures its loss on
other documentation, and differentiates this through all steps, back to the weights.

Unrolled, the 32 steps would keep 32 graphs of a gradient. `torchopt.grad(loss, checkpoint='reverse')` keeps parameters
and moments instead and computes the rest again, and `torchopt.loop.scan(..., checkpoint='auto')` does so in segments
of about six steps. With `--large` (width 128, four layers, eight pieces of 256 characters in a step) one meta-gradient
would need 8 GiB unrolled; it takes minutes on a CPU. `--unrolled` shows the difference in memory at the small size.

At the end the example checks that plain pieces have more weight than encoded ones, and that new networks trained with
the learned weights predict documentation better than those trained with equal weights, by more than the interval.

    python examples/data_weights.py
"""

from __future__ import annotations

import argparse
import ast
import base64
import resource
import sysconfig
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import torchopt

MODULES = """
    argparse ast bisect calendar configparser copy csv datetime difflib enum fractions functools inspect ipaddress
    locale pathlib pickle random shutil statistics string subprocess tarfile textwrap typing
"""
Params = dict[str, Tensor]


class Corpus(NamedTuple):
    """Pieces of text as bytes, [pieces, length + 1]; ``is_encoded`` says what the first are."""

    training: Tensor
    is_encoded: Tensor
    validation: Tensor
    test: Tensor


def read_library() -> str:
    """The documentation of some modules of the standard library."""
    texts = []
    for name in MODULES.split():
        path = Path(sysconfig.get_path('stdlib')) / name
        source = (path / '__init__.py' if path.is_dir() else path.with_suffix('.py')).read_text(encoding='utf-8')
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                texts.append(text)
    return '\n\n'.join(texts)


def load(args: argparse.Namespace) -> Corpus:
    """Disjoint pieces, drawn at random."""
    generator = torch.Generator().manual_seed(args.seed)

    def pieces(text: bytes, count: int) -> Tensor:
        data = torch.tensor(list(text))
        table = data[: len(data) // (args.length + 1) * (args.length + 1)].view(-1, args.length + 1)
        return table[torch.randperm(len(table), generator=generator)[:count]]

    text, half = read_library().encode('ascii', 'replace'), args.pieces // 2
    documentation = pieces(text, half + args.validation + args.test)
    training = torch.cat([documentation[:half], pieces(base64.encodebytes(text), half)])
    return Corpus(training, torch.arange(2 * half) >= half, *documentation[half:].split([args.validation, args.test]))


class Transformer(nn.Module):
    """Predicts the next character."""

    def __init__(self, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, width)
        self.place = nn.Parameter(torch.randn(length, width) / 50)
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, 'gelu', batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 128)
        self.register_buffer('mask', nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, characters: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(characters) + self.place, mask=self.mask))


def losses(net: Transformer, params: Params, pieces: Tensor) -> Tensor:
    """The mean cross-entropy of every piece."""
    logits = torch.func.functional_call(net, params, (pieces[:, :-1],))
    return F.cross_entropy(logits.transpose(1, 2), pieces[:, 1:], reduction='none').mean(1)


def train(
    net: Transformer, params: Params, logits: Tensor, order: Tensor, corpus: Corpus, args: argparse.Namespace
) -> Params:
    """Steps of Adam on the pieces in ``order``, [steps, batch], with weights; differentiable in ``logits``."""
    optimizer = torchopt.adam(args.lr, eps_root=1e-8)

    def step(carry: tuple[Params, object], batch: Tensor) -> tuple[tuple[Params, object], None]:
        params, state = carry

        def loss(params: Params) -> Tensor:
            return (logits[batch].softmax(0) * losses(net, params, corpus.training[batch])).sum()

        grads = torchopt.grad(loss, checkpoint=None if args.unrolled else 'reverse')(params)
        updates, state = optimizer.update(grads, state, params)
        return (torchopt.apply_updates(params, updates), state), None

    segments = None if args.unrolled else 'auto'
    (params, _), _ = torchopt.loop.scan(step, (params, optimizer.init(params)), order, checkpoint=segments)
    return params


def fresh(args: argparse.Namespace, seed: int) -> tuple[Transformer, Params, Tensor]:
    """A new network, its weights, and an order of the training data."""
    torch.manual_seed(seed)
    net = Transformer(args.width, args.layers, args.length)
    rounds = -(-args.inner_steps * args.batch // args.pieces)
    order = torch.cat([torch.randperm(args.pieces) for _ in range(rounds)])[: args.inner_steps * args.batch]
    return net, {name: p.detach() for name, p in net.named_parameters()}, order.view(args.inner_steps, args.batch)


def learn(corpus: Corpus, args: argparse.Namespace) -> tuple[Tensor, list[float]]:
    """The logits of the weights, and the outer losses."""
    logits = torch.zeros(args.pieces, requires_grad=True)
    outer = torchopt.Adam([logits], lr=args.outer_lr)
    curve = []
    for i in (bar := tqdm(range(args.steps), desc='weights', unit='step')):
        net, params, order = fresh(args, args.seed + i)
        outer.zero_grad()
        loss = losses(net, train(net, params, logits, order, corpus, args), corpus.validation).mean()
        loss.backward()
        outer.step()
        curve.append(loss.item())
        bar.set_postfix(loss=f'{curve[-1]:.3f}')
    return logits.detach(), curve


def test(logits: Tensor, corpus: Corpus, args: argparse.Namespace) -> Tensor:
    """The test losses of new networks."""
    found = []
    for i in tqdm(range(args.repetitions), desc='test', unit='network'):
        net, params, order = fresh(args, args.seed + 1000 + i)
        with torch.no_grad():
            found.append(losses(net, train(net, params, logits, order, corpus, args), corpus.test).mean())
    return torch.stack(found)


def interval(values: Tensor) -> float:
    """Half the length of the 95% interval of the mean."""
    return 1.96 * values.std().item() / len(values) ** 0.5


def plot(curve: list[float], weights: Tensor, corpus: Corpus, scores: dict[str, Tensor], path: Path) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout='constrained')
    left.plot(curve, 'o-', ms=3)
    left.set(xlabel='outer step', ylabel='loss on other documentation', title='Learning the weights')
    bins = torch.linspace(0, float(weights.max()), 20).tolist()
    for name, mask in (('plain', ~corpus.is_encoded), ('Base64', corpus.is_encoded)):
        middle.hist(weights[mask].tolist(), bins, alpha=0.6, label=name)
    middle.set(xlabel='weight (1 on average)', ylabel='pieces', title='Learned weights')
    middle.legend()
    for place, values in enumerate(scores.values()):
        right.plot([place] * len(values), values, '.', color='tab:gray')
        right.errorbar(place + 0.15, values.mean(), interval(values), fmt='o', capsize=4, color='tab:blue')
    right.set_xticks(range(len(scores)), list(scores))
    right.set(ylabel='loss on test documentation', title='New networks', xlim=(-0.5, len(scores) - 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=12, help='outer steps')
    parser.add_argument('--inner-steps', type=int, default=32)
    parser.add_argument('--pieces', type=int, default=64, help='in the training data')
    parser.add_argument('--batch', type=int, default=8, help='pieces in an inner step')
    parser.add_argument('--length', type=int, default=48, help='characters of a piece')
    parser.add_argument('--width', type=int, default=32)
    parser.add_argument('--layers', type=int, default=1)
    parser.add_argument('--lr', type=float, default=1e-2, help='of the inner Adam')
    parser.add_argument('--outer-lr', type=float, default=0.3)
    parser.add_argument('--validation', type=int, default=64, help='pieces of documentation for the outer loss')
    parser.add_argument('--test', type=int, default=200, help='pieces of documentation for the test')
    parser.add_argument('--repetitions', type=int, default=6, help='networks of the test, with and without weights')
    parser.add_argument('--unrolled', action='store_true', help='keep the graphs of all steps')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--quick', action='store_true', help='a trial: fewer steps')
    parser.add_argument('--large', action='store_true', help='a larger network, which would need 8 GiB unrolled')
    parser.add_argument('--output', type=Path, default=Path('data_weights.png'), help='where the picture goes')
    args = parser.parse_args(argv)
    if args.quick:  # other options still count
        quick = {'steps': 3, 'outer_lr': 0.7, 'inner_steps': 14, 'batch': 4, 'length': 32, 'pieces': 32}
        parser.set_defaults(**quick, repetitions=4, validation=32, test=30)
    if args.large:
        parser.set_defaults(width=128, layers=4, length=256, steps=5, outer_lr=1.0, lr=2e-3, repetitions=4, test=32)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Tensor]:
    """Learn the weights, and test them; return the losses of the new networks."""
    args = parse(argv)
    torch.set_num_threads(1)
    corpus = load(args)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Fused attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        logits, curve = learn(corpus, args)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        scores = {'equal weights': test(torch.zeros_like(logits), corpus, args), 'learned': test(logits, corpus, args)}
    weights = logits.softmax(0) * args.pieces
    print(f'\nmemory grew by {grown:.0f} MiB')
    plain, encoded = weights[~corpus.is_encoded].mean(), weights[corpus.is_encoded].mean()
    print(f'weight of a plain piece {plain:.2f}, of an encoded one {encoded:.2f}')
    for name, values in scores.items():
        print(f'  {name:14s} test loss {values.mean():.3f} +- {interval(values):.3f}')
    plot(curve, weights, corpus, scores, args.output)
    print(f'picture: {args.output}')
    assert plain > 1.5 * encoded, 'encoded pieces have too much weight'
    gain = scores['equal weights'] - scores['learned']
    assert gain.mean() > interval(gain), 'the learned weights do not help'
    return scores


if __name__ == '__main__':
    main()
