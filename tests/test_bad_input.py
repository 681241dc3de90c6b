# SPDX-License-Identifier: Apache-2.0
"""Bad input to the faces: Optimizer, FuncOptimizer, MetaOptimizer.

The functional face has test_bad_trees.py, hyper-parameters have test_bad_hyperparameters.py.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
from tests.snapshot import Snapshot, refuses
from torchopt import transform
from torchopt.base import UninitializedState
from torchopt.compat import optax

NAN = math.nan


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1.0, 2.0, math.prod(shape)).reshape(shape))


def used_up() -> Any:
    generator = nn.Linear(2, 1).parameters()
    assert len(list(generator)) == 2
    return generator


# --- Optimizer: what to train ----------------------------------------------------------------------------------------

W = weight(2)
BAD_TARGETS: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    'nothing': (list, ValueError, ['params is empty', 'generator']),
    'empty tree': (lambda: {'a': []}, ValueError, ['params is empty']),
    'generator that was used up': (used_up, ValueError, ['params is empty', 'generator']),
    'groups without parameters': (lambda: [{'params': []}, {'params': used_up()}], ValueError, ['params is empty']),
    'tensor': (lambda: weight(2), TypeError, ['params is a single tensor', '[tensor]']),
    'module': (lambda: nn.Linear(1, 1), TypeError, ['params is a Linear; expected', 'Pass module.parameters()']),
    'None': (lambda: None, TypeError, ['params is None', 'iterable', 'parameters()']),
    'number': (lambda: 0.1, TypeError, ['params is 0.1', 'iterable', 'parameters()']),
    'numbers': (lambda: [weight(2), 0.1], TypeError, ['params[1]', '0.1', 'float', 'expected a tensor']),
    'string': (lambda: 'weight', TypeError, ["'w'", 'str', 'expected a tensor']),
    'group without params': (lambda: [{'lr': 0.1}], TypeError, ['0.1', "'params'"]),
    'in two groups': (lambda: [{'params': [W]}, {'params': [W]}], ValueError, ['more than one parameter group']),
    'option out of range': (lambda: [{'params': [weight(2)], 'lr': -0.1}], ValueError, ['learning rate', '-0.1']),
    'option that is NaN': (lambda: [{'params': [weight(2)], 'eps': NAN}], ValueError, ['epsilon', 'nan']),
    'option of the wrong type': (lambda: [{'params': [weight(2)], 'betas': 0.9}], TypeError, ['betas', 'pair']),
    'option under both names': (
        lambda: [{'params': [weight(2)], 'lr': 0.1, 'learning_rate': 0.1}],
        TypeError,
        ["'lr'", "'learning_rate'"],
    ),
}


@pytest.mark.parametrize('bad', BAD_TARGETS)
def test_targets_of_an_optimizer(bad: str) -> None:
    make, error, words = BAD_TARGETS[bad]
    refuses(lambda: torchopt.Adam(make()), error, words)


@pytest.mark.parametrize('bad', [b for b in BAD_TARGETS if 'group' not in b and b not in ('in two groups', 'tensor')])
def test_targets_of_a_later_group(bad: str) -> None:
    """A group that is refused leaves nothing behind."""
    make, error, words = BAD_TARGETS[bad]
    first = weight(3)
    optimizer = torchopt.Adam([first])
    made = make()
    group = made[0] if isinstance(made, list) and made and isinstance(made[0], dict) else made
    refuses(lambda: optimizer.add_param_group(group), error, words, first)
    assert len(optimizer.param_groups) == len(optimizer.state_groups) == len(optimizer.impl_groups) == 1
    first.grad = torch.ones(3)
    optimizer.step()


@pytest.mark.parametrize('face', [torchopt.Optimizer, lambda _, impl: torchopt.FuncOptimizer(impl)])
@pytest.mark.parametrize('impl', [(1, 2), torchopt.adam, None, 'adam'])
def test_impl_that_is_no_transformation(face: Any, impl: Any) -> None:
    refuses(lambda: face([W], impl), TypeError, ['is not a GradientTransformation', 'torchopt.adam()'])
    refuses(lambda: torchopt.MetaOptimizer(nn.Linear(1, 1), impl), TypeError, ['is not a GradientTransformation'])


def test_group_options_without_effect() -> None:
    """A plain Optimizer cannot change its impl; silently ignoring the option would be worse than refusing it."""
    words = ["'lr'", 'no effect', 'torchopt.Adam']
    refuses(lambda: torchopt.Optimizer([{'params': [W], 'lr': 0.1}], torchopt.adam()), TypeError, words)


def learned(value: float = 0.5) -> torch.Tensor:
    return torch.tensor(value, requires_grad=True)


LEARNED: dict[str, tuple[str, Callable[[list[Any]], torchopt.Optimizer]]] = {
    'lr': ('lr', lambda p: torchopt.Adam(p, lr=learned())),
    'learning_rate': ('lr', lambda p: torchopt.SGD(p, learning_rate=learned())),
    'result of a function': ('lr', lambda p: torchopt.SGD(p, lr=learned().exp())),
    'betas': ('betas', lambda p: torchopt.AdamW(p, betas=(0.5, learned()))),
    'b1': ('betas', lambda p: torchopt.Adam(p, b1=learned())),
    'eps': ('eps', lambda p: torchopt.AdaMax(p, eps=learned())),
    'weight_decay': ('weight_decay', lambda p: torchopt.AdamW(p, weight_decay=learned())),
    'momentum': ('momentum', lambda p: torchopt.SGD(p, lr=0.1, momentum=learned())),
    'dampening': ('dampening', lambda p: torchopt.SGD(p, lr=0.1, momentum=0.9, dampening=learned())),
    'alpha': ('alpha', lambda p: torchopt.RMSProp(p, alpha=learned())),
    'rho': ('rho', lambda p: torchopt.AdaDelta(p, rho=learned())),
    'list': ('lr', lambda p: torchopt.RAdam(p, lr=[0.1, learned()])),
    'group': ('lr', lambda p: torchopt.AdaGrad([{'params': p, 'lr': learned()}])),
    'function': ('learning_rate', lambda p: torchopt.Optimizer(p, torchopt.adam(learned()))),
    'function, decay': ('b2', lambda p: torchopt.Optimizer(p, torchopt.adam(b2=learned()))),
    'inside of a mask': ('learning_rate', lambda p: torchopt.Optimizer(p, torchopt.masked(torchopt.sgd(learned())))),
    'inside of a partition': (
        'step_size',
        lambda p: torchopt.Optimizer(p, torchopt.partition({'a': transform.scale(learned())}, 'a')),
    ),
    'Optax': ('learning_rate', lambda p: torchopt.Optimizer(p, optax.adam(learned()))),
}


@pytest.mark.parametrize('case', LEARNED)
def test_hyper_parameters_that_would_get_no_gradient(case: str) -> None:
    name, make = LEARNED[case]
    with pytest.warns(UserWarning, match=f'{name} requires grad, but .*MetaAdam, .*torchopt.adam') as caught:
        make([weight(2), weight(3)])
    assert [w.filename for w in caught] == [__file__]


def test_tensors_that_need_no_gradient_are_fine() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        torchopt.Adam([weight(2)], lr=torch.tensor(0.1), betas=(torch.tensor(0.9), 0.99))
        torchopt.Optimizer([weight(2)], torchopt.adam(learned().detach()))
        torchopt.MetaAdam(nn.Linear(1, 1), lr=learned())


# --- Optimizer: steps ------------------------------------------------------------------------------------------------


def trained(make: Callable[[Any], torchopt.Optimizer], *groups: nn.Parameter) -> torchopt.Optimizer:
    """An optimizer with one group for each parameter, after one step, with new gradients."""
    optimizer = make([{'params': [p]} for p in groups])
    for p in groups:
        p.grad = torch.full_like(p, 0.5)
    optimizer.step()
    for p in groups:
        p.grad = torch.full_like(p, -0.25)
    return optimizer


def fails_at(step: int, value: Any) -> Callable[[Any], Any]:
    return lambda count: value if int(count) >= step else 0.1


SCHEDULED: dict[str, Callable[[Any], Callable[[Any], torchopt.Optimizer]]] = {
    'Adam': lambda s: lambda p: torchopt.Adam(p, lr=s),
    'AdamW': lambda s: lambda p: torchopt.AdamW(p, lr=s),
    'SGD': lambda s: lambda p: torchopt.SGD(p, lr=s, momentum=0.9, weight_decay=0.1),
    'RMSProp': lambda s: lambda p: torchopt.RMSProp(p, lr=s, momentum=0.9, centered=True),
    'AdaGrad': lambda s: lambda p: torchopt.AdaGrad(p, lr=s),
    'masked': lambda s: lambda p: torchopt.Optimizer(p, torchopt.masked(torchopt.adam(s))),
    'partition': lambda s: lambda p: torchopt.Optimizer(p, torchopt.partition({0: torchopt.adam(s)}, 0)),
    'named_chain': lambda s: (
        lambda p: torchopt.Optimizer(
            p, torchopt.named_chain(('first', torchopt.transform.scale_by_adam()), ('second', torchopt.sgd(s)))
        )
    ),
}


@pytest.mark.parametrize('name', SCHEDULED)
@pytest.mark.parametrize('value', [NAN, torch.tensor(NAN), math.inf, torch.ones(2)])
def test_schedule_in_place(name: str, value: Any) -> None:
    p, q = weight(3), weight(2, 2)
    optimizer = trained(SCHEDULED[name](fails_at(1, value)), p, q)
    kept = (p, p.grad, q, q.grad, tuple(optimizer.state_groups))
    refuses(optimizer.step, ValueError, ['schedule', 'expected'], *kept)


def test_schedule_of_the_second_group() -> None:
    """The first group does not move either."""
    p, q = weight(3), weight(2, 2)
    groups = [{'params': [p]}, {'params': [q], 'lr': fails_at(1, NAN)}]
    optimizer = trained(lambda _: torchopt.Adam(groups, lr=0.1), p, q)
    refuses(optimizer.step, ValueError, ['schedule', 'nan'], p, p.grad, q, q.grad, tuple(optimizer.state_groups))


def test_schedule_at_the_first_step() -> None:
    p = weight(3)
    p.grad = torch.ones(3)
    optimizer = torchopt.Adam([p], lr=lambda count: NAN)
    refuses(optimizer.step, ValueError, ['schedule', 'nan', 'step 0'], p, p.grad)
    assert tuple(optimizer.state_groups) == (UninitializedState(),)


@pytest.mark.parametrize(
    ('option', 'value', 'error', 'words'),
    [
        ('lr', NAN, ValueError, ['learning rate', 'nan']),
        ('lr', -0.1, ValueError, ['learning rate', '-0.1']),
        ('lr', '0.1', TypeError, ['learning rate', 'str']),
        ('betas', (0.9, 1.0), ValueError, ['index 1', '1.0']),
        ('lr', lambda count: 0.1, ValueError, ['state_groups[1]', 'ScaleByScheduleState', "group's lr changed"]),
        ('use_accelerated_op', True, RuntimeError, ['use_accelerated_op']),
    ],
)
def test_option_changed_between_steps(
    option: str, value: Any, error: type[Exception], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchopt._C, '_kernels', None)
    p, q = weight(3), weight(2, 2)
    optimizer = trained(torchopt.Adam, p, q)
    good = optimizer.param_groups[1][option]
    optimizer.param_groups[1][option] = value
    refuses(optimizer.step, error, words, p, p.grad, q, q.grad, tuple(optimizer.state_groups))
    optimizer.param_groups[1][option] = good
    optimizer.step()


def test_sparse_gradient_of_the_second_group() -> None:
    p, table = weight(3), nn.Embedding(4, 2, sparse=True)
    p.grad = torch.ones(3)
    table(torch.tensor([1])).sum().backward()
    optimizer = torchopt.Adam([{'params': [p]}, {'params': table.parameters()}])
    words = ['parameter 0 of group 1', 'sparse', 'dense', 'sparse=False']
    refuses(optimizer.step, RuntimeError, words, p, p.grad, table.weight, table.weight.grad)
    assert tuple(optimizer.state_groups) == (UninitializedState(), UninitializedState())


def test_line_searches_need_the_objective() -> None:
    p = weight(3)
    p.grad = torch.ones(3)
    optimizer = torchopt.Optimizer([p], torchopt.lbfgs())
    words = ["'value' is missing", 'linesearch=None', 'torchopt.LBFGS']
    refuses(lambda: optimizer.step(p.sum), TypeError, words, p, p.grad)


def test_closure_that_fails() -> None:
    p = weight(3)
    optimizer = trained(torchopt.Adam, p)

    def closure() -> Any:
        raise KeyError('data')

    refuses(lambda: optimizer.step(closure), KeyError, ['data'], p, p.grad, tuple(optimizer.state_groups))


def test_duplicates_are_warned_of() -> None:
    with pytest.warns(UserWarning, match='duplicate parameters'):
        torchopt.Adam([W, W])


def test_integer_and_unused_parameters_are_left_alone() -> None:
    n = nn.Parameter(torch.arange(3), requires_grad=False)
    frozen, unused, p = weight(2), weight(2), weight(2)
    frozen.requires_grad_(False)
    p.grad = torch.ones(2)
    optimizer = torchopt.AdamW([n, frozen, unused, p], lr=0.1)
    before, moving = Snapshot(n, frozen, unused), p.detach().clone()
    optimizer.step()
    before.check()
    assert (p != moving).all()
    assert next(iter(optimizer.state_groups))[0].mu[0] is None


# --- Optimizer and MetaOptimizer: states of others -------------------------------------------------------------------


def like(shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    return [torch.zeros(shape) for shape in shapes]


BAD_STATES: dict[str, tuple[Callable[[Any], Any], type[Exception], list[str]]] = {
    'no state': (lambda p: (), ValueError, ['0 states', '1 groups']),
    'too many': (lambda p: (torchopt.adam().init(p),) * 2, ValueError, ['2 states', '1 groups']),
    'None': (lambda p: None, TypeError, ['state_dict is None', 'tuple']),
    'no layout': (lambda p: {'state': {}}, TypeError, ['state_dict', 'dict']),
    'of one transformation alone': (
        lambda p: torchopt.adam().init(p)[:1],
        ValueError,
        ['state_dict[0]', 'Load a state'],
    ),
    'of SGD': (lambda p: (torchopt.sgd(0.1).init(p),), ValueError, ['state_dict[0]', 'Load a state']),
    'of AdaMax': (
        lambda p: (torchopt.adamax().init(p),),
        ValueError,
        ['state_dict[0][0]', 'ScaleByAdamState', 'ScaleByAdamaxState', 'Load a state'],
    ),
    'of None': (lambda p: (None,), ValueError, ['state_dict[0]', 'None', 'Load a state']),
}


@pytest.mark.parametrize('bad', BAD_STATES)
def test_states_of_others(bad: str) -> None:
    make, error, words = BAD_STATES[bad]
    net = nn.Linear(2, 3)
    optimizer = torchopt.Adam(net.parameters())
    net(torch.ones(2)).sum().backward()
    optimizer.step()
    foreign = make(list(net.parameters()))
    kept = (list(net.parameters()), tuple(optimizer.state_groups))
    load = lambda: optimizer.load_state_dict(foreign)  # noqa: E731
    refuses(load, error, words, *kept, now=lambda: (list(net.parameters()), tuple(optimizer.state_groups)))

    meta = torchopt.MetaAdam(net)
    meta.step(net(torch.ones(2)).sum())
    foreign = make(dict(net.named_parameters()))
    kept = (list(net.parameters()), meta.state_dict())
    load = lambda: meta.load_state_dict(foreign)  # noqa: E731
    refuses(load, error, words, *kept, now=lambda: (list(net.parameters()), meta.state_dict()))


def test_states_of_other_parameters() -> None:
    net = nn.Linear(2, 3)
    optimizer, meta = torchopt.Adam(net.parameters()), torchopt.MetaAdam(net)
    other = (torchopt.adam().init(like([(3, 2), (4,)])),)
    refuses(lambda: optimizer.load_state_dict(other), ValueError, ['state_dict[0][0].mu[1]', '(3,)', '(4,)', 'Load'])
    short = (torchopt.adam().init(like([(3, 2)])),)
    refuses(lambda: optimizer.load_state_dict(short), ValueError, ['state_dict[0][0]', 'missing', 'Load'])
    other = (torchopt.adam().init({'weight': torch.zeros(3, 2), 'bias': torch.zeros(4)}),)
    refuses(lambda: meta.load_state_dict(other), ValueError, ["state_dict[0][0].mu['bias']", '(3,)', '(4,)', 'Load'])
    assert tuple(optimizer.state_groups) == meta.state_dict() == (UninitializedState(),)


def test_states_of_others_in_a_func_optimizer() -> None:
    """A FuncOptimizer does not know its parameters before the step, which is where it refuses."""
    p = {'w': weight(2)}
    strangers = [torchopt.sgd(0.1).init(p), torchopt.rmsprop().init(p), None, torchopt.adam().init({'v': p['w']})]
    for inplace in (False, True):
        optimizer = torchopt.FuncOptimizer(torchopt.adam(), inplace=inplace)
        for state in strangers:
            optimizer.load_state_dict(state)
            refuses(lambda o=optimizer: o.step((p['w'] ** 2).sum(), p), ValueError, ['state'], p, state)
            assert optimizer.state_dict() is state


# --- losses ----------------------------------------------------------------------------------------------------------

BAD_LOSSES: dict[str, tuple[Callable[[torch.Tensor], Any], type[Exception], list[str]]] = {
    'number': (lambda w: w.sum().item(), TypeError, ['loss', 'float', 'tensor']),
    'None': (lambda w: None, TypeError, ['loss is', 'None', 'tensor']),
    'vector': (lambda w: w * 2.0, ValueError, ['loss', 'shape', 'mean()']),
    'nothing': (lambda w: w[:0], ValueError, ['loss', '(0', 'mean()']),
    'complex': (lambda w: (w * 1j).sum(), TypeError, ['loss', 'complex', 'real']),
    'detached': (lambda w: w.sum().detach(), RuntimeError, ['loss has no graph', 'no_grad']),
    'constant': (lambda w: torch.tensor(1.0), RuntimeError, ['loss has no graph', 'no_grad']),
}


@pytest.mark.parametrize('bad', BAD_LOSSES)
def test_losses(bad: str) -> None:
    make, error, words = BAD_LOSSES[bad]
    for inplace in (False, True):
        p = {'w': weight(2, 3), 'b': weight(2)}
        optimizer = torchopt.FuncOptimizer(torchopt.adam(), inplace=inplace)
        optimizer.step((p['w'] ** 2).sum(), p)
        kept = (p, optimizer.state_dict())
        step = lambda o=optimizer, p=p: o.step(make(p['w']), p)  # noqa: E731
        refuses(step, error, words, *kept, now=lambda o=optimizer, p=p: (p, o.state_dict()))

    net = nn.Linear(3, 2)
    meta = torchopt.MetaAdam(net)
    meta.step(net(torch.ones(3)).sum())
    kept = (list(net.parameters()), meta.state_dict())
    now = lambda: (list(net.parameters()), meta.state_dict())  # noqa: E731
    refuses(lambda: meta.step(make(net.weight)), error, words, *kept, now=now)


def test_loss_whose_graph_is_gone() -> None:
    p = {'w': weight(3)}
    optimizer = torchopt.FuncOptimizer(torchopt.adam())
    loss = (p['w'] ** 2).sum()
    loss.backward()
    p['w'].grad = None
    refuses(lambda: optimizer.step(loss, p), RuntimeError, ['a second time'], p)
    assert optimizer.state_dict() == UninitializedState()


def test_nothing_to_differentiate_in() -> None:
    w = weight(2)
    loss, words = (w**2).sum(), ['No parameter requires grad', 'requires_grad_()']
    for p in ({}, [], {'w': None}, {'w': torch.ones(2)}):
        refuses(lambda p=p: torchopt.FuncOptimizer(torchopt.adam()).step(loss, p), ValueError, words, p)
    net = nn.Linear(2, 1).requires_grad_(False)
    refuses(lambda: torchopt.MetaAdam(net).step(loss), ValueError, words, list(net.parameters()))


def test_func_optimizer_and_another_tree() -> None:
    p = {'w': weight(2)}
    for inplace in (False, True):
        optimizer = torchopt.FuncOptimizer(torchopt.adam(), inplace=inplace)
        optimizer.step((p['w'] ** 2).sum(), p)
        state = optimizer.state_dict()
        for other, words in [
            ({'v': weight(2)}, ["['v']"]),
            ([weight(2)], ['list']),
            ({'w': weight(3)}, ["['w']", '(3,)']),
        ]:
            loss = sum((x**2).sum() for x in torchopt.tree.leaves(other))
            refuses(lambda o=optimizer, t=other, s=loss: o.step(s, t), ValueError, words, state, other)
            assert optimizer.state_dict() is state
        words = ["params['n']", 'float', 'torch.as_tensor']
        other = {'w': weight(2), 'n': 1.0}
        fresh = torchopt.FuncOptimizer(torchopt.adam(), inplace=inplace)
        refuses(lambda o=fresh, t=other: o.step((t['w'] ** 2).sum(), t), TypeError, words, other)


def test_parameters_that_are_left_alone() -> None:
    """Documented: what is an integer, frozen, None or not in the loss is returned as it is."""
    p = {'w': weight(2), 'unused': weight(2), 'frozen': torch.ones(2), 'n': torch.arange(2), 'none': None}
    for inplace in (False, True):
        for tx in (torchopt.adam(), torchopt.adamw(), torchopt.sgd(0.1, weight_decay=0.1)):
            new = torchopt.FuncOptimizer(tx, inplace=inplace).step((p['w'] ** 2).sum(), p)
            for name in ('unused', 'frozen', 'n', 'none'):
                assert new[name] is p[name]
    net = nn.Linear(2, 1)
    bias = net.bias
    meta = torchopt.MetaAdamW(net)
    meta.step((net.weight**2).sum())
    assert net.bias is bias


@pytest.mark.parametrize('by_closure', [False, True])
@pytest.mark.parametrize('kind', ['MetaOptimizer', 'FuncOptimizer'])
def test_a_loss_of_other_parameters_warns(kind: str, by_closure: bool) -> None:
    """Such as the loss of another copy of a module: every gradient is None, and nothing changes."""
    net, other = nn.Linear(2, 1), weight(2)
    before = [p.detach().clone() for p in net.parameters()]

    def loss(*_: Any) -> torch.Tensor:
        return (other**2).sum()

    with pytest.warns(UserWarning, match='does not depend on any parameter of the optimizer'):
        if kind == 'MetaOptimizer':
            torchopt.MetaAdamW(net).step(loss if by_closure else loss())
            after = list(net.parameters())
        else:
            optimizer = torchopt.FuncOptimizer(torchopt.adam())
            after = list(optimizer.step(loss if by_closure else loss(), dict(net.named_parameters())).values())
    for a, b in zip(after, before, strict=True):
        assert torch.equal(a, b)


# --- MetaOptimizer: what to train ------------------------------------------------------------------------------------


def test_targets_of_a_meta_optimizer() -> None:
    net = nn.Linear(2, 1)
    words = ['Unexpected class', 'nn.Module', 'parameters()']
    for wrong in (net.parameters(), list(net.parameters()), None, torch.ones(2)):
        refuses(lambda w=wrong: torchopt.MetaAdam(w), TypeError, words)
    refuses(lambda: torchopt.MetaAdam(nn.ReLU()), ValueError, ['no parameters'])


@pytest.mark.parametrize(
    'make', [lambda net: torchopt.MetaSGD(net, lr=0.1), lambda net: torchopt.FuncOptimizer(torchopt.sgd(0.1))]
)
def test_differentiable_optimizers_have_no_zero_grad(make: Any) -> None:
    optimizer = make(nn.Linear(2, 1))
    refuses(lambda: optimizer.zero_grad(set_to_none=True), AttributeError, ["'zero_grad'", 'Leave it out', '.grad'])
    assert not hasattr(optimizer, 'zero_grad')
    refuses(lambda: optimizer.nothing, AttributeError, ["object has no attribute 'nothing'"])
    assert copy.deepcopy(optimizer).__dict__.keys() == optimizer.__dict__.keys()


def test_later_groups_of_a_meta_optimizer() -> None:
    net = nn.Linear(2, 1)
    meta = torchopt.MetaAdam(net)
    refuses(lambda: meta.add_param_group(net.parameters()), TypeError, ['nn.Module'])
    refuses(lambda: meta.add_param_group(nn.ReLU()), ValueError, ['no parameters'])
    refuses(lambda: meta.add_param_group(nn.Sequential(net)), ValueError, ["'0.weight'", 'earlier group'])
    refuses(lambda: meta.add_param_group(nn.Linear(1, 1), lr=-1.0), ValueError, ['learning rate', '-1.0'])
    refuses(lambda: meta.add_param_group(nn.Linear(1, 1), foo=1), TypeError, ["'foo'", 'MetaAdam', 'lr'])
    assert len(meta.param_groups) == len(meta.impl_groups) == len(meta.state_groups) == 1


@pytest.mark.parametrize('value', [NAN, torch.tensor(NAN), math.inf, torch.ones(2)])
def test_schedule_of_a_meta_optimizer(value: Any) -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 1)
    meta = torchopt.MetaAdam(first)
    meta.add_param_group(second, lr=fails_at(1, value))
    loss = lambda: second(first(torch.ones(2))).sum()  # noqa: E731
    meta.step(loss())
    now = lambda: (list(first.parameters()), list(second.parameters()), meta.state_dict())  # noqa: E731
    refuses(lambda: meta.step(loss()), ValueError, ['schedule', 'expected'], *now(), now=now)


@pytest.mark.parametrize('inplace', [False, True])
def test_schedule_of_a_func_optimizer(inplace: bool) -> None:
    p = {'w': weight(2)}
    optimizer = torchopt.FuncOptimizer(torchopt.adam(fails_at(1, NAN)), inplace=inplace)
    optimizer.step((p['w'] ** 2).sum(), p)
    now = lambda: (p, optimizer.state_dict())  # noqa: E731
    refuses(lambda: optimizer.step((p['w'] ** 2).sum(), p), ValueError, ['schedule', 'nan'], *now(), now=now)
