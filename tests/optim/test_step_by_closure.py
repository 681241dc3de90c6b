# SPDX-License-Identifier: Apache-2.0
"""``step(closure)`` of differentiable optimizers is ``step(closure())``, but keeps parameters instead of graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchopt
from tests.alias.test_meta_gradients import META_CLASSES
from tests.autodiff.test_checkpoint import saved_bytes
from tests.oracle import assert_trees_close
from torchopt.distributed import map_tasks
from torchopt.interop import higher

DOUBLE = torch.float64
MODES = ('reverse', 'mixed')
both_modes = pytest.mark.parametrize('mode', MODES)


def double(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=DOUBLE) / 2
    return module.double()


def data(*shape: int, seed: int = 9) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


X, Y = data(10, 4), torch.arange(10) % 3


class Net(nn.Module):
    """Frozen, tied and unused parameters; batch statistics; dropout."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm1d) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.embed.weight
        self.unused = nn.Parameter(torch.ones(2))
        self.norm, self.drop = norm(4), nn.Dropout(0.3)
        self.head.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.tied(torch.tanh(self.norm(self.embed(x))))))  # type: ignore[no-any-return]


Step = Callable[[Any, Callable[[], torch.Tensor]], Any]


def steps_of(mode: str | None) -> Step:
    if mode is None:
        return lambda optimizer, closure: optimizer.step(closure())
    return lambda optimizer, closure: optimizer.step(closure, checkpoint=mode)


def run(step: Step, make: Callable[..., Any], order: int = 1) -> Any:
    """Three steps with a learned rate, a learned weighting of the examples, and batches that a loop variable holds."""
    # Second meta-gradients take third derivatives, which torch 2.14 lacks for batch statistics.
    net, weigh = double(Net(nn.BatchNorm1d if order < 2 else nn.LayerNorm)), double(nn.Linear(1, 1), 1)
    rate = torch.tensor(0.05, dtype=DOUBLE, requires_grad=True)
    start = [p for p in net.parameters() if p.requires_grad]
    optimizer = make(net, rate)
    torch.manual_seed(1)
    for rows in (slice(0, 10), slice(0, 6), slice(4, 10)):

        def closure() -> torch.Tensor:
            each = F.cross_entropy(net(X[rows]), Y[rows], reduction='none')  # noqa: B023
            return (each * weigh(each.detach()[:, None]).sigmoid()[:, 0]).mean()

        step(optimizer, closure)
    net.eval()
    value = F.cross_entropy(net(X), Y)
    ends = [*start, *weigh.parameters(), rate]
    found: Any = ()
    for k in range(order):
        found = torch.autograd.grad(value, ends, create_graph=k + 1 < order, allow_unused=True, materialize_grads=True)
        value = sum((g.sin().sum() for g in found), torch.zeros((), dtype=DOUBLE))
    return [*found, *(b.clone() for b in net.buffers()), *(p.detach() for p in net.parameters()), torch.rand(2)]


@both_modes
@pytest.mark.parametrize('cls', META_CLASSES, ids=lambda cls: cls.__name__)
def test_all_classes(cls: Any, mode: str) -> None:
    assert_trees_close(run(steps_of(mode), cls), run(steps_of(None), cls), 1e-10)


@both_modes
@pytest.mark.parametrize('order', [2, 3])
def test_higher_orders(order: int, mode: str) -> None:
    """At the third order only momentum, which is faster."""
    make = torchopt.MetaAdam if order == 2 else torchopt.MetaSGD
    assert_trees_close(run(steps_of(mode), make, order), run(steps_of(None), make, order), 1e-9)


@both_modes
def test_several_groups(mode: str) -> None:
    def make(net: Net, rate: torch.Tensor) -> Any:
        optimizer = torchopt.MetaAdam(net.embed, lr=rate)
        optimizer.add_param_group(net.head, lr=rate * 2)
        return optimizer

    assert_trees_close(run(steps_of(mode), make), run(steps_of(None), make), 1e-10)


@both_modes
def test_two_optimizers_in_turn(mode: str) -> None:
    """Each loss reads the parameters that the other optimizer has replaced since."""

    def play(step: Step) -> Any:
        makes, judges = double(nn.Linear(2, 2)), double(nn.Linear(2, 1), 1)
        ends = [*makes.parameters(), *judges.parameters()]
        first, second = torchopt.MetaAdam(makes, lr=0.1), torchopt.MetaSGD(judges, lr=0.1)
        noise, real = data(5, 2), data(5, 2, seed=1)
        for _ in range(2):
            step(first, lambda: F.softplus(-judges(makes(noise))).mean())
            step(second, lambda: F.softplus(judges(makes(noise))).mean() + F.softplus(-judges(real)).mean())
        return torch.autograd.grad(judges(makes(noise)).mean(), ends)

    assert_trees_close(play(steps_of(mode)), play(steps_of(None)), 1e-10)


@both_modes
def test_inner_loops_in_a_closure(mode: str) -> None:
    """The loss of the outer step is what an inner loop reaches, by a module or by functional steps."""

    def nested(step: Step, functional: bool) -> Any:
        net, inner = double(nn.Linear(4, 2)), double(nn.Linear(4, 2), 1)
        ends = [*net.parameters(), *inner.parameters()]
        kept = torchopt.extract_state_dict(inner, by='reference')
        outer = torchopt.MetaSGD(net, lr=0.1)

        def by_functions() -> torch.Tensor:
            optimizer, now = torchopt.FuncOptimizer(torchopt.sgd(0.1)), dict(inner.named_parameters())

            def loss(w: Any) -> torch.Tensor:
                return (torch.func.functional_call(inner, w, (X,)) - net(X)).square().mean()

            for _ in range(2):
                now = optimizer.step(loss(now) if step is plain else loss, now)
            return loss(now) + inner(X).cos().mean()

        def by_modules() -> torch.Tensor:
            optimizer = torchopt.MetaSGD(inner, lr=0.1)
            for _ in range(2):
                step(optimizer, lambda: (inner(X) - net(X)).square().mean())
            return (inner(X).sin() - net(X)).square().mean()

        step(outer, by_functions if functional else by_modules)
        torchopt.recover_state_dict(inner, kept)
        return torch.autograd.grad(net(X).square().sum(), ends)

    plain = steps_of(None)
    for functional in (True, False):
        assert_trees_close(nested(steps_of(mode), functional), nested(plain, functional), 1e-10)


@both_modes
@pytest.mark.parametrize('differentiable', [True, False])
@pytest.mark.parametrize('inplace', [True, False])
def test_func_optimizer(inplace: bool, differentiable: bool, mode: str) -> None:
    def loss(params: Any) -> torch.Tensor:
        return (torch.tanh(X @ params['w']) * scale.exp() + params['frozen']).square().mean()

    def meta(by_closure: bool) -> Any:
        params = {
            'w': data(4, 2).requires_grad_(),
            'unused': data(2).requires_grad_(),
            'frozen': data(2),
            'n': torch.ones(1).int(),
        }
        start = params['w']
        optimizer = torchopt.FuncOptimizer(torchopt.adam(0.1), inplace=inplace, differentiable=differentiable)
        for _ in range(3):
            params = (
                optimizer.step(loss, params, checkpoint=mode) if by_closure else optimizer.step(loss(params), params)
            )
        value = loss(params)
        graph = torch.autograd.grad(value, [start, scale]) if differentiable and not inplace else ()
        return [*graph, value.detach(), params['w'].detach(), params['unused'].detach()]

    scale = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    assert_trees_close(meta(True), meta(False), 1e-10)


@both_modes
def test_func_optimizer_under_transforms(mode: str) -> None:
    """Where ``step(loss)`` cannot be used: against gradients by torch.func."""

    def adapt(w: torch.Tensor, x: torch.Tensor, checkpoint: str | None) -> torch.Tensor:
        loss = lambda w: (torch.tanh(x @ w) ** 2).mean()  # noqa: E731
        if checkpoint is not None:
            optimizer = torchopt.FuncOptimizer(torchopt.adam(0.1))
            for _ in range(2):
                w = optimizer.step(loss, w, checkpoint=checkpoint)
            return loss(w)
        transform = torchopt.adam(0.1)
        state = transform.init(w)
        for _ in range(2):
            updates, state = transform.update(torch.func.grad(loss)(w), state, w)
            w = torchopt.apply_updates(w, updates)
        return loss(w)

    w, tasks = data(4, 2), data(3, 5, 4, seed=2)
    for transform in (
        lambda f: torch.func.grad(f)(w, tasks[0]),
        lambda f: torch.vmap(torch.func.grad(f), (None, 0))(w, tasks),
        lambda f: torch.func.grad(lambda w: torch.vmap(f, (None, 0))(w, tasks).mean())(w),
        lambda f: torch.func.jvp(lambda w: f(w, tasks[0]), (w,), (w.cos(),))[1],
        lambda f: torch.func.jacrev(torch.func.grad(f))(w, tasks[0]),
    ):
        assert_trees_close(transform(lambda w, x: adapt(w, x, mode)), transform(lambda w, x: adapt(w, x, None)), 1e-10)


@both_modes
def test_higher(mode: str) -> None:
    def meta(step: str) -> Any:
        net = double(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))
        with higher.innerloop_ctx(net, torch.optim.Adam(net.parameters(), lr=0.1)) as (fmodel, optimizer):
            for rows in (slice(0, 10), slice(0, 5)):
                loss = lambda: F.cross_entropy(fmodel(X[rows]), Y[rows])  # noqa: B023, E731
                if step == 'params':
                    of_params = lambda p: F.cross_entropy(fmodel(X[rows], params=p), Y[rows])  # noqa: B023, E731
                    optimizer.step(of_params, params=list(fmodel.parameters()), checkpoint=mode)
                else:
                    steps_of(mode if step == 'closure' else None)(optimizer, loss)
            return torch.autograd.grad(F.cross_entropy(fmodel(X), Y), list(fmodel.parameters(time=0)))

    assert_trees_close(meta('closure'), meta('loss'), 1e-10)


@both_modes
def test_tasks(mode: str) -> None:
    """``map_tasks`` runs inner loops whose steps are closures."""
    net = double(nn.Linear(4, 3))

    def meta(step: Step) -> Any:
        def adapted(net: Any, rows: slice) -> torch.Tensor:
            start, optimizer = torchopt.extract_state_dict(net, by='reference'), torchopt.MetaAdam(net, lr=0.1)
            for _ in range(2):
                step(optimizer, lambda: F.cross_entropy(net(X[rows]), Y[rows]))
            value = F.cross_entropy(net(X), Y)
            torchopt.recover_state_dict(net, start)
            return value

        loss = map_tasks(adapted, [slice(0, 6), slice(3, 10)], net)
        return torch.autograd.grad(loss, list(net.parameters()))

    assert_trees_close(meta(steps_of(mode)), meta(steps_of(None)), 1e-10)


def test_the_loss_is_returned_and_grad_modes_hold() -> None:
    net = double(nn.Linear(4, 3))
    optimizer = torchopt.MetaSGD(net, lr=0.1)
    closure = lambda: F.cross_entropy(net(X), Y)  # noqa: E731
    wanted = closure().detach()
    value = optimizer.step(closure)
    assert value.requires_grad
    assert_trees_close(value.detach(), wanted, 1e-12)
    assert optimizer.step(closure()) is None


def adapt_by(kind: str, net: nn.Module, checkpoint: str | None) -> list[torch.Tensor]:
    loss = lambda net: F.cross_entropy(net(X), Y)  # noqa: E731
    if kind == 'meta':
        optimizer = torchopt.MetaAdam(net, lr=0.1)
        for _ in range(3):
            optimizer.step(lambda: loss(net), checkpoint=checkpoint)
        return list(net.parameters())
    if kind == 'func':
        params, func = dict(net.named_parameters()), torchopt.FuncOptimizer(torchopt.adam(0.1))
        for _ in range(3):
            params = func.step(
                lambda p: loss(lambda x: torch.func.functional_call(net, p, (x,))), params, checkpoint=checkpoint
            )
        return list(params.values())
    with higher.innerloop_ctx(net, torch.optim.Adam(net.parameters(), lr=0.1)) as (fmodel, diffopt):
        for _ in range(3):
            diffopt.step(lambda: loss(fmodel), checkpoint=checkpoint)
        return list(fmodel.parameters())


@pytest.mark.parametrize('checkpoint', [None, *MODES])
@pytest.mark.parametrize('kind', ['meta', 'func', 'higher'])
def test_without_grad_mode_parameters_are_leaves_that_require_grad(kind: str, checkpoint: str | None) -> None:
    def network() -> nn.Module:
        net = double(nn.Linear(4, 3))
        net.bias.requires_grad_(False)
        return net

    with torch.no_grad():  # an adaptation that is only evaluated
        found = adapt_by(kind, network(), checkpoint)
    assert all(p.is_leaf for p in found)
    assert [p.requires_grad for p in found] == [True, False]
    assert_trees_close([p.detach() for p in found], [p.detach() for p in adapt_by(kind, network(), checkpoint)], 1e-12)


class Averaging(nn.Module):
    """A module that sets a buffer to another tensor when it is called."""

    def __init__(self, keeps_graph: bool = False) -> None:
        super().__init__()
        self.layer, self.keeps_graph = nn.Linear(4, 3), keeps_graph
        self.register_buffer('mean', torch.ones(3, dtype=DOUBLE))
        self.register_buffer('unread', None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x) * self.mean
        new = 0.9 * self.mean + 0.1 * y.mean(0)
        self.mean = new if self.keeps_graph else new.detach()
        self.unread = new.detach()
        return y


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))


def alternate(net: nn.Module, i: int, *, cloned: bool) -> None:
    net.train(i % 2 == 0)
    for module in net.modules() if cloned else ():
        for name, b in module.named_buffers(recurse=False):
            setattr(module, name, b.clone())


CHANGES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, int], Any]]] = {
    'in the call': (Averaging, lambda net, i: None),
    'between steps': (
        with_batch_norm,
        lambda net, i: (net.eval(), net[1].register_buffer('running_var', net[1].running_var * 2.0)),
    ),
    'clones': (with_batch_norm, lambda net, i: alternate(net, i, cloned=True)),
}


def with_changes(step: Step, make: Callable[[], nn.Module], change: Callable[[nn.Module, int], Any]) -> Any:
    net, rate = double(make()), torch.tensor(0.1, dtype=DOUBLE, requires_grad=True)
    start = list(net.parameters())
    optimizer = torchopt.MetaSGD(net, lr=rate)
    for i in range(3):
        change(net, i)
        step(optimizer, lambda: F.cross_entropy(net(X), Y))
    return torch.autograd.grad(F.cross_entropy(net(X), Y), [rate, *start])


@both_modes
@pytest.mark.parametrize('name', CHANGES)
def test_buffers_that_are_replaced(name: str, mode: str) -> None:
    make, change = CHANGES[name]
    assert_trees_close(with_changes(steps_of(mode), make, change), with_changes(steps_of(None), make, change), 1e-12)


@both_modes
def test_buffers_that_are_replaced_under_transforms(mode: str) -> None:
    def meta(rate: torch.Tensor, net: nn.Module, mode: str | None) -> torch.Tensor:
        now = {name: p.detach() for name, p in net.named_parameters()}
        loss = lambda p: F.cross_entropy(torch.func.functional_call(net, p, (X,)), Y)  # noqa: E731
        for _ in range(3):
            grads = torchopt.grad(loss, checkpoint=mode)(now)
            now = {name: p - rate * grads[name] for name, p in now.items()}
        return loss(now)

    rate = torch.tensor(0.1, dtype=DOUBLE)
    found, wanted = (torch.func.grad_and_value(meta)(rate, double(Averaging()), m) for m in (mode, None))
    assert_trees_close(found, wanted, 1e-12)


def test_buffers_that_cannot_be_restored() -> None:
    step = steps_of('reverse')
    with pytest.raises(RuntimeError, match=r"'num_batches_tracked' of a BatchNorm1d.*was changed in place.* by clones"):
        with_changes(step, with_batch_norm, lambda net, i: alternate(net, i, cloned=False))
    with pytest.raises(RuntimeError, match=r"sets the buffer 'mean' of an Averaging to a tensor with a graph.*detach"):
        with_changes(step, lambda: Averaging(keeps_graph=True), lambda net, i: None)


def test_bad_closures() -> None:
    net = double(nn.Linear(4, 3))
    optimizer = torchopt.MetaSGD(net, lr=0.1)
    before = list(net.parameters())
    for closure, error, words in (
        (lambda: net(X), ValueError, r'loss has shape \(10, 3\); expected a scalar'),
        (lambda: net(X).sum().item(), TypeError, 'loss is a float; expected a scalar tensor'),
        (lambda: net(X).sum().to(torch.complex128), TypeError, 'loss is complex'),
        (lambda: X.mean(0).sum(), RuntimeError, 'loss has no graph'),
        (lambda: 1 / 0, ZeroDivisionError, 'zero'),
    ):
        with pytest.raises(error, match=words):
            optimizer.step(closure)
        assert all(p is q for p, q in zip(net.parameters(), before, strict=True))
    for loss in (net(X).sum(), lambda: net(X).sum()):
        with pytest.raises(ValueError, match="Invalid checkpoint: 'forward'; expected None, 'reverse' or 'mixed'"):
            optimizer.step(loss, checkpoint='forward')
    with pytest.raises(ValueError, match="checkpoint='mixed' has no effect on a loss that is a tensor"):
        optimizer.step(net(X).sum(), checkpoint='mixed')

    def with_backward() -> torch.Tensor:
        loss = F.cross_entropy(net(X), Y)
        loss.backward()
        return loss

    for checkpoint in (None, *MODES):
        with pytest.raises(RuntimeError, match=r'leave out loss\.backward\(\)'):
            optimizer.step(with_backward, checkpoint=checkpoint)
    optimizer.param_groups[0]['lr'] = 0.5
    with pytest.raises(TypeError, match=r"holds the places of parameters, .* 'lr'\]\. Remove what you added"):
        optimizer.step(net(X).sum())
    del optimizer.param_groups[0]['lr']
    net.requires_grad_(False)
    with pytest.raises(ValueError, match='No parameter requires grad'):
        optimizer.step(lambda: net(X).sum())


@both_modes
@pytest.mark.parametrize('cls', [torchopt.MetaSGD, torchopt.MetaAdam])
def test_each_step_keeps_parameters_and_states_and_nothing_else(cls: Any, mode: str) -> None:
    """Activations are 50 times as large."""
    x = data(400, 4)

    def loop(steps: int, step: Step) -> Any:
        net = double(nn.Linear(4, 4, bias=False))
        optimizer = cls(net, lr=0.1)
        for _ in range(steps):
            step(optimizer, lambda: torch.tanh(net(x)).square().mean())
        return net

    sizes = [saved_bytes(lambda k=k: loop(k, steps_of(mode))) for k in (2, 3, 7)]
    leaf = 4 * 4 * 8
    sets = 1 if cls is torchopt.MetaSGD else 4  # the parameters; gradient and two moments that Adam's step keeps
    assert sizes[1] - sizes[0] <= sets * leaf + 64
    assert sizes[2] - sizes[1] == 4 * (sizes[1] - sizes[0])
    plain = [saved_bytes(lambda k=k: loop(k, steps_of(None))) for k in (2, 3)]
    assert plain[1] - plain[0] > 50 * leaf
