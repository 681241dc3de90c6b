# SPDX-License-Identifier: Apache-2.0
"""The intended differences from Optax's losses, each with its reason.  Everything else is equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# If Optax gives NaN or infinity although the result is finite, this library gives the finite result.
NUMBERS_FOR_NAN: dict[str, str] = {
    'softmax_cross_entropy: gradient in masked labels': 'what is masked has no influence: 0, not 0 * -inf',
    'poly_loss_cross_entropy: gradient in masked labels': 'the same',
    'safe_softmax_cross_entropy: gradient in labels': '0 log 0 = 0 for the gradient in the labels too, not infinity',
    'kl_divergence: gradient at zero': 'with 0 log 0 = 0, -log q is what is left of the derivative, not 0 * inf',
    'generalized_kl_divergence: gradient at zero': 'the same',
    'convex_kl_divergence: gradient at zero': 'the same',
    'sparsemax_loss: infinities': 'the loss is linear out there: its derivative is 1 or 0, not 0 * inf',
    'kl_divergence: infinities': '0 log 0 = 0 where both targets and predictions exclude',
    'generalized_kl_divergence: infinities': 'the same',
    'convex_kl_divergence: infinities': 'the same',
    'kl_divergence_with_log_targets: infinities': 'the same',
    'sigmoid_binary_cross_entropy: infinities': '0 log 0 = 0 for what is certain and right',
    'sigmoid_focal_loss: infinities': 'the same',
    'multiclass_hinge_loss: infinities': 'a score of -inf is no rival, one of inf leads if it is right',
    'multiclass_perceptron_loss: infinities': 'the same',
    'ctc_loss: excluded class': 'a class that is not in the labels may have no probability at all',
    'ctc_loss_with_forward_probs: excluded class': 'the same',
}


def triplet_of_degree_one(anchors: Any, positives: Any, negatives: Any, **_: Any) -> Any:
    near, far = (np.abs(anchors - x).sum(-1) + 1e-6 for x in (positives, negatives))
    return np.maximum(near - far + 1.0, 0.0)


def dice_of_probabilities(predictions: Any, targets: Any, **_: Any) -> Any:
    overlap, p, t = (x.sum((1, 2)) for x in (predictions * targets, predictions, targets))
    return 1.0 - (overlap + 1.0) / (0.5 * p + 0.5 * t + 1.0)


# The correct value if Optax gives another value, or raises.
OTHER_VALUES: dict[str, tuple[Callable[..., Any], str]] = {
    'triplet_margin_loss: degree of one': (
        triplet_of_degree_one,
        'Optax adds up signed differences, so that odd degrees give no distance, but numbers that cancel, and NaN',
    ),
    'binary_dice_loss: probabilities': (
        dice_of_probabilities,
        'Optax asks that the probability of a single class be 1 everywhere, which refuses every prediction',
    ),
}
