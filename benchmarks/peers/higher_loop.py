# SPDX-License-Identifier: Apache-2.0
"""higher: the meta-gradient through its differentiable Adam."""

from __future__ import annotations

import functools

import higher
import problems
import torch
from counting import allocations
from problems import Case, Cases
from torch_problems import MLP, meta_losses
from workloads import BETAS, META_EPS, META_LR, Workload


def cases(work: Workload) -> Cases:
    return {'Adam': functools.partial(_meta, work)} if work.kind == 'meta' else {}


def _meta(work: Workload) -> Case:
    net = MLP(problems.mlp_weights())
    optimizer = torch.optim.Adam(net.parameters(), META_LR, BETAS, META_EPS)
    inner_loss, outer_loss = meta_losses()

    def run() -> tuple[torch.Tensor, ...]:
        with higher.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (functional, differentiable):
            for t in range(1, work.steps + 1):
                # The formula is that of old torch, which scales epsilon; the factor removes this scale.
                epsilon = META_EPS * (1 - BETAS[1] ** t) ** 0.5
                differentiable.step(inner_loss(functional), override={'eps': [epsilon]})
            return torch.autograd.grad(outer_loss(functional), list(net.parameters()))

    return Case(run=run, check=lambda: list(run()), memory=lambda: allocations(run))
