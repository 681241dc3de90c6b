# SPDX-License-Identifier: Apache-2.0
"""Mistakes that users of Optax and of TorchOpt 0.7.3 make: the errors name the argument and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
import torchopt.distributed as todist
from torchopt.compat import optax

NET = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
NAMES = [name for name, _ in NET.named_parameters()]
PARAMS = {'w': torch.ones(2)}


def lookahead_with_all_gradients() -> Any:
    optimizer = optax.lookahead(optax.sgd(0.1), sync_period=5, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(PARAMS)
    grads = torchopt.grad(lambda params: (params.fast['w'] ** 2).sum())(params)
    return optimizer.update(grads, optimizer.init(params), params)


def decorated(decorator: Callable[..., Any]) -> Any:
    @decorator
    def f(x: Any) -> Any:
        return x

    return f(torch.ones(2))


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    'lookahead': (lookahead_with_all_gradients, TypeError, 'respect to params.fast, or pass grads.fast'),
    'inject': (lambda: optax.inject_hyperparams(optax.adam(0.1)), TypeError, r'such as inject_hyperparams\(adam\)'),
    'scales': (lambda: optax.piecewise_constant_schedule(0.1, [5, 10]), TypeError, 'boundaries_and_scales is a list'),
    'interpolation': (
        lambda: optax.piecewise_interpolate_schedule('linear', 0.1, [5, 10]),
        TypeError,
        'boundaries_and_scales is a list',
    ),
    'monitor': (lambda: optax.monitor('x'), TypeError, 'measures is a str; expected a dict'),
    'save': (lambda: torchopt.tree.save(PARAMS, 'file'), TypeError, r'The arguments are save\(path, tree\)'),
    'mask of modules': (
        lambda: torchopt.MetaAdamW(NET, mask={'0': True, '1': False}),
        ValueError,
        r"Invalid mask: the keys \['0', '1'\] .* expected a dict {name: bool} .*0\.weight",
    ),
    'mask in a list': (lambda: torchopt.MetaAdamW(NET, mask=[True, False]), ValueError, 'Invalid mask: a list'),
    'parallelize': (lambda: decorated(todist.parallelize), TypeError, r'write @parallelize\(\)'),
    'parallelize_async': (lambda: decorated(todist.parallelize_async), TypeError, r'write @parallelize\(\)'),
}


@pytest.mark.parametrize('name', ERRORS)
def test_mistakes_raise(name: str) -> None:
    call, error, words = ERRORS[name]
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    'mask', [dict.fromkeys(NAMES, True), True, None, lambda params: {name: p.ndim > 1 for name, p in params.items()}]
)
def test_masks_by_name_are_accepted(mask: Any) -> None:
    torchopt.MetaAdamW(NET, mask=mask)


def test_a_schedule_of_a_user_is_exact_in_double_precision_if_it_converts_the_count() -> None:
    p = torch.tensor([1.0, 2.0], dtype=torch.float64)
    optimizer = optax.sgd(lambda count: 0.05 / (3 + count.double()))
    updates, _ = optimizer.update(p, optimizer.init(p))
    torch.testing.assert_close(updates, -0.05 / 3 * p, rtol=1e-15, atol=0.0)
