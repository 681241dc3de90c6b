# SPDX-License-Identifier: Apache-2.0
"""Every loss with ordinary and extreme inputs, as NumPy arrays for both libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

INF = np.inf


class Case(NamedTuple):
    """One call: the name of the loss, arguments, keywords, and the arguments to differentiate with respect to."""

    loss: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    argnums: tuple[int, ...]


CASES: dict[str, Case] = {}


def case(title: str, loss: str, *args: Any, argnums: tuple[int, ...] | None = None, **kwargs: Any) -> None:
    """Add a case; by default the derivative is with respect to all floating arguments."""
    if argnums is None:
        argnums = tuple(i for i, x in enumerate(args) if getattr(x, 'dtype', None) == np.float64)
    CASES[f'{loss}: {title}'] = Case(loss, args, kwargs, argnums)


rng = np.random.default_rng(0)
normal: Callable[..., Any] = lambda *shape: rng.standard_normal(shape)  # noqa: E731


def distributions(*shape: int) -> Any:
    x = np.exp(normal(*shape))
    return x / x.sum(-1, keepdims=True)


def one_hot(labels: Any, classes: int) -> Any:
    return np.eye(classes)[np.asarray(labels)]


X, Y = normal(4, 5), normal(4, 5)
P, Q = distributions(4, 5), np.log(distributions(4, 5))
LABELS = np.array([0, 2, 4, 1])
MASK = np.array([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]], dtype=bool)
ROWS = np.array([True, False, True, True])
EDGES = np.array([0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, -1e-30, 1e6, -1e6, 1e100, -1e100])
INFINITIES = np.array([INF, -INF, 1.0])

# --- regression ---
for loss in ('squared_error', 'l2_loss', 'huber_loss', 'log_cosh'):
    case('random', loss, X, Y)
    case('no targets', loss, X)
    case('empty', loss, np.zeros((0, 3)), np.zeros((0, 3)))
    case('scalar', loss, np.array(2.0), np.array(1.0))
    case('edges', loss, EDGES[:9])
    case('ties', loss, X, X)
    case('infinities', loss, INFINITIES)
    case('integer targets', loss, X, LABELS[:, None] * np.ones((1, 5), int))
    case('bool targets', loss, X, MASK)
for loss in ('huber_loss', 'log_cosh'):
    case('targets that broadcast', loss, X, Y[:1])
    case('very large', loss, EDGES)
case('delta', 'huber_loss', X, Y, delta=0.3)
case('delta of zero', 'huber_loss', X, Y, delta=0.0)
case('tie with delta', 'huber_loss', np.array([0.5, -0.5, 0.0]), delta=0.5)

# --- cosine ---
for loss in ('cosine_similarity', 'cosine_distance'):
    case('random', loss, X, Y)
    case('one axis', loss, X, Y, axis=0)
    case('two axes', loss, X, Y, axis=(0, 1))
    case('all axes', loss, X, Y, axis=None)
    case('mask', loss, X, Y, where=MASK, epsilon=1e-3)
    case('mask of rows', loss, X, Y, where=ROWS[:, None], epsilon=1e-3)
    case('broadcast', loss, X[:, None], Y[None])
    case('zeros', loss, np.zeros((2, 3)), np.ones((2, 3)), epsilon=1e-6)
    case('zeros without epsilon', loss, np.zeros((2, 3)), np.ones((2, 3)))
    case('empty', loss, np.zeros((0, 3)), np.zeros((0, 3)))
    case('very large', loss, 1e100 * X, Y)

# --- decisions ---
SIGNS = np.sign(Y)
BITS = (Y > 0).astype(float)
for loss in ('sigmoid_binary_cross_entropy', 'sigmoid_focal_loss'):
    case('random', loss, X, BITS)
    case('integers', loss, X, BITS.astype(int))
    case('bools', loss, X, MASK)
    case('soft labels', loss, X, P)
    case('broadcast', loss, X, BITS[0])
    case('zeros', loss, np.zeros(3), np.array([0.0, 1.0, 0.5]))
    case('large', loss, np.array([80.0, -80.0, 80.0, -80.0]), np.array([1.0, 1.0, 0.0, 0.0]))
    case('empty', loss, np.zeros((0, 2)), np.zeros((0, 2)))
    case('very large', loss, np.array([1e5, -1e5, 1e5, -1e5]), np.array([1.0, 1.0, 0.0, 0.0]))
    case('infinities', loss, np.array([INF, -INF, INF, -INF]), np.array([1.0, 0.0, 0.0, 1.0]), argnums=(0,))
case('weights', 'sigmoid_focal_loss', X, BITS, alpha=0.25, gamma=0.5)
case('no focus', 'sigmoid_focal_loss', X, BITS, gamma=0.0)
case('weak focus on the certain', 'sigmoid_focal_loss', np.array([300.0, -300.0]), np.array([1.0, 0.0]), gamma=0.01)
for loss in ('hinge_loss', 'perceptron_loss'):
    case('random', loss, X, SIGNS)
    case('ties', loss, np.array([1.0, -1.0, 0.0, 0.0]), np.array([1.0, -1.0, 1.0, -1.0]))
    case('integers', loss, np.array([1, 2, -3]), np.array([-1, 1, -1]), argnums=())
    case('infinities', loss, INFINITIES, np.array([1.0, 1.0, -1.0]))
    case('empty', loss, np.zeros(0), np.zeros(0))
case('broadcast', 'hinge_loss', X, SIGNS[0])
case('random', 'sparsemax_loss', 2 * X, BITS.astype(int))
case('bools', 'sparsemax_loss', 2 * X, MASK)
case('kinks', 'sparsemax_loss', np.array([-1.0, 1.0, -1.0, 1.0, 0.0]), np.array([0, 0, 1, 1, 0]))
case('infinities', 'sparsemax_loss', np.array([INF, -INF, INF, -INF]), np.array([0, 0, 1, 1]))
case('very large', 'sparsemax_loss', np.array([1e30, -1e30]), np.array([0, 0]))
case('empty', 'sparsemax_loss', np.zeros(0), np.zeros(0, int))

# --- classes ---
for loss in ('multiclass_hinge_loss', 'multiclass_perceptron_loss', 'multiclass_sparsemax_loss'):
    case('random', loss, 2 * X, LABELS)
    case('ties', loss, np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [2.0, 1.0, 1.0]]), np.array([0, 1, 2]))
    case('small integers', loss, X, LABELS.astype(np.uint8))
    case('empty', loss, np.zeros((0, 3)), np.zeros(0, int))
    case('labels that are no class', loss, X, np.array([-1, 5, 0, 0]))
for loss in ('multiclass_hinge_loss', 'multiclass_perceptron_loss'):
    case('vector', loss, X[0], np.array(2))
    case('batches', loss, normal(2, 3, 4), np.array([[0, 1, 2], [3, 0, 1]]))
    case('one label for all', loss, X, np.array(2))
    case('infinities', loss, np.array([[INF, 1.0], [-INF, 1.0]]), np.array([0, 1]))
case('margin', 'multiclass_sparsemax_loss', np.array([[5.0, 1.0], [2.0, 1.0], [1.5, 1.0]]), np.array([0, 0, 0]))
case('excluded', 'multiclass_sparsemax_loss', np.array([[-INF, 1.0, 0.8]]), np.array([1]))
case('very large', 'multiclass_sparsemax_loss', np.array([[1e6, 1.0, 0.5]]), np.array([0]))

for loss in ('softmax_cross_entropy', 'poly_loss_cross_entropy'):
    case('random', loss, X, P)
    case('one-hot', loss, X, one_hot(LABELS, 5))
    case('first axis', loss, X, P, axis=0)
    case('two axes', loss, normal(2, 3, 4), distributions(2, 3, 4), axis=(0, -1))
    case('all axes', loss, X, P, axis=None)
    case('no axis', loss, X, P, axis=())
    case('vector', loss, X[0], P[0])
    case('one distribution for all', loss, X, P[0])
    case('mask', loss, X, P, where=MASK, argnums=(0,))
    case('gradient in masked labels', loss, X, P, where=MASK, argnums=(1,))
    case('mask over two axes', loss, X, P, axis=(0, 1), where=MASK, argnums=(0,))
    case('empty mask', loss, X, P, where=np.zeros_like(MASK), argnums=(0,))
    case('very large', loss, 1e5 * X, P)
    case('equal', loss, np.zeros((2, 3)), distributions(2, 3))
    case('empty batch', loss, np.zeros((0, 3)), np.zeros((0, 3)))
    case('no classes', loss, np.zeros((2, 0)), np.zeros((2, 0)))
    case('infinities', loss, np.array([[INF, 1.0], [-INF, 1.0], [-INF, -INF]]), distributions(3, 2))
case('mask of rows', 'softmax_cross_entropy', X, P, where=ROWS, argnums=(0,))
case('integers', 'softmax_cross_entropy', X, one_hot(LABELS, 5).astype(int))
case('epsilon', 'poly_loss_cross_entropy', X, P, epsilon=-1.0)
loss = 'safe_softmax_cross_entropy'
case('random', loss, X, P)
case('one-hot', loss, X, one_hot(LABELS, 5))
case('excluded classes', loss, np.array([[1.0, -INF, 2.0]]), np.array([[0.25, 0.0, 0.75]]), argnums=(0,))
case('gradient in labels', loss, np.array([[1.0, -INF, 2.0]]), np.array([[0.25, 0.0, 0.75]]), argnums=(1,))
case('excluded and wanted', loss, np.array([[1.0, -INF, 2.0]]), np.array([[0.25, 0.25, 0.5]]))
case('all excluded', loss, np.array([[-INF, -INF]]), np.array([[1.0, 0.0]]), argnums=(0,))
case('none wanted', loss, np.array([[-INF, -INF]]), np.array([[0.0, 0.0]]), argnums=(0,))
case('infinity', loss, np.array([[INF, 0.0]]), np.array([[1.0, 0.0]]), argnums=(0,))
case('very large', loss, 1e5 * X, P)
case('empty', loss, np.zeros((0, 3)), np.zeros((0, 3)))
loss = 'softmax_cross_entropy_with_integer_labels'
case('random', loss, X, LABELS)
case('first axis', loss, X, np.array([0, 3, 1, 2, 0]), axis=0)
case('two axes', loss, normal(2, 3, 4), np.array([[0], [7], [5]])[:, 0], axis=(0, 2))
case('two axes in the other order', loss, normal(2, 3, 4), np.array([0, 7, 5]), axis=(-1, 0))
case('all axes', loss, normal(2, 3), np.array(4), axis=(0, 1))
case('vector', loss, X[0], np.array(3))
case('mask', loss, X, LABELS, where=MASK | (np.arange(5) == LABELS[:, None]))
case('mask of rows', loss, X, LABELS, where=ROWS)
case('mask over two axes', loss, normal(2, 3, 4), np.array([0, 7, 5]), axis=(0, 2), where=normal(2, 3, 4) > -1)
case('empty mask', loss, X, LABELS, where=np.zeros_like(MASK))
case('small integers', loss, X, LABELS.astype(np.int8))
case('labels that are no class', loss, X, np.array([-1, 5, -6, 0]))
case('padded labels', loss, X, np.array([0, -1, 1, 2]), where=ROWS)
case('one label for all', loss, X, np.array([2]))
case('very large', loss, 1e5 * X, LABELS)
case('infinities', loss, np.array([[INF, 1.0], [-INF, 1.0], [-INF, 1.0], [-INF, -INF]]), np.array([0, 0, 1, 0]))
case('empty', loss, np.zeros((0, 3)), np.zeros(0, int))

# --- divergences ---
for loss in ('kl_divergence', 'generalized_kl_divergence', 'convex_kl_divergence'):
    case('random', loss, Q, P)
    case('unnormalized', loss, X, np.exp(Y))
    case('first axis', loss, Q, P, axis=0)
    case('two axes', loss, Q, P, axis=(0, 1))
    case('all axes', loss, Q, P, axis=None)
    case('mask', loss, Q, P, where=MASK)
    case('zeros', loss, Q, one_hot(LABELS, 5), argnums=(0,))
    case('gradient at zero', loss, Q, one_hot(LABELS, 5), argnums=(1,))
    case('negative', loss, Q, -P)
    case('infinities', loss, np.array([[-INF, 0.0], [-INF, 0.0]]), np.array([[0.0, 1.0], [0.5, 0.5]]), argnums=(0,))
    case('empty', loss, np.zeros((0, 3)), np.zeros((0, 3)))
loss = 'kl_divergence_with_log_targets'
case('random', loss, Q, np.log(P))
case('two axes', loss, Q, np.log(P), axis=(0, 1))
case('mask', loss, Q, np.log(P), where=MASK)
case('infinities', loss, np.array([[-INF, 0.0], [0.0, -1.0]]), np.array([[-1.0, 0.0], [-INF, 0.0]]))

# --- smoothing ---
case('random', 'smooth_labels', one_hot(LABELS, 5), 0.1)
case('first axis', 'smooth_labels', P, 0.1, axis=0)
case('two axes', 'smooth_labels', P, 0.3, axis=(0, 1))
case('all axes', 'smooth_labels', P, 0.3, axis=None)
case('mask', 'smooth_labels', P, 0.3, where=MASK)
case('mask over two axes', 'smooth_labels', P, 0.3, axis=(0, 1), where=MASK)
case('zero', 'smooth_labels', P, 0.0)
case('empty', 'smooth_labels', np.zeros((0, 3)), 0.2)

# --- ranking ---
loss = 'ranking_softmax_loss'
RELEVANCE = rng.integers(0, 3, (4, 5))
case('random', loss, X, P)
case('integers', loss, X, RELEVANCE)
case('vector', loss, X[0], P[0])
case('mask', loss, X, P, where=MASK)
case('empty mask', loss, X, P, where=np.zeros_like(MASK))
case('weights', loss, X, P, weights=P[::-1].copy(), where=MASK)
case('sum', loss, X, P, reduce_fn='sum', where=MASK)
case('sum without mask', loss, X, P, reduce_fn='sum')
case('no reduction', loss, X, P, reduce_fn=None, where=MASK)
case('batches', loss, normal(2, 3, 4), distributions(2, 3, 4), where=normal(2, 3, 4) > 0)
case('no lists', loss, np.zeros((0, 3)), np.zeros((0, 3)))
case('very large', loss, 1e5 * X, P)
case('infinities', loss, np.array([[INF, 1.0], [0.0, 1.0]]), distributions(2, 2))

# --- embeddings ---
PAIRS = np.array([0, 1, 0, 1])
case('random', 'ntxent', X, PAIRS)
case('temperature', 'ntxent', X, PAIRS, 0.5)
case('several positives', 'ntxent', normal(7, 3), np.array([0, 1, 0, 1, 2, 0, 1]))
case('one class', 'ntxent', X, np.zeros(4, int))
case('no positives', 'ntxent', X, np.arange(4), argnums=())
case('equal embeddings', 'ntxent', np.ones((4, 3)), PAIRS)
case('zeros', 'ntxent', np.zeros((4, 3)), PAIRS)
case('very large', 'ntxent', 1e50 * X, PAIRS)
case('float labels', 'ntxent', X, PAIRS.astype(float), argnums=(0,))
Z = normal(4, 5)
case('random', 'triplet_margin_loss', X, Y, Z)
case('batches', 'triplet_margin_loss', normal(2, 3, 4), normal(2, 3, 4), normal(2, 3, 4))
case('axis', 'triplet_margin_loss', X, Y, Z, axis=0)
case('fourth degree', 'triplet_margin_loss', X, Y, Z, norm_degree=4, margin=0.1)
case('degree of one', 'triplet_margin_loss', X, Y, Z, norm_degree=1)
case('equal', 'triplet_margin_loss', X, X, X)
case('tie', 'triplet_margin_loss', X, Y, Y, margin=0.0)
case('broadcast', 'triplet_margin_loss', X, Y[:1], Z)
case('empty', 'triplet_margin_loss', np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3)))

# --- segmentation ---
PICTURE = normal(2, 4, 3, 3)
TRUTH = one_hot(rng.integers(0, 3, (2, 4, 3)), 3)
loss = 'dice_loss'
case('random', loss, PICTURE, TRUTH)
case('integers', loss, PICTURE, TRUTH.astype(int))
case('bools', loss, PICTURE, TRUTH.astype(bool))
case('tversky', loss, PICTURE, TRUTH, alpha=0.3, beta=0.7, smooth=0.1)
case('weights', loss, PICTURE, TRUTH, class_weights=np.array([1.0, 2.0, 3.0]))
case('sum', loss, PICTURE, TRUTH, reduction='sum')
case('no reduction', loss, PICTURE, TRUTH, reduction='none')
case('no background', loss, PICTURE, TRUTH, ignore_background=True)
case('probabilities', loss, distributions(2, 4, 3), TRUTH[:, :, 0], apply_softmax=False, argnums=(1,))
case('axes', loss, PICTURE, TRUTH, axis=(1, 2))
case('one axis', loss, PICTURE, TRUTH, axis=0)
case('binary', loss, PICTURE[..., :1], TRUTH[..., :1])
case('binary without channel', loss, PICTURE[..., 0], TRUTH[..., :1])
case('targets without channel', loss, PICTURE[..., :1], TRUTH[..., 0])
case('two dimensions', loss, X, P)
case('empty classes', loss, PICTURE, np.zeros_like(TRUTH))
case('very large', loss, 1e5 * PICTURE, TRUTH)
loss = 'multiclass_generalized_dice_loss'
case('random', loss, PICTURE, TRUTH)
case('no background', loss, PICTURE, TRUTH, ignore_background=True, smooth=0.1)
case('probabilities', loss, distributions(2, 4, 3), TRUTH[:, :, 0], apply_softmax=False, argnums=(1,))
case('empty class', loss, PICTURE, TRUTH * np.array([1.0, 1.0, 0.0]))
loss = 'binary_dice_loss'
case('random', loss, PICTURE[..., 0], TRUTH[..., 0])
case('channel', loss, PICTURE[..., :1], TRUTH[..., :1], smooth=0.1)
case('probabilities', loss, distributions(2, 4, 3), TRUTH[:, :, 0], apply_sigmoid=False)

# --- CTC ---
FRAMES = normal(3, 6, 4)
SPELT = np.array([[1, 2, 2], [3, 3, 3], [1, 0, 3]])
LATE = np.array([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0, 1, 0, 0, 0, 1]], dtype=float)
SHORT = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 1]], dtype=float)
for loss in ('ctc_loss', 'ctc_loss_with_forward_probs'):
    case('random', loss, FRAMES, np.zeros((3, 6)), SPELT, np.zeros((3, 3)), argnums=(0,))
    case('paddings', loss, FRAMES, LATE, SPELT, SHORT, argnums=(0,))
    case('blank', loss, FRAMES, LATE, np.array([[0, 1, 1], [2, 2, 2], [0, 1, 2]]), SHORT, blank_id=3, argnums=(0,))
    case('epsilon', loss, FRAMES, LATE, SPELT, SHORT, log_epsilon=-1e3, argnums=(0,))
    case('no labels', loss, FRAMES, LATE, np.zeros((3, 0), int), np.zeros((3, 0)), argnums=(0,))
    case('all padding', loss, FRAMES, np.ones((3, 6)), SPELT, np.ones((3, 3)), argnums=(0,))
    case('impossible', loss, FRAMES[:, :2], np.zeros((3, 2)), SPELT, np.zeros((3, 3)), argnums=(0,))
    case('padding of minus one', loss, FRAMES, LATE, np.where(SHORT > 0, -1, SPELT), SHORT, argnums=(0,))
    case('one frame', loss, FRAMES[:, :1], np.zeros((3, 1)), SPELT[:, :1], np.zeros((3, 1)), argnums=(0,))
    case('very large', loss, 1e3 * FRAMES, LATE, SPELT, SHORT, argnums=(0,))
    case('empty batch', loss, FRAMES[:0], LATE[:0], SPELT[:0], SHORT[:0], argnums=(0,))
    excluded = np.where(np.arange(4) == 0, -INF, FRAMES)
    case('excluded class', loss, excluded, LATE, SPELT * 0 + 2, SHORT * 0 + [0, 1, 1], blank_id=1, argnums=(0,))
