# SPDX-License-Identifier: Apache-2.0
"""What Optax has beside optimizers: safe norms, matrix functions, slow copies, scaled gradients, a distribution."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import torch

from torchopt import hook, linalg, norms, numerics, perturbations, tree, update

F64 = torch.float64
RNG = np.random.default_rng(11)
jax.config.update('jax_enable_x64', True)


def symmetric(n: int, low: float = 0.1) -> np.ndarray:
    root = RNG.standard_normal((n, n))
    return root @ root.T + low * np.eye(n)


NORMS: list[tuple[Any, ...]] = [
    ((5,), {}),
    ((4, 3), {}),
    ((4, 3), {'axis': 0}),
    ((4, 3), {'axis': 1, 'keepdims': True}),
    ((4, 3), {'ord': 1, 'axis': -1}),
    ((4, 3), {'ord': np.inf, 'axis': 0}),
    ((4, 3), {'ord': 'fro'}),
    ((2, 4, 3), {'axis': (1, 2)}),
    ((4, 3), {'keepdims': True}),
]


@pytest.mark.parametrize(('shape', 'options'), NORMS, ids=str)
@pytest.mark.parametrize('bound', [0.0, 1.7, 100.0])
def test_safe_norm(shape: tuple[int, ...], options: dict[str, Any], bound: float) -> None:
    """Values and gradients, the latter at zero too."""
    for x in (RNG.standard_normal(shape), np.zeros(shape)):
        leaf = torch.tensor(x, requires_grad=True)
        found = norms.safe_norm(leaf, bound, **options)
        wanted, pull = jax.vjp(lambda z: optax.safe_norm(z, bound, **options), jnp.asarray(x))
        assert tuple(found.shape) == wanted.shape
        np.testing.assert_allclose(found.detach().numpy(), np.asarray(wanted), rtol=1e-12)
        (grad,) = torch.autograd.grad(found.sum(), leaf)
        np.testing.assert_allclose(grad.numpy(), np.asarray(pull(jnp.ones_like(wanted))[0]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('bound', [0.0, 0.5, 100.0])
def test_safe_root_mean_squares(bound: float) -> None:
    for x in (RNG.standard_normal((4, 3)), np.zeros(3), RNG.standard_normal(3) * (1.0 + 2.0j)):
        leaf = torch.tensor(x, requires_grad=True)
        found = norms.safe_root_mean_squares(leaf, bound)
        np.testing.assert_allclose(
            found.detach().numpy(), np.asarray(optax.safe_root_mean_squares(jnp.asarray(x), bound))
        )
        (grad,) = torch.autograd.grad(found, leaf)
        assert grad.isfinite().all()
        assert grad.any() == (found.item() > bound)


def test_safe_increment() -> None:
    for dtype in ('int8', 'int32', 'uint8', 'float32'):
        for value in (0, 3, 126, 127):
            found = numerics.safe_increment(torch.tensor(value, dtype=getattr(torch, dtype)))
            wanted = optax.safe_increment(jnp.asarray(value, dtype))
            assert (found.item(), str(found.dtype)) == (wanted.item(), f'torch.{dtype}')


@pytest.mark.parametrize('n', [1, 2, 7])
def test_power_iteration(n: int) -> None:
    matrix = symmetric(n)
    values, vectors = np.linalg.eigh(matrix)
    a = torch.as_tensor(matrix)
    value, vector = linalg.power_iteration(a, num_iters=2000, error_tolerance=1e-9)
    np.testing.assert_allclose(value.item(), values[-1], rtol=1e-9)
    np.testing.assert_allclose(np.abs(vectors[:, -1] @ vector.numpy()), 1.0, rtol=1e-9)
    start = np.ones(n)
    for steps in (1, 3):  # the very iterates of Optax
        found = linalg.power_iteration(a, v0=torch.as_tensor(start), num_iters=steps)
        wanted = optax.power_iteration(jnp.asarray(matrix), v0=jnp.asarray(start), num_iters=steps)
        for x, y in zip(found, wanted):
            np.testing.assert_allclose(x.numpy(), np.asarray(y), rtol=1e-10)
    halves = {'a': torch.ones(n, dtype=F64)}
    of_trees, _ = linalg.power_iteration(lambda v: {'a': a @ v['a']}, v0=halves, num_iters=2000, error_tolerance=1e-9)
    torch.testing.assert_close(of_trees, value)


def test_power_iteration_in_a_batch_and_from_keys() -> None:
    batch = torch.stack([torch.as_tensor(symmetric(4)) for _ in range(3)])
    start = torch.ones(4, dtype=F64)
    together = torch.func.vmap(lambda a: linalg.power_iteration(a, v0=start))(batch)
    for i, a in enumerate(batch):
        for found, wanted in zip(together, linalg.power_iteration(a, v0=start)):
            torch.testing.assert_close(found[i], wanted)
    one = linalg.power_iteration(batch[0], num_iters=1)[1]
    assert torch.equal(one, linalg.power_iteration(batch[0], num_iters=1, key=0)[1])
    assert not torch.equal(one, linalg.power_iteration(batch[0], num_iters=1, key=1)[1])
    with pytest.raises(ValueError, match='v0 must be given'):
        linalg.power_iteration(lambda v: v)
    with pytest.raises(ValueError, match='square matrix'):
        linalg.power_iteration(torch.ones(2, 3))


@pytest.mark.parametrize('p', [1, 2, 3, 4, 8])
@pytest.mark.parametrize('n', [1, 2, 6])
def test_matrix_inverse_pth_root(p: int, n: int) -> None:
    matrix = symmetric(n, 1.0)
    values, vectors = np.linalg.eigh(matrix)
    ridge = 1e-6 * values[-1]
    exact = vectors @ np.diag((values + ridge) ** (-1.0 / p)) @ vectors.T
    root, error = linalg.matrix_inverse_pth_root(torch.as_tensor(matrix), p)
    np.testing.assert_allclose(root.numpy(), exact, rtol=1e-5, atol=1e-6)
    assert error <= 1e-6
    if p != 3:  # Optax takes powers of two only, in single precision
        wanted, _ = optax.matrix_inverse_pth_root(jnp.asarray(matrix, jnp.float32), p)
        single, _ = linalg.matrix_inverse_pth_root(torch.as_tensor(matrix, dtype=torch.float32), p)
        assert single.dtype == torch.float32
        np.testing.assert_allclose(single.numpy(), np.asarray(wanted), rtol=1e-3, atol=1e-4)


def test_matrix_inverse_pth_root_in_a_batch_and_its_messages() -> None:
    batch = torch.stack([torch.as_tensor(symmetric(3, low)) for low in (0.01, 1.0, 5.0)])
    together, _ = torch.func.vmap(lambda a: linalg.matrix_inverse_pth_root(a, 4))(batch)
    for found, a in zip(together, batch):
        torch.testing.assert_close(found, linalg.matrix_inverse_pth_root(a, 4)[0])
    for p in (0, -2, 1.5):
        with pytest.raises(ValueError, match='Invalid p'):
            linalg.matrix_inverse_pth_root(batch[0], p)


@pytest.mark.parametrize('columns', [None, 1, 3])
def test_nnls(columns: int | None) -> None:
    A = RNG.standard_normal((6, 4))
    b = RNG.standard_normal((6,) if columns is None else (6, columns))
    found = linalg.nnls(torch.as_tensor(A), torch.as_tensor(b), 3000).numpy()
    by_column = np.stack([scipy.optimize.nnls(A, y)[0] for y in b.reshape(6, -1).T], axis=1)
    np.testing.assert_allclose(found.reshape(4, -1), by_column, atol=1e-8)
    for bound in (None, 50.0):
        few = linalg.nnls(torch.as_tensor(A), torch.as_tensor(b), 7, L=bound)
        np.testing.assert_allclose(
            few.numpy(), np.asarray(optax.nnls(jnp.asarray(A), jnp.asarray(b), 7, L=bound)), atol=1e-12
        )
    batch = torch.func.vmap(lambda y: linalg.nnls(torch.as_tensor(A), y, 7))(torch.as_tensor(b)[None])
    torch.testing.assert_close(batch[0], linalg.nnls(torch.as_tensor(A), torch.as_tensor(b), 7))


def test_nnls_of_zeros_and_its_messages() -> None:
    assert linalg.nnls(torch.zeros(3, 2), torch.ones(3), 5).tolist() == [0.0, 0.0]
    assert linalg.nnls(torch.zeros(3, 0), torch.ones(3), 5).shape == (0,)
    for shapes in (((3,), (3,)), ((3, 2), (2,)), ((3, 2), (3, 1, 1))):
        with pytest.raises(ValueError, match=r'expected \[m, n\]'):
            linalg.nnls(*(torch.ones(s) for s in shapes), 5)


def test_incremental_update() -> None:
    new, old = {'w': np.ones(2), 'b': np.full(3, 2.0)}, {'w': np.zeros(2), 'b': np.full(3, -1.0)}
    ours, theirs = ([tree.map(make, x) for x in (new, old)] for make in (torch.as_tensor, jnp.asarray))
    found, wanted = update.incremental_update(*ours, 0.1), optax.incremental_update(*theirs, 0.1)
    for name in new:
        np.testing.assert_allclose(found[name].numpy(), np.asarray(wanted[name]), rtol=1e-15)
    single = [torch.ones(2), torch.zeros(2)]
    rate = torch.tensor(0.25, dtype=F64, requires_grad=True)
    moved = update.incremental_update(*single, rate)
    assert moved.dtype == torch.float32
    assert torch.autograd.grad(moved.sum(), rate)[0] == 2.0
    assert update.incremental_update([None], [None], 0.5) == [None]


def test_periodic_update() -> None:
    new, old = {'w': torch.ones(2)}, {'w': torch.zeros(2)}
    for steps in range(5):
        wanted = optax.periodic_update(1, 0, steps, 3)
        for count in (steps, torch.tensor(steps)):
            assert update.periodic_update(new, old, count, 3) is (new if wanted else old)
    batch = torch.func.vmap(lambda t: update.periodic_update(new, old, t, 3))(torch.arange(4))
    assert batch['w'][:, 0].tolist() == [1.0, 0.0, 0.0, 1.0]
    with pytest.raises(ValueError, match='update_period'):
        update.periodic_update(new, old, 1, 0)


@pytest.mark.parametrize('scale', [0.0, 1.0, -0.5, 3, torch.tensor(-2.0)], ids=str)
def test_scale_gradient(scale: Any) -> None:
    """Backward, forward, in batches and to the second order; values stay as they are."""
    x = torch.tensor([1.0, -2.0], dtype=F64)
    factor = float(scale)

    def fun(x: torch.Tensor) -> torch.Tensor:
        return (hook.scale_gradient({'x': x, 'n': torch.tensor(1)}, scale)['x'] ** 3).sum()

    assert fun(x) == (x**3).sum()
    torch.testing.assert_close(torch.func.grad(fun)(x), factor * 3 * x**2)
    leaf = x.clone().requires_grad_()
    if factor:
        torch.testing.assert_close(torch.autograd.grad(fun(leaf), leaf)[0], factor * 3 * x**2)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(fun))(x[None])[0], factor * 3 * x**2)
    torch.testing.assert_close(torch.func.jvp(fun, (x,), (torch.ones_like(x),))[1], (factor * 3 * x**2).sum())
    torch.testing.assert_close(torch.func.hessian(fun)(x).diag(), factor**2 * 6 * x)
    wanted = jax.grad(lambda y: (optax.scale_gradient(y, factor) ** 3).sum())(jnp.asarray(x.numpy()))
    np.testing.assert_allclose(torch.func.grad(fun)(x).numpy(), np.asarray(wanted))


@pytest.mark.parametrize('shapes', [((3,), (3,)), ((2, 3), (3,)), ((), ()), ((3,), ())], ids=str)
def test_multi_normal(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    loc, log_scale = (RNG.standard_normal(s) for s in shapes)
    ours = perturbations.multi_normal(torch.as_tensor(loc), torch.as_tensor(log_scale))
    samples = ours.sample((20000,), key=0)
    shape = np.broadcast_shapes(*shapes)
    assert samples.shape == (20000, *shape)
    np.testing.assert_allclose(samples.mean(dim=0).numpy(), np.broadcast_to(loc, shape), atol=0.2)
    np.testing.assert_allclose(samples.std(dim=0).numpy(), np.exp(np.broadcast_to(log_scale, shape)), rtol=0.05)
    assert torch.equal(ours.sample((2,), key=3), ours.sample((2,), key=torch.Generator().manual_seed(3)))
    theirs = optax.multi_normal(jnp.asarray(loc), jnp.asarray(log_scale))
    wanted = np.asarray(theirs.log_prob(jnp.asarray(samples[:5].numpy())))
    np.testing.assert_allclose(ours.log_prob(samples[:5]).numpy(), wanted, rtol=1e-10)
    assert torch.equal(ours.log_scale, torch.as_tensor(log_scale)) and len(ours.params) == len(theirs.params)


def test_multi_normal_is_differentiable() -> None:
    loc, log_scale = (torch.zeros(2, dtype=F64, requires_grad=True) for _ in range(2))
    normal = perturbations.multi_normal(loc, log_scale)
    x = torch.tensor([1.0, -2.0], dtype=F64)
    by_loc, by_scale = torch.autograd.grad(normal.log_prob(x), (loc, log_scale))
    torch.testing.assert_close(by_loc, x)
    torch.testing.assert_close(by_scale, x**2 - 1.0)
    assert normal.sample((3,), 0).requires_grad
