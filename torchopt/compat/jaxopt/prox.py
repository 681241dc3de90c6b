# SPDX-License-Identifier: Apache-2.0
"""Proximal operators, as ``jaxopt.prox`` has them."""

from torchopt.prox import (
    make_prox_from_projection,
    prox_elastic_net,
    prox_group_lasso,
    prox_lasso,
    prox_non_negative_lasso,
    prox_non_negative_ridge,
    prox_none,
    prox_ridge,
)

__all__ = [
    'make_prox_from_projection',
    'prox_elastic_net',
    'prox_group_lasso',
    'prox_lasso',
    'prox_non_negative_lasso',
    'prox_non_negative_ridge',
    'prox_none',
    'prox_ridge',
]
