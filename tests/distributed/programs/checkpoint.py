# SPDX-License-Identifier: Apache-2.0
"""A training with checkpoints, which may be killed and started again: `checkpoint.py FOLDER KILL_AT`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from found import save
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import torchopt
import torchopt.distributed as todist

STEPS = 8


def loss_of(net: nn.Module, task: int) -> Tensor:
    generator = torch.Generator().manual_seed(task)
    x = torch.randn(4, 3, generator=generator)
    return (net(x) - x.sum(1, keepdim=True)).square().mean()


def functional(step: int, params: dict[str, Tensor], state: Any, transformation: Any) -> tuple[dict[str, Tensor], Any]:
    """One step of a second training, by functions, whose state is a tree of named tuples."""

    def fn(params: dict[str, Tensor], task: int) -> Tensor:
        return ((params['w'] - task) ** 2).mean()

    params = {'w': params['w'].detach().requires_grad_()}
    loss = todist.map_tasks(fn, range(step, step + 3), params)
    grads = {'w': torch.autograd.grad(loss, params['w'])[0]}
    updates, state = transformation.update(grads, state, params)
    return torchopt.apply_updates({'w': params['w'].detach()}, updates), state


@todist.auto_init_process_group(backend='gloo')
def main(folder: Path, kill_at: int) -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    rate = torchopt.schedule.linear_schedule(0.1, 0.0, STEPS)
    outer = torchopt.Adam(net.parameters(), lr=rate)
    transformation = torchopt.chain(torchopt.transform.add_noise(0.1, 0.55, 0), torchopt.adam(0.1))
    params = {'w': torch.zeros(2)}
    state = transformation.init(params)
    first = 0

    def checkpoint(step: int) -> dict[str, Any]:
        return {
            'net': net.state_dict(),
            'outer': get_optimizer_state_dict(net, outer),
            'functional': {'params': params, 'state': state},
            'step': step,
        }

    whole = sorted(p.parent for p in folder.glob('*/.metadata'))
    if whole:
        loaded = checkpoint(0)
        dcp.load(loaded, checkpoint_id=whole[-1])
        net.load_state_dict(loaded['net'])
        set_optimizer_state_dict(net, outer, loaded['outer'])
        params, state = loaded['functional']['params'], loaded['functional']['state']
        first = loaded['step']
    for step in range(first, STEPS):
        outer.zero_grad()
        todist.map_tasks(loss_of, range(5 * step, 5 * step + 5), net).backward()
        outer.step()
        params, state = functional(step, params, state, transformation)
        if step == kill_at and todist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dcp.save(checkpoint(step + 1), checkpoint_id=folder / f'{step + 1:04d}')
    save({'first': first, 'weights': [p.detach() for p in net.parameters()], 'params': params['w']})


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(sys.argv[2]))
