# SPDX-License-Identifier: Apache-2.0
"""Functions on updates and parameters that follow Optax's rules for shapes and dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchopt import tree, update
from torchopt.dtypes import is_inexact

__all__ = ['apply_updates', 'global_norm']


def apply_updates(params: Any, updates: Any) -> Any:
    """Add updates to parameters, always out of place.

    The sum is computed in the dtype to which both promote and converted to that of the parameter, also for integer
    parameters, and for real parameters with complex updates.  :func:`torchopt.apply_updates` is stricter, and updates
    leaves that require grad in place.

    Args:
        params: Tree of tensors or numbers; None stays None.
        updates: Tree of the same structure, of tensors of the same shapes or numbers; None keeps a parameter unchanged.

    Raises:
        ValueError: If structures or shapes differ.  Optax broadcasts: gradients of shape ``[n, 1]`` would make
            parameters of shape ``[n]`` a matrix.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optax.apply_updates({'w': torch.tensor(1.0), 'n': torch.tensor(3)}, {'w': -0.25, 'n': torch.tensor(1.5)})
        {'w': tensor(0.7500), 'n': tensor(4)}
    """
    leaves, spec = tree.flatten(params)
    deltas = tree.flatten_up_to(spec, updates, name='updates', like='params')
    if all(_is_plain(p, u) for p, u in zip(leaves, deltas)):
        return update.apply_updates(params, updates, inplace=False)
    for i, (p, u) in enumerate(zip(leaves, deltas)):
        if p is not None and np.ndim(u) > 0 and np.shape(p) != np.shape(u):  # None has no axes
            path = tree.flatten_with_path(params)[i][0]
            raise ValueError(
                f'updates{path} has shape {tuple(np.shape(u))}, but params{path} has shape {tuple(np.shape(p))}. Pass '
                f'updates of the same shapes as params; a gradient has the shape of its parameter.'
            )
    return tree.unflatten(spec, [_add(p, u) for p, u in zip(leaves, deltas)])


def _is_plain(p: Any, u: Any) -> bool:
    """Whether the rule of :func:`torchopt.apply_updates`, which has a kernel, applies to a leaf."""
    if p is None or u is None:
        return p is u
    return is_inexact(p) and is_inexact(u) and p.dtype == u.dtype and p.shape == u.shape


def _add(p: Any, u: Any) -> Any:
    if p is None or u is None:
        return p
    p, u = torch.as_tensor(p), u if isinstance(u, Tensor) else torch.as_tensor(u)
    dtype = torch.promote_types(p.dtype, u.dtype)
    new = p.to(dtype) + u.to(dtype)
    return (new if p.is_complex() or not new.is_complex() else new.real).to(p.dtype)


def global_norm(updates: Any) -> Any:
    """The Euclidean norm of all leaves together: :func:`torchopt.tree.norm`.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optax.global_norm({'w': torch.tensor([3.0]), 'b': torch.tensor(4.0)})
        tensor(5.)
    """
    return tree.norm(updates)
