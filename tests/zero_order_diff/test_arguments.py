# SPDX-License-Identifier: Apache-2.0
"""Which tensors are perturbed, and what they may be."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import Tensor

from torchopt.zero_order_diff import zero_order

NORMAL = torch.distributions.Normal(0.0, 1.0)
Pair = namedtuple('Pair', 'left right')


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.ones(shape, dtype=dtype, requires_grad=True)


def antithetic(f, argnums=(0,), n: int = 4000, sigma: float = 0.1):
    return zero_order(NORMAL, 'antithetic', argnums, n, sigma, seed=0)(f)


def test_trees() -> None:
    """Nested, with None, scalars, empty tensors, integers, other objects, and several dtypes."""
    p = {
        'w': leaf(2, 2),
        'n': [{'b': leaf(3, dtype=torch.float32)}, None, Pair(leaf(), 'text')],
        'empty': leaf(0, 3),
        'half': leaf(2, dtype=torch.bfloat16),
        'count': torch.arange(3),
    }

    def f(p) -> Tensor:
        assert p['n'][1] is None
        assert p['n'][2].right == 'text'
        total = (p['w'] * torch.arange(4.0).reshape(2, 2)).sum() + 2 * p['n'][0]['b'].double().sum()
        return total + p['n'][2].left * p['count'].sum() + p['empty'].sum() + p['half'].double().sum()

    tensors = [p['w'], p['n'][0]['b'], p['n'][2].left, p['empty'], p['half']]
    grads = torch.autograd.grad(antithetic(f, n=20_000)(p), tensors)
    for g, x in zip(grads, tensors, strict=True):
        assert (g.shape, g.dtype) == (x.shape, x.dtype)
    expected = [torch.arange(4.0).reshape(2, 2), torch.full((3,), 2.0), torch.tensor(3.0), torch.zeros(0, 3), leaf(2)]
    for g, e in zip(grads, expected, strict=True):
        assert torch.allclose(g.double(), e.double(), atol=0.15), g


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_single(dtype: torch.dtype) -> None:
    x = leaf(3, dtype=dtype)
    (g,) = torch.autograd.grad(antithetic(lambda x: x.float().square().sum())(x), x)
    assert g.dtype == dtype
    assert torch.allclose(g.float(), torch.full((3,), 2.0), atol=0.2)


def test_complex_parameters_have_both_parts_perturbed() -> None:
    """With torch's convention: the gradient of |z|^2 is 2z; also through a conjugate view, and twice."""
    z = torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128, requires_grad=True)
    f = antithetic(lambda z: z.abs().square().sum(), n=20_000)
    assert torch.allclose(torch.autograd.grad(f(z), z)[0], 2 * z.detach(), atol=0.2)
    assert torch.allclose(torch.autograd.grad(f(z.conj()), z)[0], 2 * z.detach(), atol=0.2)
    v = torch.tensor([1.0, 1j], dtype=torch.complex128)
    f = antithetic(lambda z: z.abs().square().sum(), n=40_000, sigma=1.0)
    (g,) = torch.autograd.grad(f(z), z, create_graph=True)
    assert torch.allclose(torch.autograd.grad((g * v.conj()).real.sum(), z)[0], 2 * v, atol=0.25)
    directional = torch.func.jvp(f, (z.detach(),), (v,))[1]
    assert directional == pytest.approx((2 * z.detach() * v.conj()).real.sum().item(), abs=0.25)


def test_a_tied_tensor_is_perturbed_once() -> None:
    w = leaf(2)
    calls = []

    def f(p) -> Tensor:
        calls.append(torch.equal(p['encoder'], p['decoder'][0]))
        return (p['encoder'] * p['decoder'][0]).sum()

    estimate = zero_order(NORMAL, 'antithetic', num_samples=2000, sigma=0.1, seed=0, vectorize=False)(f)
    (g,) = torch.autograd.grad(estimate({'encoder': w, 'decoder': [w]}), w)
    assert all(calls)
    assert torch.allclose(g, torch.full_like(w, 2.0), atol=0.2)


def test_what_needs_no_gradient_is_held_fixed() -> None:
    frozen, w = torch.ones(2, dtype=torch.float64), leaf(2)
    seen = []

    def f(p, other) -> Tensor:
        seen.append(torch.equal(p['frozen'], frozen) and torch.equal(other, frozen))
        return (p['w'] * p['frozen'] * other).sum()

    estimate = zero_order(NORMAL, num_samples=5, vectorize=False)(f)
    other = frozen.clone().requires_grad_()
    value = estimate({'w': w, 'frozen': frozen}, other)
    assert torch.autograd.grad(value, [w, other], allow_unused=True)[1] is None
    assert len(seen) == 6
    assert all(seen)
    assert not estimate({'w': w.detach(), 'frozen': frozen}, frozen).requires_grad


@pytest.mark.parametrize(
    ('argnums', 'differentiated'), [(0, [0]), (-1, [2]), ((0, 2), [0, 2]), ([1, -1], [1, 2]), ((0, -3), [0])]
)
def test_argnums(argnums, differentiated) -> None:
    xs = [leaf(2), leaf(2), leaf(2)]
    grads = torch.autograd.grad(antithetic(lambda a, b, c: (a * b * c).sum(), argnums)(*xs), xs, allow_unused=True)
    assert [i for i, g in enumerate(grads) if g is not None] == differentiated
    assert all(g is None or torch.allclose(g, torch.ones_like(g), atol=0.15) for g in grads)


def test_keywords() -> None:
    """Which 0.7.3 refused; those that stand for a position count as given there."""
    x, y = leaf(2), leaf(2)
    f = antithetic(lambda x, scale=1.0, *, y: scale * (x * y).sum(), argnums=0, n=50)
    by_position = torch.autograd.grad(f(x, 3.0, y=y), [x, y], allow_unused=True)
    by_name = torch.autograd.grad(f(y=y, scale=3.0, x=x), [x, y], allow_unused=True)
    assert torch.equal(by_position[0], by_name[0])
    assert by_position[1] is by_name[1] is None
    with pytest.raises(TypeError, match='unexpected keyword'):
        f(x, y=y, z=1)


def test_the_result_may_be_the_argument() -> None:
    x = leaf()
    value = antithetic(lambda x: x)(x)
    assert value is not x
    assert torch.autograd.grad(value, x)[0] == pytest.approx(1.0, abs=0.1)


def test_metadata_is_kept() -> None:
    @zero_order(NORMAL)
    def objective(x: Tensor) -> Tensor:
        """What it computes."""
        return x.sum()

    assert objective.__name__ == 'objective'
    assert objective.__doc__ == 'What it computes.'
    assert objective.__wrapped__(torch.ones(2)) == 2
