# SPDX-License-Identifier: Apache-2.0
"""Bad hyper-parameters: every factory refuses them at once, and the message names the argument and what is allowed."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
from tests.snapshot import refuses
from torchopt import transform

NAN = math.nan

# What an argument is called in messages, where that is not its own name followed by 'value'.
SHOWN = {
    'lr': 'learning rate',
    'learning_rate': 'learning rate',
    'eps': 'epsilon value',
    'rho': 'rho parameter at index 0',
    'b1': 'beta parameter at index 0',
    'b2': 'beta parameter at index 1',
}
TWO_VOCABULARIES = ['sgd', 'adam', 'adamw', 'adamax', 'radam', 'adadelta', 'adagrad', 'rmsprop']
OPTAXS_ONLY = ['nadam', 'nadamw', 'amsgrad', 'lion', 'yogi', 'adabelief']
ALIASES = TWO_VOCABULARIES + OPTAXS_ONLY
NUMBERS = {
    'sgd': ['lr', 'momentum', 'dampening', 'weight_decay'],
    'adam': ['lr', 'eps', 'weight_decay', 'eps_root'],
    'adamw': ['lr', 'eps', 'weight_decay', 'eps_root'],
    'adamax': ['lr', 'eps', 'weight_decay'],
    'radam': ['lr', 'eps', 'weight_decay'],
    'adadelta': ['lr', 'rho', 'eps', 'weight_decay'],
    'adagrad': ['lr', 'lr_decay', 'weight_decay', 'initial_accumulator_value', 'eps'],
    'rmsprop': ['lr', 'alpha', 'eps', 'weight_decay', 'momentum', 'initial_scale'],
    'nadam': ['learning_rate', 'b1', 'b2', 'eps', 'eps_root'],
    'nadamw': ['learning_rate', 'b1', 'b2', 'eps', 'eps_root', 'weight_decay'],
    'amsgrad': ['learning_rate', 'b1', 'b2', 'eps', 'eps_root'],
    'lion': ['learning_rate', 'b1', 'b2', 'weight_decay'],
    'yogi': ['learning_rate', 'b1', 'b2', 'eps'],
    'adabelief': ['learning_rate', 'b1', 'b2', 'eps', 'eps_root'],
    'trace': ['momentum', 'dampening'],
    'scale_by_adam': ['b1', 'b2', 'eps', 'eps_root'],
    'scale_by_amsgrad': ['b1', 'b2', 'eps', 'eps_root'],
    'scale_by_lion': ['b1', 'b2', 'smooth_beta'],
    'scale_by_yogi': ['b1', 'b2', 'eps', 'eps_root', 'initial_accumulator_value'],
    'scale_by_belief': ['b1', 'b2', 'eps', 'eps_root'],
    'scale_by_adamax': ['b1', 'b2', 'eps'],
    'scale_by_radam': ['b1', 'b2', 'eps'],
    'scale_by_adadelta': ['rho', 'eps'],
    'scale_by_rms': ['alpha', 'eps', 'initial_scale'],
    'scale_by_stddev': ['alpha', 'eps', 'initial_scale'],
    'scale_by_rss': ['initial_accumulator_value', 'eps'],
    'scale': ['step_size'],
    'add_decayed_weights': ['weight_decay'],
    'scale_by_learning_rate': ['learning_rate'],
    'clip_grad_norm': ['max_norm'],
}
SIGNED = {'dampening', 'step_size', 'smooth_beta'}
BELOW_ONE = {'rho', 'b1', 'b2'}

SCALARS_ONLY = {'lr_decay', 'initial_accumulator_value', 'initial_scale', 'smooth_beta', 'max_norm'}

WRONG = [
    (NAN, ValueError),
    (torch.tensor(NAN), ValueError),
    (torch.ones(2), ValueError),
    ('0.1', TypeError),
    (None, TypeError),
    (['0.1'], TypeError),
    (1j, TypeError),
]
INFINITE = [(math.inf, ValueError), (torch.tensor(math.inf), ValueError)]
NEGATIVE = [(-0.5, ValueError), (torch.tensor(-0.5), ValueError)]


def factory(name: str) -> Any:
    return getattr(torchopt, name, None) or getattr(transform, name)


def given(name: str, argument: str, value: Any) -> dict[str, Any]:
    rate = {'lr': 0.1} if name == 'sgd' else {'learning_rate': 0.1} if name in OPTAXS_ONLY else {}
    return {**rate, argument: value}


NUMBER_CASES = [
    (name, argument, value, error)
    for name, arguments in NUMBERS.items()
    for argument in arguments
    for value, error in [
        *WRONG,
        *(NEGATIVE if argument not in SIGNED else []),
        *([(1.0, ValueError)] if argument in BELOW_ONE else []),
        *([([0.1], TypeError)] if argument in SCALARS_ONLY else []),
        *(INFINITE if SHOWN.get(argument) == 'learning rate' else []),
    ]
]


@pytest.mark.parametrize(('name', 'argument', 'value', 'error'), NUMBER_CASES)
def test_numbers(name: str, argument: str, value: Any, error: type[Exception]) -> None:
    shown = SHOWN.get(argument, f'{argument} value')
    refuses(lambda: factory(name)(**given(name, argument, value)), error, [f'Invalid {shown}', 'expected'])


TREES = [(name, argument) for name, own in NUMBERS.items() for argument in own if argument not in SCALARS_ONLY]


@pytest.mark.parametrize(('name', 'argument'), TREES)
def test_trees_of_numbers(name: str, argument: str) -> None:
    """Each value of a tree is refused as a number is, under its path."""
    shown = SHOWN.get(argument, f'{argument} value')
    values = [(NAN, ValueError), (None, TypeError), ('0.1', TypeError), (1j, TypeError), (lambda t: 0.1, TypeError)]
    values += [(torch.tensor(NAN), ValueError), (torch.tensor([0.1, NAN]), ValueError)]
    values += [(-0.5, ValueError), (torch.tensor(-0.5), ValueError)] if argument not in SIGNED else []
    values += [(1.0, ValueError)] if argument in BELOW_ONE else []
    values += INFINITE if shown == 'learning rate' else []
    for value, error in values:
        tree = {'w': 0.1, 'b': [0.1, value]}
        refuses(lambda tree=tree: factory(name)(**given(name, argument, tree)), error, [f"Invalid {shown}['b'][1]"])
    factory(name)(**given(name, argument, {'w': 0.1, 'b': [0.2, torch.tensor(0.3)]}))


def test_rates_of_each_element_are_checked_by_their_extremes() -> None:
    for bad in ([0.1, -0.1], [0.1, NAN], [math.inf, 0.1]):
        words = ["Invalid learning rate['w']", 'expected']
        refuses(lambda bad=bad: torchopt.sgd({'w': torch.tensor(bad)}), ValueError, words)
    torchopt.sgd({'w': torch.tensor([0.0, 0.1]), 'b': torch.zeros(0)})
    refuses(lambda: torchopt.adam(eps={'w': torch.ones(2)}), ValueError, ["Invalid epsilon value['w']", 'shape (2,)'])


def test_the_table_has_every_number_of_every_alias() -> None:
    others = {
        'betas',
        'mask',
        'weight_decay_mask',
        'nesterov',
        'centered',
        'maximize',
        'moment_requires_grad',
        'use_accelerated_op',
    }
    others |= {'mu_dtype', 'eps_in_sqrt', 'bias_correction', 'bias_correction_mu', 'bias_correction_nu'}
    others_of = {'adabelief': {'weight_decay'}}  # which may be None there
    for name in ALIASES:
        assert set(inspect.signature(factory(name)).parameters) - others - others_of.get(name, set()) == set(
            NUMBERS[name]
        ), name


BETAS: list[tuple[Any, type[Exception], str]] = [
    ((-0.1, 0.9), ValueError, 'index 0'),
    ((NAN, 0.9), ValueError, 'index 0'),
    ((0.9, 1.0), ValueError, 'index 1'),
    ((0.9, math.inf), ValueError, 'index 1'),
    ((0.9, None), TypeError, 'index 1'),
    (('0.9', 0.9), TypeError, 'index 0'),
    ((0.9, torch.tensor(1.5)), ValueError, 'index 1'),
    ((0.9,), TypeError, 'betas'),
    ((0.9, 0.9, 0.9), TypeError, 'betas'),
    (0.9, TypeError, 'betas'),
    (None, TypeError, 'betas'),
]


@pytest.mark.parametrize('name', ['adam', 'adamw', 'adamax', 'radam'])
@pytest.mark.parametrize(('betas', 'error', 'word'), BETAS)
def test_betas(name: str, betas: Any, error: type[Exception], word: str) -> None:
    refuses(lambda: factory(name)(betas=betas), error, ['Invalid beta', word, 'expected'])


SECOND_NAMES = [(name, {'lr': 0.1}, {'learning_rate': 0.1}) for name in TWO_VOCABULARIES]
SECOND_NAMES += [(name, {'betas': (0.9, 0.9)}, {'b1': 0.9}) for name in ('adam', 'adamw', 'adamax', 'radam')]
SECOND_NAMES += [(name, {'betas': (0.9, 0.9)}, {'b2': 0.9}) for name in ('adam', 'adamw', 'adamax', 'radam')]
SECOND_NAMES += [('rmsprop', {'alpha': 0.9}, {'decay': 0.9})]


@pytest.mark.parametrize(('name', 'first', 'second'), SECOND_NAMES)
def test_one_thing_given_under_both_names(name: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    base = given(name, *next(iter(first.items())))
    words = [repr(*first), repr(*second), 'mean the same']
    refuses(lambda: factory(name)(**base, **second), TypeError, words)
    if 'lr' in first:
        refuses(lambda: factory(name)(0.1, **second), TypeError, words)


def test_second_names_mean_what_the_first_ones_mean() -> None:
    p, g = [torch.ones(2, dtype=torch.float64)], [torch.tensor([0.5, -2.0], dtype=torch.float64)]

    def twice(tx: Any) -> Any:
        state = tx.init(p)
        _, state = tx.update(g, state, p)
        return tx.update([-3.0 * g[0]], state, p)[0][0]

    pairs = [
        (torchopt.adam(0.2, (0.5, 0.999)), torchopt.adam(learning_rate=0.2, b1=0.5)),
        (torchopt.adamax(betas=(0.5, 0.6)), torchopt.adamax(b2=0.6, b1=0.5)),
        (torchopt.rmsprop(alpha=0.3), torchopt.rmsprop(decay=0.3)),
        (torchopt.sgd(0.2), torchopt.sgd(learning_rate=0.2)),
    ]
    for ours, optax in pairs:
        assert torch.equal(twice(ours), twice(optax))


def net() -> nn.Module:
    return nn.Linear(2, 1)


MISCELLANEOUS = {
    'nesterov without momentum': (lambda: torchopt.sgd(0.1, nesterov=True), ValueError, ['Nesterov', 'momentum > 0']),
    'nesterov with dampening': (
        lambda: torchopt.sgd(0.1, 0.9, 0.1, nesterov=True),
        ValueError,
        ['Nesterov', 'dampening=0'],
    ),
    'nesterov as dampening': (lambda: torchopt.sgd(0.1, 0.9, True), TypeError, ['dampening', 'True is a bool']),
    'nesterov of trace': (lambda: transform.trace(0.9, True), TypeError, ['dampening', 'True is a bool']),
    'b1 as betas': (lambda: torchopt.adam(0.1, 0.9, 0.999), TypeError, ['betas: 0.9', 'such as (0.9, 0.999)']),
    'mu_dtype as a flag': (
        lambda: transform.scale_by_adam(0.9, 0.999, 1e-8, 0.0, torch.float32),
        TypeError,
        ['moment_requires_grad: torch.float32', 'order of arguments', 'Optax', 'keywords'],
    ),
    'number as a flag': (lambda: torchopt.adamax(0.1, moment_requires_grad=1), TypeError, ['moment_requires_grad: 1']),
    'eps_in_sqrt as momentum': (
        lambda: torchopt.rmsprop(0.1, 0.9, 1e-8, 0.0, True, False),
        TypeError,
        ['momentum', 'True is a bool'],
    ),
    'no learning rate': (torchopt.sgd, TypeError, ['lr']),
    'no learning rate for lion': (torchopt.lion, TypeError, ['learning_rate']),
    'lion mode': (lambda: transform.scale_by_lion(mode='soft'), ValueError, ['mode', "'soft'", "'smooth'"]),
    'mu_dtype of adam': (lambda: torchopt.adam(mu_dtype='bfloat'), TypeError, ['mu_dtype', "'bfloat'", 'torch.bf']),
    'mu_dtype of lion': (lambda: torchopt.lion(0.1, mu_dtype=torch.int8), TypeError, ['mu_dtype', 'int8', 'floating']),
    'mu_dtype of amsgrad': (lambda: torchopt.amsgrad(0.1, mu_dtype=torch.bool), TypeError, ['mu_dtype', 'floating']),
    'stateless': (lambda: transform.stateless(0.1), TypeError, ['Invalid f', 'function']),
    'stateless of leaves': (lambda: transform.stateless_with_tree_map(0.1), TypeError, ['Invalid f', 'function']),
    'no schedule': (lambda: transform.scale_by_schedule(0.1), TypeError, ['step_size_fn', '0.1', 'scale']),
    'no schedule but None': (lambda: transform.scale_by_schedule(None), TypeError, ['step_size_fn', 'function']),
    'norm_type word': (lambda: torchopt.clip_grad_norm(1.0, 'two'), TypeError, ['norm_type', "'two'", "'inf'"]),
    'norm_type None': (lambda: torchopt.clip_grad_norm(1.0, None), TypeError, ['norm_type', "'inf'"]),
    'norm_type zero': (lambda: torchopt.clip_grad_norm(1.0, 0.0), ValueError, ['norm_type', '> 0']),
    'nan_to_num': (lambda: torchopt.nan_to_num('zero'), TypeError, ['nan value', "'zero'"]),
    'nan_to_num posinf': (lambda: torchopt.nan_to_num(posinf='big'), TypeError, ['posinf value', "'big'"]),
    'hook': (lambda: torchopt.register_hook(3), TypeError, ['hook', 'function']),
    'chain': (lambda: torchopt.chain(torchopt.adam(), 3), TypeError, ['Member 1', 'torchopt.adam()']),
    'chain of one': (lambda: torchopt.chain(3), TypeError, ['Member 0', 'torchopt.adam()']),
    'chain_flat': (lambda: torchopt.combine.chain_flat(3), TypeError, ['Member 0', 'torchopt.adam()']),
    'named_chain pair': (lambda: torchopt.named_chain(torchopt.adam()), TypeError, ['Member 0', 'pair']),
    'named_chain twice': (
        lambda: torchopt.named_chain(('a', torchopt.adam()), ('a', torchopt.adam())),
        ValueError,
        ["'a'", 'own name'],
    ),
    'masked': (lambda: torchopt.masked(None), TypeError, ['None', 'torchopt.adam()']),
    'partition': (lambda: torchopt.partition([torchopt.adam()], 0), TypeError, ['transforms', 'list', 'dict']),
    'partition member': (lambda: torchopt.partition({'a': 3}, 'a'), TypeError, ['3', 'torchopt.adam()']),
    'unknown': (lambda: torchopt.adam(foo=1), TypeError, ['adam()', "'foo'", 'weight_decay']),
    'unknown of a class': (lambda: torchopt.MetaAdam(net(), foo=1), TypeError, ['MetaAdam', 'foo']),
    'hidden of a class': (
        lambda: torchopt.Adam(net().parameters(), moment_requires_grad=True),
        TypeError,
        ['Adam', 'moment_requires_grad'],
    ),
    'missing of a class': (lambda: torchopt.MetaSGD(net()), TypeError, ['MetaSGD', 'lr']),
    'too many for a class': (
        lambda: torchopt.Adam(net().parameters(), 0.1, (0.9, 0.9), 1e-8, 0.0, 0.0),
        TypeError,
        ['Adam', 'takes 5', '6 were given'],
    ),
    'twice for a class': (lambda: torchopt.Adam(net().parameters(), 0.1, lr=0.1), TypeError, ['Adam', "'lr'"]),
    'both names for a class': (
        lambda: torchopt.MetaAdam(net(), 0.1, learning_rate=0.1),
        TypeError,
        ["'lr'", "'learning_rate'"],
    ),
    'range in a class': (lambda: torchopt.RMSProp(net().parameters(), alpha=-1.0), ValueError, ['alpha', '>= 0']),
    'range in a Meta class': (lambda: torchopt.MetaAdam(net(), betas=(1.0, 0.9)), ValueError, ['index 0']),
}


@pytest.mark.parametrize('name', MISCELLANEOUS)
def test_miscellaneous(name: str) -> None:
    refuses(*MISCELLANEOUS[name])


ENGINE = {
    'adam': lambda: torchopt.adam(use_accelerated_op=True),
    'adamw': lambda: torchopt.adamw(use_accelerated_op=True),
    'Adam': lambda: torchopt.Adam(net().parameters(), use_accelerated_op=True),
    'AdamW': lambda: torchopt.AdamW(net().parameters(), use_accelerated_op=True),
    'MetaAdam': lambda: torchopt.MetaAdam(net(), use_accelerated_op=True),
    'MetaAdamW': lambda: torchopt.MetaAdamW(net(), use_accelerated_op=True),
    'scale_by_accelerated_adam': transform.scale_by_accelerated_adam,
}


@pytest.mark.parametrize('name', ENGINE)
def test_the_engine_is_required_where_it_cannot_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchopt._C, '_kernels', None)
    refuses(ENGINE[name], RuntimeError, ['use_accelerated_op=True', 'omit the option'])


@pytest.mark.parametrize('flag', [None, False])
def test_the_engine_is_not_required(flag: bool | None) -> None:
    g = [torch.tensor([0.5, -2.0], dtype=torch.float64)]
    tx, reference = torchopt.adam(use_accelerated_op=flag), torchopt.adam()
    assert torch.equal(tx.update(g, tx.init(g))[0][0], reference.update(g, reference.init(g))[0][0])
