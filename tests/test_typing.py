# SPDX-License-Identifier: Apache-2.0
"""The types that TorchOpt 0.7.3 names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torchopt.typing as types
from torchopt import base

NAMES = [
    'GradientTransformation',
    'ChainedGradientTransformation',
    'EmptyState',
    'UninitializedState',
    'Params',
    'Updates',
    'OptState',
    'Scalar',
    'Numeric',
    'Schedule',
    'ScalarOrSchedule',
    'PyTree',
    'Tensor',
    'OptionalTensor',
    'ListOfTensors',
    'TupleOfTensors',
    'SequenceOfTensors',
    'TensorOrTensors',
    'TensorTree',
    'ListOfOptionalTensors',
    'TupleOfOptionalTensors',
    'SequenceOfOptionalTensors',
    'OptionalTensorOrOptionalTensors',
    'OptionalTensorTree',
    'TensorContainer',
    'ModuleTensorContainers',
    'Future',
    'LinearSolver',
    'Device',
    'Size',
    'Distribution',
    'SampleFunc',
    'Samplable',
    'RRef',
    'T',
]


@pytest.mark.parametrize('name', NAMES)
def test_names(name: str) -> None:
    assert hasattr(types, name)
    assert name in types.__all__


def test_no_other_names() -> None:
    assert sorted(types.__all__) == sorted(NAMES)


ALIASES = {
    'Scalar': float | int | bool,
    'Numeric': torch.Tensor | float | int | bool,
    'Device': torch.device | str | int,
    'OptionalTensor': torch.Tensor | None,
    'TensorContainer': dict[str, torch.Tensor | None],
    'ModuleTensorContainers': tuple[dict[str, torch.Tensor | None], ...],
    'Size': torch.Size,
    'Tensor': torch.Tensor,
    'Future': torch.futures.Future,
    'Distribution': torch.distributions.Distribution,
    'EmptyState': base.EmptyState,
    'GradientTransformation': base.GradientTransformation,
}


@pytest.mark.parametrize('name', ALIASES)
def test_aliases(name: str) -> None:
    assert getattr(types, name) == ALIASES[name]


def test_params_updates_and_states_are_tensor_trees() -> None:
    assert types.Params is types.Updates is types.OptState is types.TensorTree


def test_samplable() -> None:
    class Dice:
        def sample(self, sample_shape: tuple[int, ...] = ()) -> torch.Tensor:
            return torch.randint(1, 7, sample_shape)

    class Coin:
        pass

    normal = torch.distributions.Normal(0.0, 1.0)
    samplable: Any = types.Samplable
    assert [isinstance(x, samplable) for x in (Dice(), normal, Coin())] == [True, True, False]
    assert issubclass(torch.distributions.Distribution, samplable)


def test_rref_is_there_when_rpc_is() -> None:
    assert (types.RRef is not None) == torch.distributed.rpc.is_available()
