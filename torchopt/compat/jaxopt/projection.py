# SPDX-License-Identifier: Apache-2.0
"""Projections, as ``jaxopt.projection`` has them: the constants of a set are one argument."""

from __future__ import annotations

from typing import Any

from torchopt import projections
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
    return projections.projection_box(x, *hyperparams)


def projection_hypercube(x: Any, unit: Any = 1.0) -> Any:
    """Project onto the numbers between 0 and ``unit``."""
    return projections.projection_hypercube(x, unit)


def projection_simplex(x: Any, value: Any = 1.0) -> Any:
    """Project onto the non-negative vectors of sum ``value``."""
    return projections.projection_simplex(x, value)


def projection_l1_sphere(x: Any, value: Any = 1.0) -> Any:
    """Project onto the vectors of l1 norm ``value``."""
    return projections.projection_l1_sphere(x, value)


def projection_l1_ball(x: Any, max_value: Any = 1.0) -> Any:
    """Project onto the vectors of l1 norm at most ``max_value``."""
    return projections.projection_l1_ball(x, max_value)


def projection_l2_sphere(x: Any, value: Any = 1.0) -> Any:
    """Project onto the vectors of Euclidean norm ``value``."""
    return projections.projection_l2_sphere(x, value)


def projection_l2_ball(x: Any, max_value: Any = 1.0) -> Any:
    """Project onto the vectors of Euclidean norm at most ``max_value``."""
    return projections.projection_l2_ball(x, max_value)


def projection_linf_ball(x: Any, max_value: Any = 1.0) -> Any:
    """Project onto the numbers between ``-max_value`` and ``max_value``."""
    return projections.projection_linf_ball(x, max_value)


def projection_hyperplane(x: Any, hyperparams: tuple[Any, Any]) -> Any:
    """Project onto the points with ``<a, x> = b``, where ``hyperparams = (a, b)``."""
    return projections.projection_hyperplane(x, *hyperparams)


def projection_halfspace(x: Any, hyperparams: tuple[Any, Any]) -> Any:
    """Project onto the points with ``<a, x> <= b``, where ``hyperparams = (a, b)``."""
    return projections.projection_halfspace(x, *hyperparams)
