# SPDX-License-Identifier: Apache-2.0
"""Names for the types that the signatures of this package speak of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
import torch.distributed.rpc as rpc
from torch import Tensor
from torch.distributions import Distribution
from torch.futures import Future

from torchopt.base import (
    ChainedGradientTransformation,
    EmptyState,
    GradientTransformation,
    UninitializedState,
)
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

Scalar: TypeAlias = float | int | bool
Numeric: TypeAlias = Tensor | Scalar
Schedule: TypeAlias = Callable[[Numeric], Numeric]
ScalarOrSchedule: TypeAlias = float | Schedule
Device: TypeAlias = torch.device | str | int
Size = torch.Size

OptionalTensor: TypeAlias = Tensor | None
ListOfTensors: TypeAlias = list[Tensor]
TupleOfTensors: TypeAlias = tuple[Tensor, ...]
SequenceOfTensors: TypeAlias = Sequence[Tensor]
TensorOrTensors: TypeAlias = Tensor | SequenceOfTensors
ListOfOptionalTensors: TypeAlias = list[OptionalTensor]
TupleOfOptionalTensors: TypeAlias = tuple[OptionalTensor, ...]
SequenceOfOptionalTensors: TypeAlias = Sequence[OptionalTensor]
OptionalTensorOrOptionalTensors: TypeAlias = OptionalTensor | SequenceOfOptionalTensors
TensorContainer: TypeAlias = dict[str, OptionalTensor]
ModuleTensorContainers: TypeAlias = tuple[TensorContainer, ...]

if TYPE_CHECKING:
    # To a type checker optree's PyTree is a class that no dict or list is an instance of.
    TensorTree: TypeAlias = Any
    OptionalTensorTree: TypeAlias = Any
else:
    TensorTree = PyTreeTypeVar('TensorTree', Tensor)
    OptionalTensorTree = PyTreeTypeVar('OptionalTensorTree', OptionalTensor)

Params: TypeAlias = TensorTree
Updates: TypeAlias = TensorTree
OptState: TypeAlias = TensorTree

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
    """Anything that draws samples, such as a :class:`torch.distributions.Distribution`.

    Example:
        >>> import torch, torchopt.typing
        >>> isinstance(torch.distributions.Normal(0.0, 1.0), torchopt.typing.Samplable)
        True
    """

    def sample(self, sample_shape: Size = Size()) -> Tensor | Sequence[Numeric]:  # noqa: B008
        """Draw samples of this batch shape."""


Samplable.register(Distribution)
