# SPDX-License-Identifier: Apache-2.0
"""The examples in functions, batched by `vmap` or as one tensor: each checks its claim on a small setting too."""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium
import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

mpl.use('agg')
sys.path.insert(0, str(Path(__file__).parents[2] / 'examples'))

import data_weights
import ensemble_vmap
import lola
import maml_rl
import maml_rl_pendulum
import maml_vmap
import mgrl
import mgrl_cartpole
import reweight

import torchopt

# The claims are assertions at the end of `main`.
EXAMPLES = {
    'data_weights': (data_weights, ['--quick']),
    'ensemble_vmap': (ensemble_vmap, ['--quick']),
    'lola': (lola, ['--quick', '--steps', '60', '--pairs', '8']),
    'maml_rl': (maml_rl, ['--quick']),
    'maml_rl_pendulum': (maml_rl_pendulum, ['--quick', '--steps', '20', '--tasks-per-batch', '12']),
    'maml_vmap': (maml_vmap, ['--quick']),
    'mgrl': (mgrl, ['--quick', '--steps', '70']),
    'mgrl_cartpole': (mgrl_cartpole, ['--quick']),
    'reweight': (reweight, ['--quick']),
}


@pytest.mark.long
@pytest.mark.parametrize('name', EXAMPLES)
def test_claim(name, tmp_path, capsys):
    module, options = EXAMPLES[name]
    picture = tmp_path / f'{name}.png'
    module.main([*options, '--output', str(picture)])
    assert mpl.image.imread(picture).ndim == 3
    assert 'picture: ' in capsys.readouterr().out


def test_returns_of_known_policies():
    """Two who always cooperate, two who always defect, and one of each."""
    yes, no = torch.full((5,), 50.0), torch.full((5,), -50.0)
    for first, second, expected in ((yes, yes, (-1, -1)), (no, no, (-2, -2)), (yes, no, (-3, 0)), (no, yes, (0, -3))):
        torch.testing.assert_close(torch.stack(lola.returns(first, second, 0.9)), torch.tensor(expected).float())


def test_tit_for_tat_answers_one_round_later():
    """Tit-for-tat loses the first round against a defector, and defects from then on."""
    tit_for_tat, defect = torch.tensor([50.0, 50.0, -50.0, 50.0, -50.0]), torch.full((5,), -50.0)
    own, other = lola.returns(tit_for_tat, defect, 0.5)
    torch.testing.assert_close(own, torch.tensor(0.5 * -3 + 0.5 * -2))
    torch.testing.assert_close(other, torch.tensor(0.5 * 0 + 0.5 * -2))


def test_returns_of_traces():
    """With lambda 1 the sum of all rewards and the last value; with lambda 0 one reward and the next value."""
    values, rewards = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[0.1, 0.2, 0.3]]])
    half = torch.tensor(0.5)
    far = mgrl.returns(values, rewards, half, torch.tensor(1.0))
    torch.testing.assert_close(far[0, 0, 0], torch.tensor(0.1 + 0.5 * 0.2 + 0.25 * 0.3 + 0.125 * 3.0))
    torch.testing.assert_close(mgrl.returns(values, rewards, half, torch.tensor(0.0)), rewards + 0.5 * values)


def test_the_recomputed_gradient_of_the_weights_is_the_unrolled_one():
    args = data_weights.parse(['--quick', '--inner-steps', '3'])
    corpus = data_weights.load(args)
    net, params, order = data_weights.fresh(args, 0)
    found = []
    for args.unrolled in (False, True):
        logits = torch.zeros(args.pieces, requires_grad=True)
        with sdpa_kernel(SDPBackend.MATH):
            trained = data_weights.train(net, params, logits, order, corpus, args)
            found += torch.autograd.grad(data_weights.losses(net, trained, corpus.validation).mean(), logits)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-8)
    assert found[0].abs().sum() > 0


def test_returns_end_with_the_episode():
    """Nothing flows over the end: a fall is worth its reward alone, a time limit the next value as well."""
    values, rewards = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1), torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    goes_on, is_last = torch.tensor([True, False, True]), torch.tensor([False, True, True])
    data = mgrl_cartpole.Play(None, None, rewards, goes_on.view(3, 1, 1), is_last.view(3, 1, 1), None)
    found = mgrl_cartpole.returns(values, data, torch.tensor(0.5), torch.tensor(1.0))
    torch.testing.assert_close(found.flatten(), torch.tensor([0.1 + 0.5 * 0.2, 0.2, 0.3 + 0.5 * 3.0]))


def test_the_pendulums_are_those_of_gymnasium():
    own = maml_rl_pendulum.Pendulums(np.array([1.0, -2.0]))
    observations, _ = own.reset(seed=0)
    assert own.observation_space.contains(observations)
    theirs = [gymnasium.make('Pendulum-v1', g=maml_rl_pendulum.GRAVITY).unwrapped for _ in range(2)]
    for i, env in enumerate(theirs):
        env.reset()
        env.state = own.angle[i], own.speed[i]
    for torque in 1.5, -3.0, 0.2:
        observations, rewards, *_ = own.step(np.full((2, 1), torque))
        expected = [env.step(np.array([torque]))[0] for env in theirs]
        np.testing.assert_allclose(observations, expected, rtol=1e-6)
        np.testing.assert_allclose(rewards, [-abs(e[2] - g) for e, g in zip(expected, own.goals, strict=True)], 1e-5)


def test_weights_are_a_distribution_and_zero_for_harmful_labels():
    """To a network that knows a little: a right label gets weight, the same image with a wrong one none."""
    generator = torch.Generator().manual_seed(0)
    data, _ = reweight.split(0, {0: 20, 1: 20}, test=10)
    start = {name: p[0] for name, p in ensemble_vmap.initialize(1, generator).items()}
    sgd = torchopt.sgd(0.5)
    for _ in range(10):
        grads = torch.func.grad(lambda p: reweight.losses(p, data.clean_images, data.clean_labels).mean())(start)
        start = torchopt.apply_updates(start, sgd.update(grads, sgd.init(start))[0])
    images, labels = data.clean_images.repeat(2, 1), data.clean_labels.repeat(2)
    labels[len(data.clean_labels) :] = 1 - labels[len(data.clean_labels) :]
    weights = reweight.learned_weights(start, images, labels, data, 0.1)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    assert (weights >= 0).all()
    right, wrong = weights.split(len(data.clean_labels))
    assert right.sum() > 10 * wrong.sum()
