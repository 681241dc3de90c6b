# SPDX-License-Identifier: Apache-2.0
"""The recorder of bilevel runs: its numbers against closed forms, its page, and its refusals."""

from __future__ import annotations

import math

import matplotlib as mpl
import pytest
import torch

import torchopt
from torchopt.visual import BilevelRecorder

mpl.use('agg')


def test_the_numbers_of_a_run():
    """The norm is that of the tree, and numbers and tensors are alike."""
    recorder = BilevelRecorder()
    recorder.inner(torch.tensor(2.0, requires_grad=True), gradients={'a': torch.tensor([3.0]), 'b': torch.tensor(4.0)})
    recorder.inner(1, step_size=torch.tensor([0.5]))
    recorder.outer(0.25, gradients=torch.tensor([1.0, 0.0]), step_size=0.1)
    recorder.inner(7.0)
    (first, second), (third,) = recorder.inner_steps
    assert first[:2] == (2.0, 5.0) and math.isnan(first.step_size)
    assert second.loss == 1.0 and second.step_size == 0.5 and math.isnan(second.gradient_norm)
    assert recorder.outer_steps[0][:3] == (0.25, 1.0, 0.1)
    assert third.loss == 7.0 and math.isnan(third.kept_bytes)


def test_kept_bytes_are_those_that_are_alive():
    """Of three tensors of 400 bytes one is temporary; views and operations in place create nothing."""
    recorder = BilevelRecorder()
    x, kept = torch.zeros(100), []
    with recorder.memory():
        kept.append((x + 1).view(10, 10)[0])
        (x * 2).add_(1)
        x.mul_(3)
        kept.append(x * 4)
    recorder.inner(0.0)
    assert recorder.inner_steps[0][0].kept_bytes == 800


def test_a_graph_is_kept_and_a_recomputed_one_is_not():
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    x = torch.randn(512, 4)
    kept = {}
    for is_closure in (False, True):
        recorder, optimizer = BilevelRecorder(), torchopt.MetaAdam(net, lr=0.1)
        start = torchopt.extract_state_dict(net)
        for _ in range(2):
            with recorder.memory():
                loss = net(x).square().mean()
                optimizer.step((lambda: net(x).square().mean()) if is_closure else loss)
                loss = loss.detach()
            recorder.inner(loss)
        kept[is_closure] = recorder.inner_steps[0][1].kept_bytes
        torchopt.recover_state_dict(net, start)
    assert 0 < kept[True] < 0.2 * kept[False]


@pytest.mark.parametrize('suffix', ['html', 'png', 'svg'])
def test_the_page(suffix, tmp_path):
    recorder = BilevelRecorder()
    for outer in range(3):
        for inner in range(outer + 1):
            recorder.inner(1 / (inner + 1), gradients=torch.ones(2))
        recorder.outer(float('nan') if outer == 1 else 0.5)
    path = tmp_path / f'run.{suffix}'
    recorder.save(path)
    assert path.stat().st_size > 1000
    if suffix == 'html':
        text = path.read_text(encoding='utf-8')
        assert text.count('<svg') == 1 and text.count('<tr>') == 4
        assert '<td>3</td><td>3</td><td>0.3333</td><td>0.5</td>' in text
        assert 'http-equiv' not in text and '<script' not in text


def test_the_panels():
    recorder = BilevelRecorder()
    recorder.inner(1.0, gradients=torch.ones(1))
    recorder.outer(2.0)
    losses, norms, sizes, kept = recorder.plot().axes
    assert [line.get_ydata()[0] for line in losses.lines if len(line.get_ydata())] == [1.0, 2.0]
    assert norms.get_yscale() == 'log' and losses.get_yscale() == 'linear'
    assert [axis.texts[0].get_text() for axis in (sizes, kept)] == ['not recorded'] * 2


def test_refusals():
    recorder = BilevelRecorder()
    with pytest.raises(ValueError, match='Nothing was recorded'):
        recorder.plot()
    with pytest.raises(TypeError, match=r'loss: a tensor of shape \(2,\)'):
        recorder.inner(torch.ones(2))
    with pytest.raises(TypeError, match='step_size: a str'):
        recorder.outer(1.0, step_size='0.1')
    with pytest.raises(RuntimeError, match=r'torch\.func'):
        torch.func.grad(lambda x: (recorder.inner(x), x)[1])(torch.tensor(1.0))
    assert recorder.inner_steps == recorder.outer_steps == []
