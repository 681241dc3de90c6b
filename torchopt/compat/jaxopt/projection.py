# SPDX-License-Identifier: Apache-2.0
"""Projections, as ``jaxopt.projection`` has them: the constants of a set are one argument, for sizes 1 if None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from torchopt import checks, projections, tree
from torchopt.dtypes import is_inexact
from torchopt.kinds import kind_of
from torchopt.polytopes import (
    kl_projection_birkhoff,
    kl_projection_transport,
    projection_birkhoff,
    projection_polyhedron,
    projection_transport,
)
from torchopt.projections import projection_affine_set, projection_box_section, projection_sparse_simplex

__all__ = [
    'kl_projection_birkhoff',
    'kl_projection_transport',
    'projection_affine_set',
    'projection_birkhoff',
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
    'projection_polyhedron',
    'projection_simplex',
    'projection_sparse_simplex',
    'projection_transport',
]


def projection_non_negative(x: Any, hyperparams: Any = None) -> Any:
    """Project onto the non-negative numbers; ``hyperparams`` is not used."""
    return projections.projection_non_negative(x)


def projection_box(x: Any, hyperparams: tuple[Any, Any]) -> Any:
    """Project onto the box between ``hyperparams = (lower, upper)``."""
    return projections.projection_box(x, *_pair(hyperparams, '(lower, upper)'))


def projection_hypercube(x: Any, unit: Any = 1.0) -> Any:
    """Project onto the numbers between 0 and ``unit``."""
    return projections.projection_hypercube(x, unit)


def projection_simplex(x: Any, value: Any = 1.0) -> Any:
    """Project onto the non-negative vectors of sum ``value``."""
    _check_floating(x)
    return projections.projection_simplex(x, _size('value', value, checks.positive))


def projection_l1_sphere(x: Any, value: Any = 1.0) -> Any:
    """Project onto the vectors of l1 norm ``value``."""
    _check_floating(x)
    return projections.projection_l1_sphere(x, _size('value', value, checks.positive))


def projection_l1_ball(x: Any, max_value: Any = 1.0) -> Any:
    """Project onto the vectors of l1 norm at most ``max_value``."""
    _check_floating(x)
    return projections.projection_l1_ball(x, _size('max_value', max_value, checks.positive))


def projection_l2_sphere(x: Any, value: Any = 1.0) -> Any:
    """Project onto the vectors of Euclidean norm ``value``."""
    _check_floating(x)
    return projections.projection_l2_sphere(x, _size('value', value, checks.at_least))


def projection_l2_ball(x: Any, max_value: Any = 1.0) -> Any:
    """Project onto the vectors of Euclidean norm at most ``max_value``."""
    _check_floating(x)
    return projections.projection_l2_ball(x, _size('max_value', max_value, checks.at_least))


def projection_linf_ball(x: Any, max_value: Any = 1.0) -> Any:
    """Project onto the numbers between ``-max_value`` and ``max_value``."""
    return projections.projection_linf_ball(x, _size('max_value', max_value, checks.at_least))


def projection_hyperplane(x: Any, hyperparams: tuple[Any, Any]) -> Any:
    """Project onto the points with ``<a, x> = b``, where ``hyperparams = (a, b)``."""
    return projections.projection_hyperplane(x, *_pair(hyperparams, '(a, b)'))


def projection_halfspace(x: Any, hyperparams: tuple[Any, Any]) -> Any:
    """Project onto the points with ``<a, x> <= b``, where ``hyperparams = (a, b)``."""
    return projections.projection_halfspace(x, *_pair(hyperparams, '(a, b)'))


def _size(name: str, value: Any, check: Callable[[str, Any], None]) -> Any:
    value = 1.0 if value is None else value
    check(name, value)
    return value


def _pair(hyperparams: Any, expected: str) -> tuple[Any, Any]:
    if not isinstance(hyperparams, (tuple, list)) or len(hyperparams) != 2:
        kind = f'of {len(hyperparams)}' if isinstance(hyperparams, (tuple, list)) else f'({hyperparams!r})'
        raise ValueError(
            f'hyperparams is {kind_of(hyperparams)} {kind}; expected a pair {expected}. Pass hyperparams={expected}.'
        )
    first, second = hyperparams
    return first, second


def _check_floating(x: Any) -> None:
    for path, leaf in tree.flatten_with_path(x):
        if isinstance(leaf, Tensor) and not is_inexact(leaf):
            raise TypeError(f'x{path} has dtype {leaf.dtype}; expected a floating dtype. Convert it with `.float()`.')
