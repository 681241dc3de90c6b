# SPDX-License-Identifier: Apache-2.0
"""The examples of implicit gradients run from end to end, and their gradients are those of the problems they state."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
import torch.nn.functional as F

mpl.use('agg')
sys.path.insert(0, str(Path(__file__).parents[2] / 'examples'))

import dataset_distillation
import deep_equilibrium
import glyphs
import hyperparameter_tuning
import imaml

pytestmark = pytest.mark.long


def directional(fun, x, direction, step=1e-5):
    """The derivative along a direction by central differences."""
    with torch.no_grad():
        return (fun(x + step * direction) - fun(x - step * direction)) / (2 * step)


def test_hyperparameter_tuning(tmp_path, capsys):
    picture = tmp_path / 'picture.png'
    shared, tuned = hyperparameter_tuning.main(['--quick', '--output', str(picture)]).values()
    assert tuned.validation < shared.validation < 0.2
    assert min(shared.accuracy, tuned.accuracy) > 0.95
    assert len(set(tuned.penalty.tolist())) == 30
    assert mpl.image.imread(picture).ndim == 3
    assert '30 penalties, gradient' in capsys.readouterr().out


def test_the_gradient_of_the_penalties():
    data = hyperparameter_tuning.load(0)
    log_penalty = torch.full((30,), -4.0, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(hyperparameter_tuning.losses(log_penalty, data)[0], log_penalty)
    direction = torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = directional(lambda p: hyperparameter_tuning.losses(p, data)[0], log_penalty.detach(), direction)
    torch.testing.assert_close(grad @ direction, expected, rtol=1e-5, atol=1e-9)


def test_deep_equilibrium(tmp_path):
    picture = tmp_path / 'picture.png'
    results = deep_equilibrium.main(['--quick', '--output', str(picture)])
    assert list(results) == ['equilibrium', 'unrolled', 'one hidden layer']
    found = {name: r.accuracies[-1] for name, r in results.items()}
    assert found['equilibrium'] > 0.6
    assert found['equilibrium'] == pytest.approx(found['unrolled'], abs=0.02)
    assert mpl.image.imread(picture).ndim == 3


def test_the_equilibrium_layer_has_the_gradient_of_the_unrolled_one():
    generator = torch.Generator().manual_seed(0)
    width = deep_equilibrium.WIDTH
    shapes = {'W': (width, width), 'U': (width, 64), 'b': (width,)}
    weights = {k: (0.2 * torch.randn(s, generator=generator)).requires_grad_() for k, s in shapes.items()}
    x = torch.rand(7, 64, generator=generator)
    gradients = []
    for layer in (deep_equilibrium.equilibrium, deep_equilibrium.unrolled):
        z = layer(torch.zeros(7, width), weights, x)
        gradients.append(torch.autograd.grad(z.sin().sum(), list(weights.values())))
    for implicit, unrolled in zip(*gradients, strict=True):
        torch.testing.assert_close(implicit, unrolled, rtol=2e-3, atol=1e-3 * float(unrolled.abs().max()))


def test_dataset_distillation(tmp_path):
    picture = tmp_path / 'picture.png'
    real, means, distilled = dataset_distillation.main(['--quick', '--output', str(picture)]).values()
    assert distilled.images.shape == (10, 64)
    assert distilled.accuracy > real.accuracy
    assert means.accuracy > 0.8
    assert mpl.image.imread(picture).ndim == 3


def test_the_gradient_of_the_images():
    data = dataset_distillation.load(0)
    generator = torch.Generator().manual_seed(0)
    images, direction = torch.randn(2, 10, 64, dtype=torch.float64, generator=generator) / 4

    def loss(images):
        return F.cross_entropy(data.x @ dataset_distillation.fit(images.new_zeros(64, 10), images), data.y)

    images.requires_grad_()
    (grad,) = torch.autograd.grad(loss(images), images)
    expected = directional(loss, images.detach(), direction)
    torch.testing.assert_close((grad * direction).sum(), expected, rtol=1e-4, atol=1e-8)


@pytest.fixture(scope='module')
def task():
    alphabets = glyphs.hershey_alphabets(drawings=8)[0]
    return glyphs.sample_task(alphabets, 5, 1, 5, torch.Generator().manual_seed(0))


def smooth_network():
    """Where a rectifier has its kink the gradient need not vanish, and gradient descent may never come to rest."""
    torch.manual_seed(0)
    layers = torch.nn.Flatten(), torch.nn.Linear(400, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5)
    return torch.nn.Sequential(*layers).double()


def meta_gradient(form, task, *options):
    net = smooth_network()
    task = task._replace(support=task.support.double(), query=task.query.double())
    adapt = imaml.FORMS[form](net, imaml.parse(list(options)))
    loss = F.cross_entropy(adapt(task)(task.query), task.query_labels)
    grads = torch.autograd.grad(loss, list(net.parameters()))
    assert all(p.grad is None for p in net.parameters()), 'the inner loop leaves nothing behind'
    return torch.cat([g.flatten() for g in grads])


def test_both_forms_of_imaml_are_the_same(task):
    a, b = (meta_gradient(form, task) for form in imaml.FORMS)
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('form', imaml.FORMS)
def test_at_its_end_the_inner_loop_has_the_gradient_of_imaml(form, task):
    """With an inner problem solved to its end, and enough iterations, iMAML is MAML."""
    options = ('--penalty', '2', '--inner-lr', '0.05', '--inner-steps', '200', '--cg-iterations', '60')
    implicit = meta_gradient(form, task, *options)

    net = smooth_network()
    phi = dict(net.named_parameters())
    theta = phi
    for _ in range(100):
        loss = F.cross_entropy(torch.func.functional_call(net, theta, (task.support.double(),)), task.support_labels)
        loss = loss + 1.0 * imaml.squared_distance(theta.values(), phi.values())
        grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {k: p - 0.1 * g for (k, p), g in zip(theta.items(), grads, strict=True)}
    loss = F.cross_entropy(torch.func.functional_call(net, theta, (task.query.double(),)), task.query_labels)
    unrolled = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(phi.values()))])
    torch.testing.assert_close(implicit, unrolled, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('form', imaml.FORMS)
def test_imaml_runs_from_end_to_end(form, tmp_path, capsys):
    picture = tmp_path / 'picture.png'
    scores = imaml.main(['--quick', '--form', form, '--output', str(picture)])
    assert set(scores) == {'iMAML', 'from scratch'}
    assert all(0.0 <= s.mean <= 1.0 for s in scores.values())
    assert mpl.image.imread(picture).ndim == 3
    assert 'accuracy on 4 tasks of held-out alphabets, 5-way 1-shot' in capsys.readouterr().out
