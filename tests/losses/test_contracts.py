# SPDX-License-Identifier: Apache-2.0
"""What holds for every loss: signatures, listed differences, transforms, compilation, errors that help."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import optax
import pytest
import torch

from tests.losses.cases import CASES
from tests.losses.differences import NUMBERS_FOR_NAN, OTHER_VALUES
from tests.losses.parity import assert_close, from_optax, from_torchopt, ours
from torchopt import losses

EVERY_LOSS = [name for name in losses.__all__ if name != 'make_fenchel_young_loss']


def test_every_loss_of_optax_is_here() -> None:
    theirs = {name for name, value in vars(optax.losses).items() if inspect.isfunction(value) and name[0] != '_'}
    assert theirs == set(losses.__all__)
    assert {case.loss for case in CASES.values()} == set(EVERY_LOSS)


@pytest.mark.parametrize('name', losses.__all__)
def test_signatures_are_those_of_optax(name: str) -> None:
    def plain(f: Any) -> list[Any]:
        parameters = inspect.signature(f).parameters.values()
        return [(p.name, p.kind, getattr(p.default, '__name__', p.default)) for p in parameters]

    assert plain(getattr(losses, name)) == plain(getattr(optax.losses, name))


@pytest.mark.parametrize('title', NUMBERS_FOR_NAN)
def test_numbers_where_optax_has_none(title: str) -> None:
    found, expected = from_torchopt(title, torch.float64), from_optax(title)
    differ = 0
    for x, y in zip(found[0] + found[1], expected[0] + expected[1]):
        gap = np.isfinite(x) & ~np.isfinite(y)
        differ += gap.sum()
        assert_close([np.where(gap, 0.0, x)], [np.where(gap, 0.0, y)], 1e-8)
    assert differ > 0  # otherwise the row is out of date


@pytest.mark.parametrize('title', OTHER_VALUES)
def test_values_that_are_right(title: str) -> None:
    case = CASES[title]
    values, _ = from_torchopt(title, torch.float64)
    right = OTHER_VALUES[title][0](*case.args, **case.kwargs)
    np.testing.assert_allclose(values[0], right, rtol=1e-12, atol=1e-12)
    try:
        theirs = from_optax(title)[0][0]
    except (ValueError, TypeError):
        return
    assert not np.allclose(theirs, right)


FIRST = {name: next(t for t, c in CASES.items() if c.loss == name) for name in EVERY_LOSS}
# At labels of exactly 0 and 1 the focal loss has no derivative in them.
FIRST['sigmoid_focal_loss'] = 'sigmoid_focal_loss: soft labels'
WITH_MASK = ['softmax_cross_entropy: mask', 'ranking_softmax_loss: mask', 'cosine_similarity: mask']


@pytest.mark.parametrize('title', [*FIRST.values(), *WITH_MASK])
def test_vmap_and_second_derivatives(title: str) -> None:
    f, xs = ours(title, torch.float64)
    stacked = [torch.stack([x, x.flip(0)]) for x in xs]
    found = torch.func.vmap(f)(*stacked)
    for i in range(2):
        for x, y in zip(found, f(*(x[i] for x in stacked))):
            torch.testing.assert_close(x[i], y)

    def total(*xs: torch.Tensor) -> torch.Tensor:
        return sum((v * torch.arange(1, v.numel() + 1).reshape(v.shape)).sum() for v in f(*xs))

    assert torch.autograd.gradcheck(total, [x.clone().requires_grad_() for x in xs], fast_mode=True)
    assert torch.autograd.gradgradcheck(total, [x.clone().requires_grad_() for x in xs], fast_mode=True)


@pytest.mark.parametrize('title', [*FIRST.values(), *WITH_MASK])
def test_compile_without_graph_breaks(title: str) -> None:
    torch.compiler.reset()
    f, xs = ours(title, torch.float64)
    for x, y in zip(torch.compile(f, fullgraph=True, backend='eager')(*xs), f(*xs)):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize('name', EVERY_LOSS)
def test_no_value_is_read(name: str) -> None:
    """On a meta tensor there is no value to read, as on a GPU there would be one to wait for."""
    f, xs = ours(FIRST[name], torch.float32)
    case = CASES[FIRST[name]]
    args = [torch.from_numpy(x.copy()).to('meta') if isinstance(x, np.ndarray) else x for x in case.args]
    found = getattr(losses, name)(*args, **case.kwargs)
    shapes = [v.shape for v in f(*xs)]
    assert [v.shape for v in (found if isinstance(found, tuple) else (found,))] == shapes


def test_fenchel_young_loss_of_logsumexp_is_the_cross_entropy() -> None:
    import jax
    import jax.numpy as jnp

    loss = losses.make_fenchel_young_loss(lambda s: torch.logsumexp(s, 0))
    theirs = optax.losses.make_fenchel_young_loss(jax.scipy.special.logsumexp)
    rng = np.random.default_rng(0)
    for shape in ((4,), (3, 4), (2, 3, 4)):
        scores, targets = rng.standard_normal(shape), rng.uniform(size=shape)
        x = torch.tensor(scores, requires_grad=True)
        values = loss(x, torch.tensor(targets))
        with jax.enable_x64(True):
            np.testing.assert_allclose(values.detach(), theirs(jnp.asarray(scores), jnp.asarray(targets)), rtol=1e-12)
        (gradient,) = torch.autograd.grad(values.sum(), x)
        torch.testing.assert_close(gradient, torch.softmax(x, -1) - torch.tensor(targets))
        torch.testing.assert_close(torch.func.vmap(loss)(x[None], torch.tensor(targets)[None])[0], values)


def test_fenchel_young_loss_passes_arguments_on() -> None:
    loss = losses.make_fenchel_young_loss(lambda s, t, *, b: t * torch.logsumexp(s / t, 0) + b)
    x, y = torch.randn(3, 4), torch.eye(4)[:3]
    torch.testing.assert_close(loss(x, y, 0.5, b=1.0), 0.5 * torch.logsumexp(x / 0.5, 1) + 1.0 - (x * y).sum(1))
    compiled = torch.compile(
        losses.make_fenchel_young_loss(lambda s: torch.logsumexp(s, 0)), fullgraph=True, backend='eager'
    )
    torch.testing.assert_close(compiled(x, y), torch.logsumexp(x, 1) - (x * y).sum(1))


def test_fenchel_young_loss_of_a_random_maximum_draws_for_each_row() -> None:
    loss = losses.make_fenchel_young_loss(lambda s: (s + torch.randn_like(s)).amax(0))
    values = loss(torch.zeros(5, 3), torch.zeros(5, 3))
    assert len(values.unique()) == 5


def test_padded_frames_may_hold_anything() -> None:
    logits = torch.randn(2, 4, 3, dtype=torch.float64)
    pads, labels, label_pads = (
        torch.tensor([[0, 0, 0, 1], [0, 1, 0, 1]]),
        torch.tensor([[1, 2], [2, 0]]),
        torch.tensor([[0, 0], [0, 1]]),
    )
    dirty = torch.where(pads.bool()[..., None], torch.nan, logits).requires_grad_()
    loss = losses.ctc_loss(dirty, pads, labels, label_pads)
    torch.testing.assert_close(loss, losses.ctc_loss(logits, pads.bool(), labels, label_pads.bool()))
    (gradient,) = torch.autograd.grad(loss.sum(), dirty)
    assert gradient.isfinite().all()
    assert (gradient[pads.bool()] == 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', EVERY_LOSS)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    single = from_torchopt(FIRST[name], torch.float32)[0][0]
    f, xs = ours(FIRST[name], dtype)
    value = f(*xs)[0]
    assert value.dtype == (torch.float32 if 'ctc' in name else dtype)
    np.testing.assert_allclose(value.float(), single, rtol=0.05, atol=0.05)


def test_ctc_agrees_with_torch() -> None:
    logits, labels = torch.randn(2, 7, 4, dtype=torch.float64), torch.tensor([[1, 1, 2], [3, 2, 1]])
    pads = torch.arange(7) >= torch.tensor([[7], [5]])
    label_pads = torch.arange(3) >= torch.tensor([[3], [2]])
    expected = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), labels, torch.tensor([7, 5]), torch.tensor([3, 2]), reduction='none'
    )
    torch.testing.assert_close(losses.ctc_loss(logits, pads, labels, label_pads), expected)


def test_other_reductions_are_told_which_lists_exist() -> None:
    seen = []
    where = torch.tensor([[True, False], [False, False]])
    losses.ranking_softmax_loss(
        torch.zeros(2, 2), torch.ones(2, 2), where=where, reduce_fn=lambda a, where: seen.append(where)
    )
    assert seen[0].tolist() == [True, False]


x = torch.zeros(2, 3)
y = torch.zeros(2, dtype=torch.int64)
ERRORS = {
    'integers': (lambda: losses.squared_error(y), TypeError, 'predictions has dtype torch.int64; expected a floating'),
    'complex': (lambda: losses.l2_loss(x, x * 1j), TypeError, 'targets has dtype torch.complex64; expected real'),
    'broadcasting': (lambda: losses.l2_loss(x, x[:, :1]), ValueError, r'targets has shape \(2, 1\), but predictions'),
    **{
        f'{name} of a column': (
            lambda name=name: getattr(losses, name)(x[:, 0], x[:, :1]),
            ValueError,
            'neither has the shape to which both broadcast',
        )
        for name in (
            *('huber_loss', 'log_cosh', 'sigmoid_binary_cross_entropy', 'sigmoid_focal_loss', 'hinge_loss'),
            *('sparsemax_loss', 'softmax_cross_entropy', 'kl_divergence', 'cosine_distance', 'cosine_similarity'),
        )
    },
    'classes of a column': (
        lambda: losses.softmax_cross_entropy_with_integer_labels(x, y[:, None]),
        ValueError,
        'labels has shape',
    ),
    'shapes': (lambda: losses.huber_loss(x, x[:, :2]), ValueError, r'targets has shape \(2, 2\), which does not broad'),
    'cosine': (lambda: losses.cosine_similarity(x, y), TypeError, 'targets has dtype torch.int64'),
    'axis': (lambda: losses.softmax_cross_entropy(x, x, axis=2), ValueError, 'axis 2 is out of bounds for logits'),
    'axis twice': (lambda: losses.softmax_cross_entropy(x, x, axis=(1, -1)), ValueError, 'contains a dimension twice'),
    'no axis': (lambda: losses.kl_divergence(x, x, axis=0.5), TypeError, 'axis is 0.5; expected an int, a tuple'),
    'axis None': (
        lambda: losses.softmax_cross_entropy_with_integer_labels(x, y, axis=None),
        ValueError,
        'axis is None; expected an int',
    ),
    'float labels': (
        lambda: losses.softmax_cross_entropy_with_integer_labels(x, x[:, 0]),
        TypeError,
        'labels has dtype torch.float32; expected integer classes',
    ),
    'one-hot integers': (
        lambda: losses.softmax_cross_entropy_with_integer_labels(x, x.long()),
        ValueError,
        'for one-hot labels use softmax_cross_entropy',
    ),
    'hinge labels': (lambda: losses.multiclass_hinge_loss(x, x), TypeError, 'labels has dtype torch.float32'),
    'hinge shapes': (lambda: losses.multiclass_hinge_loss(x, y.new_zeros(3)), ValueError, 'does not broadcast'),
    'perceptron': (lambda: losses.perceptron_loss(x, x[:1]), ValueError, 'does not broadcast'),
    'sparsemax': (lambda: losses.multiclass_sparsemax_loss(x, y[:1]), ValueError, 'one label for each row'),
    'smoothing': (lambda: losses.smooth_labels(y, 0.1), TypeError, 'labels has dtype torch.int64'),
    'ntxent': (lambda: losses.ntxent(x, y[:1]), ValueError, r'expected \[batch, dim\] and \[batch\]'),
    'triplet': (lambda: losses.triplet_margin_loss(x, x, x[:, :2]), ValueError, 'negatives has shape'),
    'dice': (lambda: losses.dice_loss(x, x[:1]), ValueError, 'targets has shape'),
    'reduction': (lambda: losses.dice_loss(x, x, reduction='max'), ValueError, "reduction is 'max'; expected 'mean'"),
    'weights': (lambda: losses.dice_loss(x, x, class_weights=x), ValueError, r'class_weights has shape \(2, 3\)'),
    'no probabilities': (lambda: losses.dice_loss(x, x, apply_softmax=False), ValueError, 'predictions sum to between'),
    'ctc rank': (lambda: losses.ctc_loss(x, x, y, y), ValueError, r'logits has shape \(2, 3\); expected \[B, T, K\]'),
    'ctc paddings': (
        lambda: losses.ctc_loss(x[..., None], x[:1], y[:, None], y[:, None]),
        ValueError,
        r'logit_paddings has shape \(1, 3\)',
    ),
    'ctc batch': (
        lambda: losses.ctc_loss(x[..., None], x, y[:1, None], y[:1, None]),
        ValueError,
        'labels holds 1 sequences, but logits 2',
    ),
    'ctc blank': (
        lambda: losses.ctc_loss(x[..., None], x, y[:, None], y[:, None], blank_id=1),
        ValueError,
        'blank_id is 1; expected one of the classes of logits, from 0 to 0',
    ),
    'ctc labels': (
        lambda: losses.ctc_loss(x[..., None], x, x[:, :1], x[:, :1]),
        TypeError,
        'labels has dtype torch.float32; expected integer classes',
    ),
    'no function': (lambda: losses.make_fenchel_young_loss(1), TypeError, 'max_fun: 1 is an int; expected a function'),
    'no vector': (
        lambda: losses.make_fenchel_young_loss(torch.sum)(torch.tensor(1.0), torch.tensor(1.0)),
        ValueError,
        'scores is a 0-d tensor',
    ),
}


@pytest.mark.parametrize(('call', 'error', 'message'), ERRORS.values(), ids=ERRORS)
def test_errors_name_the_argument(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
