# SPDX-License-Identifier: Apache-2.0
"""The life of an ImplicitMetaGradientModule: solved again, interrupted, copied, saved, freed."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import weakref

import pytest
import torch
from torch import nn

import torchopt
from tests.nn.ridge import Normed, OnBackbone, Ridge, X, Y, close, f64, gradient, penalty, ridge
from torchopt.linear_solve import solve_cg
from torchopt.nn import ImplicitMetaGradientModule

# -- several networks, and what stays behind ---------------------------------------------------------------------------


def test_several_networks_with_one_meta_parameter():
    phi, tasks = penalty(), [Y, 2 * Y, Y.flip(0)]
    nets = [Ridge(phi) for _ in tasks]
    for net, y in zip(nets, tasks, strict=True):
        net.solve(X, y)
    found = gradient(sum((net.w**2).sum() * (i + 1) for i, net in enumerate(nets)), phi)
    expected = gradient(sum((ridge(X, y, phi) ** 2).sum() * (i + 1) for i, y in enumerate(tasks)), phi)
    close(found, expected)


def test_solutions_of_one_network_can_be_kept():
    phi, tasks = penalty(), [Y, 2 * Y, Y.flip(0)]
    net, kept = Ridge(phi), []
    for y in tasks:
        net.solve(X, y)
        kept.append(net.w)
    for w, y in zip(kept, tasks, strict=True):
        expected = ridge(X, y, phi)
        close(w, expected)
        close(gradient(w.sum(), phi), gradient(expected.sum(), phi))


@pytest.fixture
def no_collector():
    """Only reference counts free anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


LEAKS = {
    'solved': lambda net: None,
    'differentiated': lambda net: net.w.sum().backward(),
    'twice differentiated': lambda net: gradient(*gradient(net.w.sum(), net.penalty, create_graph=True), net.penalty),
}


@pytest.mark.parametrize('use', LEAKS.values(), ids=LEAKS)
@pytest.mark.parametrize('kind', [Ridge, Normed, OnBackbone], ids=lambda c: c.__name__)
def test_modules_are_freed_without_the_garbage_collector(kind, use, no_collector):
    phi = penalty()
    net = OnBackbone(nn.Linear(3, 3, dtype=f64), phi) if kind is OnBackbone else kind(phi)
    net.solve(X, X**2 if kind is Normed else Y)
    if kind is Ridge:
        use(net)
    else:
        next(net.parameters()).sum().backward()
    dead = [weakref.ref(net), weakref.ref(next(net.parameters()))]
    del net
    assert [ref() for ref in dead] == [None, None]


def test_a_kept_solution_outlives_its_module(no_collector):
    phi = penalty()
    net = Ridge(phi)
    net.solve(X, Y)
    w, dead = net.w, weakref.ref(net)
    del net
    assert dead() is None
    close(gradient(w.sum(), phi), gradient(ridge(X, Y, phi).sum(), phi))


class ByCg(Ridge, linear_solve=solve_cg()):
    """Without torch.vmap, which the direct solvers use and whose own closures are circles."""


def test_solving_again_frees_what_the_last_solve_made(no_collector):
    net = ByCg(penalty())

    def tensors():
        return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())

    net.solve(X, Y)
    first, counts = weakref.ref(net.w), []
    for i in range(6):
        net.solve(X, (i + 1) * Y)
        gradient(net.w.sum(), net.penalty)
        counts.append(tensors())
    assert first() is None
    assert len(set(counts)) == 1, counts


# -- solving again -----------------------------------------------------------------------------------------------------


class Trained(Ridge):
    """Trained by an optimizer that was made once and for all."""

    def __init__(self, penalty):
        super().__init__(penalty)
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.1)

    def solve(self, x, y, steps=80):
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.objective(x, y).backward()
            self.optimizer.step()


def test_an_optimizer_made_in_init_goes_on_working():
    phi = penalty()
    net = Trained(phi)
    leaf = net.w
    for y in (Y, -2 * Y, Y.flip(0)):
        net.solve(X, y)
        close(net.w, ridge(X, y, phi), rtol=1e-7)
        close(gradient(net.w.sum(), phi), gradient(ridge(X, y, phi).sum(), phi), rtol=1e-7)
    assert net.optimizer.param_groups[0]['params'] == [leaf]


def test_training_starts_where_the_parameters_stand():
    net = Trained(penalty())
    net.solve(X, Y)
    solution = net.w.detach().clone()
    net.solve(X, Y, steps=0)
    close(net.w, solution)
    with torch.no_grad():
        net.w.fill_(3.0)
    net.solve(X, Y, steps=0)
    assert torch.equal(net.w.detach(), torch.full((3,), 3.0, dtype=f64))
    net.load_state_dict({'w': torch.full((3,), 4.0)})
    net.solve(X, Y, steps=0)
    assert torch.equal(net.w.detach(), torch.full((3,), 4.0, dtype=f64))


def test_a_new_parameter_between_solves():
    phi = penalty()
    net = Ridge(phi)
    net.solve(X, Y)
    net.w = nn.Parameter(torch.zeros(2, dtype=f64))
    net.solve(X[:, :2], Y)
    close(gradient(net.w.sum(), phi), gradient(ridge(X[:, :2], Y, phi).sum(), phi))


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('cast', [lambda net: net.float(), lambda net: net.to(torch.float32)])
def test_cast_between_solves(cast):
    phi = penalty()
    net = Ridge(phi)
    net.solve(X, Y)
    cast(net)
    assert net.w.dtype == torch.float32
    close(gradient(net.w.sum(), phi), gradient(ridge(X, Y, phi).sum(), phi), rtol=1e-5)
    x, y = X.float(), Y.float()
    net.solve(x, y)
    assert net.w.dtype == torch.float32 and phi.dtype == f64
    close(gradient(net.w.sum(), phi), gradient(ridge(x, y, phi).sum(), phi), rtol=1e-5)


def test_an_optimizer_made_in_init_trains_what_was_cast():
    phi = penalty()
    net = Trained(phi)
    leaf = net.w
    net.solve(X, Y)
    nn.Sequential(net).float()
    x, y = X.float(), -Y.float()
    net.solve(x, y)
    assert net.optimizer.param_groups[0]['params'][0] is leaf and leaf.dtype == torch.float32
    close(net.w, ridge(x, y, phi), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_another_device_between_solves():
    phi = torch.tensor(0.7, dtype=f64, device='cpu', requires_grad=True)
    x, y = X.cpu(), Y.cpu()
    net = Ridge(phi).cpu()
    net.solve(x, y)
    net.to('cuda')
    assert net.w.is_cuda and not phi.is_cuda
    close(gradient(net.w.sum(), phi), gradient(ridge(x, y, phi).sum(), phi), rtol=1e-7)
    net.solve(-x.cuda(), y.cuda())
    close(gradient(net.w.sum(), phi), gradient(ridge(-x, y, phi).sum(), phi), rtol=1e-7)


def test_state_dict_after_solve():
    net, other = Ridge(penalty()), Ridge(penalty())
    net.solve(X, Y)
    state = net.state_dict()
    assert list(state) == ['w']
    assert not state['w'].requires_grad and torch.equal(state['w'], net.w.detach())
    other.load_state_dict(state)
    close(other.w, net.w, rtol=0)


def test_the_members_of_a_solved_module():
    phi = penalty()
    net = Ridge(phi)
    net.solve(X, Y)
    assert not net.w.is_leaf and net.w.requires_grad
    assert [name for name, _ in net.named_parameters()] == ['w']
    assert net.penalty is phi and [*net.meta_parameters()] == [phi]


# -- without a derivative ----------------------------------------------------------------------------------------------


def test_under_no_grad_the_parameters_stay_leaves():
    phi = penalty()
    net = Trained(phi)
    leaf = net.w
    for y in (Y, 2 * Y):
        with torch.no_grad():
            net.solve(X, y)
        assert net.w is leaf and leaf.requires_grad
        close(leaf, ridge(X, y, phi), rtol=1e-7)
        net.solve(X, -y)
        close(gradient(net.w.sum(), phi), gradient(ridge(X, -y, phi).sum(), phi), rtol=1e-7)


def test_with_frozen_meta_parameters_the_parameters_stay_leaves():
    phi = penalty()
    net = Ridge(phi)
    phi.requires_grad_(False)
    net.solve(X, Y)
    assert isinstance(net.w, nn.Parameter)
    phi.requires_grad_(True)
    net.solve(X, Y)
    close(gradient(net.w.sum(), phi), gradient(ridge(X, Y, phi).sum(), phi))


def test_no_parameters_and_no_meta_parameters():
    class Net(Ridge):
        def __init__(self, *phi, w):
            ImplicitMetaGradientModule.__init__(self)
            if phi:
                self.phi = phi[0]
            self.w = nn.Parameter(torch.zeros(3, dtype=f64), requires_grad=w)

    for net, text in (
        (Net(penalty(), w=False), 'The module has no parameters.'),
        (Net(w=True), 'The module has no meta-parameters.'),
    ):
        for method in (net.solve, net.optimality):
            with pytest.raises(RuntimeError, match=re.escape(text)):
                method(X, Y)


# -- calls of solve ----------------------------------------------------------------------------------------------------

RETURNED = {
    'self': lambda net: net,
    'nothing': lambda net: None,
    'number': lambda net: 3,
    'text': lambda net: 'converged',
}


@pytest.mark.parametrize('result', RETURNED.values(), ids=RETURNED)
def test_what_solve_returns_is_passed_on(result):
    class Net(Ridge):
        def solve(self, x, y):
            super().solve(x, y)
            return result(self)

    net = Net(penalty())
    assert net.solve(X, Y) is result(net)


def test_tensors_that_solve_returns_have_no_graph():
    class Net(Ridge):
        def solve(self, x, y):
            super().solve(x, y)
            return {'loss': self.objective(x, y), 'steps': 3, 'w': [self.w]}

    net = Net(penalty())
    found = net.solve(X, Y)
    assert not found['loss'].requires_grad and found['steps'] == 3
    assert not found['w'][0].requires_grad and torch.equal(found['w'][0], net.w.detach())
    close(found['loss'], net.objective(X, Y).detach())


def test_solve_runs_with_gradients_and_with_constant_meta_parameters():
    class Net(Ridge):
        def solve(self, x, y):
            assert torch.is_grad_enabled() and self.w.is_leaf and self.w.requires_grad
            assert not (self.penalty.requires_grad or x.requires_grad or y.requires_grad)
            super().solve(x, y)

    phi, x = penalty(), X.clone().requires_grad_()
    net = Net(phi)
    for _ in range(2):
        net.solve(x, Y)
        with torch.no_grad():
            net.solve(x, Y)


def write(w, value):
    w.copy_(value)


def write_item(w, value):
    w[:] = value


def write_view(w, value):
    w.view(3)[0:1].mul_(0.0).add_(value[0])
    w[1:].copy_(value[1:])


def write_in_two(w, value):
    w.zero_()
    w += value


def write_out(w, value):
    torch.add(value, 0.0, out=w)


def write_data(w, value):
    w.data = value.detach().clone()


@pytest.mark.parametrize('write', [write, write_item, write_view, write_in_two, write_out, write_data])
@pytest.mark.parametrize('order', [1, 2])
def test_solve_may_write_into_the_parameters(write, order):
    """With no more ado than in 0.7.3, which runs it without grad."""

    class Written(Ridge):
        def solve(self, x, y):
            starts.append(self.w.detach().clone())
            with torch.enable_grad():
                step = gradient(self.objective(x, y), self.w)[0]
            with torch.no_grad():
                self.w -= 0.1 * step
            write(self.w, ridge(x, y, self.penalty))

    starts = []
    phi = penalty()
    net = Written(phi)
    place = net.w
    for y in (Y, 2 * Y):
        net.solve(X, y)
        found, expected = net.w.pow(3).sum(), ridge(X, y, phi).pow(3).sum()
        for _ in range(order):
            close(found, expected)
            (found,), (expected,) = (gradient(f, phi, create_graph=True) for f in (found, expected))
        close(found, expected)
    assert vars(net)['_leaves']['w'] is place
    close(starts[0], torch.zeros(3, dtype=f64))
    close(starts[-1], ridge(X, Y, phi))


@pytest.mark.parametrize('write', [write, write_item, write_view, write_in_two, write_out, write_data])
def test_solve_runs_once_also_if_it_writes(write):
    """So that buffers, random numbers and an optimizer of the module advance once."""

    class Noted(Ridge):
        def solve(self, x, y):
            self.calls.add_(1)
            for _ in range(3):
                optimizer.zero_grad()
                self.objective(x, y).backward(inputs=[self.w])
                optimizer.step()
            drawn.append(torch.rand(()).item())
            write(self.w, ridge(x, y, self.penalty))

    net, drawn = Noted(penalty()), []
    net.register_buffer('calls', torch.zeros(()))
    optimizer = torch.optim.Adam([net.w], lr=0.1)
    torch.manual_seed(0)
    net.solve(X, Y)
    assert net.calls == 1
    assert optimizer.state[net._leaves['w']]['step'] == 3
    torch.manual_seed(0)
    assert drawn == [torch.rand(()).item()]
    close(net.w, ridge(X, Y, net.penalty))


def test_arguments_that_are_no_tensors():
    class Net(Ridge):
        def solve(self, batch, *, scale=1, name='a', options=None):
            assert name == 'b' and options == {'steps': [3, None]}
            super().solve(batch['x'], scale * batch['y'])

        def objective(self, batch, *, scale=1, name='a', options=None):
            assert name == 'b' and options == {'steps': [3, None]}
            return super().objective(batch['x'], scale * batch['y'])

    phi, x = penalty(), X.clone().requires_grad_()
    net = Net(phi)
    net.solve({'x': x, 'y': Y}, scale=2, name='b', options={'steps': [3, None]})
    close(gradient(net.w.sum(), phi, x), gradient(ridge(x, 2 * Y, phi).sum(), phi, x))


def test_modules_among_the_arguments_would_lose_their_gradient():
    class Net(Ridge):
        def solve(self, x, y, net):
            super().solve(net(x), y)

        def objective(self, x, y, net):
            return super().objective(net(x), y)

    phi, features = penalty(), nn.Linear(3, 3, dtype=f64)
    net = Net(phi)
    before = net.w
    with pytest.raises(TypeError, match='Linear whose parameters require gradients'):
        net.solve(X, Y, net=features)
    assert net.w is before
    features.requires_grad_(False)
    net.solve(X, Y, net=features)
    close(gradient(net.w.sum(), phi), gradient(ridge(features(X), Y, phi).sum(), phi))


class Interrupted(Ridge):
    def solve(self, x, y, error=None):
        super().solve(x, y)
        if error is not None:
            raise error


@pytest.mark.parametrize('error', [ValueError('stop'), KeyboardInterrupt()])
@pytest.mark.parametrize('solved', [False, True])
def test_an_interrupted_solve_leaves_the_members_as_they_were(error, solved):
    phi = penalty()
    net = Interrupted(phi)
    if solved:
        net.solve(X, Y)
    w, mode = net.w, torch.is_grad_enabled()
    with pytest.raises(type(error)):
        net.solve(X, -Y, error=error)
    assert net.w is w and net.penalty is phi
    assert torch.is_grad_enabled() is mode
    if solved:
        close(gradient(net.w.sum(), phi), gradient(ridge(X, Y, phi).sum(), phi))
    net.solve(X, 2 * Y)
    close(gradient(net.w.sum(), phi), gradient(ridge(X, 2 * Y, phi).sum(), phi))


def test_solve_that_removes_a_parameter():
    class Net(Ridge):
        def solve(self, x, y):
            super().solve(x, y)
            self.v = self.w
            del self.w

    with pytest.raises(RuntimeError, match=r"removed the parameters \['w'\]"):
        Net(penalty()).solve(X, Y)


# -- copies ------------------------------------------------------------------------------------------------------------


def reloaded(net):
    return pickle.loads(pickle.dumps(net))


@pytest.mark.parametrize('copier', [copy.deepcopy, reloaded])
@pytest.mark.parametrize('solved', [False, True])
def test_copies_are_independent_and_keep_values(copier, solved):
    """A copy has parameters and meta-parameters of its own, all leaves; a solution leaves its graph behind."""
    phi = penalty()
    net = Trained(phi)
    if solved:
        net.solve(X, Y)
    again = copier(net)
    assert type(again) is Trained
    assert isinstance(again.w, nn.Parameter) and torch.equal(again.w, net.w)
    assert again.penalty is not phi and torch.equal(again.penalty, phi)
    assert [*again.meta_parameters()] == [again.penalty]
    again.solve(X, -Y)  # its optimizer trains its own parameters
    close(again.w, ridge(X, -Y, phi), rtol=1e-7)
    close(gradient(again.w.sum(), again.penalty), gradient(ridge(X, -Y, phi).sum(), phi), rtol=1e-7)
    if solved:
        close(net.w, ridge(X, Y, phi), rtol=1e-7)
        close(gradient(net.w.sum(), phi), gradient(ridge(X, Y, phi).sum(), phi), rtol=1e-7)


@pytest.mark.parametrize('copier', [copy.deepcopy, reloaded, torchopt.module_clone])
def test_copies_of_tied_and_nested_modules(copier):
    phi = penalty()
    net = Ridge(phi)
    net.parts = nn.ModuleList([nn.Linear(3, 1, bias=False, dtype=f64) for _ in range(2)])
    net.parts[1].weight = net.parts[0].weight
    net.link = net.parts[0]
    again = copier(nn.Sequential(net))[0]
    assert again.parts[0].weight is again.parts[1].weight and again.link is again.parts[0]


def test_shallow_copies_share_the_graph():
    phi = penalty()
    net = Ridge(phi)
    net.solve(X, Y)
    again = copy.copy(net)
    assert again is not net and again.w is net.w and again.penalty is phi


@pytest.mark.parametrize('solved', [False, True])
@pytest.mark.parametrize('by', ['reference', 'copy', 'deepcopy'])
def test_module_clone(by, solved):
    """By reference and by copy a clone keeps the graph of the solution, by deepcopy only the values."""
    phi = penalty()
    net = Ridge(phi)
    if solved:
        net.solve(X, Y)
    again = torchopt.module_clone(net, by=by)
    assert torch.equal(again.w, net.w)
    meta = again.penalty if by == 'deepcopy' else phi
    if solved and by != 'deepcopy':
        close(gradient(again.w.sum(), phi, retain_graph=True), gradient(ridge(X, Y, phi).sum(), phi))
    again.solve(X, -Y)
    close(gradient(again.w.sum(), meta), gradient(ridge(X, -Y, phi).sum(), phi))
    if solved:
        close(gradient(net.w.sum(), phi), gradient(ridge(X, Y, phi).sum(), phi))


@pytest.mark.parametrize('solved', [False, True])
def test_module_clone_with_an_optimizer_inside(solved):
    phi = penalty()
    net = Trained(phi)
    if solved:
        net.solve(X, Y)
    again = torchopt.module_clone(net, by='deepcopy')
    again.solve(X, -Y)
    close(again.w, ridge(X, -Y, phi), rtol=1e-7)


def test_states_can_be_extracted_and_recovered():
    phi = penalty()
    net = Ridge(phi)
    net.solve(X, Y)
    state = torchopt.extract_state_dict(net, by='reference')
    net.solve(X, -Y)
    torchopt.recover_state_dict(net, state)
    close(gradient(net.w.sum(), phi), gradient(ridge(X, Y, phi).sum(), phi))
    net.solve(X, 2 * Y)
    close(gradient(net.w.sum(), phi), gradient(ridge(X, 2 * Y, phi).sum(), phi))
