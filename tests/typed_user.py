# SPDX-License-Identifier: Apache-2.0
"""User code under a strict type checker; `make types` checks this file, and nothing runs it.

An ignored error that no longer occurs fails the check, so the ignores are the expected errors.
"""

from __future__ import annotations

import torch
from torch import nn

import torchopt
from torchopt import pytree


def functional(params: dict[str, torch.Tensor], grads: dict[str, torch.Tensor]) -> None:
    optimizer: torchopt.base.GradientTransformation = torchopt.chain(
        torchopt.clip_grad_norm(1.0),
        torchopt.adamw(learning_rate=1e-3, b1=0.8, mask=lambda ps: {name: p.dim() > 1 for name, p in ps.items()}),
        torchopt.sgd(learning_rate=torchopt.schedule.linear_schedule(1.0, 0.0, 10)),
    )
    updates, _ = optimizer.update(grads, optimizer.init(params), params, inplace=True)
    torchopt.apply_updates(params, updates)
    torchopt.update_params(optimizer, grads, optimizer.init(params), params, inplace=True, value=torch.ones(()))
    torchopt.update_params(optimizer, grads)  # type: ignore[call-arg]
    torchopt.sgd(0.1, 0.9)
    torchopt.adam(momentum=0.9)  # type: ignore[call-arg]


def faces(net: nn.Module, loss: torch.Tensor) -> None:
    optimizer: torch.optim.Optimizer = torchopt.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.99))
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    torchopt.Optimizer(net.parameters(), torchopt.adam()).step()
    meta: torchopt.MetaOptimizer = torchopt.MetaSGD(net, lr=torch.tensor(0.1))
    meta.step(loss)
    meta.step()  # type: ignore[call-overload]
    torchopt.recover_state_dict(net, torchopt.extract_state_dict(net, by='reference'))
    torchopt.FuncOptimizer(torchopt.adam()).step(loss, dict(net.named_parameters()))


def constructors(net: nn.Module, params: list[torch.Tensor]) -> None:
    torchopt.Adam(params, 1e-3, (0.9, 0.99), 1e-8, 0.0, mu_dtype=torch.bfloat16, use_accelerated_op=True)
    torchopt.AdamW(params, learning_rate=1e-3, b1=0.8, b2=0.9, mask=[True])
    torchopt.SGD(params, 0.1, 0.9, 1e-4, 0.0, True, False)
    torchopt.SGD(params, learning_rate=0.1, momentum=0.9)
    torchopt.RMSprop(params, decay=0.9, centered=True)
    torchopt.MetaAdam(net, moment_requires_grad=False)
    torchopt.MetaSGD(net, learning_rate=0.1, nesterov=True)
    torchopt.Adam()  # type: ignore[call-arg]
    torchopt.Adam(params, momentum=0.9)  # type: ignore[call-arg]
    torchopt.Adam(params, moment_requires_grad=True)  # type: ignore[call-arg]
    torchopt.Adam(params, 1e-3, (0.9, 0.99), 1e-8, 0.0, 0.0)  # type: ignore[call-arg]
    torchopt.Adam(params, betas=0.9)  # type: ignore[arg-type]
    torchopt.AdaMax(params, b3=0.9)  # type: ignore[call-arg]
    torchopt.SGD(params)  # type: ignore[call-overload]
    torchopt.SGD(params, 0.1, nesterov='yes')  # type: ignore[call-overload]
    torchopt.RMSprop(params, b1=0.9)  # type: ignore[call-arg]
    torchopt.MetaAdam(params)  # type: ignore[arg-type]
    torchopt.MetaAdamW(net, maximize='no')  # type: ignore[arg-type]
    torchopt.MetaSGD(net, 0.1, amsgrad=True)  # type: ignore[call-overload]
    torchopt.Optimizer(params)  # type: ignore[call-arg]
    torchopt.Optimizer(params, torchopt.adam)  # type: ignore[arg-type]
    torchopt.MetaOptimizer(net, 0.1)  # type: ignore[arg-type]
    torchopt.FuncOptimizer(torch.optim.SGD(params, 0.1))  # type: ignore[arg-type]


class Warm(torchopt.Adam):
    """A class of a user."""

    def __init__(self, params: list[torch.Tensor], rate: float) -> None:
        super().__init__(params, lr=torchopt.schedule.linear_schedule(0.0, rate, 10))


def inner_loop(net: nn.Module, steps: torchopt.transform.MultiSteps) -> None:
    for opt in (steps, torchopt.adam(), torchopt.Adam(net.parameters()), torch.optim.SGD(net.parameters(), 0.1)):
        with torchopt.interop.higher.innerloop_ctx(net, opt) as (fmodel, diffopt):
            diffopt.step(fmodel(torch.ones(1)).sum())
    with torchopt.interop.higher.innerloop_ctx(net, 0.1):  # type: ignore[arg-type]
        pass


def accumulated(net: nn.Module, params: dict[str, torch.Tensor], grads: dict[str, torch.Tensor]) -> None:
    steps = torchopt.transform.MultiSteps(torchopt.adam(), 4)
    torchopt.Optimizer(net.parameters(), steps).step()
    torchopt.MetaOptimizer(net, steps)
    torchopt.FuncOptimizer(steps)
    torchopt.compat.optax.MultiSteps(torchopt.adam(), 4, every_k=2)  # type: ignore[call-arg]
    torchopt.chain(torchopt.clip_grad_norm(1.0), steps)
    torchopt.update_params(steps, grads, steps.init(params), params)
    rules: dict[str, torchopt.base.GradientTransformation] = {'w': torchopt.sgd(0.1), 'b': torchopt.adam()}
    torchopt.transform.partition(rules, {'w': 'w', 'b': 'b'})


def trees(params: pytree.PyTree[torch.Tensor]) -> list[torch.Tensor]:
    leaves, _ = pytree.tree_flatten(params)
    structure: pytree.PyTreeSpec = pytree.tree_structure(params)
    moved = pytree.tree_map(torch.neg, pytree.tree_unflatten(structure, leaves))
    pytree.tree_add(moved, pytree.tree_leaves(params), pytree.NONE_IS_LEAF, pytree.MAX_RECURSION_DEPTH)
    pytree.tree_map(torch.neg)  # type: ignore[call-arg]
    pytree.tree_maps(torch.neg, params)  # type: ignore[attr-defined]
    return leaves
