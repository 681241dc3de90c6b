# SPDX-License-Identifier: Apache-2.0
"""Projections onto simplices, and onto balls and spheres of the 1-norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchopt import checks, tree as trees
from torchopt.projections.leaves import check_vector, map_leaves
from torchopt.rules import sign


def projection_simplex(tree: Any, scale: Any = 1) -> Any:
    r"""Project onto the simplex :math:`p \ge 0, \sum_i p_i = s`; with :math:`s = 1` the probability simplex.

    The projection is :math:`p_i = \max(x_i - \theta, 0)` with the threshold :math:`\theta` for which it sums to
    :math:`s`.  On its support :math:`S`, :math:`\theta = (\sum_{i \in S} x_i - s) / |S|`, so that the Jacobian is
    :math:`\operatorname{diag}(1_S) - 1_S 1_S^\top / |S|`.

    Args:
        tree: Tree of floating tensors, treated as one vector of all elements.
        scale: The sum :math:`s > 0`, a number or a 0-d tensor; 1 if None.

    Raises:
        ValueError: If ``scale`` is not positive, or the tree has no elements.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_simplex({'b': torch.tensor(0.5), 'w': torch.tensor([2.5, 3.0])})
        {'b': tensor(0.), 'w': tensor([0.2500, 0.7500])}

    References:
        Duchi et al., `Efficient projections onto the l1-ball for learning in high dimensions
        <https://doi.org/10.1145/1390156.1390191>`_, 2008.
    """
    scale = 1 if scale is None else scale
    checks.positive('scale', scale)
    vector, unravel = trees.ravel(tree)
    return unravel(scale * unit_simplex(vector / scale))


def projection_l1_sphere(tree: Any, scale: Any = 1) -> Any:
    r"""Project onto the sphere :math:`\sum_i |p_i| = s`.

    :math:`p = \operatorname{sign}(x) \odot P(|x|)` with the projection :math:`P` onto the simplex.  Elements that
    are zero stay zero.  So if some elements are zero and the others are small, the result may lie inside of the
    sphere: :math:`(0, 0.1)` gives :math:`(0, 0.55)`, and :math:`x = 0` gives zero.

    Args:
        tree: Tree of floating tensors.
        scale: The radius :math:`s > 0`, a number or a 0-d tensor; 1 if None.

    Raises:
        ValueError: If ``scale`` is not positive, or the tree has no elements.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_l1_sphere([torch.tensor([0.25, -0.25])])
        [tensor([ 0.5000, -0.5000])]
    """
    projected = projection_simplex(map_leaves(torch.abs, tree), scale)
    return map_leaves(lambda x, p: sign(x) * p, tree, projected)


def projection_l1_ball(tree: Any, scale: Any = 1) -> Any:
    r"""Project onto the ball :math:`\sum_i |p_i| \le s`.

    The arguments and errors are those of :func:`projection_l1_sphere`.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_l1_ball({'b': torch.tensor(-0.5), 'w': torch.tensor([2.5, -3.0])})
        {'b': tensor(-0.), 'w': tensor([ 0.2500, -0.7500])}

    References:
        Duchi et al., `Efficient projections onto the l1-ball for learning in high dimensions
        <https://doi.org/10.1145/1390156.1390191>`_, 2008.
    """
    scale = 1 if scale is None else scale
    inside = trees.wide_norm(tree, 1) <= scale
    return map_leaves(lambda x, p: torch.where(inside, x, p), tree, projection_l1_sphere(tree, scale))


def projection_sparse_simplex(x: Tensor, max_nz: int, use_approx_max_nz: bool = False, value: Any = 1.0) -> Tensor:
    r"""Project onto the points of the simplex that have few nonzero elements.

    .. math::
        \min_p \|p - x\|_2 \quad \text{subject to} \quad p \ge 0, \; \sum_i p_i = s, \; \|p\|_0 \le k

    The :math:`k` largest elements are projected onto the simplex, and the others are zero.

    Args:
        x: A floating vector.
        max_nz: The number :math:`k` of elements that may be nonzero, from 1 to the length of ``x``.
        use_approx_max_nz: Ignored, for compatibility with Optax; the largest elements are always found exactly.
        value: The sum :math:`s > 0`, a number or a 0-d tensor; 1 if None.

    Returns:
        The projection, of the shape of ``x``.

    Raises:
        ValueError: If ``x`` is not a vector, ``max_nz`` is out of its range, or ``value`` is not positive.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_sparse_simplex(torch.tensor([0.9, 0.1, 0.8]), max_nz=2)
        tensor([0.5500, 0.0000, 0.4500])

    References:
        Kyrillidis et al., `Sparse projections onto the simplex <https://arxiv.org/abs/1206.1529>`_, 2013.
    """
    check_vector(x)
    if not 1 <= max_nz <= len(x):
        raise ValueError(f'max_nz is {max_nz}; expected a number from 1 to {len(x)}, the length of x.')
    value = 1.0 if value is None else value
    checks.positive('value', value)
    # The sort is stable, so the first ones of equal elements are chosen.
    top, where = (y[:max_nz] for y in x.sort(descending=True, stable=True))
    return torch.zeros_like(x).scatter(0, where, value * unit_simplex(top / value))


def unit_simplex(x: Tensor) -> Tensor:
    r"""Project every vector along the last axis onto the probability simplex.

    Args:
        x: A floating tensor of shape ``[..., n]``.  Elements of ``-inf`` get probability 0.

    Returns:
        The projections, of the same shape.

    Raises:
        ValueError: If :math:`n = 0`, for which the simplex is empty.

    Example:
        >>> import torch
        >>> from torchopt.projections import unit_simplex
        >>> unit_simplex(torch.tensor([[0.0, 0.5], [9.0, 1.0]]))
        tensor([[0.2500, 0.7500],
                [1.0000, 0.0000]])
    """
    if x.shape[-1] == 0:
        raise ValueError('There is no element to project: no vector of length 0 sums to 1. Pass at least one element.')
    # The result depends on differences only; without the shift, small ones would be lost in the sums.
    x = x - x.amax(-1, keepdim=True).detach()
    # The threshold of the k largest, (sum - 1) / k, is largest for the k that is the size of the support.
    top = x.detach().sort(-1, descending=True).values
    sizes = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    bound = ((top.cumsum(-1) - 1.0) / sizes).amax(-1, keepdim=True)
    # Compute the threshold again for the fixed support, so that its derivative is correct.
    support = x.detach() > bound
    threshold = (torch.where(support, x, 0.0).sum(-1, keepdim=True) - 1.0) / support.sum(-1, keepdim=True)
    return torch.relu(x - threshold)
