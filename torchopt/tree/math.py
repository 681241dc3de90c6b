# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on trees, each treated as one long vector: the functions of ``optax.tree``.

Leaves are tensors or numbers.  A scalar never promotes a leaf: a 0-d float32 leaf times a float64 scalar
stays float32.  Reductions return 0-d tensors on the device of the first leaf and do not synchronize with it.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torchopt import norms, numerics
from torchopt.dtypes import is_inexact, widened
from torchopt.numerics import in_single
from torchopt.tree.leafwise import map_leaves, scalar_like, tensors, together
from torchopt.tree.ops import describe_shapes, map
from torchopt.tree.registry import flatten, flatten_up_to, flatten_with_path, leaves

if TYPE_CHECKING:
    from collections.abc import Callable


def add(tree_x: Any, tree_y: Any, *other_trees: Any) -> Any:
    """Add two or more trees.

    Args:
        tree_x: The first tree; where a leaf is ``None``, the sum is ``None``.
        tree_y: The second tree, of the same structure.
        *other_trees: Further trees.

    Raises:
        ValueError: If structures or shapes do not match; the message names the path of the first such leaf.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.add({'w': torch.ones(2)}, {'w': torch.ones(2)}, {'w': torch.ones(2)})
        {'w': tensor([3., 3.])}
    """
    return map_leaves(lambda *xs: functools.reduce(operator.add, xs), tree_x, tree_y, *other_trees)


def sub(tree_x: Any, tree_y: Any) -> Any:
    """Subtract one tree from another; see :func:`add`.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.sub([torch.ones(2)], [torch.ones(2)])
        [tensor([0., 0.])]
    """
    return map_leaves(operator.sub, tree_x, tree_y)


def mul(tree_x: Any, tree_y: Any) -> Any:
    """Multiply two trees elementwise; see :func:`add`.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.mul([torch.full((2,), 2.0)], [torch.full((2,), 3.0)])
        [tensor([6., 6.])]
    """
    return map_leaves(operator.mul, tree_x, tree_y)


def div(tree_x: Any, tree_y: Any) -> Any:
    """Divide one tree by another elementwise; see :func:`add`.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.div([torch.ones(2)], [torch.full((2,), 2.0)])
        [tensor([0.5000, 0.5000])]
    """
    return map_leaves(operator.truediv, tree_x, tree_y)


def scale(scalar: Any, tree: Any) -> Any:
    """Multiply every leaf by one scalar, a number or a 0-d tensor.

    Returns:
        The product, a tree whose floating leaves keep their dtypes.

    Example:
        >>> import torch, torchopt
        >>> double = torch.tensor(2.0, dtype=torch.float64)
        >>> torchopt.tree.scale(double, {'b': None, 'w': torch.tensor(3.0)})
        {'b': None, 'w': tensor(6.)}
    """
    return map_leaves(in_single(lambda x: x * scalar_like(scalar, x)), tree)


def add_scale(tree_x: Any, scalar: Any, tree_y: Any) -> Any:
    r"""The tree :math:`x + \alpha y`.

    Args:
        tree_x: The tree :math:`x`; where a leaf is ``None``, the result is ``None``.
        scalar: The number or 0-d tensor :math:`\alpha`.
        tree_y: The tree :math:`y`.

    Raises:
        ValueError: If structures or shapes do not match; the message names the path of the first such leaf.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.add_scale({'w': torch.tensor(1.0)}, -0.5, {'w': torch.tensor(4.0)})
        {'w': tensor(-1.)}
    """
    return map_leaves(in_single(lambda x, y: x + y * scalar_like(scalar, y)), tree_x, tree_y)


def vdot(tree_x: Any, tree_y: Any) -> Any:
    r"""The inner product :math:`\sum_i \bar x_i y_i` over all elements of two trees.

    Args:
        tree_x: The tree :math:`x`, which is conjugated.
        tree_y: The tree :math:`y`, of the same structure and shapes.

    Returns:
        A 0-d tensor; the number 0 for trees without leaves.

    Raises:
        ValueError: If structures or shapes differ; the message names the path of the first such leaf.

    Example:
        >>> import torch, torchopt
        >>> x = {'w': torch.tensor([1j, 1.0]), 'b': torch.tensor(2.0)}
        >>> torchopt.tree.vdot(x, x)
        tensor(6.+0.j)
    """
    first, spec = flatten(tree_x)
    second = flatten_up_to(spec, tree_y, name='tree_y', like='tree_x')
    products = []
    for i, (x, y) in enumerate(zip(first, second)):
        if x is None:
            continue
        a, b = torch.as_tensor(x), y if y is None else torch.as_tensor(y)
        if b is None or a.shape != b.shape:
            path = flatten_with_path(tree_x)[i][0]
            raise ValueError(describe_shapes(a, b, f'tree_x{path}', f'tree_y{path}'))
        products.append(_vdot(a, b))
    return functools.reduce(operator.add, together(products)) if products else 0


def sum(tree: Any, associative_reduction: bool = False) -> Any:
    """The sum of all elements of all leaves.

    Args:
        tree: The tree.
        associative_reduction: Add the sums of the leaves pairwise, which reduces rounding errors for trees
            with many leaves; if False, from left to right.

    Returns:
        A 0-d tensor; the number 0 for a tree without leaves.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.sum({'w': torch.ones(2, 3), 'b': None, 'c': torch.tensor(1.0)})
        tensor(7.)
    """
    sums = together([x.sum() for x in tensors(tree)])
    if not associative_reduction:
        return functools.reduce(operator.add, sums) if sums else 0
    while len(sums) > 1:
        odd = sums[-1:] if len(sums) % 2 else []
        sums = [a + b for a, b in zip(sums[::2], sums[1::2])] + odd
    return sums[0] if sums else 0


def max(tree: Any) -> Any:
    """The largest element of all leaves.

    Leaves without elements are ignored.  NaN in any element gives NaN.

    Returns:
        A 0-d tensor; the number ``-inf`` for a tree without elements.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.max({'w': torch.tensor([1.0, 5.0]), 'b': torch.tensor(-2.0)})
        tensor(5.)
    """
    return _extreme(torch.amax, torch.maximum, tree, -math.inf)


def min(tree: Any) -> Any:
    """The smallest element of all leaves, ``inf`` for a tree without elements; see :func:`max`.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.min({'w': torch.tensor([1.0, 5.0]), 'b': torch.tensor(-2.0)})
        tensor(-2.)
    """
    return _extreme(torch.amin, torch.minimum, tree, math.inf)


def size(tree: Any) -> int:
    """The number of elements of all leaves.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.size({'w': torch.ones(2, 3), 'b': None, 'c': torch.tensor(1.0)})
        7
    """
    total = 0
    for x in leaves(tree):
        total += x.numel() if isinstance(x, torch.Tensor) else int(np.size(x))
    return total


def norm(tree: Any, ord: int | str | float | None = None, squared: bool = False) -> torch.Tensor:
    r"""The vector norm of a tree: :math:`\lVert x \rVert_p` over all elements of all leaves.

    At zero, the gradient of the 2-norm is zero, not NaN.  The 2-norm is also accurate if the squares of the elements
    overflow or underflow.

    Args:
        tree: Tree of real or complex tensors.
        ord: The order :math:`p`: None or 2, 1, or infinity (``math.inf``, ``'inf'`` or
            ``'infinity'``).
        squared: Return the square of the norm.

    Returns:
        A real 0-d tensor.  For a tree without elements it is 0, or ``-inf`` for infinite order, as in Optax.

    Raises:
        ValueError: If the order is not one of these.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.norm({'w': torch.tensor([3.0]), 'b': torch.tensor([4.0])})
        tensor(5.)
    """
    result = wide_norm(tree, ord, squared)
    kinds = [x.dtype if is_inexact(x) else torch.get_default_dtype() for x in tensors(tree)]
    kind = functools.reduce(torch.promote_types, kinds) if kinds else result.dtype
    return result.to(kind) if kind.itemsize < result.dtype.itemsize else result


def wide_norm(tree: Any, ord: int | str | float | None = None, squared: bool = False) -> torch.Tensor:
    """Like :func:`norm`, but at least in float32, since the norm of many elements can overflow in half precision."""
    if ord is None or ord == 2:
        xs = [x if is_inexact(x) else x.to(torch.get_default_dtype()) for x in tensors(tree)]
        if squared:
            return torch.as_tensor(sum([numerics.abs_sq(widened(x)) for x in xs]))
        return norms.two_norm(xs) if xs else torch.zeros(())
    sizes = [widened(x).abs() for x in tensors(tree)]
    if ord == 1:
        result = torch.as_tensor(sum(sizes))
    elif ord in (math.inf, 'inf', 'infinity'):
        result = torch.as_tensor(max(sizes))
    else:
        raise ValueError(f"Unsupported ord: {ord!r}; expected None, 1, 2, math.inf, 'inf' or 'infinity'.")
    return result * result if squared else result


def conj(tree: Any) -> Any:
    """The complex conjugate of every leaf.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.conj([torch.tensor(1.0 + 2.0j)])
        [tensor(1.-2.j)]
    """
    return map(lambda x: torch.conj_physical(torch.as_tensor(x)), tree)


def real(tree: Any) -> Any:
    """The real part of every leaf; a view for complex tensors.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.real([torch.tensor(1.0 + 2.0j), torch.tensor(3.0)])
        [tensor(1.), tensor(3.)]
    """
    return map(lambda x: x.real, tree)


def clip(tree: Any, min_value: Any = None, max_value: Any = None) -> Any:
    """Clip every element to an interval.

    Args:
        tree: Tree of real tensors.
        min_value: The lower bound, a number or a 0-d tensor; none if None.
        max_value: The upper bound, likewise.  If it is less than the lower bound, the result is the upper bound.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.clip([torch.tensor([-3.0, 0.5, 3.0])], -1.0, 1.0)
        [tensor([-1.0000,  0.5000,  1.0000])]
    """

    def bound(x: Any) -> Any:
        x = torch.as_tensor(x)
        if min_value is not None:
            x = torch.clamp(x, min=scalar_like(min_value, x))
        return x if max_value is None else torch.clamp(x, max=scalar_like(max_value, x))

    return map(bound, tree)


def where(condition: Any, tree_x: Any, tree_y: Any) -> Any:
    """Choose between two trees.

    Args:
        condition: A bool, or a tensor of bools that broadcasts against every leaf.
        tree_x: The values if the condition holds; where a leaf is ``None``, the result is ``None``.
        tree_y: The values if it does not hold.

    Raises:
        ValueError: If structures or shapes do not match; the message names the path of the first such leaf.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.where(torch.tensor([True, False]), [torch.ones(2)], [torch.zeros(2)])
        [tensor([1., 0.])]
    """

    def choose(x: Any, y: Any) -> torch.Tensor:
        x = torch.as_tensor(x)
        test = torch.as_tensor(condition, device=x.device)
        return torch.where(test if test.dtype == torch.bool else test != 0, x, y)

    return map_leaves(choose, tree_x, tree_y)


def allclose(a: Any, b: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Any:
    r"""Whether :math:`|a - b| \le \text{atol} + \text{rtol}\,|b|` everywhere.

    Args:
        a: A tree.
        b: A tree of the same structure.
        rtol: The relative tolerance.
        atol: The absolute tolerance.
        equal_nan: Whether NaN equals NaN.

    Returns:
        A 0-d bool tensor; converting it to a bool synchronizes with its device.  True for trees without leaves.

    Raises:
        ValueError: If structures differ or shapes do not broadcast, or if a leaf is ``None`` in one
            tree only.

    Example:
        >>> import torch, torchopt
        >>> bool(torchopt.tree.allclose({'w': torch.ones(2)}, {'w': torch.ones(2) + 1e-9}))
        True
    """

    def close(x: Any, y: Any) -> torch.Tensor:
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        kind = torch.promote_types(x.dtype, y.dtype)
        if not (kind.is_floating_point or kind.is_complex):
            kind = torch.float64
        x, y = x.to(kind), y.to(kind)
        # torch.isclose has no rule for vmap.
        distance = (x - y).abs()
        near = (x == y) | (distance.isfinite() & (distance <= atol + rtol * y.abs()))
        if equal_nan:
            near = near | (x.isnan() & y.isnan())
        return torch.all(near)

    result = map_leaves(close, a, b)
    only_b = [path for (path, x), y in zip(flatten_with_path(b), flatten(a)[0]) if y is None is not x]
    if only_b:
        raise ValueError(f'a{only_b[0]} is None, but b{only_b[0]} is not. Use None, or a tensor, in both trees.')
    return functools.reduce(operator.and_, together(leaves(result)), True)


def _extreme(within: Callable[..., torch.Tensor], between: Callable[..., torch.Tensor], tree: Any, empty: float) -> Any:
    extremes = together([within(x) for x in tensors(tree) if x.numel()])
    return functools.reduce(between, extremes) if extremes else empty


def _vdot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    # torch.vdot requires equal dtypes; in half precision it rounds intermediate results.
    if x.dtype == y.dtype and x.dtype in _FUSED and x.device == y.device:
        return torch.vdot(x.flatten(), y.flatten())
    return (widened(x).conj() * widened(y)).sum().to(torch.promote_types(x.dtype, y.dtype))


_FUSED = {torch.float32, torch.float64, torch.complex64, torch.complex128}
