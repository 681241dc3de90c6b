# SPDX-License-Identifier: Apache-2.0
"""Losses at the edge: hidden NaN and infinity, infinite and tiny numbers, half precision, against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch

from torchopt import losses

F64, INF, NAN = torch.float64, math.inf, math.nan
X = torch.tensor([[1.0, 0.3, 2.0], [0.5, -1.0, 0.2]], dtype=F64)
P = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.3, 0.6]], dtype=F64)
MASK = torch.tensor([[True, False, True], [False, False, True]])
EMPTY = torch.tensor([[True, False, True], [False, False, False]])

MASKED: dict[str, tuple[Callable[..., Any], Any, Any]] = {
    'cosine_similarity': (losses.cosine_similarity, X, P),
    'cosine_distance': (losses.cosine_distance, X, P),
    'kl_divergence': (losses.kl_divergence, P.log(), P.flip(0)),
    'kl_divergence_with_log_targets': (losses.kl_divergence_with_log_targets, P.log(), P.flip(0).log()),
    'generalized_kl_divergence': (losses.generalized_kl_divergence, X, P),
    'softmax_cross_entropy': (losses.softmax_cross_entropy, X, P),
    'poly_loss_cross_entropy': (losses.poly_loss_cross_entropy, X, P),
    'ranking_softmax_loss': (losses.ranking_softmax_loss, X, P),
    'ranking_softmax_loss with weights': (
        lambda x, y, where: losses.ranking_softmax_loss(x, P, weights=y, where=where),
        X,
        P.flip(0),
    ),
    'softmax_cross_entropy_with_integer_labels': (
        lambda x, y, where: losses.softmax_cross_entropy_with_integer_labels(
            x + 0 * y[:, 2:], torch.tensor([2, 2]), where=where
        ),
        X,
        P,
    ),
}


@pytest.mark.parametrize('hidden', [NAN, INF, -INF, 1e308])
@pytest.mark.parametrize('name', MASKED)
def test_what_is_hidden_reaches_nothing(name: str, hidden: float) -> None:
    """Neither values nor derivatives, in both modes and twice."""
    loss, x, y = MASKED[name]
    for mask in (MASK, EMPTY) if 'cosine' not in name else (MASK,):
        kept = mask | (torch.arange(3) == 2) if 'integer' in name else mask

        def of(x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor = mask) -> torch.Tensor:
            return loss(x, y, where=mask).sum()

        clean = [torch.where(kept, a, 0.5) for a in (x, y)]
        dirty = [torch.where(kept, a, hidden) for a in (x, y)]
        torch.testing.assert_close(of(*dirty), of(*clean))
        for derivative in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
            for argnums in (0, 1):
                found, wanted = (derivative(of, argnums=argnums)(*args) for args in (dirty, clean))
                torch.testing.assert_close(found, wanted)
                assert found.isfinite().all()
        leaves = [a.clone().requires_grad_() for a in dirty]
        for g in torch.autograd.grad(of(*leaves), leaves):
            assert g.isfinite().all()
            assert (g[~kept] == 0).all()


def test_the_gradient_beside_a_hidden_nan() -> None:
    x = torch.tensor([1.0, NAN, 2.0], requires_grad=True)
    value = losses.cosine_similarity(x, torch.ones(3), where=torch.tensor([True, False, True]))
    (gradient,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(gradient, torch.tensor([0.1265, 0.0, -0.0632]), rtol=0.0, atol=5e-5)


def losses_of(loss: Callable[..., Any], x: Any, dtype: torch.dtype = F64) -> tuple[Any, Any]:
    t = torch.tensor(x, dtype=dtype).requires_grad_()
    value = loss(t)
    return value.tolist(), torch.autograd.grad(value.sum(), t)[0].tolist()


def binary(name: str, y: float, **options: Any) -> Callable[..., Any]:
    return lambda x: getattr(losses, name)(x, torch.full_like(x, y), **options)


def classes(name: str, label: int) -> Callable[..., Any]:
    return lambda s: getattr(losses, name)(s[None], torch.tensor([label]))[0]


EDGES: dict[str, tuple[Callable[..., Any], Any, Any, Any]] = {
    'cross entropy of no': (binary('sigmoid_binary_cross_entropy', 0.0), [-INF, INF], [0.0, INF], [0.0, 1.0]),
    'cross entropy of yes': (binary('sigmoid_binary_cross_entropy', 1.0), [-INF, INF], [INF, 0.0], [-1.0, 0.0]),
    'cross entropy of maybe': (binary('sigmoid_binary_cross_entropy', 0.5), [-INF, INF], [INF, INF], [-0.5, 0.5]),
    'focal loss of no': (binary('sigmoid_focal_loss', 0.0), [-INF, INF, -3e4], [0.0, INF, 0.0], [0.0, 1.0, 0.0]),
    'focal loss of yes': (binary('sigmoid_focal_loss', 1.0, gamma=0.0), [-INF, INF], [INF, 0.0], [-1.0, 0.0]),
    'hinge loss': (binary('hinge_loss', 1.0), [-INF, INF], [INF, 0.0], [-1.0, 0.0]),
    'perceptron loss': (binary('perceptron_loss', -1.0), [-INF, INF], [0.0, INF], [0.0, 1.0]),
    'sparsemax loss': (binary('sparsemax_loss', 0.0), [-INF, INF], [0.0, INF], [0.0, 1.0]),
    'log cosh': (losses.log_cosh, [-INF, INF], [INF, INF], [-1.0, 1.0]),
    'huber loss': (losses.huber_loss, [-INF, INF], [INF, INF], [-1.0, 1.0]),
    'huber loss without bound': (lambda x: losses.huber_loss(x, delta=INF), [-2.0, 1.0], [2.0, 0.5], [-2.0, 1.0]),
    'hinge, excluded rival': (classes('multiclass_hinge_loss', 1), [-INF, 1.0, 0.5], 0.5, [0.0, -1.0, 1.0]),
    'hinge, excluded and right': (classes('multiclass_hinge_loss', 0), [-INF, 1.0, 0.5], INF, [-1.0, 1.0, 0.0]),
    'hinge, infinite and right': (classes('multiclass_hinge_loss', 0), [INF, 1.0, 0.5], 0.0, [0.0, 0.0, 0.0]),
    'perceptron, excluded rival': (classes('multiclass_perceptron_loss', 1), [-INF, 1.0, 0.5], 0.0, [0.0, 0.0, 0.0]),
    'perceptron, infinite rival': (classes('multiclass_perceptron_loss', 1), [INF, 1.0, 0.5], INF, [1.0, -1.0, 0.0]),
    'sparsemax, excluded and right': (classes('multiclass_sparsemax_loss', 0), [-INF, 3.0, 1.0], INF, [-1.0, 1.0, 0.0]),
    'divergence, both exclude': (
        lambda q: losses.kl_divergence(q, torch.tensor([0.0, 1.0]).to(q)),
        [-INF, 0.0],
        0.0,
        [0.0, -1.0],
    ),
    'divergence, excluded and wanted': (
        lambda q: losses.kl_divergence(q, torch.tensor([0.5, 0.5]).to(q)),
        [-INF, 0.0],
        INF,
        [-0.5, -0.5],
    ),
    'divergence in targets': (
        lambda p: losses.kl_divergence(torch.tensor([-INF, 0.0]).to(p), p),
        [0.0, 1.0],
        0.0,
        [0.0, 1.0],
    ),
    'log divergence': (
        lambda q: losses.kl_divergence_with_log_targets(q, torch.tensor([-INF, 0.0]).to(q)),
        [-INF, 0.0],
        0.0,
        [0.0, -1.0],
    ),
    'log divergence in targets': (
        lambda p: losses.kl_divergence_with_log_targets(torch.tensor([-INF, 0.0, -1.0]).to(p), p),
        [-INF, 0.0, -INF],
        0.0,
        [0.0, 1.0, 0.0],
    ),
    'fenchel-young': (
        lambda s: losses.make_fenchel_young_loss(lambda s: torch.logsumexp(s, 0))(s, torch.tensor([0.0, 1.0]).to(s)),
        [-INF, 1.0],
        0.0,
        [0.0, 0.0],
    ),
}


@pytest.mark.parametrize('dtype', [F64, torch.float32, torch.float16])
@pytest.mark.parametrize('name', EDGES)
def test_infinite_inputs(name: str, dtype: torch.dtype) -> None:
    loss, x, value, gradient = EDGES[name]
    found = losses_of(loss, x, dtype)
    assert found == (pytest.approx(value), pytest.approx(gradient))
    t = torch.tensor(x, dtype=dtype)
    forward = [torch.func.jvp(lambda t: loss(t).sum(), (t,), (e,))[1].item() for e in torch.eye(len(x), dtype=dtype)]
    assert forward == pytest.approx(gradient)
    assert torch.func.hessian(lambda t: loss(t).sum())(t).isfinite().all()


AHEAD, BEHIND = torch.tensor([2.0, 0.0, 2.5], dtype=F64), torch.tensor([-1.0, 0.0, 0.5], dtype=F64)
SMOOTH: dict[str, tuple[Any, list[float]]] = {
    'squared error': (losses.squared_error, [0.0, -0.0, 0.5]),
    'l2 loss': (losses.l2_loss, [0.0, -0.0, 0.5]),
    'huber loss': (losses.huber_loss, [0.0, -0.0, 0.5, 3.0]),
    'huber loss, small delta': (lambda x: losses.huber_loss(x, delta=0.1), [0.0, -0.0, 0.05, 0.5]),
    'log-cosh': (losses.log_cosh, [0.0, -0.0, 0.5, 3.0]),
    'log-cosh with targets': (lambda x: losses.log_cosh(x, x.new_ones(3)), [1.0, 1.0, 2.0]),
    'cosine': (lambda x: losses.cosine_distance(x, AHEAD), [0.0, 1.0, 2.0]),
    'binary cross-entropy': (lambda x: losses.sigmoid_binary_cross_entropy(x, torch.ones(2)), [0.0, -0.0]),
    'softmax cross-entropy': (lambda x: losses.softmax_cross_entropy(x, torch.eye(3)[0]), [0.0, 0.0, 1.0]),
    **{
        f'triplet margin, degree {q}': (
            lambda x, q=q: losses.triplet_margin_loss(x, AHEAD, BEHIND, norm_degree=q, margin=5.0),
            [1.0, 0.0, 2.0],
        )
        for q in (2, 4, torch.tensor(2.0, dtype=F64))
    },
}


@pytest.mark.parametrize('name', SMOOTH)
def test_second_derivatives_where_an_absolute_value_has_none(name: str) -> None:
    """The Hessian at zero errors is that of finite differences of the gradient."""
    loss, x = SMOOTH[name]

    def total(x: torch.Tensor) -> torch.Tensor:
        return loss(x).sum()

    at, h = torch.tensor(x, dtype=F64), 1e-5
    gradient = torch.func.grad(total)
    expected = torch.stack([(gradient(at + h * e) - gradient(at - h * e)) / (2 * h) for e in torch.eye(len(x))])
    for derivative in (torch.func.hessian(total), torch.func.jacrev(gradient)):
        torch.testing.assert_close(derivative(at), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('scale', [1e-30, 1e-3, 1.0, 300.0, 1e30])
@pytest.mark.parametrize('dtype', [F64, torch.float32, torch.float16])
def test_norms_of_any_scale(scale: float, dtype: torch.dtype) -> None:
    """A cosine does not depend on lengths, a distance is as long as they are."""
    if torch.tensor(2.0 * scale, dtype=dtype).isinf() or torch.tensor(scale, dtype=dtype) == 0:
        return
    tol = {'rtol': 2e-3 if dtype == torch.float16 else 1e-5, 'atol': 0.0}
    x = (torch.tensor([1.0, 2.0], dtype=F64) * scale).to(dtype).requires_grad_()
    y = torch.tensor([2.0, 0.0], dtype=dtype)
    value = losses.cosine_similarity(x, y)
    torch.testing.assert_close(value, torch.tensor(5**-0.5, dtype=dtype), **tol)
    (gradient,) = torch.autograd.grad(value, x)
    wanted = torch.tensor([4.0, -2.0], dtype=F64) / 5**1.5 / scale
    if wanted.abs().max() < torch.finfo(dtype).max and scale < 1e4:
        torch.testing.assert_close(gradient, wanted.to(dtype), **{**tol, 'atol': 1e-3 * wanted.abs().max().item()})
    zero = torch.zeros(2, dtype=dtype)
    far = losses.triplet_margin_loss(x, zero, x.detach() / 2, margin=0.0, eps=0.0)
    torch.testing.assert_close(far, torch.tensor(5**0.5 / 2 * scale, dtype=F64).to(dtype), **tol)
    (gradient,) = torch.autograd.grad(far, x)
    torch.testing.assert_close(gradient, torch.zeros(2, dtype=dtype), rtol=0.0, atol=2e-3)


@pytest.mark.parametrize('dtype', [F64, torch.float32])
@pytest.mark.parametrize('x', [1e-30, 1e-12, 1e-5, 1e-3, 0.5, 0.99, 1.01, 5.0, 80.0, 1e30])
def test_log_cosh_has_all_digits(x: float, dtype: torch.dtype) -> None:
    exact = torch.tensor(x, dtype=dtype).item()
    with mpmath.workdps(90):
        half = mpmath.mpf(exact)
        wanted = mpmath.log(mpmath.cosh(half)) if exact < 1e4 else half - mpmath.log(2)
        slope = mpmath.tanh(half)
    tol = {'rel': 1e-14 if dtype == F64 else 1e-6, 'abs': 0.0 if exact > 1e-15 else 1e-44}
    value, gradient = losses_of(losses.log_cosh, x, dtype)
    assert value == pytest.approx(float(wanted), **tol)
    assert gradient == pytest.approx(float(slope), **tol)


@pytest.mark.parametrize('dtype', [F64, torch.float32])
@pytest.mark.parametrize('gap', [0.0, 5.0, 17.0, 28.0, 45.0, 300.0])
def test_ctc_of_what_is_nearly_certain(gap: float, dtype: torch.dtype) -> None:
    """Of two frames both have to be blank for the label to be missed."""
    logits = torch.tensor([[[0.0, gap], [0.0, gap]]], dtype=dtype, requires_grad=True)
    loss = losses.ctc_loss(logits, torch.zeros(1, 2), torch.tensor([[1]]), torch.zeros(1, 1))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    with mpmath.workdps(300):
        blank = 1 / (1 + mpmath.e**gap)
        wanted, slope = -mpmath.log(1 - blank**2), -(blank**2) * (1 - blank) / (1 - blank**2)
    assert loss.item() >= 0.0
    assert loss.item() == pytest.approx(float(wanted), rel=1e-5 if dtype == torch.float32 else 1e-7, abs=1e-25)
    assert gradient[0, 0, 1].item() == pytest.approx(float(slope), rel=1e-5, abs=1e-15)
