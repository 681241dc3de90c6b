# SPDX-License-Identifier: Apache-2.0
"""The first examples of TorchOpt's README, run as printed with their ellipses filled in.

Between ``fmt: off`` and ``fmt: on`` stand the printed lines; the additions are ``create_graph=True``
in the functional explicit gradient, a star before ``data`` where ``solve`` takes batch and labels,
and ``meta_params`` for ``meta_prams``. What they compute is compared with ``torch.optim``, with
unrolled computations by hand, and with closed forms.
"""
# ruff: noqa: B007, RET504  (variables as printed)

from __future__ import annotations

import functorch
import pytest
import torch
import torch.nn.functional as F
from functorch import make_functional
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchopt
from torchopt.nn import ImplicitMetaGradientModule

# The examples use functorch's make_functional, which PyTorch has and calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:We've integrated functorch:FutureWarning")

STEPS = 4  # batches in the loader, and steps of the inner loops
BETAS, EPS = (0.9, 0.999), 1e-8


class Net(nn.Module):
    """Two layers, the same ones each time."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.hidden = nn.Linear(4, 5, dtype=torch.float64)
            self.out = nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x)))


class Loader(DataLoader):
    """A few batches, the same ones each time; also an iterator, as the examples have it."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        xs = torch.randn(8 * STEPS, 4, dtype=torch.float64, generator=generator)
        super().__init__(TensorDataset(xs, xs[:, :3].argmax(dim=1)), batch_size=8)
        self._batches = None

    def __next__(self):
        self._batches = self._batches or iter(self)
        return next(self._batches)


def trained_by_torch(batches, steps=1):
    """The parameters after ``steps`` epochs of ``torch.optim.Adam``, and the loss of each step."""
    net, losses = Net(), []
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(steps):
        for xs, ys in batches:
            loss = F.cross_entropy(net(xs), ys)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return tuple(net.parameters()), losses


def assert_same(actual, expected):
    torch.testing.assert_close(tuple(actual), tuple(expected), rtol=1e-12, atol=1e-14)


# -- TorchOpt as functional optimizer --------------------------------------------------------------


def test_optax_like_step():
    """One step equals one of ``torch.optim.Adam``."""
    # fmt: off
    net = Net()  # init
    loader = Loader()
    optimizer = torchopt.adam()

    model, params = functorch.make_functional(net)           # use functorch extract network parameters
    opt_state = optimizer.init(params)                       # init optimizer

    xs, ys = next(loader)                                    # get data
    pred = model(params, xs)                                 # forward
    loss = F.cross_entropy(pred, ys)                         # compute loss

    grads = torch.autograd.grad(loss, params)                # compute gradients
    updates, opt_state = optimizer.update(grads, opt_state)  # get updates
    params = torchopt.apply_updates(params, updates)         # update network parameters
    # fmt: on

    expected, losses = trained_by_torch([(xs, ys)])
    assert_same(params, expected)
    assert loss.item() == pytest.approx(losses[0], rel=1e-12)
    assert all(p.is_leaf and p.requires_grad for p in params)  # ready for the next step


def test_optax_like_training_loop():
    """The printed lines in a loop: the loss falls, along the trajectory of ``torch.optim.Adam``."""
    net, loader, optimizer = Net(), Loader(), torchopt.adam()
    model, params = functorch.make_functional(net)
    opt_state = optimizer.init(params)
    losses = []
    for _ in range(25):
        for xs, ys in loader:
            loss = F.cross_entropy(model(params, xs), ys)
            grads = torch.autograd.grad(loss, params)
            updates, opt_state = optimizer.update(grads, opt_state)
            params = torchopt.apply_updates(params, updates)
            losses.append(loss.item())

    expected, expected_losses = trained_by_torch(loader, steps=25)
    assert_same(params, expected)
    assert losses == pytest.approx(expected_losses, rel=1e-12)
    assert sum(losses[-STEPS:]) < 0.95 * sum(losses[:STEPS])


def test_func_optimizer():
    """An epoch equals one of ``torch.optim.Adam``."""
    # fmt: off
    net = Net()  # init
    loader = Loader()
    optimizer = torchopt.FuncOptimizer(torchopt.adam())      # wrap with `torchopt.FuncOptimizer`

    model, params = functorch.make_functional(net)           # use functorch extract network parameters

    for xs, ys in loader:                                    # get data
        pred = model(params, xs)                             # forward
        loss = F.cross_entropy(pred, ys)                     # compute loss

        params = optimizer.step(loss, params)                # update network parameters
    # fmt: on

    assert_same(params, trained_by_torch(loader)[0])


def test_pytorch_like():
    """One step equals one of ``torch.optim.Adam``."""
    # fmt: off
    net = Net()  # init
    loader = Loader()
    optimizer = torchopt.Adam(net.parameters())

    xs, ys = next(loader)             # get data
    pred = net(xs)                    # forward
    loss = F.cross_entropy(pred, ys)  # compute loss

    optimizer.zero_grad()             # zero gradients
    loss.backward()                   # backward
    optimizer.step()                  # step updates
    # fmt: on

    assert_same(net.parameters(), trained_by_torch([(xs, ys)])[0])


# -- TorchOpt for differentiable optimization: explicit gradient ---------------------------------


@pytest.fixture
def problem():
    """A weight in the inner loss is meta: batches for inner and outer loss, and both losses."""
    loader = Loader()
    (xs, ys), (val_xs, val_ys) = next(loader), next(loader)

    def inner(predict, params, meta_params):
        penalty = sum(p.square().sum() for p in params)
        return F.cross_entropy(predict(xs), ys) + meta_params.exp() * penalty

    def outer(predict):
        return F.cross_entropy(predict(val_xs), val_ys)

    return inner, outer


def outer_loss_by_hand(problem, meta_params):
    """The outer loss after ``STEPS`` steps of Adam, written out in plain torch."""
    inner, outer = problem
    (b1, b2), net = BETAS, Net()
    names, params = zip(*net.named_parameters())

    def predict(x):
        return torch.func.functional_call(net, dict(zip(names, params)), (x,))

    mu = [torch.zeros_like(p) for p in params]
    nu = [torch.zeros_like(p) for p in params]
    for t in range(1, STEPS + 1):
        loss = inner(predict, params, meta_params)
        grads = torch.autograd.grad(loss, params, create_graph=True)
        mu = [b1 * m + (1 - b1) * g for m, g in zip(mu, grads)]
        nu = [b2 * v + (1 - b2) * g**2 for v, g in zip(nu, grads)]
        steps = [(m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + EPS) for m, v in zip(mu, nu)]
        params = tuple(p - 1e-3 * s for p, s in zip(params, steps))
    return outer(predict)


def check_meta_gradient(problem, loss, meta_grads, meta_params):
    """Compare with the computation by hand, differentiated by torch and by differences."""
    by_hand = meta_params.detach().clone().requires_grad_()
    expected = outer_loss_by_hand(problem, by_hand)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(expected, by_hand)
    assert abs(gradient.item()) > 1e-6  # the comparison would otherwise say nothing
    torch.testing.assert_close(meta_grads, gradient, rtol=1e-10, atol=0)
    h = 1e-4
    up, down = (outer_loss_by_hand(problem, (meta_params + s).detach()).item() for s in (h, -h))
    assert meta_grads.item() == pytest.approx((up - down) / (2 * h), rel=1e-5)


def test_explicit_gradient_functional(problem):
    """The functional API."""
    inner, outer = problem
    model, iter_times = Net(), STEPS

    def inner_loss(fmodel, params, meta_params):
        return inner(lambda x: fmodel(params, x), params, meta_params)

    def outer_loss(fmodel, params, meta_params):
        return outer(lambda x: fmodel(params, x))

    # fmt: off
    # Define functional optimizer
    optimizer = torchopt.adam()
    # Define meta and inner parameters
    meta_params = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    fmodel, params = make_functional(model)
    # Initial state
    state = optimizer.init(params)

    for iter in range(iter_times):
        loss = inner_loss(fmodel, params, meta_params)
        grads = torch.autograd.grad(loss, params, create_graph=True)
        # Apply non-inplace parameter update
        updates, state = optimizer.update(grads, state, inplace=False)
        params = torchopt.apply_updates(params, updates)

    loss = outer_loss(fmodel, params, meta_params)
    meta_grads = torch.autograd.grad(loss, meta_params)
    # fmt: on

    check_meta_gradient(problem, loss, meta_grads[0], meta_params)
    # A differentiable loop leaves alone what it began with.
    assert_same(model.parameters(), Net().parameters())


def test_explicit_gradient_oop(problem):
    """The object-oriented API."""
    inner, outer = problem
    iter_times = STEPS

    def inner_loss(model, meta_params):
        return inner(model, list(model.parameters()), meta_params)

    def outer_loss(model, meta_params):
        return outer(model)

    # fmt: off
    # Define meta and inner parameters
    meta_params = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    model = Net()
    # Define differentiable optimizer
    optimizer = torchopt.MetaAdam(model)  # a model instance as the argument instead of model.parameters()

    for iter in range(iter_times):
        # Perform inner update
        loss = inner_loss(model, meta_params)
        optimizer.step(loss)

    loss = outer_loss(model, meta_params)
    loss.backward()
    # fmt: on

    check_meta_gradient(problem, loss, meta_params.grad, meta_params)


# -- TorchOpt for differentiable optimization: implicit gradient ---------------------------------

LINEAR_SOLVERS = {
    'conjugate gradient': torchopt.linear_solve.solve_cg(rtol=1e-12),
    'Neumann series': torchopt.linear_solve.solve_inv(ns=True, maxiter=400, alpha=0.05),
    'unspecified': None,
}
each_linear_solver = pytest.mark.parametrize('linear_solver', LINEAR_SOLVERS.values(), ids=LINEAR_SOLVERS)


def regression():
    """Inputs and targets of a linear regression."""
    generator = torch.Generator().manual_seed(2)
    xs = torch.randn(12, 4, dtype=torch.float64, generator=generator)
    return xs, torch.tanh(xs.sum(dim=1))


def check_implicit_gradient(loss, meta_grads, meta_params, outer_loss, linear_solver):
    """Ridge regression, with a penalty for each weight, has a solution that torch differentiates."""
    xs, ys = regression()
    by_hand = meta_params.detach().clone().requires_grad_()
    expected = outer_loss(torch.linalg.solve(xs.mT @ xs + torch.diag(by_hand.exp()), xs.mT @ ys))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad(expected, by_hand)
    assert gradient.abs().min() > 1e-4
    tolerance = 1e-4 if linear_solver is None else 1e-7  # of the default solver
    torch.testing.assert_close(meta_grads, (gradient,), rtol=tolerance, atol=tolerance * 1e-2)
    assert meta_params.grad is None


@each_linear_solver
def test_implicit_gradient_functional(linear_solver):
    """The functional API."""

    def outer_loss(params):
        return (params - 1).square().sum()

    # fmt: off
    # The stationary condition for the inner-loop
    def stationary(params, meta_params, data):
        # Stationary condition construction
        xs, ys = data
        return xs.mT @ (xs @ params - ys) + meta_params.exp() * params

    # Decorator for wrapping the function
    # Optionally specify the linear solver (conjugate gradient or Neumann series)
    @torchopt.diff.implicit.custom_root(stationary, solve=linear_solver)
    def solve(params, meta_params, data):
        # Forward optimization process for params
        optimizer = torchopt.sgd(lr=0.05)
        state = optimizer.init(params)
        for _ in range(600):
            updates, state = optimizer.update(stationary(params, meta_params, data), state)
            params = torchopt.apply_updates(params, updates)
        output = params
        return output

    # Define params, meta_params and get data
    params, meta_params, data = torch.zeros(4).double(), torch.linspace(-1, 1, 4).double(), regression()
    meta_params.requires_grad_()
    optimal_params = solve(params, meta_params, data)
    loss = outer_loss(optimal_params)

    meta_grads = torch.autograd.grad(loss, meta_params)
    # fmt: on

    check_implicit_gradient(loss, meta_grads, meta_params, outer_loss, linear_solver)
    assert not params.any()  # the solver trained a copy


@pytest.mark.parametrize('derived', [False, True], ids=['optimality', 'objective'])
@each_linear_solver
def test_implicit_gradient_oop(linear_solver, derived):
    """The object-oriented API."""

    def outer_loss(net):
        weights = net.weight if isinstance(net, nn.Module) else net
        return (weights - 1).square().sum()

    # fmt: off
    # Inherited from the class ImplicitMetaGradientModule
    # Optionally specify the linear solver (conjugate gradient or Neumann series)
    class InnerNet(ImplicitMetaGradientModule, linear_solve=linear_solver):
        def __init__(self, meta_param):
            super().__init__()
            self.meta_param = meta_param
            self.weight = nn.Parameter(torch.zeros(4).double())

        def forward(self, batch):
            # Forward process
            return batch @ self.weight

        if not derived:
            def optimality(self, batch, labels):
                # Stationary condition construction for calculating implicit gradient
                # NOTE: If this method is not implemented, it will be automatically
                # derived from the gradient of the `objective` function.
                return (batch.mT @ (self(batch) - labels) + self.meta_param.exp() * self.weight,)

        def objective(self, batch, labels):
            # Define the inner-loop optimization objective
            penalty = (self.meta_param.exp() * self.weight.square()).sum()
            return (F.mse_loss(self(batch), labels, reduction='sum') + penalty) / 2

        def solve(self, batch, labels):
            # Conduct the inner-loop optimization
            optimizer = torchopt.SGD(self.parameters(), lr=0.05)
            for _ in range(600):
                loss = self.objective(batch, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return self

    # Get meta_params and data
    meta_params, data = torch.linspace(-1, 1, 4).double().requires_grad_(), regression()
    inner_net = InnerNet(meta_params)

    # Solve for inner-loop process related to the meta-parameters
    optimal_inner_net = inner_net.solve(*data)

    # Get outer loss and solve for meta-gradient
    loss = outer_loss(optimal_inner_net)
    meta_grads = torch.autograd.grad(loss, meta_params)
    # fmt: on

    assert optimal_inner_net is inner_net
    check_implicit_gradient(loss, meta_grads, meta_params, outer_loss, linear_solver)


# -- TorchOpt for differentiable optimization: zero-order gradient -------------------------------

METHODS = ['naive', 'forward', 'antithetic']


def bowl(params, batch, labels):
    """A quadratic in the parameters, whose smoothed gradient is its gradient."""
    return F.mse_loss(batch @ params, labels)


@pytest.mark.parametrize('method', METHODS)
def test_zero_order_gradient_functional(method):
    # Distribution can also be an instance of `torch.distributions.Distribution`,
    # e.g., `torch.distributions.Normal(...)`
    distribution = torch.distributions.Normal(loc=0, scale=1)

    # Specify method and hyper-parameter of ES
    @torchopt.diff.zero_order(distribution, method, num_samples=20_000, sigma=0.3, seed=0)
    def forward(params, batch, labels):
        # Forward process
        objective = bowl(params, batch, labels)
        return objective  # the returned tensor should be a scalar tensor

    batch, labels = regression()
    params = torch.linspace(-1, 1, 4).double().requires_grad_()
    loss = forward(params, batch, labels)
    torch.testing.assert_close(loss, bowl(params, batch, labels))
    (found,) = torch.autograd.grad(loss, params)
    (expected,) = torch.autograd.grad(bowl(params, batch, labels), params)
    # The naive estimate has a variance of about f(x)^2 / sigma^2 / n.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.3 if method == 'naive' else 0.06)


@pytest.mark.parametrize('method', METHODS)
def test_zero_order_gradient_oop(method):
    num_samples, sigma = 20_000, 0.3

    # Inherited from the class ZeroOrderGradientModule
    # Optionally specify the `method` and/or `num_samples` and/or `sigma` used for sampling
    class Net(torchopt.nn.ZeroOrderGradientModule, method=method, num_samples=num_samples, sigma=sigma):
        def __init__(self, labels):
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-1, 1, 4).double())
            self.labels = labels

        def forward(self, batch):
            # Forward process
            objective = bowl(self.weight, batch, self.labels)
            return objective  # the returned tensor should be a scalar tensor

        def sample(self, sample_shape=torch.Size()):  # noqa: B008  # as printed
            # Generate a batch of noise samples
            # NOTE: The distribution should be spherical symmetric and with a constant variance of 1.
            noise_batch = torch.randn(sample_shape)
            return noise_batch

    # Get model and data
    data, labels = regression()
    net = Net(labels)

    # Forward pass
    loss = net(data)
    # Backward pass using zero-order differentiation
    grads = torch.autograd.grad(loss, net.parameters())

    (expected,) = torch.autograd.grad(bowl(net.weight, data, labels), net.weight)
    torch.testing.assert_close(grads[0], expected, rtol=0, atol=0.3 if method == 'naive' else 0.06)
