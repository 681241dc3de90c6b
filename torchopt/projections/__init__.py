# SPDX-License-Identifier: Apache-2.0
"""Euclidean projections of trees onto convex sets (and spheres): the nearest point of the set.

A tree counts as one long vector.  Every projection is differentiable: where the set has an edge, the derivative
is that of one of the sides, or between them.  Names and signatures are those of Optax; where only JAXopt has a set,
they are JAXopt's.  Under ``torch.func.vmap`` and ``torch.compile`` no value is read, except for the polyhedron and the
transport plans, which are found by iteration.
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
from torchopt.projections.polyhedron import projection_polyhedron
from torchopt.projections.simplices import (
    projection_l1_ball,
    projection_l1_sphere,
    projection_simplex,
    projection_sparse_simplex,
)
from torchopt.projections.transport import (
    kl_projection_birkhoff,
    kl_projection_transport,
    projection_birkhoff,
    projection_transport,
)

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
    'projection_vector',
]
