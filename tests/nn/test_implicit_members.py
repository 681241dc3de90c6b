# SPDX-License-Identifier: Apache-2.0
"""ImplicitMetaGradientModule with all kinds of members: frozen, tied, complex, buffers, containers."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from tests.nn.ridge import Normed, Ridge, X, Y, close, f64, gradient, normed, penalty, ridge
from torchopt.linear_solve import solve_cg, solve_lu, solve_normal_cg


def test_frozen_parameters_are_constants():
    class Net(Ridge):
        def __init__(self, penalty):
            super().__init__(penalty)
            self.shift = nn.Parameter(Y / 2, requires_grad=False)

        def objective(self, x, y):
            return super().objective(x, y - self.shift)

        def solve(self, x, y):
            super().solve(x, y - self.shift)

    phi = penalty()
    net = Net(phi)
    shift = net.shift
    net.solve(X, Y)
    assert net.shift is shift and torch.equal(shift, Y / 2)
    close(gradient(net.w.sum(), phi), gradient(ridge(X, Y / 2, phi).sum(), phi))


def test_tied_parameters_stay_tied():
    class Net(Ridge):
        def __init__(self, penalty):
            super().__init__(penalty)
            self.first, self.second = nn.Linear(3, 1, False, dtype=f64), nn.Linear(3, 1, False, dtype=f64)
            self.second.weight = self.first.weight
            del self.w

        def objective(self, x, y):
            predicted = (self.first(x) + self.second(x))[:, 0] / 2
            weights = self.first.weight * self.second.weight
            return ((predicted - y) ** 2).sum() / 2 + self.penalty * weights.sum() / 2

        def solve(self, x, y):
            with torch.no_grad():
                self.first.weight.copy_(ridge(x, y, self.penalty))

    phi = penalty()
    net = Net(phi)
    for y in (Y, -Y):
        net.solve(X, y)
        assert net.first.weight is net.second.weight
        assert len(list(net.parameters())) == 1
        expected = gradient(ridge(X, y, phi).sum(), phi)
        for layer in (net.first, net.second):
            close(gradient(layer.weight.sum(), phi, retain_graph=True), expected)


@pytest.mark.parametrize('training', [True, False])
def test_buffers(training):
    targets = torch.stack([Y, -Y, Y**2], dim=1)
    phi = penalty()
    net = Normed(phi).train()
    net.solve(X, targets, steps=3)
    net.train(training)
    net.solve(X, targets)
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    assert buffers['norm.running_mean'].abs().max() > 0.01
    (found,) = gradient((net.norm.weight.cos() + net.norm.bias.sin()).sum(), phi, create_graph=True)
    a, b = normed(net.norm, X, targets, phi)
    (expected,) = gradient((a.cos() + b.sin()).sum(), phi, create_graph=True)
    close(found, expected)
    close(gradient(found, phi), gradient(expected, phi))
    # A derivative evaluates the objective, but the module does not notice.
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())
    assert int(net.norm.num_batches_tracked) == 3


def test_attributes_that_solve_sets_are_seen_by_the_objective():
    class Net(Ridge):
        def solve(self, x, y):
            self.scale = 2.0
            super().solve(x, self.scale * y)

        def objective(self, x, y):
            return super().objective(x, self.scale * y)

    phi = penalty()
    net = Net(phi)
    net.solve(X, Y)
    close(gradient(net.w.sum(), phi), gradient(ridge(X, 2 * Y, phi).sum(), phi))


def test_methods_kept_as_attributes():
    """They see the tensors of the derivative, not those of the module at the time."""

    class Net(Ridge):
        def __init__(self, penalty):
            super().__init__(penalty)
            self.kept = {'predict': [self.predict]}

        def predict(self, x):
            return x @ self.w

        def objective(self, x, y):
            return ((self.kept['predict'][0](x) - y) ** 2).sum() / 2 + self.penalty * self.w.square().sum() / 2

    phi = penalty()
    net = Net(phi)
    net.solve(X, Y)
    close(gradient(net.w.sum(), phi), gradient(ridge(X, Y, phi).sum(), phi))


def dot(net, x):
    return x @ net.w


def with_defaults(net):
    def predict(x, times=2, *, over=2):
        return x @ net.w * times / over

    return predict


KEPT = {
    'lambda': lambda net: lambda x: x @ net.w,
    'partial': lambda net: functools.partial(dot, net),
    'partial of a method': lambda net: functools.partial(net.predict, scale=1.0),
    'function with defaults': with_defaults,
}


@pytest.mark.parametrize('keep', KEPT.values(), ids=KEPT)
def test_functions_kept_as_attributes(keep):
    class Net(Ridge):
        def __init__(self, penalty):
            super().__init__(penalty)
            self.kept = keep(self)

        def predict(self, x, scale):
            return scale * (x @ self.w)

        def objective(self, x, y):
            return ((self.kept(x) - y) ** 2).sum() / 2 + self.penalty * self.w.square().sum() / 2

    phi = penalty()
    net = Net(phi)
    net.solve(X, Y)
    close(gradient(net.w.sum(), phi), gradient(ridge(X, Y, phi).sum(), phi))


@pytest.mark.parametrize('in_place', [False, True])
def test_compiled_layers(in_place):
    class Net(Ridge):
        def __init__(self, penalty):
            super().__init__(penalty)
            del self.w
            self.layer = nn.Linear(3, 1, bias=False, dtype=f64)
            if in_place:
                self.layer.compile(backend='eager')
            else:
                self.layer = torch.compile(self.layer, backend='eager')

        def objective(self, x, y):
            penalty = self.penalty * self.layer.weight.square().sum()
            return ((self.layer(x)[:, 0] - y) ** 2).sum() / 2 + penalty / 2

        def solve(self, x, y):
            with torch.no_grad():
                self.layer.weight.copy_(ridge(x, y, self.penalty))

    phi = penalty()
    net = Net(phi)
    net.solve(X, Y)
    close(gradient(net.layer.weight.sum(), phi), gradient(ridge(X, Y, phi).sum(), phi))


def test_children_that_know_their_parent():
    class Child(nn.Module):
        def __init__(self, parent):
            super().__init__()
            self.parents = [parent]

        def forward(self, x):
            return x @ self.parents[0].w

    class Net(Ridge):
        def __init__(self, penalty):
            super().__init__(penalty)
            self.child = Child(self)

        def objective(self, x, y):
            return ((self.child(x) - y) ** 2).sum() / 2 + self.penalty * self.w.square().sum() / 2

    phi = penalty()
    net = Net(phi)
    net.solve(X, Y)
    close(gradient(net.w.sum(), phi), gradient(ridge(X, Y, phi).sum(), phi))


def test_containers_of_parameters():
    class Net(Ridge):
        def __init__(self, penalty):
            super().__init__(penalty)
            del self.w
            self.listed = nn.ParameterList([torch.zeros(1, dtype=f64), torch.zeros(2, dtype=f64)])

        def objective(self, x, y):
            self.__dict__['w'] = torch.cat(list(self.listed))
            return super().objective(x, y)

        def solve(self, x, y):
            w = ridge(x, y, self.penalty)
            with torch.no_grad():
                self.listed[0].copy_(w[:1])
                self.listed[1].copy_(w[1:])

    phi = penalty()
    net = Net(phi)
    net.solve(X, Y)
    w = torch.cat(list(net.listed))
    close(gradient(w.sin().sum(), phi), gradient(ridge(X, Y, phi).sin().sum(), phi))


def test_parameter_that_the_objective_does_not_use():
    """With a regularized linear system its derivative is zero; without one the system is singular."""

    class Net(Ridge, linear_solve=solve_normal_cg(rtol=1e-12)):
        def __init__(self, penalty):
            super().__init__(penalty)
            self.unused = nn.Parameter(torch.ones(2, dtype=f64))

    class Singular(Net, linear_solve=solve_lu()):
        pass

    phi = penalty()
    net = Net(phi)
    net.solve(X, Y)
    close(gradient(net.w.sum() + net.unused.sum() * 0, phi), gradient(ridge(X, Y, phi).sum(), phi))
    net = Singular(phi)
    net.solve(X, Y)
    with pytest.raises(torch.linalg.LinAlgError, match='solve_lu: the matrix is singular'):
        gradient(net.w.sum(), phi)


def test_complex_parameters():
    x = torch.complex(X, X.roll(1, 0) / 3)
    y = torch.complex(Y, -Y.flip(0))

    class Net(Ridge):
        def __init__(self, penalty):
            super().__init__(penalty, dtype=torch.complex128)

        def objective(self, x, y):
            residual = x @ self.w - y
            return (residual.abs() ** 2).sum() / 2 + self.penalty * (self.w.abs() ** 2).sum() / 2

        def solve(self, x, y):
            with torch.no_grad():
                self.w.copy_(normal(x, y, self.penalty))

    def normal(x, y, penalty):
        return torch.linalg.solve(x.mH @ x + penalty * torch.eye(3, dtype=f64), x.mH @ y)

    phi = penalty()
    net = Net(phi)
    net.solve(x, y)
    for part in (torch.real, torch.imag):
        found = gradient(part(net.w).sum(), phi, retain_graph=True)
        close(found, gradient(part(normal(x, y, phi)).sum(), phi))


def test_float32():
    class Net(Ridge, linear_solve=solve_cg()):
        pass

    phi = penalty(dtype=torch.float32)
    net = Net(phi, dtype=torch.float32)
    net.solve(X.float(), Y.float())
    (found,) = gradient(net.w.sum(), phi)
    assert found.dtype == net.w.dtype == torch.float32
    close(found, gradient(ridge(X.float(), Y.float(), phi).sum(), phi)[0], rtol=1e-4)
