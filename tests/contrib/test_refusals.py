# SPDX-License-Identifier: Apache-2.0
"""What is refused, and before anything is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torchopt
from tests.contrib.contrib_cases import EACH
from torchopt import contrib, transform


def test_cautious_refuses() -> None:
    with pytest.raises(ValueError, match='eps'):
        contrib.cautious(torchopt.sgd(0.1), eps=0.0)
    with pytest.raises(TypeError, match='not a GradientTransformation'):
        contrib.cautious(0.1)


BAD: list[tuple[Any, str]] = [
    (lambda: contrib.acprop(0.1, b1=1.0), 'beta'),
    (lambda: contrib.ademamix(0.1, b3=1.0), 'b3'),
    (lambda: contrib.ademamix(0.1, mu_dtype='floating'), 'mu_dtype'),
    (lambda: contrib.simplified_ademamix(0.1, eps=-1.0), 'epsilon'),
    (lambda: contrib.adopt(0.1, clip_value_fn=3.0), 'clip_value_fn'),
    (lambda: contrib.adopt(-0.1), 'learning rate'),
    (lambda: contrib.cocob(alpha=-1.0), 'alpha'),
    (lambda: contrib.dadapt_adamw(estim_lr0=0.0), 'estim_lr0'),
    (lambda: contrib.prodigy(betas=(0.9, 2.0)), 'beta'),
    (lambda: contrib.prodigy(betas=0.9), 'pair'),
    (lambda: contrib.prodigy(beta3=1.0), 'beta3'),
    (lambda: contrib.dog(init_step=('guess', 1.0)), 'init_step'),
    (lambda: contrib.dowg(eps=-1.0), 'sq_dist|epsilon'),
    (lambda: contrib.galore(0.1, rank=1.5), 'rank'),
    (lambda: contrib.galore(0.1, rank=0), 'rank'),
    (lambda: contrib.galore(0.1, update_proj_gap=0), 'update_proj_gap'),
    (lambda: contrib.madgrad(0.1, momentum=1.0), 'momentum'),
    (lambda: contrib.mechanize(torchopt.sgd(0.1), num_betas=0), 'num_betas'),
    (lambda: contrib.momo(beta=1.0), 'beta'),
    (lambda: contrib.momo_adam(weight_decay=-1.0), 'weight_decay'),
    (lambda: contrib.muon(0.1, 'quick'), 'ns_coeffs'),
    (lambda: contrib.muon(0.1, 'dion', ns_steps=4), 'ns_steps=4'),
    (lambda: contrib.muon(0.1, (1.0, 2.0)), 'ns_coeffs'),
    (lambda: contrib.muon(0.1, preconditioning='none'), 'preconditioning'),
    (lambda: contrib.reduce_on_plateau(factor=1.0), 'factor'),
    (lambda: contrib.reduce_on_plateau(rtol=0.0), 'rtol'),
    (lambda: contrib.reduce_on_plateau(rtol=2.0), 'rtol'),
    (lambda: contrib.schedule_free(torchopt.sgd(0.1), 0.1, b1=0.0), 'b1'),
    (lambda: contrib.sophia(0.1, update_interval=0), 'update_interval'),
    (lambda: contrib.dpsgd(0.1, 0.0, 1.0, 0), 'l2_norm_clip'),
    (lambda: contrib.dpsgd(0.1, 1.0, 1.0, 'seed'), 'key'),
]


@pytest.mark.parametrize(('make', 'message'), BAD)
def test_bad_hyper_parameters_are_refused(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize(
    'tx',
    [contrib.cocob(), contrib.dadapt_adamw(), contrib.prodigy(), contrib.dog(), contrib.dowg(), contrib.madgrad(0.1)]
    + [contrib.momo(), contrib.momo_adam(), contrib.mechanize(torchopt.sgd(0.1)), contrib.schedule_free_sgd()],
    ids=repr,
)
def test_parameters_are_asked_for(tx: Any) -> None:
    with pytest.raises(ValueError, match='Parameters are required'):
        tx.update(EACH, tx.init(EACH))


@pytest.mark.parametrize('tx', [contrib.momo(), contrib.momo_adam(), contrib.reduce_on_plateau()], ids=repr)
def test_the_value_is_asked_for(tx: Any) -> None:
    with pytest.raises(TypeError, match="'value'"):
        tx.update(EACH, tx.init(EACH), EACH)


def test_dimension_numbers_are_checked() -> None:
    numbers = contrib.MuonDimensionNumbers
    g = [torch.ones(2, 3, 4)]
    for axes, message in ((numbers(0, (0, 1)), 'disjoint'), (numbers(3, 1), 'axes'), ([7], 'expected')):
        tx = contrib.scale_by_muon(weight_dimension_numbers=axes)
        with pytest.raises((ValueError, TypeError), match=message):
            tx.update(g, tx.init(g))
    with pytest.raises(ValueError, match='two axes'):
        contrib.scale_by_muon().update([torch.ones(3)], contrib.scale_by_muon().init([torch.ones(3)]))
    with pytest.raises(ValueError, match='leave out'):
        contrib.galore(0.1, weight_dimension_numbers=contrib.GaLoreDimensionNumbers()).init(g)


def test_a_chain_asks_all_members_before_it_writes() -> None:
    """A schedule that gives NaN, and a state of something else, are found before the trace is written to."""
    p = [torch.ones(2)]

    def nan(step: Any) -> float:
        return float('nan')

    for method, params, message in (
        (contrib.prodigy(nan), p, 'schedule'),
        (contrib.madgrad(nan), p, 'schedule'),
        (contrib.momo(), None, 'Parameters are required'),
        (contrib.sam(torchopt.sgd(0.1), torchopt.sgd(nan)), p, 'schedule'),
    ):
        tx = torchopt.chain(transform.trace(0.9), method)
        state = tx.init(p)
        with pytest.raises(ValueError, match=message):
            tx.update(p, state, params, inplace=True)
        assert not state[0].trace[0].any()
