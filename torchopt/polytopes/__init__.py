# SPDX-License-Identifier: Apache-2.0
"""Projections computed by solvers: onto polyhedra, and onto matrices with given row and column sums.

Names and signatures are those of JAXopt.  All are differentiable in all arguments, to any order.
"""

from torchopt.polytopes.polyhedron import projection_polyhedron
from torchopt.polytopes.transport import (
    kl_projection_birkhoff,
    kl_projection_transport,
    projection_birkhoff,
    projection_transport,
)

__all__ = [
    'kl_projection_birkhoff',
    'kl_projection_transport',
    'projection_birkhoff',
    'projection_polyhedron',
    'projection_transport',
]
