# SPDX-License-Identifier: Apache-2.0
"""MAML in the style of TorchOpt 0.7.3: an ``RRef`` of the network, in contexts of distributed autograd.

It runs twice, with tasks that rank 0 sends, one per call, and with tasks that every worker creates.  The results are
compared with the same training in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from found import save
from torch import Tensor, nn

import torchopt
import torchopt.distributed as todist

TASKS, SHOTS, WAYS, STEPS = 5, 6, 3, 4
LOCAL: dict[str, Any] = {}

torch.set_default_dtype(torch.float64)


def start_worker() -> None:
    LOCAL['device'] = None
    LOCAL['name'] = todist.get_world_info().worker_name


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=1.0), nn.Tanh(), nn.Linear(8, WAYS))


def make_tasks(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Support and query of all tasks of a step: points, and labels."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(TASKS, 2 * SHOTS, 4, generator=generator)
    slope = torch.randn(TASKS, 4, WAYS, generator=generator)
    y = (x @ slope).argmax(2)
    return x[:, :SHOTS], y[:, :SHOTS], x[:, SHOTS:], y[:, SHOTS:]


def adapted_loss(net: nn.Module, x: Tensor, y: Tensor, x_query: Tensor, y_query: Tensor) -> tuple[Tensor, float]:
    """The loss and the accuracy on the query after two inner steps, which change the clone only."""
    net = torchopt.module_clone(net, by='reference', detach_buffers=True, device=LOCAL.get('device'))
    inner = torchopt.MetaSGD(net, lr=0.3)
    for _ in range(2):
        inner.step(F.cross_entropy(net(x), y))
    logits = net(x_query)
    return F.cross_entropy(logits, y_query), (logits.argmax(1) == y_query).double().mean().item()


def mean_of_pairs(results: list[tuple[Tensor, float]]) -> tuple[Tensor, float]:
    losses, accuracies = zip(*results)
    return torch.stack(losses).mean(), sum(accuracies) / len(accuracies)


@todist.parallelize(todist.dim_partitioner(0, exclusive=True, keepdim=False), mean_of_pairs)
def with_sent_tasks(net_rref: Any, x: Tensor, y: Tensor, x_query: Tensor, y_query: Tensor) -> tuple[Tensor, float]:
    return adapted_loss(net_rref.to_here(), x, y, x_query, y_query)


def one_call_a_task(net_rref: Any, step: int, task: int | None) -> list[Any]:
    return [(i % todist.get_world_size(), (net_rref, step, i), None) for i in range(TASKS)]


@todist.parallelize(one_call_a_task, mean_of_pairs)
def with_own_tasks(net_rref: Any, step: int, task: int) -> tuple[Tensor, float]:
    assert LOCAL['name'].startswith('worker')
    return adapted_loss(net_rref.to_here(), *(part[task] for part in make_tasks(step)))


CALLS: dict[str, Callable[[Any, int], tuple[Tensor, float]]] = {
    'tasks that are sent': lambda net_rref, step: with_sent_tasks(net_rref, *make_tasks(step)),
    'tasks of the workers': lambda net_rref, step: with_own_tasks(net_rref, step, None),
}


def evaluate(call: Callable[[Any, int], tuple[Tensor, float]], net: nn.Module) -> list[float]:
    """Loss and accuracy on other tasks, without a context."""
    loss, score = call(todist.rpc.RRef(net), 1000)
    return [loss.item(), score]


def train(call: Callable[[Any, int], tuple[Tensor, float]]) -> list[Any]:
    """The loss and the accuracy of every meta-step, and the trained network."""
    net = make_net()
    outer = torch.optim.Adam(net.parameters(), lr=1e-2)
    log = [evaluate(call, net)]
    for step in range(STEPS):
        outer.zero_grad()
        net_rref = todist.rpc.RRef(torchopt.module_clone(net, by='copy'))
        with todist.autograd.context() as context:
            loss, score = call(net_rref, step)
            todist.autograd.backward(context, loss)
            outer.step()
        log.append([loss.item(), score])
    log.append(evaluate(call, net))
    return [log, dict(net.state_dict())]


def train_here() -> list[Any]:
    """The same training in one process."""

    def call(net: nn.Module, step: int) -> tuple[Tensor, float]:
        return mean_of_pairs([adapted_loss(net, *task) for task in zip(*make_tasks(step))])

    net = make_net()
    outer = torch.optim.Adam(net.parameters(), lr=1e-2)
    log = []
    for step in (1000, *range(STEPS), 1000):
        outer.zero_grad()
        loss, score = call(net, step)
        log.append([loss.item(), score])
        if step != 1000:
            loss.backward()
            outer.step()
    return [log, dict(net.state_dict())]


@todist.auto_init_rpc(start_worker)
def main() -> None:
    todist.barrier()
    if todist.get_rank() == 0:
        save({**{name: train(call) for name, call in CALLS.items()}, 'here': train_here()})
    todist.barrier()


if __name__ == '__main__':
    main()
