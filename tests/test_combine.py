# SPDX-License-Identifier: Apache-2.0
"""Chains, and the contract that their members keep."""

from __future__ import annotations

import copy
import pickle

import optax
import pytest
import torch

import torchopt
from tests.oracle import assert_trees_close, to_jax
from torchopt.base import (
    ChainedGradientTransformation,
    EmptyState,
    GradientTransformation,
    GradientTransformationExtraArgs,
    IdentityGradientTransformation,
    identity,
    init_empty_state,
    with_extra_args_support,
)
from torchopt.combine import chain, chain_flat, named_chain
from torchopt.transform import scale, scale_by_adam, trace

PARAMS = {'w': torch.tensor([1.0, -2.0], dtype=torch.float64), 'b': torch.tensor(3.0, dtype=torch.float64)}


def test_chain_of_nothing_one_and_many():
    adam = scale_by_adam()
    assert isinstance(chain(), IdentityGradientTransformation)
    assert chain(adam) is adam
    assert chain(adam, scale(2.0)).transformations[0] is adam


def test_chain_splices_chains_in_and_drops_identities():
    a, b, c = scale(1.0), scale(2.0), trace(0.5)
    flat = chain(a, identity(), chain(b, chain(identity(), c)))
    assert flat.transformations == (a, b, c)
    assert len(flat.init(PARAMS)) == 3
    assert chain(identity(), identity()) == identity()
    assert identity() == chain(identity(), identity())
    assert a.chain(identity()) == a
    assert identity().chain(a) == a
    assert chain(a, b) == chain(a, b) != chain(b, a)
    assert hash(chain(a, b)) == hash(chain(a, b))
    assert chain(a, b) != 'something else'


@pytest.mark.parametrize(
    ('make', 'fields'),
    [
        (torchopt.adam, ['ScaleByAdamState', 'EmptyState']),
        (lambda: torchopt.sgd(0.1), ['EmptyState']),
        (torchopt.adamw, ['ScaleByAdamState', 'EmptyState', 'EmptyState']),
        (lambda: torchopt.adam(lambda t: 0.1), ['ScaleByAdamState', 'ScaleByScheduleState']),
        (torchopt.adagrad, ['ScaleByRssState', 'ScaleByScheduleState', 'EmptyState']),
    ],
)
def test_the_state_of_an_alias_is_the_tuple_of_its_stages(make, fields):
    assert [type(s).__name__ for s in make().init(PARAMS)] == fields


def test_state_mirrors_the_parameters_and_has_one_count():
    state = torchopt.adam().init({'a': {'b': [torch.zeros(2)]}})[0]
    assert state.mu['a']['b'][0].shape == (2,)
    assert state.count.shape == ()
    assert state.count.dtype is torch.int64


def test_members_of_other_ancestors_are_served():
    seen = []

    def optax_like(updates, state, params=None):
        seen.append(('optax', params is not None))
        return updates, state

    def torchopt_like(updates, state, *, params=None, inplace=True):
        seen.append(('0.7.3', params is not None, inplace))
        return updates, state

    def with_extra(updates, state, params=None, **extra):
        seen.append(('extra', extra['value'], extra['inplace']))
        return updates, state

    members = [GradientTransformation(init_empty_state, f) for f in (optax_like, torchopt_like, with_extra)]
    tx = chain(*members)
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=7.0)
    assert seen == [('optax', True), ('0.7.3', True, False), ('extra', 7.0, False)]


def test_extra_arguments_that_no_member_knows_are_dropped():
    tx = chain(scale(2.0), scale_by_adam())
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0, grad=None)
    wide = with_extra_args_support(scale(2.0))
    assert isinstance(wide, GradientTransformationExtraArgs)
    wide.update(PARAMS, EmptyState(), unknown=1)
    assert with_extra_args_support(wide) is wide


def test_chain_flat_sees_a_list_of_leaves():
    kinds = []

    def update(updates, state, params=None):
        kinds.append((type(updates), type(params)))
        return updates, state

    tx = chain_flat(GradientTransformation(init_empty_state, update), scale(2.0))
    updates, _ = tx.update({**PARAMS, 'n': None}, tx.init(PARAMS), {**PARAMS, 'n': PARAMS['w']})
    assert kinds == [(list, list)]
    assert updates['n'] is None
    torch.testing.assert_close(updates['w'], 2 * PARAMS['w'])
    assert chain.flat is chain_flat
    assert isinstance(torchopt.combine.chain_flat(torchopt.adam()).init(PARAMS)[0].mu, list)


def test_named_chain_equals_optax():
    ours = named_chain(('scale', scale(2.0)), ('adam', scale_by_adam()))
    theirs = optax.named_chain(('scale', optax.scale(2.0)), ('adam', optax.scale_by_adam()))
    state, their_state = ours.init(PARAMS), theirs.init(to_jax(PARAMS))
    for _ in range(3):
        updates, state = ours.update(PARAMS, state, PARAMS)
        wanted, their_state = theirs.update(to_jax(PARAMS), their_state)
    assert list(state) == list(their_state)
    assert_trees_close(updates, wanted, 1e-12)
    assert_trees_close(state['adam'].nu, their_state['adam'].nu, 1e-12)


@pytest.mark.parametrize(
    ('call', 'error', 'message'),
    [
        (lambda: chain('adam'), TypeError, "Member 0 of a chain: 'adam' (type: str) is not a"),
        (lambda: chain(scale(1.0), 3), TypeError, 'Member 1 of a chain: 3 (type: int) is not a'),
        (lambda: named_chain(('a', scale(1.0)), ('a', scale(2.0))), ValueError, "two members named 'a'"),
        (lambda: named_chain(scale(1.0)), TypeError, 'Member 0 of named_chain'),
        (
            lambda: chain(scale(1.0), scale(2.0)).update(PARAMS, (EmptyState(),)),
            ValueError,
            'The number of updates and states has to be the same in chain!',
        ),
        (
            lambda: named_chain(('a', scale(1.0))).update(PARAMS, {'b': EmptyState()}),
            ValueError,
            "is ['b']; expected a dict with the names ['a']",
        ),
    ],
)
def test_misuse(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def double_schedule(count):
    return 0.1 / (1 + count)


PICKLED = [
    torchopt.adam(),
    torchopt.adamw(double_schedule, mask={'w': True, 'b': False}),
    torchopt.sgd(0.1, momentum=0.9, dampening=0.1, maximize=True, weight_decay=0.1),
    torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.rmsprop(centered=True)),
    torchopt.adagrad(torchopt.schedule.linear_schedule(0.1, 0.0, 3)),
    identity(),
    chain(identity(), identity()),
    named_chain(('a', torchopt.radam())),
    chain_flat(torchopt.adamax()),
    torchopt.partition({'x': torchopt.adadelta(), 'y': torchopt.sgd(0.1)}, {'w': 'x', 'b': 'y'}),
    torchopt.nan_to_num(),
    torchopt.fromage(double_schedule),
    chain(torchopt.transform.measure_with_ema(torchopt.tree.conj, 0.5), torchopt.sgd(0.1)),
]


@pytest.mark.parametrize('tx', PICKLED, ids=lambda tx: repr(tx).split('(')[0])
def test_transformations_pickle_and_copy(tx):
    again = pickle.loads(pickle.dumps(tx))
    copied = copy.deepcopy(tx)
    states = [t.init(PARAMS) for t in (tx, again, copied)]
    for _ in range(2):
        steps = [t.update(PARAMS, s, PARAMS) for t, s in zip((tx, again, copied), states)]
        states = [s for _, s in steps]
    for updates, _ in steps[1:]:
        assert all(torch.equal(updates[k], steps[0][0][k]) for k in PARAMS)


def test_repr_reads_as_the_call():
    assert repr(chain(scale(0.5), trace(0.9, nesterov=True))) == (
        'chain(\n    scale(0.5),\n    trace(0.9, nesterov=True),\n)'
    )
    assert isinstance(torchopt.adam(), ChainedGradientTransformation)
