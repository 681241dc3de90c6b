# SPDX-License-Identifier: Apache-2.0
"""Euclidean projections of trees onto convex sets (and spheres): the nearest point of the set.

A tree is treated as one vector.  Every projection is differentiable; at a kink the derivative is an element of the
generalized Jacobian.  Names and signatures are those of Optax, or of JAXopt for sets that only JAXopt has.  Under
``torch.func.vmap`` and ``torch.compile`` no checks read values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torchopt import checks, tree as trees
from torchopt.numerics import in_single, is_inexact

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    'projection_affine_set',
    'projection_box',
    'projection_box_section',
    'projection_halfspace',
    'projection_hypercube',
    'projection_hyperplane',
    'projection_l1_ball',
    'projection_l1_sphere',
    'projection_l2_ball',
    'projection_l2_sphere',
    'projection_linf_ball',
    'projection_non_negative',
    'projection_simplex',
    'projection_sparse_simplex',
    'projection_vector',
]


def projection_non_negative(tree: Any) -> Any:
    r"""Project onto the orthant :math:`p \ge 0`: :math:`p_i = \max(x_i, 0)`.

    Args:
        tree: Tree of real tensors.

    Returns:
        The projection, a tree of the same structure.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_non_negative({'w': torch.tensor([-1.0, 2.0])})
        {'w': tensor([0., 2.])}
    """
    return _map(torch.relu, tree)


def projection_box(tree: Any, lower: Any, upper: Any) -> Any:
    r"""Project onto the box :math:`l \le p \le u`: :math:`p_i = \min(\max(x_i, l_i), u_i)`.

    Args:
        tree: Tree of real tensors.
        lower: The lower bound :math:`l`: a number, or a tree of numbers and tensors whose structure is that of ``tree``
            or a prefix of it.  None means no bound.
        upper: The upper bound :math:`u`, of the same form.  If :math:`l_i > u_i`, then :math:`p_i = u_i`.

    Returns:
        The projection, a tree of the same structure.

    Raises:
        ValueError: If the structure of a bound is not a prefix of that of ``tree``.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_box({'w': torch.tensor([-1.0, 0.5, 2.0])}, 0.0, {'w': 1.0})
        {'w': tensor([0.0000, 0.5000, 1.0000])}
    """

    def clip(x: torch.Tensor, low: Any, high: Any) -> torch.Tensor:
        x = x if low is None else torch.maximum(x, _bound(low, x))
        return x if high is None else torch.minimum(x, _bound(high, x))

    return _map(
        clip, tree, trees.broadcast_prefix(lower, tree, name='lower'), trees.broadcast_prefix(upper, tree, name='upper')
    )


def projection_hypercube(tree: Any, scale: Any = 1) -> Any:
    r"""Project onto the hypercube :math:`0 \le p \le s`.

    Args:
        tree: Tree of real tensors.
        scale: The side length :math:`s`, of the form of the bounds of :func:`projection_box`.

    Returns:
        The projection, a tree of the same structure.

    Raises:
        ValueError: If the structure of ``scale`` is not a prefix of that of ``tree``.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_hypercube([torch.tensor([-1.0, 0.5, 2.0])])
        [tensor([0.0000, 0.5000, 1.0000])]
    """
    return projection_box(tree, 0, scale)


def projection_simplex(tree: Any, scale: Any = 1) -> Any:
    r"""Project onto the simplex :math:`p \ge 0, \sum_i p_i = s`; with :math:`s = 1` the probability simplex.

    The projection is :math:`p_i = \max(x_i - \theta, 0)` with the threshold :math:`\theta` for which it sums to
    :math:`s`.  On its support :math:`S`, :math:`\theta = (\sum_{i \in S} x_i - s) / |S|`, so that the Jacobian is
    :math:`\operatorname{diag}(1_S) - 1_S 1_S^\top / |S|`.

    Args:
        tree: Tree of floating tensors, treated as one vector of all elements.
        scale: The sum :math:`s > 0`, a number or a 0-d tensor.

    Returns:
        The projection, a tree of the same structure.

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
    checks.positive('scale', scale)
    vector, unravel = trees.ravel(tree)
    return unravel(scale * unit_simplex(vector / scale))


def unit_simplex(x: torch.Tensor) -> torch.Tensor:
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


def projection_l1_sphere(tree: Any, scale: Any = 1) -> Any:
    r"""Project onto the sphere :math:`\sum_i |p_i| = s`.

    :math:`p = \operatorname{sign}(x) \odot P(|x|)` with the projection :math:`P` onto the simplex.  Elements that
    are zero stay zero.  If all elements are near zero, the result may not be the nearest point; for :math:`x = 0` it
    is not a point of the sphere.

    Args:
        tree: Tree of floating tensors.
        scale: The radius :math:`s > 0`, a number or a 0-d tensor.

    Returns:
        The projection, a tree of the same structure.

    Raises:
        ValueError: If ``scale`` is not positive, or the tree has no elements.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_l1_sphere([torch.tensor([0.25, -0.25])])
        [tensor([ 0.5000, -0.5000])]
    """
    projected = projection_simplex(_map(torch.abs, tree), scale)
    return _map(lambda x, p: x.sign() * p, tree, projected)


def projection_l1_ball(tree: Any, scale: Any = 1) -> Any:
    r"""Project onto the ball :math:`\sum_i |p_i| \le s`.

    Args:
        tree: Tree of floating tensors.
        scale: The radius :math:`s > 0`, a number or a 0-d tensor.

    Returns:
        The projection, a tree of the same structure.

    Raises:
        ValueError: If ``scale`` is not positive, or the tree has no elements.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_l1_ball({'b': torch.tensor(-0.5), 'w': torch.tensor([2.5, -3.0])})
        {'b': tensor(-0.), 'w': tensor([ 0.2500, -0.7500])}

    References:
        Duchi et al., `Efficient projections onto the l1-ball for learning in high dimensions
        <https://doi.org/10.1145/1390156.1390191>`_, 2008.
    """
    inside = trees.wide_norm(tree, 1) <= scale
    return _map(lambda x, p: torch.where(inside, x, p), tree, projection_l1_sphere(tree, scale))


def projection_l2_sphere(tree: Any, scale: Any = 1) -> Any:
    r"""Project onto the sphere :math:`\|p\|_2 = s`: :math:`p = s\, x / \|x\|_2`.

    Args:
        tree: Tree of floating tensors.  A tree of zeros gives NaN, since all points of the sphere are equally near.
        scale: The radius :math:`s \ge 0`, a number or a 0-d tensor.

    Returns:
        The projection, a tree of the same structure.

    Raises:
        ValueError: If ``scale`` is negative.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_l2_sphere([torch.tensor([3.0, 4.0])])
        [tensor([0.6000, 0.8000])]
    """
    checks.at_least('scale', scale)
    norm = trees.wide_norm(tree)
    return _map(in_single(lambda x: x / _bound(norm, x) * _bound(scale, x)), tree)


def projection_l2_ball(tree: Any, scale: Any = 1) -> Any:
    r"""Project onto the ball :math:`\|p\|_2 \le s`: :math:`p = s\, x / \max(\|x\|_2, s)`.

    Args:
        tree: Tree of floating tensors.
        scale: The radius :math:`s > 0`, a number or a 0-d tensor.

    Returns:
        The projection, a tree of the same structure.

    Raises:
        ValueError: If ``scale`` is negative.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_l2_ball([torch.tensor([3.0, 4.0])], 10.0)
        [tensor([3., 4.])]
    """
    checks.at_least('scale', scale)
    norm = trees.wide_norm(tree)
    bound = _bound(scale, norm)
    inside = (norm < bound) | (norm == 0)
    # At the boundary torch.maximum gives half of the derivative to each argument.
    divisor = torch.maximum(torch.where(inside, torch.ones_like(norm), norm), torch.where(inside, 1.0, bound))

    @in_single
    def shrink(x: torch.Tensor) -> torch.Tensor:
        return torch.where(inside.to(x.device), x, x / _bound(divisor, x) * _bound(scale, x))

    return _map(shrink, tree)


def projection_linf_ball(tree: Any, scale: Any = 1) -> Any:
    r"""Project onto the ball :math:`\max_i |p_i| \le s`.

    Args:
        tree: Tree of real tensors.
        scale: The radius :math:`s \ge 0`, a number or a 0-d tensor.

    Returns:
        The projection, a tree of the same structure.

    Raises:
        ValueError: If ``scale`` is negative.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_linf_ball([torch.tensor([-3.0, 0.5])])
        [tensor([-1.0000,  0.5000])]
    """
    checks.at_least('scale', scale)
    return projection_box(tree, -scale, scale)


def projection_vector(x: Any, a: Any) -> Any:
    r"""Project onto the line through the vector :math:`a`: :math:`\frac{\langle a, x \rangle}{\|a\|^2}\, a`.

    Args:
        x: Tree of floating tensors.
        a: The direction, a tree of the same structure and shapes, not zero.

    Returns:
        The projection, a tree of the same structure.

    Raises:
        ValueError: If structures or shapes differ.

    Example:
        >>> import torch, torchopt
        >>> torchopt.projections.projection_vector([torch.tensor([3.0, 4.0])], [torch.tensor([2.0, 0.0])])
        [tensor([3., 0.])]
    """
    return trees.scale(_vdot(a, x) / _vdot(a, a), a)


def projection_hyperplane(x: Any, a: Any, b: Any) -> Any:
    r"""Project onto the hyperplane :math:`\langle a, p \rangle = b`.

    .. math::
        p = x + \frac{b - \langle a, x \rangle}{\|a\|^2}\, a

    Args:
        x: Tree of floating tensors.
        a: The normal of the hyperplane, a tree of the same structure and shapes, not zero.
        b: The offset, a number or a 0-d tensor.

    Returns:
        The projection, a tree of the same structure.

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

    Args:
        x: Tree of floating tensors.
        a: The outer normal of the half-space, a tree of the same structure and shapes, not zero.
        b: The offset, a number or a 0-d tensor.

    Returns:
        The projection, a tree of the same structure.

    Raises:
        ValueError: If structures or shapes differ.

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


def projection_sparse_simplex(
    x: torch.Tensor, max_nz: int, use_approx_max_nz: bool = False, value: Any = 1.0
) -> torch.Tensor:
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
    _check_vector(x)
    if not 1 <= max_nz <= len(x):
        raise ValueError(f'max_nz is {max_nz}; expected a number from 1 to {len(x)}, the length of x.')
    value = 1.0 if value is None else value
    checks.positive('value', value)
    # The sort is stable, so the first ones of equal elements are chosen.
    top, where = (y[:max_nz] for y in x.sort(descending=True, stable=True))
    return torch.zeros_like(x).scatter(0, where, value * unit_simplex(top / value))


def projection_affine_set(x: torch.Tensor, hyperparams: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
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
    _check_vector(x)
    if A.shape != (*b.shape, len(x)):
        raise ValueError(
            f'hyperparams have shapes {tuple(A.shape)} and {tuple(b.shape)}; expected [m, {len(x)}] and [m].'
        )
    return x - torch.linalg.pinv(A) @ (A @ x - b)


def projection_box_section(
    x: torch.Tensor, hyperparams: tuple[Any, Any, torch.Tensor, Any], check_feasible: bool = False
) -> torch.Tensor:
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
        ValueError: If ``x`` is not a vector; with ``check_feasible``, if the set is empty.

    Example:
        >>> import torch, torchopt
        >>> low, high, ones = torch.zeros(3), torch.full((3,), 0.5), torch.ones(3)
        >>> torchopt.projections.projection_box_section(torch.tensor([2.0, 0.5, 0.25]), (low, high, ones, 1.0))
        tensor([0.5000, 0.3750, 0.1250])
    """
    alpha, beta, w, c = hyperparams
    _check_vector(x)
    alpha, beta = (torch.as_tensor(bound, dtype=x.dtype, device=x.device).expand_as(x) for bound in (alpha, beta))
    if check_feasible and not bool((torch.dot(w, alpha) <= c) & (torch.dot(w, beta) >= c)):
        raise ValueError(
            'The set is empty: hyperparams = (alpha, beta, w, c) must satisfy <w, alpha> <= c <= <w, beta>.'
        )

    def at(
        tau: torch.Tensor, x: torch.Tensor, w: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
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


def _check_vector(x: torch.Tensor) -> None:
    if x.ndim != 1:
        raise ValueError(f'x has shape {tuple(x.shape)}; expected a vector. To project each row use torch.func.vmap.')


def _map(f: Callable[..., torch.Tensor], tree: Any, *rest: Any) -> Any:
    """Map a function over the leaves, after converting numbers to tensors."""
    return trees.map(lambda x, *others: f(torch.as_tensor(x), *others), tree, *rest)


def _bound(value: Any, x: torch.Tensor) -> torch.Tensor:
    """A bound as a tensor to compare with a leaf; a scalar does not widen the leaf."""
    if not isinstance(value, torch.Tensor):
        keep = x.is_floating_point() or isinstance(value, int)
        return torch.as_tensor(value, dtype=x.dtype if keep else None, device=x.device)
    return value.to(x) if value.ndim == 0 and is_inexact(x) else value


def _vdot(x: Any, y: Any) -> torch.Tensor:
    return torch.as_tensor(trees.vdot(x, y))


def _missing(x: Any, a: Any, b: Any) -> torch.Tensor:
    r"""The factor :math:`(b - \langle a, x \rangle) / \|a\|^2` of the step to a hyperplane."""
    return (b - _vdot(a, x)) / _vdot(a, a)
