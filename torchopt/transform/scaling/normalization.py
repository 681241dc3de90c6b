# SPDX-License-Identifier: Apache-2.0
"""Normalization of updates: by their global norm, and by their means."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchopt import checks, tree
from torchopt.base import GradientTransformation, factory, without_state
from torchopt.numerics import as_scalar_like, in_single


@factory
def normalize_by_update_norm(scale_factor: Any = 1.0, eps: Any = 1e-6) -> GradientTransformation:
    r"""Normalize updates by their norm over all leaves: :math:`u = s\, g / (\lVert g \rVert + \epsilon)`.

    Args:
        scale_factor: The norm :math:`s`.
        eps: :math:`\epsilon \ge 0`.

    Raises:
        ValueError: If ``eps`` is negative, or ``scale_factor`` is NaN.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.normalize_by_update_norm(eps=0.0)
        >>> tx.update([torch.tensor(3.0), torch.tensor(4.0)], tx.init(None))[0]
        [tensor(0.6000), tensor(0.8000)]
    """
    checks.number('scale_factor value', scale_factor)
    checks.at_least('epsilon value', eps)

    def normalized(updates: Any, params: Any) -> Any:
        norm = tree.wide_norm(updates)
        norm = (norm + as_scalar_like(eps, norm)) / as_scalar_like(scale_factor, norm)
        return tree.map(in_single(lambda g: g / as_scalar_like(norm, g)), updates)

    return without_state(normalized)


@factory
def centralize() -> GradientTransformation:
    """Subtract the mean from the gradient of each output; scalars and vectors do not change.

    The first dimension is that of the outputs, as in PyTorch's layers; the mean is over all other dimensions.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.centralize()
        >>> tx.update([torch.tensor([[1.0, 3.0], [5.0, 5.0]])], tx.init(None))[0]
        [tensor([[-1.,  1.],
                [ 0.,  0.]])]

    References:
        Yong et al., `Gradient centralization: a new optimization technique for deep neural networks
        <https://arxiv.org/abs/2004.01461>`_, ECCV 2020.
    """

    def subtract_mean(g: Tensor) -> Tensor:
        return g - g.mean(dim=tuple(range(1, g.dim())), keepdim=True) if g.dim() > 1 else g

    return without_state(lambda updates, params: tree.map(subtract_mean, updates))
