# SPDX-License-Identifier: Apache-2.0
"""Clipping equals torch's and Optax's, and is differentiable where it says so."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
import torch
from torch.func import vmap

import torchopt
from tests.oracle import assert_trees_close, to_jax
from torchopt import clip, tree


def grads(seed, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    return {'w': draw(3, 4), 'b': [draw(4), draw()], 'conv': draw(2, 3, 2, 2)}


NORMS = [0.5, 1.0, 2.0, 3.0, float('inf'), 'inf']


@pytest.mark.parametrize('scale', [1e-3, 1.0, 10.0])
@pytest.mark.parametrize('norm_type', NORMS, ids=str)
def test_clip_grad_norm_equals_torch(norm_type, scale):
    g = grads(0, scale)
    tx = torchopt.clip_grad_norm(1.0, norm_type)
    updates, _ = tx.update(g, tx.init(g))
    params = [torch.zeros_like(x).requires_grad_() for x in tree.leaves(g)]
    for p, x in zip(params, tree.leaves(g)):
        p.grad = x.clone()
    torch.nn.utils.clip_grad_norm_(params, 1.0, float(norm_type))
    assert_trees_close(updates, [p.grad for p in params], 1e-12)


def test_clip_grad_norm_skips_none_and_works_under_vmap():
    g = {'w': torch.randn(5, 3, dtype=torch.float64), 'n': torch.randn(5, 2, dtype=torch.float64)}
    tx = torchopt.clip_grad_norm(0.5)
    together = vmap(lambda g: tx.update(g, ())[0])(g)
    for i in range(5):
        alone, _ = tx.update({k: x[i] for k, x in g.items()}, ())
        torch.testing.assert_close({k: x[i] for k, x in together.items()}, alone)
    assert tx.update({'w': None}, ())[0] == {'w': None}
    only, _ = tx.update({'w': g['w'], 'n': None}, ())
    torch.testing.assert_close(only['w'].norm(), torch.tensor(0.5, dtype=torch.float64), atol=1e-5, rtol=0)


def test_clip_grad_norm_of_what_is_not_finite():
    g = [torch.tensor([1.0, float('nan')])]
    assert torchopt.clip_grad_norm(1.0).update(g, ())[0][0].isnan().all()
    with pytest.raises(RuntimeError, match=r'The total norm of order 2\.0'):
        torchopt.clip_grad_norm(1.0, error_if_nonfinite=True).update(g, ())


def test_the_factor_of_clip_grad_norm_is_constant_that_of_clip_by_global_norm_is_not():
    g = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    (u,), _ = torchopt.clip_grad_norm(1.0).update([g], ())
    torch.testing.assert_close(
        torch.autograd.grad(u.sum(), g)[0], torch.full((2,), 1 / (5.0 + 1e-6), dtype=torch.float64)
    )
    assert torch.autograd.gradcheck(lambda g: clip.clip_by_global_norm(1.0).update([g], ())[0][0], (g,))
    assert torch.autograd.gradgradcheck(lambda g: clip.clip_by_global_norm(1.0).update([g], ())[0][0], (g,))


OPTAX = [
    (lambda: clip.clip(0.7), lambda: optax.clip(0.7)),
    (lambda: clip.clip_by_global_norm(2.0), lambda: optax.clip_by_global_norm(2.0)),
    (lambda: clip.clip_by_global_norm(1e6), lambda: optax.clip_by_global_norm(1e6)),
    (lambda: clip.clip_by_block_rms(0.5), lambda: optax.clip_by_block_rms(0.5)),
]


@pytest.mark.parametrize('scale', [0.0, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize(('ours', 'theirs'), OPTAX)
def test_clippers_equal_optax(ours, theirs, scale):
    g = grads(1, scale)
    updates, _ = ours().update(g, ours().init(g))
    wanted, _ = theirs().update(to_jax(g), theirs().init(to_jax(g)))
    assert_trees_close(updates, wanted, 1e-12)


@pytest.mark.parametrize('axis', [0, 1, (0, 1)], ids=str)
def test_adaptive_grad_clip_equals_optax(axis):
    """With the dimensions given; by default ours takes PyTorch's layout, theirs JAX's."""
    g, p = [torch.randn(4, 3).double()], [0.1 * torch.randn(4, 3).double()]
    updates, _ = clip.adaptive_grad_clip(0.2, axis=axis).update(g, (), p)
    tx = optax.adaptive_grad_clip(0.2, axis=axis)
    wanted, _ = tx.update(to_jax(g), tx.init(to_jax(p)), to_jax(p))
    assert_trees_close(updates, wanted, 1e-12)


def test_adaptive_grad_clip_takes_rows_as_units():
    """A linear layer of PyTorch is the transpose of one of JAX; scalars and vectors are units as a whole."""
    g, p = torch.randn(4, 3).double(), 0.1 * torch.randn(4, 3).double()
    (u, v), _ = clip.adaptive_grad_clip(0.2).update([g, g[0]], (), [p, p[0]])
    tx = optax.adaptive_grad_clip(0.2)
    (wanted, wanted_vector), _ = tx.update(
        to_jax([g.t().contiguous(), g[0]]), tx.init(None), to_jax([p.t().contiguous(), p[0]])
    )
    np.testing.assert_allclose(u.t(), wanted, rtol=1e-12)
    np.testing.assert_allclose(v, wanted_vector, rtol=1e-12)
    with pytest.raises(ValueError, match='Parameters are required'):
        clip.adaptive_grad_clip(0.2).update([g], ())


@pytest.mark.parametrize('uniform', [True, False])
def test_per_example_clipping_equals_optax(uniform):
    g = {'w': torch.randn(6, 3, 2).double(), 'b': 0.1 * torch.randn(6, 5).double()}
    flat, spec = jax.tree.flatten(to_jax(g))
    clipped, count = clip.per_example_global_norm_clip(g, 1.5)
    wanted, wanted_count = optax.per_example_global_norm_clip(flat, 1.5)
    assert_trees_close(clipped, jax.tree.unflatten(spec, wanted), 1e-12)
    assert int(count) == int(wanted_count) > 0
    clipped, counts = clip.per_example_layer_norm_clip(g, 1.5, uniform)
    wanted, wanted_counts = optax.per_example_layer_norm_clip(flat, 1.5, uniform)
    assert_trees_close(clipped, jax.tree.unflatten(spec, wanted), 1e-12)
    assert [int(c) for c in tree.leaves(counts)] == [int(c) for c in wanted_counts]


@pytest.mark.parametrize(
    ('call', 'error', 'message'),
    [
        (lambda: torchopt.clip_grad_norm(-1.0), ValueError, 'Invalid max_norm value'),
        (lambda: torchopt.clip_grad_norm(1.0, 0.0), ValueError, 'Invalid norm_type value'),
        (lambda: clip.clip(float('nan')), ValueError, 'Invalid max_delta value'),
        (lambda: clip.clip_by_block_rms(0.0), ValueError, 'Invalid threshold value'),
        (
            lambda: clip.per_example_global_norm_clip([torch.zeros(2, 3), torch.zeros(3)], 1.0),
            ValueError,
            'the same for all leaves',
        ),
        (lambda: clip.per_example_global_norm_clip([torch.zeros(())], 1.0), ValueError, 'first dimension'),
        (lambda: clip.clip(1.0).update([torch.zeros(2), torch.zeros(2) * 1j], ()), TypeError, 'requires real'),
    ],
)
def test_misuse(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize('order', [2.0, 'inf'])
def test_complex_and_low_precision_gradients(order):
    z = torch.tensor([3.0 + 4.0j, 0.0], dtype=torch.complex128)
    (u,), _ = torchopt.clip_grad_norm(1.0, order).update([z], ())
    torch.testing.assert_close(u[0].abs(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-5, atol=0)
    (u,), _ = torchopt.clip_grad_norm(1.0, order).update([torch.full((4,), 8.0, dtype=torch.bfloat16)], ())
    assert u.dtype is torch.bfloat16
