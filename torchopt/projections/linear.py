# SPDX-License-Identifier: Apache-2.0
"""Projections onto lines, hyperplanes, half-spaces, affine sets, and intersections of boxes and hyperplanes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchopt import tree as trees
from torchopt.projections.leaves import check_order, check_vector, map_leaves


def projection_vector(x: Any, a: Any) -> Any:
    r"""Project onto the line through the vector :math:`a`: :math:`\frac{\langle a, x \rangle}{\|a\|^2}\, a`.

    Args:
        x: Tree of floating tensors.
        a: The direction, a tree of the same structure and shapes, not zero.

    Raises:
        ValueError: If structures or shapes differ.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_vector([torch.tensor([3.0, 4.0])], [torch.tensor([2.0, 0.0])])
        [tensor([3., 0.])]
    """
    _check_like(a, x)
    return trees.scale(_vdot(a, x) / _vdot(a, a), a)


def projection_hyperplane(x: Any, a: Any, b: Any) -> Any:
    r"""Project onto the hyperplane :math:`\langle a, p \rangle = b`.

    .. math::
        p = x + \frac{b - \langle a, x \rangle}{\|a\|^2}\, a

    Args:
        x: Tree of floating tensors.
        a: The normal of the hyperplane, a tree of the same structure and shapes, not zero.
        b: The offset, a number or a 0-d tensor.

    Raises:
        ValueError: If structures or shapes differ.

    Example:
        >>> import torch, torchopt
        >>> x, a = [torch.tensor([3.0, 4.0])], [torch.tensor([2.0, 0.0])]
        >>> torchopt.projections.projection_hyperplane(x, a, 2.0)
        [tensor([1., 4.])]
    """
    return trees.add_scale(x, _missing(x, a, b), a)


def projection_halfspace(x: Any, a: Any, b: Any) -> Any:
    r"""Project onto the half-space :math:`\langle a, p \rangle \le b`.

    .. math::
        p = x + \frac{\min(b - \langle a, x \rangle, 0)}{\|a\|^2}\, a

    The arguments and errors are those of :func:`projection_hyperplane`; :math:`a` is the outer normal.

    Example:
        >>> import torch, torchopt
        >>> x, a = [torch.tensor([3.0, 4.0])], [torch.tensor([2.0, 0.0])]
        >>> torchopt.projections.projection_halfspace(x, a, 2.0)
        [tensor([1., 4.])]
        >>> torchopt.projections.projection_halfspace(x, a, 9.0)
        [tensor([3., 4.])]
    """
    missing = _missing(x, a, b)
    return trees.add_scale(x, torch.minimum(missing, torch.zeros_like(missing)), a)


def projection_affine_set(x: Tensor, hyperparams: tuple[Tensor, Tensor]) -> Tensor:
    r"""Project onto the affine set :math:`A p = b`: :math:`p = x - A^+ (A x - b)`.

    Args:
        x: A floating vector of :math:`n` elements.
        hyperparams: The matrix :math:`A`, of shape ``[m, n]``, and the vector :math:`b`, of shape ``[m]``.  The rows
            may be linearly dependent.

    Returns:
        The projection, of the shape of ``x``.  If the set is empty, the projection onto the minimizers of
        :math:`\|A p - b\|`.

    Raises:
        ValueError: If the shapes do not match.

    Example:
        >>> import torch, torchopt
        >>> A, b = torch.tensor([[0.0, 2.0]]), torch.tensor([6.0])
        >>> torchopt.projections.projection_affine_set(torch.tensor([2.0, 1.0]), (A, b))
        tensor([2., 3.])
    """
    A, b = hyperparams
    check_vector(x)
    if A.shape != (*b.shape, len(x)):
        raise ValueError(
            f'hyperparams have shapes {tuple(A.shape)} and {tuple(b.shape)}; expected [m, {len(x)}] and [m].'
        )
    return x - torch.linalg.pinv(A) @ (A @ x - b)


def projection_box_section(
    x: Tensor, hyperparams: tuple[Any, Any, Tensor, Any], check_feasible: bool = False
) -> Tensor:
    r"""Project onto the intersection of a box and a hyperplane.

    .. math::
        \min_p \|p - x\|_2 \quad \text{subject to} \quad \alpha \le p \le \beta, \; \langle w, p \rangle = c

    The solution is :math:`p_i = \min(\max(x_i + \tau w_i, \alpha_i), \beta_i)` for the :math:`\tau` that satisfies the
    last condition.  Bisection finds which elements lie at their bounds; given these, :math:`\tau` is the solution of a
    linear equation, and so are its derivatives.

    Args:
        x: A floating vector.
        hyperparams: :math:`(\alpha, \beta, w, c)`: the bounds, finite vectors like ``x``; the normal, a vector of
            positive elements; and the offset, a number or a 0-d tensor.
        check_feasible: Whether to check that the set is not empty, which reads values and synchronizes.

    Returns:
        The projection, of the shape of ``x``; if the set is empty, the corner of the box nearest to the hyperplane.

    Raises:
        ValueError: If ``x`` is not a vector, or bounds cross; with ``check_feasible``, if the set is empty.

    Example:
        >>> import torch, torchopt
        >>> low, high, ones = torch.zeros(3), torch.full((3,), 0.5), torch.ones(3)
        >>> torchopt.projections.projection_box_section(torch.tensor([2.0, 0.5, 0.25]), (low, high, ones, 1.0))
        tensor([0.5000, 0.3750, 0.1250])
    """
    alpha, beta, w, c = hyperparams
    check_vector(x)
    alpha, beta = (torch.as_tensor(bound, dtype=x.dtype, device=x.device).expand_as(x) for bound in (alpha, beta))
    check_order(alpha, beta, ('hyperparams[0]', 'hyperparams[1]'))
    if check_feasible and not bool((torch.dot(w, alpha) <= c) & (torch.dot(w, beta) >= c)):
        raise ValueError(
            'The set is empty: hyperparams = (alpha, beta, w, c) must satisfy <w, alpha> <= c <= <w, beta>.'
        )

    def at(tau: Tensor, x: Tensor, w: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x + tau * w, alpha), beta)

    fixed = [v.detach() for v in (x, w, alpha, beta)]
    x0, w0, alpha0, beta0 = fixed
    low, high = ((alpha0 - x0) / w0).amin(), ((beta0 - x0) / w0).amax()
    for _ in range(100):
        tau = 0.5 * (low + high)
        over = torch.dot(w0, at(tau, *fixed)) > c
        low, high = torch.where(over, low, tau), torch.where(over, tau, high)
    point = x0 + low * w0
    free = (alpha0 < point) & (point < beta0)
    held = torch.where(point <= alpha0, alpha, beta)
    # Over the free elements, <w, x + tau w> must be c minus the sum over the elements at their bounds.
    squares = torch.where(free, w * w, 0.0).sum()
    rest = c - torch.where(free, w * x, w * held).sum()
    exact = rest / torch.where(squares > 0, squares, 1.0)
    return torch.where(free, x + exact * w, held)


def _check_like(a: Any, x: Any) -> None:
    """Require that a vector is like the parameters."""
    a, x = (map_leaves(lambda v: v, tree) for tree in (a, x))
    trees.check_matching(a, x, name='a', like='x')


def _vdot(x: Any, y: Any) -> Tensor:
    return torch.as_tensor(trees.vdot(x, y))


def _missing(x: Any, a: Any, b: Any) -> Tensor:
    r"""The factor :math:`(b - \langle a, x \rangle) / \|a\|^2` of the step to a hyperplane."""
    _check_like(a, x)
    return (b - _vdot(a, x)) / _vdot(a, a)
