# SPDX-License-Identifier: Apache-2.0
"""Utilities for trees in the style of TorchOpt 0.7.3: all public names of optree, and arithmetic.

In every function here ``None`` is an empty node of a tree, unless ``none_is_leaf=True``.  New code may prefer
:mod:`torchopt.tree`, where ``None`` is a leaf.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.rpc as rpc

from torchopt.kinds import kind_of
from torchopt.tree import add_scale, vdot
from torchopt.tree.optree_names import *  # noqa: F403
from torchopt.tree.optree_names import (  # noqa: F401
    MAX_RECURSION_DEPTH,
    NONE_IS_LEAF,
    NONE_IS_NODE,
    __all__ as __all__,  # noqa: PLC0414 (the form from which mypy learns the names)
    tree_flatten,
    tree_flatten_with_accessor,
    tree_map,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torchopt.tree import TreeSpec

__all__ = list(__all__)
__all__ += [
    'tree_add',
    'tree_add_scalar_mul',
    'tree_flatten_as_tuple',
    'tree_matmul',
    'tree_mul',
    'tree_neg',
    'tree_pos',
    'tree_scalar_mul',
    'tree_sub',
    'tree_sub_scalar_mul',
    'tree_truediv',
    'tree_vdot_real',
    'tree_wait',
]


def tree_flatten_as_tuple(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None, *, none_is_leaf: bool = False, namespace: str = ''
) -> tuple[tuple[Any, ...], TreeSpec]:
    """Split a tree into the tuple of its leaves and its structure.

    Args:
        tree: Any tree.
        is_leaf: ``is_leaf(node)`` returns True for nodes to treat as leaves.
        none_is_leaf: Whether ``None`` is a leaf instead of an empty node.
        namespace: The optree namespace in which classes are registered.

    Example:
        >>> import torchopt.pytree as pytree
        >>> pytree.tree_flatten_as_tuple({'b': 1, 'w': (2, None)})[0]
        (1, 2)
    """
    leaves, spec = tree_flatten(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    return tuple(leaves), spec


def acc_add(*args: Any) -> Any:
    """The sum of one or more arguments, added from left to right.

    Example:
        >>> import torchopt.pytree as pytree
        >>> pytree.acc_add(1, 2, 3)
        6
    """
    return functools.reduce(operator.add, args)


def acc_mul(*args: Any) -> Any:
    """The product of one or more arguments, multiplied from left to right.

    Example:
        >>> import torchopt.pytree as pytree
        >>> pytree.acc_mul(2, 3, 4)
        24
    """
    return functools.reduce(operator.mul, args)


def acc_matmul(*args: Any) -> Any:
    """The matrix product of one or more arguments, multiplied from left to right.

    Example:
        >>> import torch, torchopt.pytree as pytree
        >>> pytree.acc_matmul(torch.eye(2), torch.ones(2, 2), torch.ones(2))
        tensor([2., 2.])
    """
    return functools.reduce(operator.matmul, args)


def tree_pos(tree: Any) -> Any:
    """The tree of ``+leaf``.

    Example:
        >>> import torchopt.pytree as pytree
        >>> pytree.tree_pos([1, -2])
        [1, -2]
    """
    return tree_map(operator.pos, tree)


def tree_neg(tree: Any) -> Any:
    """The tree of ``-leaf``.

    Example:
        >>> import torchopt.pytree as pytree
        >>> pytree.tree_neg([1, -2])
        [-1, 2]
    """
    return tree_map(operator.neg, tree)


def tree_add(*trees: Any) -> Any:
    """The sum of one or more trees of the same structure.

    Example:
        >>> import torchopt.pytree as pytree
        >>> pytree.tree_add([1, 2], [3, 4], [5, 6])
        [9, 12]
    """
    return tree_map(acc_add, *trees)


def tree_mul(*trees: Any) -> Any:
    """The leafwise product of one or more trees of the same structure.

    Example:
        >>> import torchopt.pytree as pytree
        >>> pytree.tree_mul([1, 2], [3, 4])
        [3, 8]
    """
    return tree_map(acc_mul, *trees)


def tree_matmul(*trees: Any) -> Any:
    """The leafwise matrix product of one or more trees of the same structure.

    Example:
        >>> import torch, torchopt.pytree as pytree
        >>> pytree.tree_matmul([torch.eye(2)], [torch.ones(2)])
        [tensor([1., 1.])]
    """
    return tree_map(acc_matmul, *trees)


def tree_sub(minuend_tree: Any, subtrahend_tree: Any) -> Any:
    """The difference of two trees of the same structure.

    Example:
        >>> import torchopt.pytree as pytree
        >>> pytree.tree_sub([5, 7], [3, 4])
        [2, 3]
    """
    return tree_map(operator.sub, minuend_tree, subtrahend_tree)


def tree_truediv(dividend_tree: Any, divisor_tree: Any) -> Any:
    """The leafwise quotient of two trees of the same structure.

    Example:
        >>> import torchopt.pytree as pytree
        >>> pytree.tree_truediv([6, 7], [3, 2])
        [2.0, 3.5]
    """
    return tree_map(operator.truediv, dividend_tree, divisor_tree)


def tree_scalar_mul(scalar: Any, multiplicand_tree: Any) -> Any:
    """The tree of ``scalar * leaf``.

    Args:
        scalar: A number, or a tensor that multiplies every leaf.
        multiplicand_tree: The tree.

    Example:
        >>> import torchopt.pytree as pytree
        >>> pytree.tree_scalar_mul(2, [3, 4])
        [6, 8]
    """
    return tree_map(lambda x: scalar * x, multiplicand_tree)


def tree_add_scalar_mul(tree_x: Any, tree_y: Any, alpha: Any = None) -> Any:
    r"""The tree :math:`x + \alpha y`.

    Args:
        tree_x: The tree :math:`x`.
        tree_y: The tree :math:`y`, of the same structure.
        alpha: The number or 0-d tensor :math:`\alpha`; 1 if None.  The result is differentiable with respect to it.

    Raises:
        ValueError: If structures or shapes do not match; the message names the path of the first such leaf.

    Example:
        >>> import torch, torchopt.pytree as pytree
        >>> pytree.tree_add_scalar_mul([torch.ones(2)], [torch.ones(2)], alpha=torch.tensor(0.5))
        [tensor([1.5000, 1.5000])]
    """
    return add_scale(tree_x, 1 if alpha is None else alpha, tree_y)


def tree_sub_scalar_mul(tree_x: Any, tree_y: Any, alpha: Any = None) -> Any:
    r"""The tree :math:`x - \alpha y`; see :func:`tree_add_scalar_mul`.

    Example:
        >>> import torch, torchopt.pytree as pytree
        >>> pytree.tree_sub_scalar_mul([torch.ones(2)], [torch.ones(2)], alpha=0.5)
        [tensor([0.5000, 0.5000])]
    """
    return add_scale(tree_x, -1 if alpha is None else -alpha, tree_y)


def tree_vdot_real(tree_x: Any, tree_y: Any) -> float:
    r"""The real part of :math:`\sum_i \bar x_i y_i` as a Python float.

    It synchronizes with the device; :func:`torchopt.tree.vdot` returns a tensor and can be traced.

    Args:
        tree_x: The tree :math:`x`, which is conjugated.
        tree_y: The tree :math:`y`, of the same structure and shapes.

    Returns:
        The number; 0.0 for trees without leaves.

    Raises:
        ValueError: If structures or shapes differ; the message names the path of the first such leaf.

    Example:
        >>> import torch, torchopt.pytree as pytree
        >>> pytree.tree_vdot_real({'w': torch.tensor([1j, 2.0])}, {'w': torch.tensor([1j, 3.0])})
        7.0
    """
    return float(vdot(tree_x, tree_y).real)


def tree_wait(future_tree: Any) -> Any:
    """Wait for all futures in a tree.

    Args:
        future_tree: Tree of :class:`torch.futures.Future`, including results of ``then`` and ``collect_all``.

    Raises:
        TypeError: If a leaf is not a future; the message names its path.

    Example:
        >>> import torch, torchopt.pytree as pytree
        >>> future = torch.futures.Future()
        >>> future.set_result(3)
        >>> pytree.tree_wait({'a': future})
        {'a': 3}
    """
    accessors, futures, _ = tree_flatten_with_accessor(future_tree)
    for accessor, future in zip(accessors, futures):
        # Future.then and collect_all return instances of this base class.
        if not isinstance(future, torch._C.Future):
            raise TypeError(
                f'{accessor.codify("future_tree")} is {kind_of(future)}; expected a '
                f'torch.futures.Future, the result of an asynchronous call.'
            )
    torch.futures.wait_all(futures)
    return tree_map(lambda future: future.value(), future_tree)


if rpc.is_available():
    from torch.distributed.rpc.constants import UNSET_RPC_TIMEOUT

    def tree_as_rref(tree: Any) -> Any:
        """Convert every leaf to a remote reference owned by this worker.

        Requires ``torch.distributed.rpc.init_rpc``.
        """
        return tree_map(rpc.RRef, tree)

    def tree_to_here(rref_tree: Any, timeout: float = UNSET_RPC_TIMEOUT) -> Any:
        """Copy the values of remote references to this worker.

        Args:
            rref_tree: Tree of :class:`torch.distributed.rpc.RRef`.
            timeout: The time limit for each in seconds; by default that of the RPC agent.
        """
        return tree_map(lambda rref: rref.to_here(timeout=timeout), rref_tree)

    def tree_local_value(rref_tree: Any) -> Any:
        """The values of remote references that this worker owns.

        Args:
            rref_tree: Tree of :class:`torch.distributed.rpc.RRef`.

        Returns:
            The tree of the values, not copied.
        """
        return tree_map(lambda rref: rref.local_value(), rref_tree)

    __all__ += ['tree_as_rref', 'tree_to_here']
