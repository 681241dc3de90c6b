# SPDX-License-Identifier: Apache-2.0
"""Muon: orthogonalized momentum for matrices, and Adam for all other parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import GradientTransformation, factory, without_state
from torchopt.combine import chain
from torchopt.contrib.matrix_axes import MatrixShape, axes_of_leaves, matrices_of_leaves
from torchopt.contrib.newton_schulz import PRECONDITIONINGS, orthogonalize
from torchopt.dtypes import DTypeLike
from torchopt.elementwise import ranges
from torchopt.numerics import (
    advance,
    as_python_list,
    as_scalar_like,
    bias_correction,
    one_minus,
    safe_increment,
    zero_count,
)
from torchopt.preconditions import state_of
from torchopt.rules import moving_average, plus, times
from torchopt.spelling import suggesting
from torchopt.transform import add_decayed_weights, partition, scale_by_adam, scale_by_learning_rate

_STANDARD = (3.4445, -4.775, 2.0315)
_PRESETS = {
    # From Jordan's blog post: fast for small singular values, without converging to 1 exactly.
    'standard': _STANDARD,
    # From Dion: one set for each of five iterations, after which all singular values are within a few percent of 1.
    'dion': (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}


class MuonDimensionNumbers(NamedTuple):
    """Which axes of a tensor are the rows of matrices (the reduced axes), and which the columns; others form a batch.

    Attributes:
        reduction_axis: The axes of the rows.
        output_axis: The axes of the columns.
    """

    reduction_axis: Sequence[int] | int = 0
    output_axis: Sequence[int] | int = 1


@tree.safe_to_load
class MuonState(NamedTuple):
    """State of :func:`scale_by_muon`: the step count, the mean gradient, the coefficients of the iteration."""

    count: Any
    mu: Any
    ns_coeffs: Any


@factory
def scale_by_muon(
    ns_coeffs: Any = _STANDARD,
    ns_steps: int = 5,
    beta: Any = 0.95,
    eps: Any = 1e-8,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = 'frobenius',
    weight_dimension_numbers: Any = None,
) -> GradientTransformation:
    r"""Replace the mean of the gradients approximately by the nearest semi-orthogonal matrix.

    .. math::
        m_t = \beta m_{t-1} + (1 - \beta) g_t, \qquad
        \hat m_t = \beta \frac{m_t}{1 - \beta^{t+1}} + (1 - \beta) \frac{g_t}{1 - \beta^t}, \qquad
        u_t = \operatorname{NS}(\hat m_t) \approx U V^\top \quad \text{for} \quad \hat m_t = U S V^\top,

    with Newton-Schulz iterations (``torchopt/contrib/newton_schulz.py``): steepest descent in the spectral norm.

    Args:
        ns_coeffs: The coefficients :math:`a, b, c` of the iteration; or one row of them per iteration, at most
            ``ns_steps`` rows.
        ns_steps: The number of iterations.
        beta: Decay rate :math:`\beta` of the mean, in [0, 1).
        eps: :math:`\epsilon \ge 0`, added to the norm by which a matrix is first divided.
        mu_dtype: Real dtype of the mean; None means the dtype of each parameter.
        nesterov: Whether to use Nesterov momentum; if False, :math:`\hat m_t = m_t / (1 - \beta^t)`.
        adaptive: Scale by the inner product of update and mean, the dual norm of the mean.
        preconditioning: ``'frobenius'``, ``'spectral'``, ``'aol'`` or ``'schatten'``.
        weight_dimension_numbers: Which axes are rows and columns: a :class:`MuonDimensionNumbers`, a tree of them with
            the structure of the updates or a prefix of it, or a function that makes one from the updates.  None means
            axes 0 and 1 of all leaves.

    Returns:
        A transformation with state :class:`MuonState`.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if a leaf is not a matrix.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.contrib.scale_by_muon(ns_coeffs=(1.5, -0.5, 0.0), ns_steps=15)
        >>> g = [torch.tensor([[3.0, 0.0], [0.0, 1.0]])]
        >>> tx.update(g, tx.init(g))[0][0].round(decimals=3)
        tensor([[1., 0.], [0., 1.]])

    References:
        Jordan, `Muon: an optimizer for hidden layers in neural networks <https://kellerjordan.github.io/posts/muon/>`_,
        2024.
        Bernstein and Newhouse, `Old optimizer, new norm: an anthology <https://arxiv.org/abs/2409.20325>`_, 2024.
        Ahn et al., `Dion: distributed orthonormalized updates <https://arxiv.org/abs/2504.05295>`_, 2025.
    """
    checks.at_least('ns_steps', ns_steps, 0)
    coefficients = _coefficients(ns_coeffs, ns_steps)
    checks.unit_interval('beta', beta)
    checks.at_least('epsilon value', eps)
    dtype = ranges.moment_dtype(mu_dtype)
    if preconditioning not in PRECONDITIONINGS:
        raise ValueError(f'Invalid preconditioning: {preconditioning!r}; expected one of {PRECONDITIONINGS}.')

    def init(params: Any) -> MuonState:
        return MuonState(zero_count(), elementwise.zero_moment(params, dtype=dtype), coefficients.clone())

    def orthogonal(x: Tensor, shape: MatrixShape, rows: Sequence[Sequence[Any]]) -> Tensor:
        u = shape.from_matrices(orthogonalize(shape.to_matrices(x), rows, preconditioning, eps))
        return (x.conj() * u).sum() * u if adaptive else u

    def update(updates: Any, state: MuonState, params: Any = None, *, inplace: bool = False) -> tuple[Any, MuonState]:
        shapes = _matrices(weight_dimension_numbers, updates)
        count, t = advance(state.count)
        now, ahead = bias_correction(beta, t), bias_correction(beta, safe_increment(t))

        def rule(g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
            m = moving_average(beta, m, g)
            if not nesterov:
                return m / as_scalar_like(now, m), m
            return plus(times(beta / ahead, m), times(one_minus(beta) / now, g)), m

        mean, mu = elementwise.apply_rule(rule, updates, state.mu, inplace=inplace)
        leaves, spec = tree.flatten(mean)
        rows = _rows(state.ns_coeffs, ns_steps)
        u = [None if x is None or shape is None else orthogonal(x, shape, rows) for x, shape in zip(leaves, shapes)]
        return tree.unflatten(spec, u), MuonState(count, mu, state.ns_coeffs)

    return GradientTransformation.requiring(init, update, state_of(MuonState))


def _coefficients(given: Any, steps: int) -> Tensor:
    made = torch.as_tensor(given, dtype=torch.float64, device='cpu')
    if made.dim() not in (1, 2) or made.shape[-1] != 3:
        raise ValueError(f'Invalid ns_coeffs of shape {tuple(made.shape)}; expected (3,) or (n, 3).')
    if made.dim() == 2 and len(made) > steps:
        raise ValueError(
            f'Invalid ns_coeffs: {len(made)} rows for ns_steps={steps} iterations. Pass ns_steps={len(made)}, or fewer '
            f'rows.'
        )
    return made


def _rows(coefficients: Tensor, steps: int) -> list[Any]:
    """The coefficients of each iteration, as Python numbers if available without synchronization."""
    table: Any = coefficients.reshape(-1, 3)
    known = as_python_list(coefficients.reshape(-1))
    if known is not None:
        table = [known[i : i + 3] for i in range(0, len(known), 3)]
    elif coefficients.dim() == 1:
        table = [coefficients.unbind()]
    else:
        table = [row.unbind() for row in table.unbind()]
    return list(table) * (steps if coefficients.dim() == 1 else 1)


def _matrices(axes: Any, updates: Any) -> list[MatrixShape | None]:
    shapes = matrices_of_leaves(axes, updates, MuonDimensionNumbers, lambda x: True, batch=True)
    for i, (shape, x) in enumerate(zip(shapes, tree.flatten(updates)[0])):
        if shape is None and x is not None:
            raise ValueError(
                f'The dimension numbers of leaf {i}, of shape {tuple(x.shape)}, are None. Pass MuonDimensionNumbers, '
                f'or use another rule for this leaf, as muon does.'
            )
    return shapes


@factory
def scale_by_shape(weight_dimension_numbers: Any = None, consistent_rms: Any = None) -> GradientTransformation:
    r"""Scale orthogonal updates by the shapes of their matrices.

    For :math:`m` rows and :math:`n` columns, the factor is :math:`\sqrt{\max(1, n / m)}`, for which a good learning
    rate does not depend on the width of the network; or :math:`\rho \sqrt{\max(m, n)}`, for which updates have the root
    mean square :math:`\rho` (for Adam it is about 0.2).

    Args:
        weight_dimension_numbers: Which axes are rows and columns; see :func:`scale_by_muon`.
        consistent_rms: The root mean square :math:`\rho`; None uses the first factor.

    Raises:
        ValueError: In ``update``, if a leaf is not a matrix by its dimension numbers.

    Example:
        >>> import torch
        >>> from torchopt.contrib.muon import scale_by_shape
        >>> tx = scale_by_shape()
        >>> tx.update([torch.ones(1, 4)], tx.init([]))[0]
        [tensor([[2., 2., 2., 2.]])]

    References:
        Liu et al., `Muon is scalable for LLM training <https://arxiv.org/abs/2502.16982>`_, 2025.
    """

    def factor(shape: MatrixShape) -> Any:
        _, m, n = shape.sizes
        if consistent_rms is None:
            return math.sqrt(max(1.0, n / m)) if m else 1.0
        return math.sqrt(max(m, n)) * consistent_rms

    def scaled(updates: Any, params: Any) -> Any:
        leaves, spec = tree.flatten(updates)
        shapes = _matrices(weight_dimension_numbers, updates)
        u = [None if shape is None else g * as_scalar_like(factor(shape), g) for g, shape in zip(leaves, shapes)]
        return tree.unflatten(spec, u)

    return without_state(scaled)


@suggesting
def muon(
    learning_rate: Any,
    ns_coeffs: Any = _STANDARD,
    ns_steps: int = 5,
    beta: Any = 0.95,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = 'frobenius',
    adam_b1: Any = 0.9,
    adam_b2: Any = 0.999,
    adam_eps_root: Any = 0.0,
    adam_weight_decay: Any = 0.0,
    adam_learning_rate: Any = None,
    muon_weight_dimension_numbers: Any = None,
    consistent_rms: Any = None,
) -> GradientTransformation:
    r"""Muon: orthogonalized momentum for matrices, and AdamW for all other parameters.

    For matrices of :math:`m` rows and :math:`n` columns, with :math:`u_t` as in :func:`scale_by_muon`,

    .. math::
        p_t = p_{t-1} - \eta\,\Bigl( \sqrt{\max(1, n / m)}\; u_t + \lambda p_{t-1} \Bigr).

    Args:
        learning_rate: :math:`\eta`; see :func:`torchopt.transform.scale_by_learning_rate`.
        ns_coeffs: The coefficients of the iteration, see :func:`scale_by_muon`; or ``'standard'`` or ``'dion'``.
        ns_steps: The number of iterations.
        beta: Decay rate :math:`\beta` of the mean, in [0, 1).
        eps: :math:`\epsilon \ge 0`, of both optimizers.
        weight_decay: :math:`\lambda \ge 0` of matrices; if nonzero, ``update`` requires ``params``.
        weight_decay_mask: Which parameters decay; see :func:`torchopt.transform.add_decayed_weights`.
        mu_dtype: Real dtype of the mean; None means the dtype of each parameter.
        nesterov: Use Nesterov momentum in both optimizers.
        adaptive: Scale by the dual norm of the mean.
        preconditioning: ``'frobenius'``, ``'spectral'``, ``'aol'`` or ``'schatten'``.
        adam_b1: Decay rate of AdamW's mean, in [0, 1).
        adam_b2: Decay rate of AdamW's mean square, in [0, 1).
        adam_eps_root: AdamW's :math:`\bar\epsilon \ge 0`, inside the root.
        adam_weight_decay: AdamW's weight decay.
        adam_learning_rate: AdamW's learning rate; None means ``learning_rate``.
        muon_weight_dimension_numbers: Which leaves are matrices: a tree of :class:`MuonDimensionNumbers` with the
            structure of the parameters or a prefix of it, or a function that makes one from the parameters, with None
            for leaves that AdamW trains.  None means all leaves with two axes.
        consistent_rms: The root mean square :math:`\rho` of the updates, for a factor :math:`\rho \sqrt{\max(m, n)}`.

    Returns:
        A transformation with state :class:`torchopt.transform.PartitionState`, labels ``'muon'``, ``'adam'``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.muon(0.1, nesterov=False)
        >>> p = {'w': torch.eye(2), 'b': torch.ones(2)}
        >>> updates, _ = optimizer.update(p, optimizer.init(p), p)
        >>> updates['b']
        tensor([-0.1000, -0.1000])

    References:
        Jordan, `Muon: an optimizer for hidden layers in neural networks <https://kellerjordan.github.io/posts/muon/>`_,
        2024.
        Liu et al., `Muon is scalable for LLM training <https://arxiv.org/abs/2502.16982>`_, 2025.
    """
    given = muon_weight_dimension_numbers
    rule = scale_by_muon(
        named_coefficients(ns_coeffs),
        ns_steps,
        beta,
        eps,
        mu_dtype,
        nesterov=nesterov,
        adaptive=adaptive,
        preconditioning=preconditioning,
        weight_dimension_numbers=given,
    )
    matrices = chain(
        rule,
        scale_by_shape(given, consistent_rms),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    others = chain(
        scale_by_adam(adam_b1, adam_b2, eps, adam_eps_root, nesterov=nesterov, mu_dtype=mu_dtype),
        add_decayed_weights(adam_weight_decay),
        scale_by_learning_rate(learning_rate if adam_learning_rate is None else adam_learning_rate),
    )
    return partition({'muon': matrices, 'adam': others}, MuonLabels(given))


def named_coefficients(ns_coeffs: Any) -> Any:
    """The coefficients for a name; coefficients are returned unchanged.

    Raises:
        ValueError: If the name is unknown.
    """
    if not isinstance(ns_coeffs, str):
        return ns_coeffs
    if ns_coeffs not in _PRESETS:
        raise ValueError(f'Invalid ns_coeffs: {ns_coeffs!r}; expected one of {sorted(_PRESETS)}, or coefficients.')
    return _PRESETS[ns_coeffs]


class MuonLabels:
    """The label of each parameter, which selects its optimizer; a class, so that it can be pickled."""

    def __init__(self, axes: Any) -> None:
        self.axes = axes

    def __call__(self, params: Any) -> Any:
        """The tree of labels."""
        leaves, spec = tree.flatten(params)
        entries = axes_of_leaves(self.axes, params, MuonDimensionNumbers, lambda x: True)
        if self.axes is None:
            entries = [None if x is None or x.dim() != 2 else entry for x, entry in zip(leaves, entries)]
        return tree.unflatten(spec, ['adam' if entry is None else 'muon' for entry in entries])
