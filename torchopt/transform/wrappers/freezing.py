# SPDX-License-Identifier: Apache-2.0
"""Freeze parameters."""

from __future__ import annotations

from typing import Any

from torchopt import tree
from torchopt.base import GradientTransformationExtraArgs, TransformationLike
from torchopt.spelling import suggesting
from torchopt.transform.scaling.stateless import set_to_zero
from torchopt.transform.wrappers.masking import masked, partition


@suggesting
def freeze(mask: Any) -> GradientTransformationExtraArgs:
    """Set the updates of some parameters to zero, and keep the others.

    Put it at the end of a chain.  Momentum before it continues to accumulate; decay before it has no effect.

    Args:
        mask: True for parameters to freeze: a bool, a tree of bools with the structure of the parameters or a prefix
            of it, or a function that makes one from the parameters.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.chain(torchopt.sgd(1.0), torchopt.transform.freeze({'body': True, 'head': False}))
        >>> g = {'body': torch.ones(()), 'head': torch.ones(())}
        >>> tx.update(g, tx.init(g))[0]
        {'body': tensor(0.), 'head': tensor(-1.)}
    """
    return masked(set_to_zero(), mask)


@suggesting
def selective_transform(optimizer: TransformationLike, *, freeze_mask: Any) -> GradientTransformationExtraArgs:
    """Apply an optimizer to some parameters, and freeze the others, which have no state.

    Args:
        optimizer: The optimizer.
        freeze_mask: True for parameters to freeze: a bool, or a tree of bools like the parameters or a prefix of them.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.selective_transform(torchopt.sgd(1.0), freeze_mask={'body': True, 'head': False})
        >>> g = {'body': torch.ones(()), 'head': torch.ones(())}
        >>> tx.update(g, tx.init(g))[0]
        {'body': tensor(0.), 'head': tensor(-1.)}
    """
    labels = tree.map(lambda frozen: 'freeze' if frozen else 'train', freeze_mask)
    return partition({'train': optimizer, 'freeze': set_to_zero()}, labels)
