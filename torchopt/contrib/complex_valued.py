# SPDX-License-Identifier: Apache-2.0
"""Apply a transformation to complex leaves as pairs of real ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import elementwise, tree
from torchopt.base import GradientTransformationExtraArgs, TransformationLike, factory, with_extra_args_support
from torchopt.elementwise import as_constant
from torchopt.preconditions import required_by, state_of


@tree.safe_to_load
class RealAndImaginary(NamedTuple):
    """The real and the imaginary part of a complex leaf."""

    real: Any
    imaginary: Any


@tree.safe_to_load
class SplitRealAndImaginaryState(NamedTuple):
    """State of :func:`split_real_and_imaginary`: the inner state, with pairs for complex leaves."""

    inner_state: Any


@factory
def split_real_and_imaginary(inner: TransformationLike) -> GradientTransformationExtraArgs:
    r"""Apply a transformation to complex leaves as pairs of real ones.

    A complex parameter :math:`a + ib` is then optimized like two real parameters :math:`a` and :math:`b`.  For Adam
    this changes the result: without it, the mean of :math:`|g|^2` scales both parts.

    Returns:
        A transformation with state :class:`SplitRealAndImaginaryState`.  Extra arguments of ``update`` reach ``inner``.

    Raises:
        TypeError: If ``inner`` is not a transformation.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.contrib.split_real_and_imaginary(torchopt.sign_sgd(1.0))
        >>> p = [torch.tensor(0.0 + 0.0j)]
        >>> tx.update([torch.tensor(3.0 - 4.0j)], tx.init(p), p)[0]
        [tensor(-1.+1.j)]
    """
    wide = with_extra_args_support(inner)

    def init(params: Any) -> SplitRealAndImaginaryState:
        return SplitRealAndImaginaryState(wide.init(tree.map(_split, params)))

    def update(
        updates: Any, state: SplitRealAndImaginaryState, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, SplitRealAndImaginaryState]:
        if params is not None:
            elementwise.check_updates(updates, params)
            params = tree.map(lambda u, p: _split(as_constant(p, u) if p.is_complex() else p), updates, params)
        parts, inner_state = wide.update(tree.map(_split, updates), state.inner_state, params, inplace=inplace, **extra)
        _, spec = tree.flatten(updates)
        joined = map(_join, tree.flatten_up_to(spec, parts, name='new updates', like='updates'))
        return tree.unflatten(spec, joined), SplitRealAndImaginaryState(inner_state)

    return GradientTransformationExtraArgs.requiring(
        init, update, state_of(SplitRealAndImaginaryState), required_by(wide, 'inner_state')
    )


def _split(x: Tensor) -> Any:
    return RealAndImaginary(x.real, x.imag) if x.is_complex() else x


def _join(x: Any) -> Any:
    return torch.complex(*x) if isinstance(x, RealAndImaginary) else x
