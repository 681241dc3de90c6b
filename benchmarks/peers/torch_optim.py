# SPDX-License-Identifier: Apache-2.0
"""torch.optim: the in-place step, tensor by tensor, by _foreach operations, and fused."""

from __future__ import annotations

import functools

import torch
from counting import allocations
from problems import Case, Cases
from torch_problems import parameters, two_steps
from workloads import BETAS, EPS, LR, MOMENTUM, WEIGHT_DECAY, Workload

MODES = {'fused': {'fused': True}, 'foreach': {'foreach': True}, 'plain': {'foreach': False, 'fused': False}}


def cases(work: Workload) -> Cases:
    if work.kind == 'functional':  # torch.optim has no such step; use its result as the reference
        return {'oracle': lambda: Case(run=None, check=_step(work, MODES['plain']).check)}
    if work.kind == 'small' and not work.part:
        return {'default': lambda: _step(work, {})}
    if work.kind != 'step':
        return {}
    return {mode: functools.partial(_step, work, options) for mode, options in MODES.items()}


def _step(work: Workload, options: dict[str, bool]) -> Case:
    params = parameters(work.tree)
    adam = {'betas': BETAS, 'eps': EPS, **options}
    if work.optimizer == 'adam':
        optimizer = torch.optim.Adam(params, LR, **adam)
    elif work.optimizer == 'adamw':
        optimizer = torch.optim.AdamW(params, LR, weight_decay=WEIGHT_DECAY, **adam)
    else:
        optimizer = torch.optim.SGD(params, LR, 0.0 if work.kind == 'small' else MOMENTUM, **options)

    def step() -> list[torch.Tensor]:
        optimizer.step()
        return params

    return Case(run=optimizer.step, check=lambda: two_steps(step, work), memory=lambda: allocations(optimizer.step))
