# SPDX-License-Identifier: Apache-2.0
"""The main job: its tasks are what they say, and it runs from end to end."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

from tests.examples.omniglot import write_omniglot

mpl.use('agg')
sys.path.insert(0, str(Path(__file__).parents[2] / 'examples'))

import glyphs
import maml


@pytest.fixture(scope='module')
def alphabets():
    return glyphs.hershey_alphabets(drawings=8)


def test_test_glyphs_look_like_no_training_glyph(alphabets):
    """Different scripts, and what they share (the Greek capital alpha is the Latin A) is left out."""
    training, test = alphabets
    assert not {a.name for a in training} & {a.name for a in test}
    assert all(a.name.startswith('latin') for a in training)
    assert sum(len(a.drawings) for a in training) > 500
    assert sum(len(a.drawings) for a in test) > 200
    fonts = glyphs.HersheyFonts()
    latin = glyphs.looks([p for f in glyphs.LATIN_FONTS for p in glyphs.font_glyphs(fonts, f).values()])
    for names in glyphs.TEST_FONTS.values():
        candidates = [p for name in names for p in glyphs.font_glyphs(fonts, name).values()]
        kept = glyphs.looks(glyphs.distinct(candidates, latin))
        assert float((kept @ latin.T).max()) <= glyphs.LOOKS_ALIKE


def test_tasks_are_reproducible_and_have_their_shapes(alphabets):
    def one(seed):
        return glyphs.sample_task(alphabets[1], 5, 1, 3, torch.Generator().manual_seed(seed))

    a, b, c = one(0), one(0), one(1)
    assert torch.equal(a.support, b.support)
    assert torch.equal(a.query, b.query)
    assert not torch.equal(a.support, c.support)
    assert a.support.shape == (5, 1, 20, 20)
    assert a.query.shape == (15, 1, 20, 20)
    assert a.support_labels.tolist() == [0, 1, 2, 3, 4]
    assert a.query_labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert 0.0 <= a.support.min() < a.support.max() <= 1.0
    with pytest.raises(ValueError, match='use fewer ways'):
        glyphs.sample_task(alphabets[1], 5, 1, 50, torch.Generator())


def test_a_query_drawing_is_none_of_the_support(alphabets):
    task = glyphs.sample_task(alphabets[0], 5, 1, 7, torch.Generator().manual_seed(0))
    both = torch.cat([task.support, task.query]).flatten(1)
    assert len(torch.unique(both, dim=0)) == len(both)


def test_a_folder_in_the_layout_of_omniglot(tmp_path):
    write_omniglot(tmp_path, 6)
    training, test = glyphs.omniglot_alphabets(tmp_path)
    assert len(training) == 5
    assert len(test) == 1
    assert not {a.name for a in training} & {a.name for a in test}
    task = glyphs.sample_task(training, 5, 1, 3, torch.Generator().manual_seed(0))
    assert task.query.shape == (15, 1, 20, 20)
    assert task.support.amax() > 0.9, 'ink is 1'
    assert task.support[:, :, 0].amax() == 0.0, 'paper is 0'


def test_one_alphabet_is_too_few(tmp_path):
    write_omniglot(tmp_path, 1)
    with pytest.raises(ValueError, match='one to train on and one to test on'):
        glyphs.omniglot_alphabets(tmp_path)


@pytest.mark.parametrize('inner', ['sgd', 'adam'])
def test_the_main_job_runs_from_end_to_end(inner, tmp_path, capsys):
    folder, picture = tmp_path / 'data', tmp_path / 'maml.png'
    write_omniglot(folder, 5, drawings=18)
    scores = maml.main(
        ['--data', str(folder), '--steps', '2', '--test-tasks', '2', '--tasks-per-batch', '2']
        + ['--inner', inner, '--output', str(picture)]
    )
    assert set(scores) == {'MAML', 'from scratch'}
    assert all(0.0 <= s.mean <= 1.0 for s in scores.values())
    assert mpl.image.imread(picture).ndim == 3
    assert 'accuracy on 2 tasks of held-out alphabets, 5-way 1-shot' in capsys.readouterr().out


def test_meta_training_reaches_the_initial_weights(alphabets):
    """The outer gradient goes through the inner steps: it differs from the gradient at the adapted weights."""
    args = maml.parse(['--inner-lr', '0.05'])
    torch.manual_seed(0)
    net = maml.make_network(5).double()
    task = glyphs.sample_task(alphabets[0], 5, 1, 5, torch.Generator().manual_seed(0))
    task = glyphs.Task(*(x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in task))
    first = list(net.parameters())
    maml.adapt(net, maml.inner_optimizer(net, args), task, 2)
    loss = torch.nn.functional.cross_entropy(net(task.query), task.query_labels)
    through = torch.autograd.grad(loss, first, retain_graph=True)
    ignoring = torch.autograd.grad(loss, list(net.parameters()))
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(through, ignoring, strict=True))
