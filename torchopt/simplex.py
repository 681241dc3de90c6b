# SPDX-License-Identifier: Apache-2.0
"""The simplex of probabilities."""

from __future__ import annotations

import torch

__all__ = ['unit_simplex']


def unit_simplex(x: torch.Tensor) -> torch.Tensor:
    r"""Project every vector along the last axis onto the simplex of probabilities.

    Args:
        x: A floating tensor of shape ``[..., n]``.  Elements of ``-inf`` get probability 0.

    Returns:
        The projections, of the same shape.

    Raises:
        ValueError: If :math:`n = 0`: that simplex is empty.

    Example:
        >>> import torch
        >>> from torchopt.simplex import unit_simplex
        >>> unit_simplex(torch.tensor([[0.0, 0.5], [9.0, 1.0]]))
        tensor([[0.2500, 0.7500],
                [1.0000, 0.0000]])
    """
    if x.shape[-1] == 0:
        raise ValueError('There is no element to project: no vector of length 0 sums to 1. Pass at least one element.')
    # Only differences matter, and small ones next to large numbers would be lost in the sums.
    x = x - x.amax(-1, keepdim=True).detach()
    # The threshold of the k largest, (sum - 1) / k, is largest for the k that is the size of the support.
    top = x.detach().sort(-1, descending=True).values
    sizes = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    bound = ((top.cumsum(-1) - 1.0) / sizes).amax(-1, keepdim=True)
    # The same threshold again, as a function of the support alone: so its derivative is right.
    support = x.detach() > bound
    threshold = (torch.where(support, x, 0.0).sum(-1, keepdim=True) - 1.0) / support.sum(-1, keepdim=True)
    return torch.relu(x - threshold)
