# SPDX-License-Identifier: Apache-2.0
"""Draw the graph of two inner steps of MetaAdam, with the native engine and in plain torch.

A small network is adapted by two differentiable steps of Adam on a loss that depends on a meta-parameter.  The graph of
the outer loss contains both steps, the meta-parameter and the initial weights.  The script writes these drawings:

    torchopt.svg, torchopt.html   each step one coloured node in a frame, with names for parameters and moments
    plain.svg                     the same computation with use_accelerated_op=False: every operation of Adam is a node
    torchviz.svg                  that graph as torchviz draws it, if torchviz is installed

    python examples/visualize.py --out pictures

SVG is drawn by graphviz's program `dot` if it is installed, and otherwise with the layout of torchopt.visual.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchopt
from torchopt.visual import GradientGraph, trace_graph


class Net(nn.Module):
    """A linear model with a meta-parameter that is added to its output."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.fc = nn.Linear(features, 1)

    def forward(self, x: Tensor, meta_param: Tensor) -> Tensor:
        """Predict from inputs of shape (n, features)."""
        return self.fc(x) + meta_param


def adapt(use_accelerated_op: bool | None, steps: int = 2) -> tuple[Tensor, list[object]]:
    """Take inner steps; return the outer loss, and the names of the tensors of its graph."""
    torch.manual_seed(0)
    x, y = torch.randn(16, 4), torch.randn(16, 1)
    net, meta_param = Net(4), torch.tensor(1.0, requires_grad=True)
    optimizer = torchopt.MetaAdam(net, lr=1e-1, use_accelerated_op=use_accelerated_op)

    states = [torchopt.extract_state_dict(net, enable_visual=True, visual_prefix='step0.')]
    for step in range(1, steps + 1):
        inner_loss = F.mse_loss(net(x, meta_param), y)
        optimizer.step(inner_loss)
        states.append(torchopt.extract_state_dict(net, enable_visual=True, visual_prefix=f'step{step}.'))

    outer_loss = F.mse_loss(net(x, meta_param), y)
    return outer_loss, [*states, {'meta_param': meta_param, 'outer_loss': outer_loss}]


def torchviz_picture(loss: Tensor, params: dict[str, Tensor], path: Path) -> int | None:
    """Draw with torchviz; return the number of nodes, or None if it is not installed."""
    try:
        from torchviz import make_dot
    except ImportError:
        return None
    dot = make_dot(loss, params=params)
    if shutil.which('dot'):
        path.write_bytes(dot.pipe(format='svg'))
    return sum('->' not in line for line in dot.body)


def main() -> dict[str, int]:
    """Write all drawings; return the number of nodes of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('pictures'), help='folder for the pictures')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    counts: dict[str, int] = {}
    graphs: dict[str, GradientGraph] = {}
    for name, use_accelerated_op in (('torchopt', None), ('plain', False)):
        loss, params = adapt(use_accelerated_op)
        graphs[name] = trace_graph(loss, params, show_accumulate=False)
        graphs[name].save(args.out / f'{name}.svg')
        counts[name] = len(graphs[name].nodes)
        print(f'{name:10} {graphs[name].totals}')
    graphs['torchopt'].save(args.out / 'torchopt.html')
    for cluster in graphs['torchopt'].clusters:
        print(f'           {cluster.label}')

    loss, params = adapt(False)
    drawn = torchviz_picture(loss, params[-1], args.out / 'torchviz.svg')
    if drawn is None:
        print('torchviz   is not installed: pip install torchviz')
    else:
        counts['torchviz'] = drawn
        print(f'torchviz   {drawn} nodes')
    print(f'pictures in {args.out}')
    return counts


if __name__ == '__main__':
    main()
