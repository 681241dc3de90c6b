# SPDX-License-Identifier: Apache-2.0
"""swap_state and reparametrize: other tensors in a module's places, and the old ones back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchopt.nn import MetaGradientModule, reparameterize, reparametrize, swap_state


class Plain(nn.Module):
    """A plain attribute, an attribute of the class, a property and a reserved place."""

    of_class = torch.ones(2)

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.plain = torch.zeros(2)
        self.register_parameter('reserved', None)
        self._behind = torch.zeros(2)

    @property
    def behind(self):
        return self._behind

    @behind.setter
    def behind(self, value):
        if value.shape != (2,):
            raise RuntimeError('refused')
        self._behind = value


class Tied(nn.Module):
    """One weight in two places."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(3, 3, bias=False)
        self.decode = nn.Linear(3, 3, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(torch.tanh(self.encode(x)))


class WithMeta(MetaGradientModule):
    """A meta-parameter and a meta-module."""

    def __init__(self, phi, net):
        super().__init__()
        self.phi = phi
        self.net = net
        self.again = net.weight


def with_meta():
    return WithMeta(torch.ones(2, requires_grad=True), nn.Linear(2, 2))


# Module, dotted name in it.
PLACES = {
    'parameter': (lambda: nn.Linear(2, 2), 'weight'),
    'nested parameter': (lambda: nn.Sequential(nn.Sequential(nn.Linear(2, 2))), '0.0.bias'),
    'ParameterList': (lambda: nn.ParameterList([torch.ones(2)]), '0'),
    'ParameterDict': (lambda: nn.ParameterDict({'a': torch.ones(2)}), 'a'),
    'buffer': (lambda: nn.BatchNorm1d(2), 'running_mean'),
    'plain attribute': (Plain, 'plain'),
    'attribute of the class': (Plain, 'of_class'),
    'property': (Plain, 'behind'),
    'reserved place': (Plain, 'reserved'),
    'meta-parameter': (with_meta, 'phi'),
    'in a meta-module': (with_meta, 'net.weight'),
}


def snapshot(module: nn.Module) -> list:
    """Every module's own attributes and members, by identity and in order."""
    found = []
    modules = [*module.modules()]
    if isinstance(module, MetaGradientModule):
        modules += module.meta_modules()
    for part in modules:
        for key, value in vars(part).items():
            items = value.items() if isinstance(value, dict) else [(key, value)]
            found += [(id(part), key, name, id(x)) for name, x in items]
    return found


@pytest.mark.parametrize('as_pairs', [False, True], ids=['mapping', 'pairs'])
@pytest.mark.parametrize(('make', 'name'), PLACES.values(), ids=PLACES)
def test_swap_and_swap_back(make, name, as_pairs):
    module = make()
    owner_name, _, attribute = name.rpartition('.')
    owner = module.get_submodule(owner_name)
    original = getattr(owner, attribute)
    new = torch.full((2,), 5.0, requires_grad=True)
    old = swap_state(module, [(name, new)] if as_pairs else {name: new})
    assert list(old) == [name]
    assert old[name] is original
    assert getattr(owner, attribute) is new
    back = swap_state(module, old)
    assert back[name] is new
    assert getattr(owner, attribute) is original


@pytest.mark.parametrize('fail', [False, True], ids=['normal', 'exception'])
@pytest.mark.parametrize(('make', 'name'), PLACES.values(), ids=PLACES)
def test_reparametrize_leaves_no_trace(make, name, fail):
    module = make()
    before = snapshot(module)
    owner_name, _, attribute = name.rpartition('.')
    new = torch.full((2,), 5.0, requires_grad=True)

    def use():
        with reparametrize(module, {name: new}) as inside:
            assert inside is module
            assert getattr(module.get_submodule(owner_name), attribute) is new
            if fail:
                raise ZeroDivisionError

    if fail:
        with pytest.raises(ZeroDivisionError):
            use()
    else:
        use()
    assert snapshot(module) == before


@pytest.mark.parametrize('change', [swap_state, lambda *a: reparametrize(*a).__enter__()])
@pytest.mark.parametrize('name', ['wieght', 'linaer.weight', 'linear.wieght', '', 'linear.'])
def test_an_unknown_name_changes_nothing(change, name):
    module = Plain()
    before = snapshot(module)
    with pytest.raises(AttributeError, match=f"named_tensors: '{name}' is not in the module"):
        change(module, {'linear.weight': torch.ones(2, 2), name: torch.ones(2)})
    assert snapshot(module) == before


def test_a_refused_value_changes_nothing():
    module = Plain()
    before = snapshot(module)
    values = {'linear.weight': torch.ones(2, 2), 'behind': torch.ones(3)}
    with pytest.raises(RuntimeError, match='refused'):
        swap_state(module, values)
    assert snapshot(module) == before
    with pytest.raises(RuntimeError, match='refused'), reparametrize(module, values):
        pass
    assert snapshot(module) == before


@pytest.mark.parametrize('make', [nn.Tanh, lambda: WithMeta(torch.ones(2), nn.Linear(2, 2))])
@pytest.mark.parametrize(
    'value',
    [torch.ones(2), torch.ones(2, requires_grad=True), nn.Parameter(torch.ones(2)), None, 3],
    ids=['tensor', 'requires grad', 'parameter', 'None', 'number'],
)
def test_allow_missing_adds_and_deletes(make, value):
    module = make()
    before = snapshot(module)
    old = swap_state(module, {'new': value}, allow_missing=True)
    assert module.new is value
    swap_state(module, old, allow_missing=True)
    assert not hasattr(module, 'new')
    assert snapshot(module) == before
    with reparametrize(module, {'new': value}, allow_missing=True):
        assert module.new is value
    assert snapshot(module) == before


def test_allow_missing_survives_a_deletion_inside():
    module = nn.Tanh()
    with reparametrize(module, {'new': torch.ones(2)}, allow_missing=True):
        del module.new
    assert not hasattr(module, 'new')


def test_none_may_take_a_place():
    module = nn.Linear(2, 2)
    with reparametrize(module, {'bias': None}):
        assert torch.equal(module(torch.ones(2)), module.weight.sum(1))
    assert module.bias is not None


@pytest.mark.parametrize(
    ('make', 'x'),
    [
        (lambda: nn.Linear(3, 2), torch.ones(4, 3)),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), torch.randn(2, 1, 5, 5)),
        (lambda: nn.GRU(3, 2, batch_first=True), torch.randn(2, 4, 3)),
        (Tied, torch.ones(4, 3)),
    ],
    ids=['Linear', 'Conv and BatchNorm', 'GRU', 'tied'],
)
def test_a_call_and_its_gradient_equal_functional_call(make, x):
    torch.manual_seed(0)
    module = make().double()
    x = x.double()
    values = {name: torch.randn_like(p).requires_grad_() for name, p in module.named_parameters()}

    def total(output):
        return sum(part.square().sum() for part in (output if isinstance(output, tuple) else (output,)))

    with reparametrize(module, values):
        ours = total(module(x))
    theirs = total(torch.func.functional_call(module, values, (x,)))
    assert torch.equal(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours, list(values.values())),
        torch.autograd.grad(theirs, list(values.values())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_tied_weights_stay_tied():
    module = Tied()
    before = snapshot(module)
    new = torch.ones(3, 3)
    for name in ('encode.weight', 'decode.weight'):
        with reparametrize(module, {name: new}):
            assert module.encode.weight is new
            assert module.decode.weight is new
        assert snapshot(module) == before


def test_tied_places_may_be_named_apart():
    module = Tied()
    a, b = torch.ones(3, 3), torch.zeros(3, 3)
    with reparametrize(module, {'encode.weight': a, 'decode.weight': b}):
        assert module.encode.weight is a
        assert module.decode.weight is b
    assert module.encode.weight is module.decode.weight
    module.third = module.encode
    module.fourth = nn.Linear(3, 3, bias=False)
    module.fourth.weight = module.encode.weight
    before = snapshot(module)
    with (
        pytest.raises(ValueError, match=r"'fourth.weight' is tied to 'encode.weight' and"),
        reparametrize(module, {'encode.weight': a, 'decode.weight': b}),
    ):
        pass
    assert snapshot(module) == before


def test_ties_that_a_value_makes_do_not_last():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = snapshot(module)
    with reparametrize(module, {'0.weight': module[1].weight}):
        assert module[0].weight is module[1].weight
    assert snapshot(module) == before


def test_ties_with_a_meta_module_are_kept():
    module = with_meta()
    new = torch.ones(2, 2)
    with reparametrize(module, {'again': new}):
        assert module.net.weight is new
    assert module.net.weight is module.again


def test_swap_state_replaces_the_named_place_alone():
    module = Tied()
    kept = module.decode.weight
    swap_state(module, {'encode.weight': torch.ones(3, 3)})
    assert module.decode.weight is kept


def test_nested_use():
    module = nn.Linear(2, 2)
    before = snapshot(module)
    first, second = torch.ones(2, 2), torch.zeros(2, 2)
    with reparametrize(module, {'weight': first}):
        with reparametrize(module, {'weight': second}):
            assert module.weight is second
        assert module.weight is first
    assert snapshot(module) == before


def test_both_spellings_are_one():
    assert reparameterize is reparametrize
