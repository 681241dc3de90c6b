# SPDX-License-Identifier: Apache-2.0
"""ImplicitMetaGradientModule: its gradients against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchopt
from tests.nn.ridge import OnBackbone, Ridge, X, Y, close, f64, gradient, penalty, ridge
from torchopt.linear_solve import solve_cg, solve_inv, solve_lu, solve_normal_cg
from torchopt.nn import ImplicitMetaGradientModule

# -- values ------------------------------------------------------------------------------------------------------------


def by_steps(net, x, y):
    """Plain gradient descent, long enough, with backward(): it must not reach the meta-parameters."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(150):
        optimizer.zero_grad()
        net.objective(x, y).backward()
        optimizer.step()


def by_grad(net, x, y):
    for _ in range(150):
        (g,) = torch.autograd.grad(net.objective(x, y), net.w)
        with torch.no_grad():
            net.w -= 0.5 * g


def by_optimality(net, x, y):
    """The derived optimality function is the gradient that training needs, too."""
    for _ in range(150):
        with torch.no_grad():
            net.w -= 0.5 * net.optimality(x, y)[0]


def by_meta_optimizer(net, x, y):
    """It puts tensors with graphs into the places of the parameters."""
    optimizer = torchopt.MetaSGD(net, lr=0.5)
    for _ in range(150):
        optimizer.step(net.objective(x, y))


def by_lbfgs(net, x, y):
    optimizer = torch.optim.LBFGS(net.parameters(), tolerance_grad=1e-13, tolerance_change=0, max_iter=60)

    def closure():
        optimizer.zero_grad()
        loss = net.objective(x, y)
        loss.backward()
        return loss

    optimizer.step(closure)


def by_new_parameter(net, x, y):
    net.w = nn.Parameter(ridge(x, y, net.penalty))


def by_data(net, x, y):
    net.w.data = ridge(x, y, net.penalty)


TRAINERS = [by_steps, by_grad, by_optimality, by_meta_optimizer, by_lbfgs, by_new_parameter, by_data]


@pytest.mark.parametrize('train', TRAINERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize('shape', [(), (3,)], ids=['0-d', 'vector'])
def test_any_way_to_train_gives_the_gradient_of_the_closed_form(train, shape):
    class Net(Ridge):
        def solve(self, x, y):
            train(self, x, y)

    phi = torch.full(shape, 0.7, dtype=f64, requires_grad=True)
    net = Net(phi)
    for y in (Y, 2 * Y.flip(0)):  # it can be solved again
        net.solve(X, y)
        expected = ridge(X, y, phi)
        close(net.w, expected, rtol=1e-8)
        close(gradient(net.w.sin().sum(), phi), gradient(expected.sin().sum(), phi), rtol=1e-8)
    assert phi.grad is None


class Scalar(ImplicitMetaGradientModule):
    """A 0-d parameter."""

    def __init__(self, penalty):
        super().__init__()
        self.penalty = penalty
        self.w = nn.Parameter(torch.zeros((), dtype=f64))

    def objective(self, x, y):
        return ((x * self.w - y) ** 2).sum() + self.penalty * self.w**2

    def solve(self, x, y):
        with torch.no_grad():
            self.w.copy_((x @ y) / (x @ x + self.penalty))


SOLVERS = {
    'default': None,
    'solve_cg': solve_cg(),
    'solve_normal_cg': solve_normal_cg(),
    'solve_inv': solve_inv(),
    'solve_inv, ns': solve_inv(ns=True, maxiter=200, alpha=0.1),
    'solve_lu': solve_lu(),
}


@pytest.mark.parametrize('solver', SOLVERS.values(), ids=SOLVERS)
def test_parameter_without_dimensions(solver):
    class Net(Scalar, linear_solve=solver):
        pass

    phi = penalty()
    net = Net(phi)
    net.solve(X[0], Y[:3])
    (found,) = gradient(net.w, phi)
    expected = -(X[0] @ Y[:3]) / (X[0] @ X[0] + phi.detach()) ** 2
    assert found.shape == ()
    close(found, expected)


@pytest.mark.parametrize('solver', SOLVERS.values(), ids=SOLVERS)
def test_every_solver_on_a_vector(solver):
    class Net(Ridge, linear_solve=solver):
        pass

    phi = penalty()
    net = Net(phi)
    net.solve(X, Y)
    close(gradient(net.w.sum(), phi), gradient(ridge(X, Y, phi).sum(), phi), rtol=1e-4)


def test_data_that_requires_grad():
    x, y, phi = X.clone().requires_grad_(), Y.clone().requires_grad_(), penalty()
    for args, kwargs in (((x, y), {}), ((x,), {'y': y}), ((), {'y': y, 'x': x})):
        net = Ridge(phi)
        net.solve(*args, **kwargs)
        found = gradient(net.w.cos().sum(), x, y, phi)
        close(found, gradient(ridge(x, y, phi).cos().sum(), x, y, phi))


def test_meta_parameters_with_a_graph():
    eta = penalty()
    net = Ridge(eta.exp())
    net.solve(X, Y)
    close(gradient(net.w.sum(), eta), gradient(ridge(X, Y, eta.exp()).sum(), eta))


def test_backward_accumulates_in_meta_parameters():
    phi = penalty()
    net = Ridge(phi)
    net.solve(X, Y)
    net.w.sum().backward()
    close(phi.grad, gradient(ridge(X, Y, phi).sum(), phi)[0])


def test_meta_module():
    backbone, phi = nn.Linear(3, 3, dtype=f64), penalty()
    net = OnBackbone(backbone, phi)
    net.solve(X, Y)
    assert all(p.grad is None for p in (*backbone.parameters(), phi))
    inputs = (*backbone.parameters(), phi)
    assert net.backbone is backbone and all(a is b for a, b in zip(net.meta_parameters(), (phi, *inputs[:2])))

    def outer(predicted):
        return (predicted - 2 * Y).square().sum()

    # The outer loss depends on the backbone through the head, and directly.
    features = torch.tanh(backbone(X))
    close(gradient(outer(net(X)), *inputs), gradient(outer(features @ ridge(features, Y, phi)), *inputs))


def test_frozen_parts_of_a_meta_module_get_no_gradient():
    backbone, phi = nn.Linear(3, 3, dtype=f64), penalty()
    backbone.bias.requires_grad_(False)
    net = OnBackbone(backbone, phi)
    net.solve(X, Y)
    features = torch.tanh(backbone(X))
    expected = gradient(ridge(features, Y, phi).sum(), backbone.weight, phi)
    close(gradient(net.head.weight.sum(), backbone.weight, phi), expected)


# -- optimality --------------------------------------------------------------------------------------------------------


class Pair:
    """Two coupled parameters; a class beside the inner network gives it its methods, ``solve`` too."""

    def __init__(self, phi):
        super().__init__()
        self.phi = phi
        self.z = nn.Parameter(torch.zeros(2, dtype=f64))
        self.a = nn.Parameter(torch.zeros((), dtype=f64))

    def loss(self):
        fit = (self.z.square() * self.phi.exp()).sum() + self.a.square() - (self.z * self.phi).sum()
        return fit + self.a * self.z.sum() / 2 - self.a

    def solve(self):
        with torch.no_grad():
            z, a = pair(self.phi)
            self.z.copy_(z)
            self.a.copy_(a)


def pair(phi):
    """The stationary point of :class:`Pair`."""
    half = torch.full((2,), 0.5, dtype=f64)
    top = torch.cat([torch.diag(2 * phi.exp()), half[:, None]], dim=1)
    matrix = torch.cat([top, torch.cat([half, torch.full((1,), 2.0, dtype=f64)])[None]])
    solution = torch.linalg.solve(matrix, torch.cat([phi, torch.ones(1, dtype=f64)]))
    return solution[:2], solution[2]


class Derived(Pair, ImplicitMetaGradientModule, linear_solve=solve_lu()):
    def objective(self):
        return self.loss()


class WithTuple(Pair, ImplicitMetaGradientModule, linear_solve=solve_lu()):
    def optimality(self):
        return torch.autograd.grad(self.loss(), tuple(self.parameters()), create_graph=True)


class WithDict(Pair, ImplicitMetaGradientModule, linear_solve=solve_lu()):
    def optimality(self):
        names, params = zip(*self.named_parameters())
        return dict(zip(names, torch.autograd.grad(self.loss(), params, create_graph=True)))


class WithOtherOrder(Pair, ImplicitMetaGradientModule, linear_solve=solve_lu()):
    def optimality(self):
        za, z = self.a / 2, 2 * self.z * self.phi.exp() - self.phi
        return {'a': 2 * self.a + self.z.sum() / 2 - 1, 'z': z + za}


class WithList(Pair, ImplicitMetaGradientModule, linear_solve=solve_lu()):
    def optimality(self):
        return [2 * self.z * self.phi.exp() - self.phi + self.a / 2, 2 * self.a + self.z.sum() / 2 - 1]


class WithGenerator(WithList):
    def optimality(self):
        yield from super().optimality()


class WithBoth(WithTuple):
    def objective(self):
        raise AssertionError('optimality comes first')


PAIRS = [Derived, WithTuple, WithDict, WithOtherOrder, WithList, WithGenerator, WithBoth]
PHI = torch.tensor([0.3, -0.4], dtype=f64)


@pytest.mark.parametrize('kind', PAIRS, ids=lambda c: c.__name__)
def test_optimality_in_any_form(kind):
    phi = PHI.clone().requires_grad_()
    net = kind(phi)
    net.solve()

    def outer(z, a):
        return (z**3).sum() * a

    for weights in ((1.0, 0.0), (0.3, 2.0)):
        found = gradient(weights[0] * net.z.sum() + weights[1] * net.a, phi, retain_graph=True)
        z, a = pair(phi)
        close(found, gradient(weights[0] * z.sum() + weights[1] * a, phi))
    close(gradient(outer(net.z, net.a), phi), gradient(outer(*pair(phi)), phi))


@pytest.mark.parametrize('kind', PAIRS, ids=lambda c: c.__name__)
def test_second_derivatives(kind):
    phi = PHI.clone().requires_grad_()
    net = kind(phi)
    net.solve()

    def twice(z, a):
        (first,) = gradient((z**3).sum() * a, phi, create_graph=True)
        return first, *gradient(first.sin().sum(), phi)

    close(twice(net.z, net.a), twice(*pair(phi)), rtol=1e-8)


def test_hessian_with_respect_to_data():
    x = X.clone().requires_grad_()

    def hessian_row(w):
        (first,) = gradient(w.sum(), x, create_graph=True)
        return gradient(first[1, 2], x)

    net = Ridge(penalty())
    net.solve(x, Y)
    close(hessian_row(net.w), hessian_row(ridge(x, Y, net.penalty.detach())))


def test_forward_mode():
    tangent = torch.tensor(1.0, dtype=f64)
    with torch.autograd.forward_ad.dual_level():
        phi = torch.autograd.forward_ad.make_dual(penalty(), tangent)
        net = Ridge(phi)
        net.solve(X, Y)
        found = torch.autograd.forward_ad.unpack_dual(net.w).tangent
    expected = torch.func.jvp(lambda p: ridge(X, Y, p), (penalty().detach(),), (tangent,))[1]
    close(found.detach(), expected)


def test_torch_func_with_a_module_inside():
    def found(phi):
        net = Ridge(phi)
        net.solve(X, Y)
        return net.w.square().sum()

    def expected(phi):
        return ridge(X, Y, phi).square().sum()

    phi = penalty().detach()
    close(torch.func.grad(found)(phi), torch.func.grad(expected)(phi))
    close(torch.func.hessian(found)(phi), torch.func.hessian(expected)(phi))


WRONG_RESULTS = {
    'too few': (lambda net: (net.z,), ValueError, r"returned 1 tensors for 2 parameters.*\['z', 'a'\]"),
    'bare tensor': (lambda net: net.z, ValueError, 'returned 1 tensors for 2 parameters'),
    'nothing': (lambda net: None, ValueError, 'for 2 parameters'),
    'other shapes': (lambda net: (net.z.sum(), net.a), ValueError, 'shape'),
    'name missing': (lambda net: {'z': net.z}, ValueError, r"keys \['z'\]; expected \['z', 'a'\]"),
    'name unknown': (lambda net: {'z': net.z, 'a': net.a, 'b': net.a}, ValueError, "'b'"),
}


@pytest.mark.parametrize(('result', 'error', 'text'), WRONG_RESULTS.values(), ids=WRONG_RESULTS)
def test_optimality_that_does_not_match_the_parameters(result, error, text):
    class Net(WithTuple):
        def optimality(self):
            return result(self)

    phi = PHI.clone().requires_grad_()
    net = Net(phi)
    net.solve()
    with pytest.raises(error, match=text):
        gradient(net.z.sum(), phi)


@pytest.mark.parametrize('value', [lambda net: net.z, lambda net: 0.0, lambda net: (net.a,)])
def test_objective_that_is_no_scalar(value):
    class Net(Derived):
        def objective(self):
            return value(self)

    net = Net(PHI.clone().requires_grad_())
    with pytest.raises(TypeError, match=r'objective\(\) should return a 0-d tensor'):
        net.optimality()


def test_derived_optimality_is_a_tuple_in_the_order_of_the_parameters():
    net = Derived(PHI.clone().requires_grad_())
    found = net.optimality()
    assert isinstance(found, tuple)
    close(found, gradient(net.loss(), net.z, net.a))
    with torch.no_grad():
        close(net.optimality(), found)
    # It can be differentiated: by phi twice over.
    close(
        gradient(net.optimality()[0].sum(), net.phi),
        gradient(gradient(net.loss(), net.z, create_graph=True)[0].sum(), net.phi),
    )
