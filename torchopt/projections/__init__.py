# SPDX-License-Identifier: Apache-2.0
"""Euclidean projections of trees onto convex sets (and spheres): the nearest point of the set.

A tree is treated as one vector, and its projection is a tree of the same structure.  Every projection is
differentiable; at a kink the derivative is an element of the generalized Jacobian.  Names and signatures are those of
Optax, or of JAXopt for sets that only JAXopt has.  Under ``torch.func.vmap`` and ``torch.compile`` no values are read.
Projections onto polyhedra and onto matrices with given row and column sums are in :mod:`torchopt.polytopes`.
"""

from torchopt.projections.boxes import (
    projection_box,
    projection_hypercube,
    projection_l2_ball,
    projection_l2_sphere,
    projection_linf_ball,
    projection_non_negative,
)
from torchopt.projections.linear import (
    projection_affine_set,
    projection_box_section,
    projection_halfspace,
    projection_hyperplane,
    projection_vector,
)
from torchopt.projections.simplices import (
    projection_l1_ball,
    projection_l1_sphere,
    projection_simplex,
    projection_sparse_simplex,
    unit_simplex as unit_simplex,
)

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
