# SPDX-License-Identifier: Apache-2.0
"""Measurements in TensorBoard: written by a SummaryWriter, and read back from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import torchopt

pytestmark = pytest.mark.filterwarnings('ignore')


def test_scalars_arrive(tmp_path: Path) -> None:
    pytest.importorskip('tensorboard', reason='tensorboard is in the extra `integration`', exc_type=ModuleNotFoundError)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    measures: dict[str, Any] = {
        'grad/norm': torchopt.tree.norm,
        'grad/mean norm': torchopt.transform.measure_with_ema(torchopt.tree.norm, 0.5),
    }
    with SummaryWriter(str(tmp_path)) as writer:
        tx = torchopt.chain(torchopt.transform.report(writer.add_scalar, measures, every=2), torchopt.adam(0.1))
        w = torch.tensor([3.0, 4.0], requires_grad=True)
        optimizer = torchopt.Optimizer([w], tx)
        norms = []
        for _ in range(5):
            optimizer.zero_grad()
            (0.5 * w.square().sum()).backward()
            norms.append(w.grad.norm().item())
            optimizer.step()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert sorted(events.Tags()['scalars']) == ['grad/mean norm', 'grad/norm']
    assert [(e.step, e.value) for e in events.Scalars('grad/norm')] == [(i, pytest.approx(norms[i])) for i in (0, 2, 4)]
    assert events.Scalars('grad/mean norm')[0].value == pytest.approx(norms[0])
