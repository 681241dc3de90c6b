# SPDX-License-Identifier: Apache-2.0
"""Steps in place on lists of tensors, which the engine takes in one call: whatever it must not take goes another way.

``elementwise.run_steps`` has a short way for the optimizer classes.  Each test fails if the check that it is about is
left out there, in ``dispatch.step_in_place`` or in the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import torchopt
from tests._C.cases import plain_torch, watched
from tests.snapshot import Snapshot
from torchopt._C import dispatch

MAKE: dict[str, Callable[..., Any]] = {
    'sgd': torchopt.SGD,
    'momentum': lambda ps, lr: torchopt.SGD(ps, lr, momentum=0.9),
    'damped': lambda ps, lr: torchopt.SGD(ps, lr, momentum=0.9, dampening=0.5),
    'adam': torchopt.Adam,
    'adamw': torchopt.AdamW,
    'rmsprop': torchopt.RMSProp,
}


def parameters(*shapes: tuple[int, ...], **where: Any) -> list[nn.Parameter]:
    torch.manual_seed(0)
    ps = [nn.Parameter(torch.randn(s, **where)) for s in shapes or ((2, 3), (3,))]
    for p in ps:
        p.grad = torch.randn_like(p)
    return ps


def short_way(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The answers of the short way."""
    answers: list[bool] = []
    take = dispatch.step_in_place
    monkeypatch.setattr(dispatch, 'step_in_place', lambda *args: answers.append(take(*args)) or answers[-1])
    return answers


def moments_of(optimizer: Any) -> list[torch.Tensor]:
    return [x for x in torchopt.tree.leaves(optimizer.state_groups) if x.dim()]


def compare(ps: list[Any], qs: list[Any]) -> None:
    for p, q in zip(ps, qs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach())


@pytest.mark.parametrize('name', MAKE)
def test_steps_take_the_short_way_and_agree_with_plain_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = short_way(monkeypatch)
    ps, qs = parameters(), parameters()
    ours, plain = MAKE[name](ps, lr=0.1), MAKE[name](qs, lr=0.1)
    with watched() as watch:
        for _ in range(3):
            ours.step()
    assert answers == [True] * 3 and len(watch.orders) == 3
    with plain_torch():
        for _ in range(3):
            plain.step()
    compare(ps, qs)
    compare(*[torchopt.tree.leaves(o.state_groups) for o in (ours, plain)])


@pytest.mark.parametrize('name', MAKE)
def test_parameters_moments_and_lists_stay_the_same_objects(name: str) -> None:
    ps = parameters()
    optimizer = MAKE[name](ps, lr=0.1)
    optimizer.step()
    moments = moments_of(optimizer)
    versions = [x._version for x in (*ps, *moments)]
    graph = (ps[0] ** 2).sum()
    optimizer.step()
    assert all(x is y for x, y in zip(moments_of(optimizer), moments, strict=True))
    assert all(x._version > old for x, old in zip((*ps, *moments), versions))
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        graph.backward()


def test_a_parameter_without_a_gradient_keeps_its_moment() -> None:
    ps = parameters()
    optimizer = torchopt.SGD(ps, 0.1, momentum=0.9)
    optimizer.step()
    ps[1].grad = None
    kept = Snapshot(ps[1], optimizer.state_groups[0][0].trace[1])
    optimizer.step()
    kept.check()
    # The functional step, with None in the lists.
    tx = torchopt.sgd(0.1, 0.9)
    state = tx.init(ps)
    state[0].trace[1].fill_(1.0)
    kept = Snapshot(ps[1], state[0].trace[1])
    torchopt.update_params(tx, [ps[0].grad, None], state, ps, inplace=True)
    kept.check()


@pytest.mark.parametrize('trace', [[torch.zeros(3)], [torch.zeros(3)] * 3, torch.zeros(2, 3), (torch.zeros(3),) * 2])
def test_moments_of_another_structure_are_refused(trace: Any) -> None:
    ps = parameters((3,), (3,))
    tx = torchopt.sgd(0.1, 0.9)
    state = (torchopt.transform.TraceState(trace), *tx.init(ps)[1:])
    kept = Snapshot(ps)
    with pytest.raises(ValueError, match='state'):
        torchopt.update_params(tx, [p.grad for p in ps], state, ps, inplace=True)
    kept.check()


def test_a_mask_applies() -> None:
    ps, qs = parameters(), parameters()
    mask = [True, False]
    torchopt.AdamW(ps, 0.1, weight_decay=0.5, mask=mask).step()
    torch.optim.AdamW([{'params': qs[:1]}, {'params': qs[1:], 'weight_decay': 0.0}], 0.1, weight_decay=0.5).step()
    compare(ps, qs)


def test_plain_torch_can_be_required(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = short_way(monkeypatch)
    optimizer = torchopt.Adam(parameters(), 0.1, use_accelerated_op=False)
    with watched() as watch:
        optimizer.step()
    assert not any(answers) and not watch.orders


def test_rates_that_are_tensors_or_differ_are_read() -> None:
    ps, qs = parameters(), parameters()
    rate = torch.tensor(0.1)
    ours = torchopt.SGD(ps, rate)
    for value in (0.1, 0.3):
        rate.fill_(value)
        ours.step()
    theirs = torch.optim.SGD(qs, 0.1)
    theirs.step()
    theirs.param_groups[0]['lr'] = 0.3
    theirs.step()
    compare(ps, qs)
    torchopt.SGD(ps, [0.1, 0.2]).step()
    torch.optim.SGD([{'params': qs[:1]}, {'params': qs[1:], 'lr': 0.2}], 0.1).step()
    compare(ps, qs)


class Seen(TorchDispatchMode):
    """Records the operations of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_the_step() -> None:
    optimizer = torchopt.SGD(parameters(), 0.1)
    optimizer.step()
    with Seen() as mode:
        optimizer.step()
    assert any('add_' in name for name in mode.names)


def test_forward_mode_sees_the_step() -> None:
    tx, p, g = torchopt.sgd(0.5), torch.ones(2), torch.ones(2)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(g, torch.full((2,), 3.0))
        (new,), _ = torchopt.update_params(tx, [dual], tx.init([p]), [p], inplace=True)
        assert torch.equal(forward_ad.unpack_dual(new).tangent, torch.full((2,), -1.5))


def test_transforms_see_the_step() -> None:
    tx = torchopt.sgd(0.5, 0.9)

    def run(g: torch.Tensor) -> torch.Tensor:
        p = torch.zeros_like(g)
        (new,), _ = torchopt.update_params(tx, [g], tx.init([p]), [p], inplace=True)
        return new

    g = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(torch.vmap(run)(g), -0.5 * g)
    # Tensors that no transform wraps, within one.
    p, fixed = torch.zeros(2), torch.ones(2)
    monitored = []

    def beside(x: torch.Tensor) -> torch.Tensor:
        with watched() as watch:
            torchopt.update_params(tx, [fixed], tx.init([p]), [p], inplace=True)
        monitored.extend(watch.orders)
        return x

    torch.vmap(beside)(g)
    assert not monitored and torch.equal(p, torch.full((2,), -0.5))


def test_a_compiler_sees_the_step() -> None:
    tx, g = torchopt.sgd(0.5), torch.ones(2)
    compiled = torch.compile(
        lambda g, p: torchopt.update_params(tx, [g], tx.init([p]), [p], inplace=True), backend='eager', fullgraph=True
    )
    p = torch.zeros(2)
    compiled(g, p)
    assert torch.equal(p, torch.full((2,), -0.5))


def test_tensors_of_inference_mode_are_refused_outside_of_it() -> None:
    with torch.inference_mode():
        p, state = torch.ones(2), torch.zeros(2)
    tx = torchopt.sgd(0.1, 0.9)
    for ps, trace in (([p], torch.zeros(2)), ([torch.ones(2)], state)):
        full = (torchopt.transform.TraceState([trace]), *tx.init(ps)[1:])
        kept = Snapshot(ps, full)
        with pytest.raises(RuntimeError, match='inference'):
            torchopt.update_params(tx, [torch.ones(2)], full, ps, inplace=True)
        kept.check()
    with torch.inference_mode():
        torchopt.update_params(tx, [torch.ones(2)], tx.init([p]), [p], inplace=True)
        assert torch.allclose(p, torch.tensor(0.9))


class Loud(torch.Tensor):
    """A subclass whose operations are its own."""

    calls = 0

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Loud.calls += 1
        return super().__torch_function__(function, types, args, kwargs or {})


def test_subclasses_see_the_step() -> None:
    p, g = torch.ones(2), torch.ones(2).as_subclass(Loud)
    tx = torchopt.sgd(0.5)
    Loud.calls = 0
    with watched() as watch:
        torchopt.update_params(tx, [g], tx.init([p]), [p], inplace=True)
    assert Loud.calls and 0 not in watch.orders and torch.equal(p, torch.full((2,), 0.5))


def test_parameters_that_share_memory() -> None:
    def shared() -> list[torch.Tensor]:
        whole = torch.arange(1.0, 5.0)
        ps = [whole.requires_grad_(), whole.detach()[1:3].requires_grad_()]
        for p in ps:
            p.grad = torch.ones_like(p)
        return ps

    ps, qs = shared(), shared()
    torchopt.SGD(ps, 0.1).step()
    torch.optim.SGD(qs, 0.1).step()
    compare(ps, qs)


@pytest.mark.parametrize('name', MAKE)
def test_data_may_be_swapped_between_steps(name: str) -> None:
    """Another dtype, layout or place under the same parameter."""
    ps, qs = parameters(), parameters()
    ours, plain = MAKE[name](ps, lr=0.1), MAKE[name](qs, lr=0.1)
    swaps = [lambda x: x, lambda x: x.double(), lambda x: x.t().contiguous().t(), lambda x: x[::1].clone(), torch.neg]
    for swap in swaps:
        for p in (*ps, *qs):
            p.data, p.grad = swap(p.data), None
            p.grad = torch.full_like(p, 0.5)
        ours.step()
        with plain_torch():
            plain.step()
        compare(ps, qs)


def test_a_gradient_of_another_shape_is_refused() -> None:
    ps = parameters((3,), (3,))
    optimizer = torchopt.SGD(ps, 0.1, momentum=0.9)
    optimizer.step()
    ps[1].data = torch.ones(1, 3)
    kept = Snapshot(ps, optimizer.state_groups)
    with pytest.raises(ValueError, match='shape'):
        torchopt.update_params(optimizer.impl, [torch.ones(3)] * 2, optimizer.state_groups[0], ps, inplace=True)
    kept.check()


def test_a_negated_view_is_read_with_its_sign() -> None:
    p, x = torch.zeros(3), torch.ones(3)
    tx = torchopt.sgd(1.0)
    torchopt.update_params(tx, [torch._neg_view(x)], tx.init([p]), [p], inplace=True)
    assert torch.equal(p, torch.ones(3))


def test_out_of_place_lists_are_not_written_to() -> None:
    ps = [p.detach() for p in parameters()]
    tx = torchopt.sgd(0.1, 0.9)
    state = tx.init(ps)
    kept = Snapshot(ps, state)
    torchopt.update_params(tx, ps, state, ps)
    kept.check()
    tx.update(ps, state, ps, inplace=True)
    kept = Snapshot(ps)
    tx.update(ps, state, ps, inplace=True)
    kept.check()


def test_hooks_and_profilers_see_the_step() -> None:
    optimizer = torchopt.SGD(parameters(), 0.1)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append('before'))
    optimizer.register_step_post_hook(lambda *_: seen.append('after'))
    with torch.profiler.profile() as profile:
        optimizer.step()
    assert seen == ['before', 'after']
    assert 'Optimizer.step#SGD.step' in {event.key for event in profile.key_averages()}


def test_a_failing_precondition_of_a_later_group_changes_nothing() -> None:
    ps = parameters()
    optimizer = torchopt.SGD([{'params': ps[:1]}, {'params': ps[1:]}], 0.1, momentum=0.9)
    optimizer.step()
    optimizer.state_groups[1] = optimizer.state_groups[1][:1]
    kept = Snapshot(ps, optimizer.state_groups)
    with pytest.raises(ValueError, match='state'):
        optimizer.step()
    kept.check()


def test_a_learned_weight_decay_is_read_in_each_step() -> None:
    decay = torch.tensor(0.5)
    tx, p = torchopt.transform.add_decayed_weights(decay), torch.ones(1)
    for value in (0.5, 0.25):
        decay.fill_(value)
        (u,), _ = tx.update([torch.zeros(1)], tx.init([p]), [p])
        assert u.item() == value
    decay.requires_grad_()
    for _ in range(2):  # each step has a graph of its own
        (u,), _ = tx.update([torch.zeros(1)], tx.init([p]), [p])
        (u**2).sum().backward()


@pytest.mark.parametrize('name', ['SGD', 'Adam', 'RMSprop'])
def test_parameters_that_overlap_step_as_in_torch(name: str) -> None:
    """Each moves in turn, so that elements which several share move for each of them."""
    found = []
    for optimizers in (torch.optim, torchopt):
        memory = torch.linspace(0.0, 1.0, 9)
        a, b = (x.requires_grad_() for x in (memory[:-1], memory[1:]))
        optimizer = getattr(optimizers, name)([a, b], lr=0.1)
        for _ in range(3):
            a.grad, b.grad = 2.0 * a.detach(), b.detach() - 1.0
            optimizer.step()
        found.append(memory)
    torch.testing.assert_close(found[1], found[0])


def test_a_parameter_that_occurs_twice_steps_as_in_torch() -> None:
    found = []
    for optimizers in (torch.optim, torchopt):
        p = torch.ones(3, requires_grad=True)
        with pytest.warns(UserWarning, match='duplicate parameters'):
            optimizer = optimizers.SGD([p, p], lr=0.1)
        p.grad = torch.ones(3)
        optimizer.step()
        found.append(p.detach())
    torch.testing.assert_close(found[1], found[0])
