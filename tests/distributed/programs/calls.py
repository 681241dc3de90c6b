# SPDX-License-Identifier: Apache-2.0
"""Remote calls on three workers and the same computations in this process: pairs of result and expected result."""

from __future__ import annotations

import copy
import gc
from typing import Any

import torch
import torch.nn.functional as F
from found import error_of, save
from torch import Tensor, nn

import torchopt
import torchopt.distributed as todist


class Net(nn.Module):
    """Tied weights, a frozen parameter, a buffer, and a loss that is a mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.register_buffer('scale', torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))) * self.scale + self.frozen


def mse(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(net(x), y)


parallel_mse = todist.parallelize()(mse)


@todist.parallelize(todist.dim_partitioner(1), todist.sum_reducer)
def column_sums(x: Tensor) -> Tensor:
    return x.pow(3).sum()


@todist.parallelize_async(todist.exclusive_batch_partitioner, todist.mean_reducer)
def per_item(w: list[nn.Module], x: Tensor) -> dict[str, Tensor]:
    return {'mean': w[0](x).mean(), 'square': w[0](x).square().sum()}


def adapted(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss after two inner steps."""
    start = torchopt.extract_state_dict(net, by='reference')
    inner = torchopt.MetaAdam(net, lr=0.1, eps_root=1e-8)
    for _ in range(2):
        inner.step(F.mse_loss(net(x), y))
    loss = F.mse_loss(net(x), y)
    torchopt.recover_state_dict(net, start)
    return loss


def adapted_to_each(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The same computation in one process, for the shares of three workers."""
    losses = [adapted(net, x[part], y[part]) * len(x[part]) for part in (slice(0, 3), slice(3, 6), slice(6, 8))]
    return sum(losses) / len(x)


parallel_adapted = todist.parallelize()(adapted)


def cubic(w: Tensor, x: Tensor) -> dict[str, Any]:
    g = torch.autograd.grad((w * x).pow(3).sum(), w, create_graph=True)[0]
    return {'loss': (w - 0.1 * g).square().sum(), 'vector': w * x, 'number': 3, 'text': 'text', 'none': None}


def give_back(*args: Any) -> Any:
    return args


def own_share() -> Any:
    w, large = torch.tensor([2.0, 3.0], requires_grad=True), torch.ones(300, 300)
    with torch.no_grad():
        modes = [todist.remote_sync_call(grad_mode, partitioner=i)[0] for i in range(2)]
    written = todist.remote_sync_call(write_into, args=(w,), partitioner=0)[0]
    squares = todist.remote_sync_call(torch.square, args=(w,), partitioner=0)[0]
    with torch.no_grad():
        squares.add_(10.0)
    squares.sum().backward()
    larger = todist.remote_sync_call(write_into, args=(large,), partitioner=0)[0]
    found = [modes, written.detach(), w.detach(), w.grad, squares.detach(), large.sum(), larger.sum()]
    start = torch.tensor([2.0, 3.0])
    return found, [[True, True], start + 1, start, 2 * start, start**2 + 10, torch.tensor(9e4), torch.tensor(18e4)]


def to_everyone(net: nn.Module, w: Tensor) -> list[Any]:
    return [(i, (net, w, i), {}) for i in range(3)]


def one_thing(net: Net) -> Any:
    w = net.first.weight
    same = todist.remote_sync_call(is_its_weight, partitioner=to_everyone, args=(net, w))
    return [[x.detach(), is_same, i] for x, is_same, i in same], [[w.detach().sum(), True, i] for i in range(3)]


def grad_mode() -> bool:
    return torch.is_grad_enabled()


def is_its_weight(net: nn.Module, w: Tensor, number: int) -> tuple[Tensor, bool, int]:
    return w.sum(), w is net.first.weight and w is net.second.weight, number


def write_into(x: Tensor) -> Tensor:
    with torch.no_grad():
        x.add_(1.0)
    return x


def train(net: nn.Module) -> nn.Module:
    optimizer = torchopt.SGD(net.parameters(), lr=0.1)
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return net


OWN = nn.Parameter(torch.tensor([1.0, 2.0]))


def with_own_parameter(x: Tensor) -> Tensor:
    return (OWN * x).square().sum()


def own_gradient() -> Tensor | None:
    return OWN.grad


def graphs() -> int:
    from torchopt.distributed import worker

    return len(worker._graphs)


def not_picklable() -> Any:
    return lambda: None


def fail() -> None:
    raise KeyError('this key')


class PickyError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def fail_picky() -> None:
    raise PickyError('a', 'b')


def shapes(x: Tensor) -> torch.Size:
    return x.shape


def grads_of(net: nn.Module) -> list[Tensor | None]:
    return [p.grad for p in net.parameters()]


def twice(loss: Any, *inputs: Tensor) -> list[Tensor]:
    """Gradients, and the gradients of a function of them."""
    first = torch.autograd.grad(loss(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    return [*(g.detach() for g in first), *second]


def pairs() -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    torch.manual_seed(0)
    x, y = torch.randn(8, 4), torch.randn(8, 4)  # 8 items for 3 workers

    def both(remote: Any, local: Any) -> tuple[Any, Any]:
        results = []
        for function in (remote, local):
            net = copy.deepcopy(template)
            loss = function(net, x, y)
            loss.backward()
            results.append([loss.detach(), *grads_of(net)])
        return results[0], results[1]

    template = Net()
    found['a mean over 8 items of 3 workers'] = both(parallel_mse, mse)
    found['meta-gradients'] = both(parallel_adapted, adapted_to_each)

    z = torch.randn(2, 5, requires_grad=True)
    found['along another dimension'] = (torch.autograd.grad(column_sums(z), z), torch.autograd.grad(z.pow(3).sum(), z))
    got = per_item([template], x).wait()
    got_grads = torch.autograd.grad(got['square'], template.first.weight)
    expected = (template(x).square().sum() / 8,)
    found['a tree for each item'] = (
        [got['mean'], *got_grads],
        [template(x).mean(), *torch.autograd.grad(expected[0], template.first.weight)],
    )

    w = torch.tensor([2.0, 3.0], requires_grad=True)
    v = torch.tensor([0.3, 0.4], requires_grad=True)

    def remote() -> Tensor:
        return todist.remote_sync_call(cubic, args=(w, v), partitioner=1)[0]['loss']

    found['second derivatives'] = (twice(remote, w, v), twice(lambda: cubic(w, v)['loss'], w, v))

    def two_outputs(result: dict[str, Any]) -> Tensor:
        return result['loss'] * result['vector'].sum()

    found['several outputs'] = (
        twice(lambda: two_outputs(todist.remote_sync_call(cubic, args=(w, v), partitioner='worker2')[0]), w, v),
        twice(lambda: two_outputs(cubic(w, v)), w, v),
    )
    result = todist.remote_sync_call(cubic, args=(w, v), partitioner=0)[0]
    found['what is no tensor'] = ([result[k] for k in ('number', 'text', 'none')], [3, 'text', None])
    found['graph of a graph'] = (
        torch.autograd.grad(todist.remote_sync_call(cubic, args=(w * v, v), partitioner=1)[0]['loss'], (w, v)),
        torch.autograd.grad(cubic(w * v, v)['loss'], (w, v)),
    )
    loss = remote()
    once = torch.autograd.grad(loss, w, retain_graph=True)
    found['differentiated twice over'] = (torch.autograd.grad(loss, w), once)

    doubled = w * 2
    back = todist.remote_sync_call(give_back, args=({'w': w, 'net': template}, doubled), partitioner=1)[0]
    found['arguments come back as they were'] = (
        [back[0]['w'] is w, back[0]['net'].first.weight is template.first.weight, back[1] is doubled],
        [True, True, True],
    )
    written = todist.remote_sync_call(write_into, args=(w,), partitioner=1)[0]
    found['written arguments come back as copies'] = (
        [written.detach(), written is w, written.is_leaf, w.detach()],
        [w.detach() + 1, False, True, torch.tensor([2.0, 3.0])],
    )
    found['our own share is done apart from us'] = own_share()
    found['what several shares hold is one thing in each'] = one_thing(template)
    trained = todist.remote_sync_call(train, args=(copy.deepcopy(template),), partitioner=2)[0]
    local = train(copy.deepcopy(template))
    found['a trained module'] = (
        [*trained.parameters(), trained.first.weight is trained.second.weight, trained.frozen.requires_grad],
        [*local.parameters(), True, False],
    )

    t = torch.tensor([1.0, 1.0], requires_grad=True)
    todist.remote_sync_call(with_own_parameter, args=(t,), partitioner=1)[0].backward()
    found['parameters of a worker'] = (
        [t.grad, todist.remote_sync_call(own_gradient, partitioner=1)[0]],
        [torch.tensor([2.0, 8.0]), torch.tensor([2.0, 4.0])],
    )
    no_input = todist.remote_sync_call(with_own_parameter, args=(torch.ones(2),), partitioner=2)[0]
    no_input.backward()
    found['parameters of a worker alone'] = (
        todist.remote_sync_call(own_gradient, partitioner=2)[0],
        torch.tensor([2.0, 4.0]),
    )

    with torch.no_grad():
        loss = parallel_mse(template, x, y)
    found['without a graph'] = ([loss, loss.requires_grad], [mse(template, x, y).detach(), False])

    with todist.autograd.context() as context:
        net = copy.deepcopy(template)
        todist.autograd.backward(context, parallel_mse(net, x, y))
        todist.autograd.backward(context, parallel_mse(net, x, y))
        again = todist.autograd.grad(context, parallel_mse(net, x, y), [net.first.weight, net.first.bias])
    reference = copy.deepcopy(template)
    (2 * mse(reference, x, y)).backward()
    found['in a context of distributed autograd'] = (
        [*grads_of(net), *again],
        [*grads_of(reference), reference.first.weight.grad / 2, reference.first.bias.grad / 2],
    )

    strided = torch.randn(4, 6)[:, ::2].t()
    found['strided, empty, 0-d, complex and half tensors'] = (
        todist.remote_sync_call(
            give_back,
            args=(strided, torch.zeros(0, 2), torch.tensor(1), torch.tensor([1j]), torch.ones(2).bfloat16()),
            partitioner=1,
        )[0],
        (strided, torch.zeros(0, 2), torch.tensor(1), torch.tensor([1j]), torch.ones(2).bfloat16()),
    )
    empty = torch.zeros(0, 2, requires_grad=True)
    found['the sum of nothing'] = (
        torch.autograd.grad(todist.remote_sync_call(torch.sum, args=(empty,), partitioner=1)[0], empty)[0],
        torch.zeros(0, 2),
    )

    del loss, got, result, no_input, written, back
    gc.collect()
    todist.remote_sync_call(graphs, partitioner=1)
    found['graphs that are left on a worker'] = (todist.remote_sync_call(graphs, partitioner=1)[0], 0)
    for _ in range(3):
        loss = todist.remote_sync_call(cubic, args=(w, v), partitioner=1)[0]['loss']
        loss.backward()
    todist.remote_sync_call(graphs, partitioner=1)  # `loss` lives on, and with it its node
    found['after a backward pass nothing is kept'] = (todist.remote_sync_call(graphs, partitioner=1)[0], 0)
    return found


def errors() -> dict[str, dict[str, Any]]:
    def call(function: Any, *args: Any, **options: Any) -> dict[str, Any]:
        return error_of(lambda: todist.remote_sync_call(function, args=args, **{'partitioner': 1, **options}))

    x = torch.ones(3, requires_grad=True)
    return {
        'the exception of the function': call(fail),
        'an exception that cannot be pickled': call(fail_picky),
        'a result that cannot be pickled': call(not_picklable),
        'a lambda': call(lambda: 1),
        'a partitioner': call(fail, partitioner=1.5),
        'an unknown name': call(fail, partitioner='nobody'),
        'no parts': call(fail, partitioner=list),
        'retries': call(fail, retries=-1),
        'func': error_of(lambda: todist.remote_sync_call(3, partitioner=1)),
        'sizes': error_of(lambda: parallel_mse(Net(), torch.ones(3, 4), torch.ones(2, 4))),
        'a reducer': call(shapes, x, reducer=lambda results: 1 / 0),
        'torch.func': error_of(lambda: torch.func.grad(lambda x: todist.remote_sync_call(torch.sum, args=(x,))[0])(x)),
        'a failing gradient': error_of(todist.remote_sync_call(bad_gradient, args=(x,), partitioner=1)[0].backward),
    }


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sum()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise ZeroDivisionError('in the gradient')


def bad_gradient(x: Tensor) -> Tensor:
    return _BadGradient.apply(x)


STARTED = []


def start() -> None:
    STARTED.append(todist.get_worker_id())


def started() -> list[int]:
    return STARTED


@todist.auto_init_rpc(start)
def main() -> None:
    if todist.get_rank() == 0:
        info = {
            'init': [todist.remote_sync_call(started, partitioner=i)[0] for i in range(3)],
            'names': [todist.get_worker_id(f'worker{i}') for i in range(3)],
            'own name': todist.get_world_info().worker_name,
        }
        save({'pairs': pairs(), 'errors': errors(), 'info': info})
    todist.barrier()
    if todist.get_rank() != 0:
        save({'rank': todist.get_rank(), 'only zero': todist.rank_zero_only(todist.get_rank)()})


if __name__ == '__main__':
    main()
