# SPDX-License-Identifier: Apache-2.0
"""Objectives, as ``jaxopt.objective`` has them."""

from torchopt.objective import (
    CompositeLinearFunction,
    binary_logreg,
    l2_multiclass_logreg,
    l2_multiclass_logreg_with_intercept,
    least_squares,
    multiclass_linear_svm_dual,
    multiclass_logreg,
    multiclass_logreg_with_intercept,
    ridge_regression,
)

__all__ = [
    'CompositeLinearFunction',
    'binary_logreg',
    'l2_multiclass_logreg',
    'l2_multiclass_logreg_with_intercept',
    'least_squares',
    'multiclass_linear_svm_dual',
    'multiclass_logreg',
    'multiclass_logreg_with_intercept',
    'ridge_regression',
]
