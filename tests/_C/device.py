# SPDX-License-Identifier: Apache-2.0
"""Helpers of the tests of the CUDA kernels: when they can run, and copies between devices."""

from __future__ import annotations

import pytest
import torch

import torchopt
from tests._C.cases import assert_same

needs_cuda = pytest.mark.skipif(
    not torchopt.accelerated_op_available('cuda'),
    reason='no CUDA device, or a build without TORCHOPT_CUDA=ON: the CUDA kernels are untested here',
)
DEVICE = 'cuda'


def moved_to(device, *columns_of):
    """Copies on the device, with the same strides."""
    return [
        None if column is None else [torch.empty_like(x, device=device).copy_(x) for x in column]
        for column in columns_of
    ]


def on_device(g, moments, p, device=DEVICE):
    g, p, *moments = moved_to(device, g, p, *moments)
    return g, moments, p


def assert_same_there(actual, wanted, tolerance):
    assert all(x is None or x.device.type == DEVICE for x in actual)
    assert_same([None if x is None else x.cpu().double() for x in actual],
                [None if y is None else y.cpu().double() for y in wanted], tolerance)  # fmt: skip
