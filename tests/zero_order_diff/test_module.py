# SPDX-License-Identifier: Apache-2.0
"""ZeroOrderGradientModule, and the names under which TorchOpt 0.7.3 has all this."""

from __future__ import annotations

import abc
import copy
import importlib
import pickle

import pytest
import torch
from torch import Tensor, nn

from torchopt.nn.zero_order_module import ZeroOrderGradientModule, enable_zero_order_gradients
from torchopt.typing import Samplable
from torchopt.zero_order_diff import zero_order

BATCH = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])


class Net(ZeroOrderGradientModule, method='antithetic', num_samples=2000, sigma=0.1, seed=0):
    """The loss is the mean square of a linear function."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.linear.weight.fill_(1.0)

    def forward(self, batch: Tensor, scale: float = 1.0) -> Tensor:
        return scale * self.linear(batch).square().mean()

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return torch.randn(sample_shape)


class Inherits(Net):
    pass


class OtherOptions(Net, num_samples=1, method='naive'):
    pass


class Twice(Net):
    def forward(self, batch: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(batch, scale=2 * scale)


class Gaussian(Net, num_samples=50_000):
    sample = torch.distributions.Normal(0.0, 1.0).sample


def true_gradient(net: Net) -> Tensor:
    return 2 * (BATCH.T @ BATCH @ net.linear.weight.detach().T).T / 3


def estimate(net: nn.Module, *args, **kwargs) -> Tensor:
    return torch.autograd.grad(net(*args, **kwargs), net.linear.weight)[0]


@pytest.mark.parametrize(('cls', 'scale'), [(Net, 1.0), (Inherits, 1.0), (Twice, 2.0), (Gaussian, 1.0)])
def test_gradients(cls: type[Net], scale: float) -> None:
    """Also of a concrete module's subclass, with and without a forward of its own (Q14), and with keywords."""
    net = cls()
    assert net(BATCH) == scale * net.linear(BATCH).square().mean()
    assert torch.allclose(estimate(net, BATCH), scale * true_gradient(net), atol=0.5 * scale)
    assert torch.allclose(estimate(net, batch=BATCH, scale=3.0), 3 * scale * true_gradient(net), atol=1.5 * scale)


def test_options_are_inherited_and_can_be_given_anew() -> None:
    objective = zero_order(torch.randn, num_samples=1, sigma=0.1, seed=0)(
        lambda w: torch.nn.functional.linear(BATCH, w).square().mean()
    )
    w = torch.ones(1, 2, requires_grad=True)
    assert torch.allclose(estimate(OtherOptions(), BATCH), torch.autograd.grad(objective(w), w)[0], rtol=1e-4)
    assert torch.equal(estimate(Inherits(), BATCH), estimate(Net(), BATCH))


def test_calling_the_overridden_forward_costs_no_nested_estimates() -> None:
    calls = []

    class Counts(Net, num_samples=3, vectorize=False):
        def forward(self, batch: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(batch)

    net = Counts()
    net(BATCH).backward()
    assert len(calls) == 1 + 2 * 3
    assert net.linear.weight.grad is not None


@pytest.mark.parametrize('kind', [Gaussian, Net], ids=['by identity', 'by autograd'])
def test_second_derivatives(kind) -> None:
    net = kind()
    (g,) = torch.autograd.grad(net(BATCH), net.linear.weight, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), net.linear.weight)
    assert torch.allclose(h, 2 * (BATCH.T @ BATCH).sum(0, keepdim=True) / 3, atol=1.0)


class WithBuffers(Net, num_samples=4):
    def __init__(self) -> None:
        super().__init__()
        self.tied = self.linear
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.norm = nn.BatchNorm1d(1)

    def forward(self, batch: Tensor) -> Tensor:
        assert self.tied.weight is self.linear.weight
        return self.norm(self.linear(batch)).abs().mean() * self.frozen.sum()


def test_buffers_are_written_once_and_parameters_come_back() -> None:
    """Batch normalization does not average over the perturbed networks; tied and frozen weights stay so."""
    net, plain = WithBuffers(), nn.BatchNorm1d(1)
    before = dict(net.named_parameters())
    for _ in range(2):
        net(BATCH).backward()
        plain(net.linear(BATCH))
    assert net.norm.num_batches_tracked == 2
    assert torch.equal(net.norm.running_mean, plain.running_mean)
    assert torch.equal(net.norm.running_var, plain.running_var)
    assert all(p is before[name] for name, p in net.named_parameters())
    assert net.frozen.grad is None
    assert net.linear.weight.grad.shape == (1, 2)


def test_a_black_box_module_is_found_out_once() -> None:
    batched = []

    class BlackBox(Net, num_samples=2):
        def forward(self, batch: Tensor) -> Tensor:
            batched.append(torch._C._functorch.is_batchedtensor(self.linear.weight))
            return torch.tensor(float(self.linear.weight.detach().numpy().sum()))

    net = BlackBox()
    for _ in range(2):
        net(BATCH).backward()
    assert batched == [False, True] + [False] * 4 + [False] * 5
    copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(Net()))]
    for other in copies:
        other.zero_grad()
        other(BATCH).backward()
        assert other.linear.weight.grad is not None


def test_functional_call_and_compile() -> None:
    net = Net()
    params = {name: p.detach() for name, p in net.named_parameters()}
    grads = torch.func.grad(lambda p: torch.func.functional_call(net, p, (BATCH,)))(params)
    assert torch.allclose(grads['linear.weight'].detach(), estimate(net, BATCH))
    assert torch.allclose(estimate_compiled(net), estimate(net, BATCH))


def estimate_compiled(net: Net) -> Tensor:
    compiled = torch.compile(net, backend='aot_eager')
    return torch.autograd.grad(compiled(BATCH), net.linear.weight)[0]


def test_what_is_missing() -> None:
    class NoSample(ZeroOrderGradientModule):
        def forward(self) -> Tensor:
            return torch.zeros(())

    class NoForward(ZeroOrderGradientModule):
        def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
            return torch.randn(sample_shape)

    for cls in (ZeroOrderGradientModule, NoSample, NoForward):
        with pytest.raises(TypeError, match="Can't instantiate abstract class"):
            cls()

    class NoParameters(NoSample):
        sample = NoForward.sample

    with pytest.raises(RuntimeError, match=r'The module has no parameters\.'):
        NoParameters()()

    class StillAbstract(ZeroOrderGradientModule):
        @abc.abstractmethod
        def forward(self, x: Tensor) -> Tensor:
            """To be defined."""

    assert not hasattr(StillAbstract.forward, '__zero_order_gradients_enabled__')


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        ({'sigma': -1.0}, ValueError, 'Invalid sigma'),
        ({'method': 'best'}, ValueError, 'Invalid method'),
        ({'samples': 3}, TypeError, "unknown class keyword, 'samples'; expected some of method, num_samples"),
        ({'executor': 3}, TypeError, "unknown class keyword, 'executor'.*decorate a function with torchopt.diff"),
    ],
)
def test_bad_class_keywords(options, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        type('Bad', (Net,), {}, **options)


def test_enabling_by_hand() -> None:
    assert Net.forward.__zero_order_gradients_enabled__
    with pytest.raises(
        TypeError, match=r'Zero-order gradient estimation is already enabled for the `forward` method\.'
    ):
        enable_zero_order_gradients(Net, 'naive', 1, 1.0)
    net = Net()
    Net.forward, wrapped = Net.forward.__wrapped__, Net.forward
    try:
        assert enable_zero_order_gradients(Net, 'antithetic', 2000, 0.1) is Net
        assert torch.allclose(estimate(net, BATCH), true_gradient(net), atol=0.5)
    finally:
        Net.forward = wrapped


def test_names_of_0_7_3() -> None:
    """The module is callable, and has the submodules nn and decorator."""
    module = importlib.import_module('torchopt.diff.zero_order')
    assert module.zero_order is zero_order
    assert module.decorator.zero_order is zero_order
    assert module.ZeroOrderGradientModule is module.nn.ZeroOrderGradientModule is ZeroOrderGradientModule
    assert module.nn.module.enable_zero_order_gradients is enable_zero_order_gradients
    assert {'zero_order', 'ZeroOrderGradientModule'} <= set(module.__all__)
    x = torch.ones(2, requires_grad=True)
    loss = module(torch.distributions.Normal(loc=0, scale=1), 'forward', 0, 500, sigma=0.1)(lambda x: x.square().sum())
    assert torch.allclose(torch.autograd.grad(loss(x), x)[0], torch.full((2,), 2.0), atol=0.6)
    assert isinstance(Net(), Samplable)
