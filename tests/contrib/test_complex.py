# SPDX-License-Identifier: Apache-2.0
"""Complex parameters, as they are and as pairs of real ones."""

from __future__ import annotations

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import torchopt
from tests.oracle import to_jax
from torchopt import contrib, tree

F64 = torch.float64


def test_split_equals_optax_on_complex_parameters() -> None:
    p = {'z': torch.tensor([1 + 2j, -0.5j], dtype=torch.complex128), 'x': torch.tensor([0.5, -1.0], dtype=F64)}
    q = to_jax(p)
    ours = contrib.split_real_and_imaginary(torchopt.adamw(0.1, weight_decay=0.2))
    theirs = optax.contrib.split_real_and_imaginary(optax.adamw(0.1, weight_decay=0.2))
    state, their_state = ours.init(p), theirs.init(q)
    for step in range(10):
        u, state = ours.update(tree.map(lambda x, s=step: x * (s - 3) + 1, p), state, p)
        v, their_state = theirs.update(jax.tree.map(lambda x, s=step: x * (s - 3) + 1, q), their_state, q)
        p, q = tree.map(torch.add, p, u), jax.tree.map(jnp.add, q, v)
    for key in p:
        np.testing.assert_allclose(p[key].numpy(), np.asarray(q[key]), rtol=1e-10)
    mu, their_mu = state.inner_state[0].mu['z'], their_state.inner_state[0].mu['z']
    np.testing.assert_allclose(mu.real.numpy(), np.asarray(their_mu.real), rtol=1e-10)
    u, after = ours.update({'z': None, 'x': p['x']}, state, p)
    assert u['z'] is None
    assert torch.equal(after.inner_state[0].mu['z'].imaginary, mu.imaginary)
    assert repr(pickle.loads(pickle.dumps(ours))) == repr(ours)


@pytest.mark.parametrize(
    'make',
    [
        contrib.acprop,
        contrib.ademamix,
        contrib.adopt,
        contrib.madgrad,
        contrib.simplified_ademamix,
        contrib.dadapt_adamw,
        contrib.prodigy,
        contrib.dog,
        contrib.dowg,
        contrib.schedule_free_adamw,
        lambda rate: contrib.muon(rate, ns_steps=4),
        lambda rate: contrib.galore(rate, rank=1),
        lambda rate: contrib.cautious(torchopt.adam(rate)),
        lambda rate: contrib.mechanize(torchopt.adam(rate)),
    ],
)
def test_complex_parameters(make: Any) -> None:
    """A rotation of the gradient rotates the steps, and nothing becomes real or NaN."""
    tx, turn = make(0.1), torch.tensor(1j, dtype=torch.complex128)
    first = torch.tensor([[1 + 2j, -0.5j], [0.3, 1j]], dtype=torch.complex128)
    both = []
    for factor in (torch.ones_like(turn), turn):
        p = [factor * first]
        state = tx.init(p)
        for step in range(3):
            g = [factor * (first * (step + 1) - 0.4j * step)]
            u, state = tx.update(g, state, p)
            p = [p[0] + u[0]]
        assert p[0].isfinite().all()
        both.append(p[0])
    if make is not contrib.adopt:  # which clips real and imaginary parts
        torch.testing.assert_close(both[1], turn * both[0])


COMPARING = {
    'cocob': contrib.cocob(),
    'sophia': contrib.sophia(0.1),
    'sm3': torchopt.sm3(0.1),
    'rprop': torchopt.rprop(0.1),
    'keep_params_nonnegative': torchopt.transform.keep_params_nonnegative(),
    'clip': torchopt.clip.clip(1.0),
}


@pytest.mark.parametrize('name', COMPARING)
def test_rules_that_compare_numbers_refuse_complex_ones(name: str) -> None:
    z = [torch.ones(2, dtype=torch.complex64)]
    with pytest.raises(TypeError, match='split_real_and_imaginary'):
        COMPARING[name].update(z, COMPARING[name].init(z), z)


def test_a_complex_dtype_of_moments_chooses_their_precision() -> None:
    params = {'z': torch.ones(2, dtype=torch.complex128), 'x': torch.ones(2, dtype=F64)}
    for tx in (torchopt.adam(mu_dtype=torch.complex64), torchopt.amsgrad(0.1, mu_dtype='complex64')):
        mu = tree.get(tx.init(params), 'mu')
        assert (mu['z'].dtype, mu['x'].dtype) == (torch.complex64, torch.float32)
