# SPDX-License-Identifier: Apache-2.0
"""The workloads and targets: only names and numbers, which all processes share."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

# Optax's names and arguments, which torchopt.compat.optax has too.
ALIASES = {
    'adabelief': {},
    'adagrad': {},
    'adam': {},
    'adamw': {'weight_decay': 1e-2},
    'amsgrad': {},
    'lion': {},
    'nadam': {},
    'rmsprop': {'momentum': 0.9},
    'sgd': {'momentum': 0.9, 'nesterov': True},
    'yogi': {},
}

# Results are compared after two steps. The second gradient is the first times this factor: a power of two, so that the
# scaling is exact, and small, so that the two steps of Lion, which are signs, do not cancel.
SECOND = -1 / 16

LR, BETAS, EPS, MOMENTUM, WEIGHT_DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.9, 1e-2

# Five 3x3 convolutions, each with a batch norm (weight and bias), and two linear layers: 19 tensors.
CHANNELS = (3, 16, 16, 32, 32, 64)
CONV_NET = [
    *(shape for i, o in itertools.pairwise(CHANNELS) for shape in ((o, i, 3, 3), (o,), (o,))),
    *((64, 64), (64,), (10, 64), (10,)),
]
TREES = {'200 of 64x64': [(64, 64)] * 200, 'conv net, 19': CONV_NET, '8 of 2048x2048': [(2048, 2048)] * 8}

# Steps in which Python is what counts; the last one is the weight and the bias of a linear layer.
SMALL_TREES = {'1 of 8x8': [(8, 8)], '4 of 8x8': [(8, 8)] * 4, 'linear 8x8': [(8, 8), (8,)]}

# The problem of the meta-gradient. An epsilon larger than Adam's default has the same cost and keeps the derivative of
# g / (|g| + epsilon) well-conditioned, so that the peers' results can be compared in float32.
LAYERS, BATCH = (64, 64, 64, 64, 10), 32
META_LR, META_EPS = 1e-2, 1e-4

# The number of samples and the scale of the zero-order gradient of the same loss.
ZERO_SAMPLES, ZERO_SIGMA = 100, 0.1

# Ridge regression, (n, d): the derivative of a validation loss with respect to the logarithm of the penalty. Every
# solve takes the same number of iterations of conjugate gradients from zero, without a tolerance.
RIDGE = {'ridge, d=200, n=1000': (1000, 200), 'ridge, d=2000, n=10000': (10000, 2000)}
RIDGE_PENALTY, CG_ITERATIONS = 0.1, 15

SHARE_LEAVES, SHARE_SHAPE, SHARE_STEPS = 200, (64, 64), 5
OP_SIZE = 10_000_000
# The number of tensors of OP_SIZE that a pass reads and writes. Forward: g, mu, nu; u, mu', nu'. Backward: the same
# three and three cotangents; three gradients.
OP_TRAFFIC = {'forward': 6, 'backward': 9}


@dataclass(frozen=True)
class Target:
    """``ours`` may take ``limit`` times the time of ``reference``, after that of ``base`` is subtracted from both."""

    ours: tuple[str, ...]
    reference: str
    limit: float
    base: str | None = None


@dataclass(frozen=True)
class Workload:
    """A computation of several peers.  A contestant is ``peer/variant``; each peer has its own variants."""

    kind: str
    title: str
    tree: str = ''
    optimizer: str = ''
    steps: int = 0
    part: str = ''
    target: Target | None = None

    @property
    def name(self) -> str:
        return f'{self.kind}: {self.title}'


IN_PLACE = Target(('torchopt/class', 'torchopt/update_params'), 'torch_optim/fused', 1.0)
OUT_OF_PLACE = Target(('torchopt/functional',), 'optax/jit', 1.0)
SMALL = {
    'sgd, 1 of 8x8': Target(('torchopt/class',), 'torch_optim/default', 1.2),
    'sgd, 4 of 8x8': Target(('torchopt/class',), 'torch_optim/default', 1.2),
    'adam, 1 of 8x8': Target(('torchopt/class',), 'torch_optim/default', 1.0),
}
SMALL_OUT_OF_PLACE = Target(('torchopt/update_params',), 'by_hand/p - lr * g', 2.5)
SMALL_META = Target(('torchopt/MetaSGD',), 'by_hand/SGD', 1.3)
META = Target(('torchopt/MetaAdam',), 'by_hand/SGD', 1.2)
CLOSURE = {
    'step': Target(('torchopt/closure', 'torchopt/closure, mixed'), 'torchopt/loss', 1.6),
    'grad': Target(('torchopt/reverse', 'torchopt/mixed'), 'torchopt/kept', 1.6),
}
SHARE = Target(('torchopt/MetaAdam',), 'torchopt/MetaAdam, plain torch', 0.1, base='by_hand/free update')
ZERO_ORDER = {
    method: Target((f'torchopt/{method}',), f'by_hand/{method}', 1.1) for method in ('naive', 'forward', 'antithetic')
}
IMPLICIT = ('torchopt/solve_cg', 'torchopt/custom_root')
IMPLICIT_TARGETS = (
    Target(IMPLICIT, 'by_hand/CG', 1.1),
    Target(IMPLICIT, 'jaxopt/jit, Hessian product by autodiff', 1.0),
)
BANDWIDTH = Target(('torchopt/update',), 'torchopt/copy_ of as many bytes', 1 / 0.8)

WORKLOADS = {
    work.name: work
    for work in [
        *(
            Workload(kind, f'{optimizer}, {tree}', tree=tree, optimizer=optimizer, target=target)
            for kind, target in (('step', IN_PLACE), ('functional', OUT_OF_PLACE))
            for tree in TREES
            for optimizer in ('adam', 'adamw', 'sgd')
        ),
        *(
            Workload('alias', f'{optimizer}, {tree}', tree=tree, optimizer=optimizer, target=OUT_OF_PLACE)
            for tree in TREES
            for optimizer in ALIASES
        ),
        *(
            Workload('small', title, tree=title.partition(', ')[2], optimizer=title.partition(', ')[0], target=target)
            for title, target in SMALL.items()
        ),
        Workload('small', 'sgd out of place', 'linear 8x8', 'sgd', part='functional', target=SMALL_OUT_OF_PLACE),
        Workload('small', 'MetaSGD, K=2', 'linear 8x8', 'sgd', steps=2, part='meta', target=SMALL_META),
        *(Workload('meta', f'MLP, K={k}', steps=k, target=META) for k in (5, 20)),
        *(
            Workload('closure', f'{part}, MLP, K={k}', steps=k, part=part, target=target)
            for part, target in CLOSURE.items()
            for k in (5, 20)
        ),
        Workload('share', f'{SHARE_LEAVES} leaves, K={SHARE_STEPS}', steps=SHARE_STEPS, target=SHARE),
        *(
            Workload('zero_order', f'MLP, {method}, {ZERO_SAMPLES} samples', part=method, target=target)
            for method, target in ZERO_ORDER.items()
        ),
        *(Workload('implicit', size, tree=size, target=t) for size, t in zip(RIDGE, IMPLICIT_TARGETS)),
        *(Workload('op', f'{part}, 10M elements', part=part, target=BANDWIDTH) for part in OP_TRAFFIC),
        *(Workload('tree', f'{verb}, 200 leaves', part=verb) for verb in ('flatten', 'map', 'unflatten')),
    ]
}
# The kinds in the order of the report. Memory is taken from 'step' and 'meta' workloads, import time from fresh
# processes.
KINDS = {
    'step': 'In-place step',
    'functional': 'Out-of-place step',
    'alias': 'Out-of-place step of ten optimizers of Optax',
    'small': 'Small steps, in which Python is what counts',
    'meta': 'Meta-gradient',
    'closure': 'Meta-gradient whose losses are recomputed',
    'share': "Optimizer's share of a meta-gradient",
    'zero_order': 'Zero-order gradient',
    'implicit': 'Implicit gradient',
    'op': 'One update of 10M elements, with its graph',
    'tree': 'Tree operations on a nested dict',
    'memory': 'Memory',
    'import': 'Import',
}
SAVED_LIMIT = 3.0

PEERS = ('torchopt', 'torch_optim', 'by_hand', 'optax', 'jaxopt', 'higher', 'torchopt_073')
CUDA_PEERS = ('torchopt', 'torch_optim', 'by_hand')
