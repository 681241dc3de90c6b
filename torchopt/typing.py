# SPDX-License-Identifier: Apache-2.0
"""Type aliases used in the signatures of this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
import torch.distributed.rpc as rpc
from torch import Tensor
from torch.distributions import Distribution
from torch.futures import Future

from torchopt.base import ChainedGradientTransformation, EmptyState, GradientTransformation, UninitializedState
from torchopt.tree.optree_names import PyTree, PyTreeTypeVar

__all__ = [
    'ChainedGradientTransformation',
    'Device',
    'Distribution',
    'EmptyState',
    'Future',
    'GradientTransformation',
    'LinearSolver',
    'ListOfOptionalTensors',
    'ListOfTensors',
    'ModuleTensorContainers',
    'Numeric',
    'OptState',
    'OptionalTensor',
    'OptionalTensorOrOptionalTensors',
    'OptionalTensorTree',
    'Params',
    'PyTree',
    'RRef',
    'Samplable',
    'SampleFunc',
    'Scalar',
    'ScalarOrSchedule',
    'Schedule',
    'SequenceOfOptionalTensors',
    'SequenceOfTensors',
    'Size',
    'T',
    'Tensor',
    'TensorContainer',
    'TensorOrTensors',
    'TensorTree',
    'TupleOfOptionalTensors',
    'TupleOfTensors',
    'UninitializedState',
    'Updates',
]

T = TypeVar('T')
"""Any type."""

Scalar: TypeAlias = float | int | bool
"""A Python number."""

Numeric: TypeAlias = Tensor | Scalar
"""A number or a tensor."""

Schedule: TypeAlias = Callable[[Numeric], Numeric]
"""A function from the step count to the value of a hyper-parameter."""

ScalarOrSchedule: TypeAlias = float | Schedule
"""The type of a learning rate."""

Device: TypeAlias = torch.device | str | int
"""A device or its name."""

Size = torch.Size

OptionalTensor: TypeAlias = Tensor | None
"""A tensor or None."""

ListOfTensors: TypeAlias = list[Tensor]
"""A list of tensors."""

TupleOfTensors: TypeAlias = tuple[Tensor, ...]
"""A tuple of tensors."""

SequenceOfTensors: TypeAlias = Sequence[Tensor]
"""A sequence of tensors."""

TensorOrTensors: TypeAlias = Tensor | SequenceOfTensors
"""One tensor or a sequence of them."""

ListOfOptionalTensors: TypeAlias = list[OptionalTensor]
"""A list of tensors and None."""

TupleOfOptionalTensors: TypeAlias = tuple[OptionalTensor, ...]
"""A tuple of tensors and None."""

SequenceOfOptionalTensors: TypeAlias = Sequence[OptionalTensor]
"""A sequence of tensors and None."""

OptionalTensorOrOptionalTensors: TypeAlias = OptionalTensor | SequenceOfOptionalTensors
"""One tensor or None, or a sequence of them."""

TensorContainer: TypeAlias = dict[str, OptionalTensor]
"""Tensors by name: the parameters or buffers of one module."""

ModuleTensorContainers: TypeAlias = tuple[TensorContainer, ...]
"""One container for each module."""


if TYPE_CHECKING:
    # For type checkers, optree's PyTree is a class of which dicts and lists are not instances.
    TensorTree: TypeAlias = Any
    OptionalTensorTree: TypeAlias = Any
else:
    #: A tree of tensors.
    TensorTree = PyTreeTypeVar('TensorTree', Tensor)
    #: A tree of tensors and None.
    OptionalTensorTree = PyTreeTypeVar('OptionalTensorTree', OptionalTensor)

Params: TypeAlias = TensorTree
"""A tree of parameters."""

Updates: TypeAlias = TensorTree
"""A tree of gradients or transformed gradients."""

OptState: TypeAlias = TensorTree
"""The state of an optimizer."""

LinearSolver: TypeAlias = Callable[[Callable[[TensorTree], TensorTree], TensorTree], TensorTree]
"""``solver(matvec, b)`` returns the tree ``x`` with ``matvec(x) == b``."""

SampleFunc: TypeAlias = Callable[[Size], Tensor | Sequence[Numeric]]
"""``sample(shape)`` draws samples of this batch shape."""

if TYPE_CHECKING or rpc.is_available():
    from torch.distributed.rpc import RRef
else:
    RRef = None


@runtime_checkable
class Samplable(Protocol):
    """An object that draws samples, such as a :class:`torch.distributions.Distribution`.

    Example:
        >>> import torch, torchopt.typing
        >>> isinstance(torch.distributions.Normal(0.0, 1.0), torchopt.typing.Samplable)
        True
    """

    def sample(self, sample_shape: Size = Size()) -> Tensor | Sequence[Numeric]:  # noqa: B008
        """Draw samples of this batch shape."""


Samplable.register(Distribution)
