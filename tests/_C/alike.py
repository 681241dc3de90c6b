# SPDX-License-Identifier: Apache-2.0
"""Steps of optimizers on unusual tensors, for which the engine must agree with plain torch."""

from __future__ import annotations

import pytest
import torch

import torchopt
from tests._C.cases import assert_same, plain_torch
from torchopt import tree

MAKERS = {
    'adam': lambda **o: torchopt.adam(0.1, weight_decay=0.1, **o),
    'sgd': lambda: torchopt.sgd(0.1, momentum=0.9),
    'rmsprop': lambda: torchopt.rmsprop(0.1, momentum=0.9, centered=True),
    'adagrad': lambda: torchopt.adagrad(0.1),
}
each_maker = pytest.mark.parametrize('make', MAKERS.values(), ids=MAKERS)


def steps(make, params, grads, inplace=False, count=2):
    tx = make()
    state = tx.init(params)
    for _ in range(count):
        updates, state = tx.update(grads, state, params, inplace=inplace)
        params = torchopt.apply_updates(params, updates)
    return params, updates, state


def outcome(act):
    """The leaves of a result, or the error and its message."""
    try:
        return tree.leaves(act())
    except Exception as error:
        return type(error), str(error)


def assert_alike(act, *, raises=False, tolerance=1e-6):
    """Require that the engine and plain torch agree, including error messages."""
    found = outcome(act)
    with plain_torch():
        wanted = outcome(act)
    assert isinstance(wanted, tuple) == raises, wanted
    if raises:
        assert found == wanted
    else:
        assert isinstance(found, list), found
        assert [type(x) for x in found] == [type(y) for y in wanted]
        assert [(x.shape, x.dtype, x.device) for x in found] == [(y.shape, y.dtype, y.device) for y in wanted]
        if all(x.device.type == 'cpu' and type(x) is torch.Tensor and not x.is_complex() for x in found):
            assert_same(found, wanted, tolerance)
        return found
    return None
