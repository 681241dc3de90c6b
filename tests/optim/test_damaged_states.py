# SPDX-License-Identifier: Apache-2.0
"""States that were cut, mixed up or changed at random: loaded whole, or refused with the optimizer as it was."""

from __future__ import annotations

import copy
import io
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import torchopt
from torchopt import tree

BAD: list[Any] = [
    None,
    'text',
    3,
    -1.0,
    float('nan'),
    [],
    {},
    (),
    [1, 2],
    {'step': 1},
    torch.zeros(7),
    torch.zeros(4, 3, dtype=torch.complex64),
    torch.zeros((), dtype=torch.int64),
    object(),
    nn.Linear(1, 1),
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def trained(make: Callable[[nn.Module], Any]) -> tuple[nn.Module, Any]:
    net = network()
    optimizer = make(net)
    for _ in range(2):
        loss = net(torch.ones(2, 3)).square().mean()
        if isinstance(optimizer, torchopt.MetaOptimizer):
            optimizer.step(loss)
        else:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net, optimizer


def groups(net: nn.Sequential) -> list[dict[str, Any]]:
    return [{'params': net[0].parameters()}, {'params': net[2].parameters(), 'lr': 0.01}]


MAKERS: dict[str, Callable[[Any], Any]] = {
    'Adam': lambda net: torchopt.Adam(groups(net), lr=0.1),
    'SGD': lambda net: torchopt.SGD(net.parameters(), lr=0.1, momentum=0.9),
    'Adagrad': lambda net: torchopt.Adagrad(net.parameters(), lr_decay=0.1),
    'chain': lambda net: torchopt.Optimizer(
        net.parameters(), torchopt.named_chain(('ema', torchopt.transform.ema(0.9)), ('step', torchopt.adam(0.1)))
    ),
}
META: dict[str, Callable[[Any], Any]] = {
    'MetaAdam': lambda net: torchopt.MetaAdam(net, lr=0.1),
    'MetaSGD': lambda net: torchopt.MetaSGD(net, lr=0.1, momentum=0.9),
}


def look(optimizer: Any) -> Any:
    """All that loading could change: the very tensors with their values, and the options."""
    leaves = tree.leaves(optimizer.state_groups)
    values = [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in leaves]
    options = [{k: v for k, v in g.items() if k != 'params'} for g in optimizer.param_groups if isinstance(g, dict)]
    return [id(x) for x in optimizer.state_groups], values, copy.deepcopy(options) if type(optimizer) in PLAIN else None


PLAIN = (torchopt.Adam, torchopt.SGD, torchopt.Adagrad, torchopt.Optimizer)


def places(x: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to everything in nested dicts and sequences."""
    items = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, (list, tuple)) else ()
    found = [path] if path else []
    for key, value in list(items):
        found += places(value, (*path, key))
    return found


def changed(x: Any, path: tuple[Any, ...], value: Any, drop: bool) -> Any:
    """A copy in which one place has another value, or is gone."""
    key, *rest = path
    items = dict(x) if isinstance(x, dict) else list(x)
    if rest:
        items[key] = changed(x[key], tuple(rest), value, drop)
    elif drop:
        del items[key]
    else:
        items[key] = value
    if isinstance(x, dict):
        return items
    return items if type(x) is list else type(x)(*items) if hasattr(x, '_fields') and not drop else tuple(items)


def load_or_refuse(optimizer: Any, saved: Any) -> bool:
    before = look(optimizer)
    try:
        optimizer.load_state_dict(saved)
    except (ValueError, TypeError) as error:
        assert len(str(error)) > 20, error
        assert str(look(optimizer)) == str(before)
        return False
    return True


@pytest.mark.parametrize('name', [*MAKERS, *META])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_one_change_at_random(name: str, data: st.DataObject) -> None:
    """Whatever is loaded can be saved again and trained on; else nothing has changed."""
    net, optimizer = trained({**MAKERS, **META}[name])
    saved = optimizer.state_dict()
    path = data.draw(st.sampled_from(places(saved)))
    bad = changed(saved, path, data.draw(st.sampled_from(BAD)), data.draw(st.booleans()))
    if load_or_refuse(optimizer, bad):
        loss = net(torch.ones(2, 3)).square().mean()
        if name in META:
            optimizer.step(loss)
        else:
            loss.backward()
            try:
                optimizer.step()
            except (ValueError, TypeError, RuntimeError):
                # Extra keys of groups are the user's; an option that was loaded has been checked.
                pytest.fail(f'a state was loaded that cannot be used: {path}')
        assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize('name', MAKERS)
def test_states_of_all_others(name: str) -> None:
    """Of every other rule, with the right number of groups or not."""
    _, optimizer = trained(MAKERS[name])
    for other in {*MAKERS, *META} - {name}:
        assert not load_or_refuse(optimizer, trained({**MAKERS, **META}[other])[1].state_dict()), other
    assert load_or_refuse(optimizer, trained(MAKERS[name])[1].state_dict())


@pytest.mark.parametrize('name', ['Adam', 'chain', 'MetaAdam'])
def test_cut_files(name: str) -> None:
    """torch refuses them; what it does read fits."""
    _, optimizer = trained({**MAKERS, **META}[name])
    stream = io.BytesIO()
    torch.save(optimizer.state_dict(), stream)
    whole = stream.getvalue()
    before = str(look(optimizer))
    for n in [*range(0, len(whole), 97), len(whole) - 1]:
        with pytest.raises((RuntimeError, EOFError, ValueError, zipfile.BadZipFile)):
            optimizer.load_state_dict(torch.load(io.BytesIO(whole[:n]), weights_only=True))
    assert str(look(optimizer)) == before
    optimizer.load_state_dict(torch.load(io.BytesIO(whole), weights_only=True))


def test_classes_that_are_not_states_are_not_made() -> None:
    """A file that names another class is refused by torch before anything of it runs."""
    stream = io.BytesIO()
    torch.save((torchopt.adam().init([torch.ones(1)]), nn.Linear(1, 1)), stream)
    stream.seek(0)
    with pytest.raises(Exception, match='Weights only load failed'):
        torch.load(stream, weights_only=True)


@pytest.mark.parametrize(
    ('name', 'path', 'value', 'message'),
    [
        ('Adam', ('param_groups', 0, 'nesterov'), torch.zeros(7), 'nesterov=.*expected True or False'),
        ('Adam', ('param_groups', 1, 'maximize'), 'text', "maximize='text'.*expected True or False"),
        ('Adam', ('param_groups', 0, 'use_accelerated_op'), torch.zeros(7), 'use_accelerated_op=.*expected no tensor'),
        ('MetaAdam', (0, 0, 2, '0.weight'), torch.zeros(4, 3) * 1j, r'complex numbers of shape \(4, 3\)'),
    ],
)
def test_what_random_changes_found(name: str, path: tuple[Any, ...], value: Any, message: str) -> None:
    _, optimizer = trained({**MAKERS, **META}[name])
    before = str(look(optimizer))
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.load_state_dict(changed(optimizer.state_dict(), path, value, drop=False))
    assert str(look(optimizer)) == before
