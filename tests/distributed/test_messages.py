# SPDX-License-Identifier: Apache-2.0
"""What a message between processes carries: every tensor with its values, its layout and memory of its own."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from torchopt.distributed.message import Message, pack, unpack


def tensors() -> dict[str, list[torch.Tensor]]:
    return {
        'one': [torch.randn(3)],
        'several': [torch.randn(2, 3), torch.randn(4)],
        'a number and nothing': [torch.tensor(1.5), torch.zeros(0, 3), torch.randn(1)],
        'dtypes': [torch.randn(2, dtype=t) for t in (torch.float32, torch.float64, torch.bfloat16, torch.float16) * 2],
        'others': [torch.arange(3), torch.arange(2), torch.tensor([True]), torch.tensor([1j]), torch.randn(2)],
        'strides': [torch.randn(2, 3).t(), torch.randn(3, 1).expand(3, 4), torch.randn(4)[::2], torch.randn(3)],
        'channels last': [
            torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last),
            torch.randn(2),
            torch.randn(2),
        ],
        'large': [torch.randn(70000), torch.randn(2), torch.randn(70000), torch.randn(3)],
        'sparse': [torch.eye(2).to_sparse(), torch.randn(2), torch.randn(2)],
        'parameters': [
            nn.Parameter(torch.randn(2)),
            torch.randn(3, requires_grad=True),
            nn.Parameter(torch.randn(2), False),
        ],
        'NaN': [torch.tensor([float('nan'), -0.0]), torch.tensor(float('-inf'))],
    }


def sent(message: Message) -> Message:
    return pickle.loads(pickle.dumps(message))


@pytest.mark.parametrize('name', tensors())
def test_tensors_arrive(name: str) -> None:
    given = tensors()[name]
    found, _ = unpack(sent(pack(given)[0]))
    for x, y in zip(given, found, strict=True):
        torch.testing.assert_close(y, x, rtol=0, atol=0, equal_nan=True, check_stride=x.layout == torch.strided)
        assert type(x) is type(y) and x.requires_grad == y.requires_grad
        if x.dtype.is_floating_point and x.layout == torch.strided:
            assert torch.equal(y.signbit(), x.signbit())


def test_small_tensors_are_sent_as_one() -> None:
    message, _ = pack([torch.randn(2), torch.randn(3, 3), torch.randn(2)])
    *_, joined = message.__reduce__()[1]
    assert [x.shape for x in joined.values()] == [(13,)]
    assert all(isinstance(x, torch.Tensor) for x in message.parts)  # the message itself is as before


def test_tensors_that_arrive_together_are_independent() -> None:
    """A write to one neither changes another nor its version, by which a worker recognizes its arguments."""
    (x, y), _ = unpack(sent(pack([torch.ones(2), torch.ones(3)])[0]))
    version = y._version
    x.add_(1.0)
    assert y._version == version and torch.equal(y, torch.ones(3))
    assert x.untyped_storage().nbytes() == x.nbytes and y.untyped_storage().nbytes() == y.nbytes


@pytest.mark.parametrize('attributes', [{}, {'_metadata': 1}], ids=['plain', 'with attributes'])
@pytest.mark.parametrize('items', [{}, {'b': 2, 'a': 1}], ids=['empty', 'filled'])
def test_ordered_dicts_arrive(items: dict[str, Any], attributes: dict[str, Any]) -> None:
    original = OrderedDict(items)
    vars(original).update(attributes)
    (first, second), _ = unpack(sent(pack([original, original])[0]))
    assert type(first) is OrderedDict and first is second
    assert list(first.items()) == list(original.items()) and vars(first) == attributes


def test_ordered_dicts_that_are_filled_while_they_are_read() -> None:
    """A dict that contains itself."""
    original: OrderedDict[str, Any] = OrderedDict()
    original['self'] = original
    found, _ = unpack(sent(pack(original)[0]))
    assert found['self'] is found


def test_a_module_arrives() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2), nn.Linear(2, 2))
    found, _ = unpack(sent(pack(net)[0]))
    assert repr(found) == repr(net)
    for (name, x), (other, y) in zip(net.state_dict().items(), found.state_dict().items(), strict=True):
        assert name == other and torch.equal(x, y)
    expected, buffer = io.BytesIO(), io.BytesIO()
    torch.save(net.state_dict(), expected), torch.save(found.state_dict(), buffer)
    assert len(buffer.getvalue()) == len(expected.getvalue())  # no tensor holds the memory of the others
