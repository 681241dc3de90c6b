# SPDX-License-Identifier: Apache-2.0
"""The functions of ``torchopt.compat.jaxopt`` with arguments of their own equal JAXopt's in value and derivative."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)
    import jaxopt
    from jaxopt import tree_util as their_trees

from torchopt.compat.jaxopt import loss, perturbations, projection, tree_util

SCORES = np.array([0.3, -1.2, 2.5, 0.7], dtype=np.float32)
NUMBERS = np.array([-2.0, -0.3, 0.4, 3.0], dtype=np.float32)


def same(mine: Any, theirs: Any, *args: Any, by: int) -> None:
    """Compare values, and gradients in one argument."""
    tensors = [torch.from_numpy(x) if isinstance(x, np.ndarray) else torch.tensor(x) for x in args]
    value = mine(*tensors)
    np.testing.assert_allclose(value, theirs(*args), rtol=1e-5, atol=1e-6)
    grad = torch.func.grad(lambda *xs: mine(*xs).sum(), argnums=by)(*tensors)
    expected = jax.grad(lambda *xs: theirs(*xs).sum(), argnums=by)(*args)
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', [n for n in loss.__all__ if n.startswith('binary')])
def test_binary_losses(name: str) -> None:
    for label in (0, 1):
        same(getattr(loss, name), getattr(jaxopt.loss, name), label, NUMBERS, by=1)


@pytest.mark.parametrize('name', [n for n in loss.__all__ if n.startswith('multiclass')])
def test_multiclass_losses(name: str) -> None:
    for label in (0, 2):
        same(getattr(loss, name), getattr(jaxopt.loss, name), label, SCORES, by=1)


@pytest.mark.parametrize('name', [n for n in loss.__all__ if 'loss' in n and not n.startswith('make')])
def test_losses_of_integers(name: str) -> None:
    score = [1, 2, 3] if name.startswith('multiclass') else 3
    found, expected = getattr(loss, name)(1, score), getattr(jaxopt.loss, name)(1, jax.numpy.asarray(score))
    torch.testing.assert_close(found, torch.tensor(float(expected)))


def test_other_losses() -> None:
    same(loss.sparse_plus, jaxopt.loss.sparse_plus, NUMBERS, by=0)
    same(loss.sparse_sigmoid, jaxopt.loss.sparse_sigmoid, NUMBERS, by=0)
    same(loss.huber_loss, jaxopt.loss.huber_loss, 0.5 * np.ones_like(NUMBERS), NUMBERS, by=1)
    mine = loss.make_fenchel_young_loss(lambda s: torch.logsumexp(s, 0))
    theirs = jaxopt.loss.make_fenchel_young_loss(jax.scipy.special.logsumexp)
    same(mine, theirs, np.array([0.0, 1.0, 0.0, 0.0], dtype=np.float32), SCORES, by=1)


ONES, NORMAL = np.ones(4, dtype=np.float32), np.array([1.0, 2.0, -1.0, 0.5], dtype=np.float32)
PROJECTIONS: dict[str, tuple[Any, ...]] = {
    'projection_non_negative': (),
    'projection_box': ((-0.5 * ONES, 0.5 * ONES),),
    'projection_hypercube': (0.8,),
    'projection_simplex': (1.5,),
    'projection_l1_sphere': (1.5,),
    'projection_l1_ball': (1.5,),
    'projection_l2_sphere': (1.5,),
    'projection_l2_ball': (1.5,),
    'projection_linf_ball': (1.5,),
    'projection_hyperplane': ((NORMAL, 0.7),),
    'projection_halfspace': ((NORMAL, 0.7),),
}


@pytest.mark.parametrize('name', PROJECTIONS)
def test_projections(name: str) -> None:
    def tensors(x: Any) -> Any:
        return tuple(map(tensors, x)) if isinstance(x, tuple) else torch.as_tensor(x)

    given = PROJECTIONS[name]
    mine, theirs = getattr(projection, name), getattr(jaxopt.projection, name)
    same(lambda x: mine(x, *tensors(given)), lambda x: theirs(x, *given), SCORES, by=0)
    np.testing.assert_allclose(mine(torch.from_numpy(SCORES), *tensors(given)), theirs(SCORES, *given), rtol=1e-5)


A = {'a': np.array([1.0, -2.0]), 'b': [np.array([[0.5]])]}
B = {'a': np.array([3.0, 4.0]), 'b': [np.array([[-1.0]])]}
C = {'a': np.array([1.0 + 2.0j, -1.0j])}
TREES: list[tuple[str, tuple[Any, ...]]] = [
    ('tree_add', (A, B)),
    ('tree_sub', (A, B)),
    ('tree_mul', (A, B)),
    ('tree_div', (A, B)),
    ('tree_scalar_mul', (2.0, A)),
    ('tree_add_scalar_mul', (A, 2.0, B)),
    ('tree_vdot', (A, B)),
    ('tree_vdot', (C, C)),
    ('tree_vdot_real', (C, C)),
    ('tree_dot', (A, B)),
    ('tree_sum', (A,)),
    ('tree_l2_norm', (A,)),
    ('tree_l2_norm', (A, True)),
    ('tree_inf_norm', (A,)),
    ('tree_zeros_like', (A,)),
    ('tree_ones_like', (A,)),
    ('tree_where', (np.array(True), A, B)),
    ('tree_where', ({'a': np.array([True, False]), 'b': [np.array([[False]])]}, A, 0.0)),
    ('tree_negative', (A,)),
    ('tree_conj', (C,)),
    ('tree_real', (C,)),
    ('tree_imag', (C,)),
    ('broadcast_pytrees', (1.0, A, B)),
    ('broadcast_pytrees', (1.0, 2.0)),
]


@pytest.mark.parametrize(('name', 'args'), TREES, ids=[f'{i}-{name}' for i, (name, _) in enumerate(TREES)])
def test_tree_util(name: str, args: tuple[Any, ...]) -> None:
    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, getattr(their_trees, name)(*args))
    ours = tree_util.tree_map(lambda x: torch.from_numpy(x) if isinstance(x, np.ndarray) else x, args)
    found = getattr(tree_util, name)(*ours)
    assert jax.tree.structure(tree_util.tree_map(np.asarray, found)) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(tree_util.tree_map(np.asarray, found)), jax.tree.leaves(expected)):
        np.testing.assert_allclose(x, y)


def test_trees_that_differ_cannot_be_broadcast() -> None:
    with pytest.raises(ValueError, match='cannot be broadcast'):
        tree_util.broadcast_pytrees([1.0, 2.0], {'a': 1.0, 'b': 2.0})


def test_a_perturbed_function_takes_the_key_last() -> None:
    smooth = perturbations.make_perturbed_fun(torch.relu, num_samples=4000, sigma=0.5, noise=perturbations.Normal())
    x = torch.tensor(0.3)
    exact = torch.tensor(0.3 * 0.7257 + 0.5 * 0.3332)  # E max(0, x + sigma z) = x Phi(x / sigma) + sigma phi(x / sigma)
    torch.testing.assert_close(smooth(x, 0), exact, rtol=0.05, atol=0.0)
