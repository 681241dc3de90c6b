# SPDX-License-Identifier: Apache-2.0
"""MetaGradientModule: what is meta, what is ordinary, and that nothing is lost in between."""

from __future__ import annotations

import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn

from torchopt.nn import MetaGradientModule


def grad_tensor(*shape: int) -> torch.Tensor:
    return torch.ones(shape, requires_grad=True)


class Holder(MetaGradientModule):
    """Stores nothing by itself; the constructor arguments are remembered as meta inputs."""

    def __init__(self, *args, **kwargs):
        super().__init__()


class Inner(MetaGradientModule):
    """An inner problem on top of a borrowed backbone."""

    def __init__(self, backbone, penalty):
        super().__init__()
        self.backbone = backbone
        self.penalty = penalty
        self.head = nn.Linear(3, 1)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer('calls', torch.zeros(()))

    def forward(self, x):
        return self.scale * self.head(self.backbone(x)) + self.penalty


def names(iterator) -> list[str]:
    return [name for name, _ in iterator]


def home(module: MetaGradientModule, name: str) -> list[str]:
    """The kinds of members that ``name`` is: exactly one, if nothing is stored twice."""
    kinds = ('_parameters', '_buffers', '_modules', '_meta_parameters', '_meta_modules')
    found = [kind for kind in kinds if name in getattr(module, kind)]
    return found + ['__dict__'] * (name in vars(module))


# Value to assign, whether it is also given to the constructor, where it belongs.
SORTING = {
    'parameter': (lambda: nn.Parameter(torch.ones(2)), False, '_parameters'),
    'leaf that requires grad': (lambda: grad_tensor(2), False, '_parameters'),
    'non-leaf': (lambda: 2 * grad_tensor(2), False, '_parameters'),
    'frozen parameter': (lambda: nn.Parameter(torch.ones(2), requires_grad=False), False, '_parameters'),
    'plain tensor': (lambda: torch.ones(2), False, '__dict__'),
    'module': (lambda: nn.Linear(2, 1), False, '_modules'),
    'number': (lambda: 3.0, False, '__dict__'),
    'meta parameter': (lambda: nn.Parameter(torch.ones(2)), True, '_meta_parameters'),
    'meta leaf': (lambda: grad_tensor(2), True, '_meta_parameters'),
    'meta non-leaf': (lambda: 2 * grad_tensor(2), True, '_meta_parameters'),
    'tensor argument without grad': (lambda: torch.ones(2), True, '__dict__'),
    'meta module': (lambda: nn.Linear(2, 1), True, '_meta_modules'),
    'meta ParameterList': (lambda: nn.ParameterList([grad_tensor(2)]), True, '_meta_modules'),
    'meta ParameterDict': (lambda: nn.ParameterDict({'a': grad_tensor(2)}), True, '_meta_modules'),
    'module in eval mode': (lambda: nn.Linear(2, 1).eval(), True, '_modules'),
}


@pytest.mark.parametrize(('make', 'given', 'expected'), SORTING.values(), ids=SORTING)
def test_values_are_sorted_by_where_they_come_from(make, given, expected):
    value = make()
    module = Holder(value) if given else Holder()
    module.x = value
    assert home(module, 'x') == [expected]
    assert module.x is value


@pytest.mark.parametrize(
    'wrap',
    [lambda x: ((x,), {}), lambda x: ((), {'key': x}), lambda x: (([1, {'deep': (None, x)}],), {})],
    ids=['positional', 'keyword', 'nested'],
)
def test_arguments_are_inspected_as_trees(wrap):
    for value, expected in ((grad_tensor(2), '_meta_parameters'), (nn.Tanh(), '_meta_modules')):
        args, kwargs = wrap(value)
        module = Holder(*args, **kwargs)
        module.x = value
        assert home(module, 'x') == [expected]


def test_parts_of_a_meta_module_are_meta():
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1)))
    module = Holder(net)
    module.part = net[1][0]
    module.weight = net[0].weight
    assert home(module, 'part') == ['_meta_modules']
    assert home(module, 'weight') == ['_meta_parameters']


def test_parameters_that_a_meta_optimizer_put_into_a_meta_module_are_meta():
    net = nn.Linear(2, 1)
    module = Holder(net)
    net._parameters['weight'] = 2 * net.weight  # what a step of a meta-optimizer does
    module.weight = net.weight
    assert home(module, 'weight') == ['_meta_parameters']


@pytest.mark.parametrize('given', [False, True], ids=['ordinary', 'meta'])
@pytest.mark.parametrize(
    ('make', 'text'),
    [
        (lambda: nn.Parameter(torch.ones(2)), 'cannot assign parameters before Module.__init__()'),
        (lambda: grad_tensor(2), 'cannot assign parameters before Module.__init__() call'),
        (lambda: nn.Linear(2, 1), 'cannot assign module before Module.__init__() call'),
    ],
    ids=['parameter', 'tensor', 'module'],
)
def test_assignment_before_init_is_refused(make, text, given):
    class Early(MetaGradientModule):
        def __init__(self, *args):
            self.x = value

    value = make()
    with pytest.raises(AttributeError, match=re.escape(text)):
        Early(*([value] if given else []))


@pytest.mark.parametrize(
    ('register', 'text'),
    [
        (lambda m: m.register_buffer('x', torch.ones(())), 'cannot assign buffer before'),
        (lambda m: m.register_parameter('x', grad_tensor()), 'cannot assign parameter before'),
        (lambda m: m.register_meta_parameter('x', grad_tensor()), 'parameter before'),
        (lambda m: m.add_module('x', nn.Tanh()), 'cannot assign module before'),
        (lambda m: m.add_meta_module('x', nn.Tanh()), 'cannot assign module before'),
    ],
    ids=['buffer', 'parameter', 'meta-parameter', 'module', 'meta-module'],
)
def test_registration_before_init_is_refused(register, text):
    class Early(MetaGradientModule):
        def __init__(self):
            register(self)

    with pytest.raises(AttributeError, match=re.escape(text)):
        Early()


def test_plain_tensor_may_be_assigned_before_init():
    class Early(MetaGradientModule):
        def __init__(self):
            self.x = torch.ones(())
            super().__init__()

    assert Early().x == 1


PARAMETER_METHODS = {'parameter': 'register_parameter', 'meta-parameter': 'register_meta_parameter'}
PARAMETER_ERRORS = [
    (b'x', grad_tensor(), TypeError, 'parameter name should be a string. Got bytes'),
    ('a.b', grad_tensor(), KeyError, "parameter name can't contain '.'"),
    ('', grad_tensor(), KeyError, "parameter name can't be empty string ''"),
    ('head', grad_tensor(), KeyError, "attribute 'head' already exists"),
    ('forward', grad_tensor(), KeyError, "attribute 'forward' already exists"),
    ('x', 1.0, TypeError, "cannot assign 'float' object to"),
    ('x', torch.ones(()), ValueError, 'does not require grad'),
]


@pytest.mark.parametrize('kind', PARAMETER_METHODS)
@pytest.mark.parametrize(('name', 'value', 'error', 'text'), PARAMETER_ERRORS)
def test_bad_registration_of_a_parameter(kind, name, value, error, text):
    module = Inner(nn.Linear(2, 3), grad_tensor())
    before = dir(module)
    with pytest.raises(error, match=re.escape(text)):
        getattr(module, PARAMETER_METHODS[kind])(name, value)
    assert dir(module) == before


@pytest.mark.parametrize('method', ['add_module', 'register_module', 'add_meta_module', 'register_meta_module'])
@pytest.mark.parametrize(
    ('name', 'value', 'error', 'text'),
    [
        (b'x', nn.Tanh(), TypeError, 'module name should be a string. Got bytes'),
        ('a.b', nn.Tanh(), KeyError, "module name can't contain '.'"),
        ('', nn.Tanh(), KeyError, "module name can't be empty string ''"),
        ('scale', nn.Tanh(), KeyError, "attribute 'scale' already exists"),
        ('x', 1.0, TypeError, 'float is not a Module subclass'),
    ],
)
def test_bad_registration_of_a_module(method, name, value, error, text):
    module = Inner(nn.Linear(2, 3), grad_tensor())
    before = dir(module)
    with pytest.raises(error, match=re.escape(text)):
        getattr(module, method)(name, value)
    assert dir(module) == before


def test_meta_inputs_cannot_be_registered_as_ordinary_members():
    phi, net = grad_tensor(), nn.Linear(2, 1)
    module = Holder(phi, net)
    text = "cannot assign Tensor that is a meta-parameter to parameter 'x'. Use self.register_meta_parameter() instead."
    for value in (phi, net.weight):
        with pytest.raises(ValueError, match=re.escape(text)):
            module.register_parameter('x', value)
    with pytest.raises(ValueError, match=r'Use self\.add_meta_module'):
        module.add_module('x', net)
    with pytest.raises(ValueError, match=r'Use self\.add_meta_module'):
        module.register_module('x', net)
    assert not hasattr(module, 'x')


@pytest.mark.parametrize(
    ('method', 'value', 'expected'),
    [
        ('register_parameter', nn.Parameter(torch.ones(2)), '_parameters'),
        ('register_parameter', 2 * grad_tensor(2), '_parameters'),
        ('register_parameter', None, '_parameters'),
        ('register_meta_parameter', 2 * grad_tensor(2), '_meta_parameters'),
        ('register_meta_parameter', None, '_meta_parameters'),
        ('add_module', nn.Tanh(), '_modules'),
        ('register_module', None, '_modules'),
        ('add_meta_module', nn.Tanh(), '_meta_modules'),
        ('register_meta_module', None, '_meta_modules'),
    ],
)
def test_registration(method, value, expected):
    module = Holder()
    getattr(module, method)('x', value)
    assert home(module, 'x') == [expected]
    assert module.x is value
    for iterator in (module.named_meta_parameters(), module.named_meta_children()):
        assert all(found is value and found is not None for _, found in iterator)


def test_global_registration_hooks_see_ordinary_parameters():
    seen = []
    handle = nn.modules.module.register_module_parameter_registration_hook(
        lambda module, name, param: seen.append(name)
    )
    try:
        Holder().x = nn.Parameter(torch.ones(2))
    finally:
        handle.remove()
    assert seen == ['x']


@pytest.mark.parametrize(
    ('name', 'kind'),
    [
        ('scale', 'parameter'),
        ('penalty', 'meta-parameter'),
        ('head', 'child module'),
        ('backbone', 'meta-module'),
        ('calls', 'buffer'),
    ],
)
def test_a_member_is_not_overwritten_by_another_kind_of_value(name, kind):
    module = Inner(nn.Linear(2, 3), grad_tensor())
    kept = getattr(module, name)
    with pytest.raises(TypeError, match=rf"cannot assign 'float' as .*{kind} '{name}' \(.*\)"):
        setattr(module, name, 1.0)
    assert getattr(module, name) is kept
    setattr(module, name, None)  # None reserves the place
    assert getattr(module, name) is None
    assert len(home(module, name)) == 1
    assert name in dir(module)
    assert name not in names(module.named_meta_parameters())
    assert name not in names(module.named_meta_children())


def test_a_plain_tensor_does_not_overwrite_a_parameter():
    module = Inner(nn.Linear(2, 3), grad_tensor())
    for name in ('scale', 'penalty'):
        with pytest.raises(TypeError, match=f"as .*parameter '{name}'"):
            setattr(module, name, torch.ones(()))


def test_assignment_moves_a_name_from_one_kind_to_another():
    phi, net = grad_tensor(2), nn.Linear(2, 1)
    module = Holder(phi, net)
    for value, expected in (
        (torch.zeros(2), '__dict__'),
        (nn.Parameter(torch.ones(2)), '_parameters'),
        (phi, '_meta_parameters'),
        (nn.Tanh(), '_modules'),
        (net, '_meta_modules'),
        (2 * phi, '_parameters'),
        (net, '_meta_modules'),
        (phi, '_meta_parameters'),
    ):
        module.x = value
        assert home(module, 'x') == [expected]
        assert module.x is value


def test_assignment_replaces_a_buffer_and_forgets_that_it_was_not_persistent():
    module = Holder()
    module.register_buffer('x', torch.zeros(2), persistent=False)
    module.x = torch.ones(2)
    assert home(module, 'x') == ['_buffers']
    module.x = grad_tensor(2)
    assert home(module, 'x') == ['_parameters']
    assert 'x' in module.state_dict()
    assert 'x' not in module._non_persistent_buffers_set


@pytest.mark.parametrize('value', [grad_tensor(), nn.Tanh()], ids=['tensor', 'module'])
@pytest.mark.parametrize('given', [False, True], ids=['ordinary', 'meta'])
def test_names_of_the_class_are_protected(value, given):
    module = Holder(value) if given else Holder()
    with pytest.raises(KeyError, match="attribute 'forward' already exists"):
        module.forward = value


@pytest.mark.parametrize('name', ['scale', 'penalty', 'head', 'backbone', 'calls'])
def test_delete(name):
    module = Inner(nn.Linear(2, 3), grad_tensor())
    assert name in dir(module)
    delattr(module, name)
    assert home(module, name) == []
    assert name not in dir(module)
    with pytest.raises(AttributeError, match=f"'Inner' object has no attribute '{name}'"):
        getattr(module, name)
    with pytest.raises(AttributeError):
        delattr(module, name)


def test_lookup_order():
    module = Holder()
    containers = ('_parameters', '_buffers', '_modules', '_meta_parameters', '_meta_modules')
    for container in reversed(containers):
        getattr(module, container)['x'] = container
        assert module.x == container
    for container in containers:
        assert module.x == container
        del module.x
    assert not hasattr(module, 'x')


# -- iteration -----------------------------------------------------------------------------------


def test_prefix_is_joined_with_a_dot():
    module = Inner(nn.Sequential(nn.Linear(2, 3)), grad_tensor())
    expected = ['penalty', 'backbone.0.weight', 'backbone.0.bias']
    assert names(module.named_meta_parameters()) == expected
    assert names(module.named_meta_parameters(prefix='net')) == [f'net.{n}' for n in expected]
    assert names(module.named_meta_parameters(prefix='net', recurse=False)) == ['net.penalty']
    assert names(module.named_meta_modules(prefix='net')) == ['net.backbone', 'net.backbone.0']
    assert names(module.named_meta_children()) == ['backbone']


def test_iterators_agree():
    module = Inner(nn.Sequential(nn.Linear(2, 3)), grad_tensor())
    for plain, named in (
        (module.meta_parameters(), module.named_meta_parameters()),
        (module.meta_parameters(recurse=False), module.named_meta_parameters(recurse=False)),
        (module.meta_children(), module.named_meta_children()),
        (module.meta_modules(), module.named_meta_modules()),
    ):
        found = [value for _, value in named]
        assert len(found) > 0
        assert all(x is y for x, y in zip(plain, found, strict=True))


def test_tied_members_are_listed_once():
    phi, net = grad_tensor(), nn.Linear(2, 1)
    module = Holder(phi, net)
    module.a, module.b = phi, phi
    module.c, module.d = net, net
    module.e = net.weight
    assert names(module.named_meta_parameters()) == ['a', 'e', 'c.bias']
    assert names(module.named_meta_children()) == ['c']
    assert names(module.named_meta_modules()) == ['c']
    assert names(module.named_meta_modules(remove_duplicate=False)) == ['c', 'd']
    assert names(module.named_meta_modules(memo={net})) == []


def test_meta_members_of_ordinary_children_are_found():
    child = Inner(nn.Linear(2, 3), grad_tensor())
    module = Holder()
    module.layers = nn.Sequential(nn.Tanh(), child)
    assert names(module.named_meta_parameters('m')) == [
        'm.layers.1.penalty',
        'm.layers.1.backbone.weight',
        'm.layers.1.backbone.bias',
    ]
    assert names(module.named_meta_modules(prefix='m')) == ['m.layers.1.backbone']
    assert names(module.named_meta_parameters(recurse=False)) == []


def test_meta_members_of_meta_modules_are_found():
    middle = Inner(nn.Linear(2, 3), grad_tensor())
    module = Holder(middle)
    module.middle = middle
    assert set(names(module.named_meta_parameters())) == {
        *(f'middle.{name}' for name, _ in middle.named_parameters()),
        'middle.penalty',
        'middle.backbone.weight',
        'middle.backbone.bias',
    }
    assert names(module.named_meta_modules()) == ['middle', 'middle.head', 'middle.backbone']


def test_a_circle_of_modules_ends():
    a = Holder()
    b = Holder(a)
    b.a = a
    a.b = b  # an ordinary child whose meta-module is its parent
    a.phi = nn.Parameter(torch.ones(()))
    assert names(a.named_meta_parameters()) == ['b.a.phi']
    assert len(list(a.meta_modules())) == 2


# -- meta members are borrowed -------------------------------------------------------------------


def test_ordinary_iterators_and_state_dict_leave_meta_members_out():
    module = Inner(nn.Linear(2, 3), grad_tensor())
    own = ['scale', 'head.weight', 'head.bias']
    assert names(module.named_parameters()) == own
    assert len(list(module.parameters())) == len(own)
    assert names(module.named_modules()) == ['', 'head']
    assert set(module.state_dict()) == {*own, 'calls'}
    assert 'backbone' not in repr(module)
    assert 'head' in repr(module)


def test_moving_casting_and_modes_leave_meta_members_alone():
    backbone, penalty = nn.Linear(2, 3), grad_tensor()
    module = Inner(backbone, penalty).double()
    assert {p.dtype for p in module.parameters()} == {torch.float64}
    assert {p.dtype for p in module.meta_parameters()} == {torch.float32}
    module.to(dtype=torch.bfloat16).eval().requires_grad_(False)
    assert not module.head.training
    assert backbone.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in module.meta_parameters())
    penalty.grad = torch.ones(())
    module.zero_grad()
    assert penalty.grad is not None


def test_ordinary_parameters_that_are_plain_tensors_are_cast_and_loaded():
    module = Holder()
    module.x = grad_tensor(2)
    module.double()
    assert module.x.dtype == torch.float64
    module.load_state_dict({'x': torch.tensor([3.0, 4.0])})
    assert module.x.tolist() == [3, 4]


def test_a_frozen_parameter_is_saved_and_cast():
    module = Holder()
    module.x = nn.Parameter(torch.ones(2), requires_grad=False)
    assert set(module.state_dict()) == {'x'}
    assert module.double().x.dtype == torch.float64


# -- copies --------------------------------------------------------------------------------------


def save_and_load(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    'duplicate',
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), save_and_load],
    ids=['deepcopy', 'pickle', 'torch.save'],
)
def test_copies_are_complete_and_independent(duplicate):
    torch.manual_seed(0)
    module = Inner(nn.Linear(2, 3), grad_tensor())
    module.tied = module.penalty
    module.nothing = None
    module.register_meta_parameter('reserved', None)
    twin = duplicate(module)
    assert type(twin) is Inner
    assert dir(twin) == dir(module)
    assert twin.tied is twin.penalty
    assert twin.reserved is None
    x = torch.ones(4, 2)
    assert torch.equal(twin(x), module(x))
    for listed in ('named_parameters', 'named_meta_parameters', 'named_buffers'):
        ours, theirs = dict(getattr(module, listed)()), dict(getattr(twin, listed)())
        assert list(ours) == list(theirs)
        assert all(ours[name] is not theirs[name] for name in ours)
    # What is meta is remembered: the copy still sorts its own members as the original would.
    twin.again = twin.penalty
    twin.part = twin.backbone
    assert home(twin, 'again') == ['_meta_parameters']
    assert home(twin, 'part') == ['_meta_modules']


# -- what it is for ------------------------------------------------------------------------------


def test_gradients_reach_the_meta_parameters_through_an_inner_step():
    torch.manual_seed(0)
    x = torch.randn(5, 2, dtype=torch.float64)
    backbone = nn.Linear(2, 3).double()
    penalty = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def outer(weight, bias, penalty):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            borrowed = nn.Linear(2, 3).double()
            borrowed._parameters['weight'], borrowed._parameters['bias'] = weight, bias
            inner = Inner(borrowed, penalty).double()
        loss = inner(x).square().mean()
        params = list(inner.parameters())
        assert len(params) == 3
        grads = torch.autograd.grad(loss, params, create_graph=True)
        stepped = Inner(borrowed, penalty).double()
        stepped.scale = params[0] - 0.1 * grads[0]
        stepped.head._parameters['weight'] = params[1] - 0.1 * grads[1]
        stepped.head._parameters['bias'] = params[2] - 0.1 * grads[2]
        assert len(list(stepped.meta_parameters())) == 3
        return stepped(x).square().mean()

    weight, bias = (p.detach().clone().requires_grad_() for p in backbone.parameters())
    assert torch.autograd.gradcheck(outer, (weight, bias, penalty))
