# SPDX-License-Identifier: Apache-2.0
"""Unknown names of arguments: the error says which name was meant, or what to use instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torchopt
from torchopt import alias, clip, combine, contrib, linear_solve, schedule, solver, transform
from torchopt.compat import jaxopt, optax

NET = torch.nn.Linear(2, 1)


def adam(**options: Any) -> Any:
    return torchopt.Adam(NET.parameters(), **options)


MEANT: list[tuple[Callable[..., Any], str, str]] = [
    (torchopt.adam, 'learn_rate', "Did you mean 'learning_rate' or 'lr'?"),
    (torchopt.adam, 'epsilon', "Did you mean 'eps'?"),
    (torchopt.adam, 'beta1', "Did you mean 'b1' or 'betas'?"),
    (torchopt.adam, 'wd', "Did you mean 'weight_decay'?"),
    (torchopt.sgd, 'step_size', "Did you mean 'lr' or 'learning_rate'?"),
    (torchopt.rmsprop, 'rho', "Did you mean 'alpha' or 'decay'?"),
    (torchopt.lion, 'lr', "Did you mean 'learning_rate'?"),
    (torchopt.lion, 'betas', "Did you mean 'b1' or 'b2'?"),
    (torchopt.lamb, 'weight_decay_mask', "Did you mean 'mask'?"),
    (torchopt.sm3, 'lr', "Did you mean 'learning_rate'?"),
    (adam, 'weight_deca', "Adam() got an unexpected keyword argument 'weight_deca'. Did you mean 'weight_decay'?"),
    (adam, 'learning_rte', "Did you mean 'lr'?"),
    (
        lambda **kw: torchopt.MetaAdam(NET, **kw),
        'stepsize',
        "MetaAdam() got an unexpected keyword argument 'stepsize'.",
    ),
    (
        lambda **kw: torchopt.MetaAdam(torch.nn.Linear(1, 1)).add_param_group(NET, **kw),
        'stepsize',
        "MetaAdam.add_param_group() got an unexpected keyword argument 'stepsize'. Did you mean 'lr'?",
    ),
    (contrib.prodigy, 'lr', "Did you mean 'learning_rate'?"),
    (transform.scale_by_adam, 'betas', "Did you mean 'b1' or 'b2'?"),
    (torchopt.clip_grad_norm, 'clip_norm', "Did you mean 'max_norm'?"),
    (schedule.cosine_decay_schedule, 'T_max', "Did you mean 'decay_steps'?"),
    (schedule.exponential_decay, 'gamma', "Did you mean 'decay_rate'?"),
    (linear_solve.solve_cg, 'max_iter', "Did you mean 'maxiter'?"),
    (torchopt.GradientDescent, 'max_iter', "GradientDescent() got an unexpected keyword argument 'max_iter'."),
    (torchopt.GradientDescent, 'lr', "Did you mean 'stepsize'?"),
    (torchopt.LBFGS, 'line_search_fn', "Did you mean 'linesearch'?"),
    (torchopt.OSQP, 'max_iter', "Did you mean 'maxiter'?"),
    (jaxopt.LBFGS, 'max_iter', "LBFGS() got an unexpected keyword argument 'max_iter'. Did you mean 'maxiter'?"),
    (jaxopt.LBFGS, 'callback', 'It takes fun, value_and_grad,'),
    (optax.adam, 'lr', "adam() got an unexpected keyword argument 'lr'. Did you mean 'learning_rate'?"),
    (optax.lion, 'lr', "Did you mean 'learning_rate'?"),
    (optax.clip_by_global_norm, 'clip_norm', "Did you mean 'max_norm'?"),
    (torchopt.adam, 'amsgrad', 'use torchopt.amsgrad'),
    (adam, 'amsgrad', 'torchopt.Optimizer(params, torchopt.amsgrad(...))'),
    (adam, 'foreach', 'Leave it out'),
    (adam, 'fused', 'Leave it out'),
    (adam, 'capturable', 'Leave it out'),
    (adam, 'differentiable', 'torchopt.MetaAdam'),
    (adam, 'decoupled_weight_decay', 'AdamW'),
    (torchopt.lion, 'maximize', 'scale(-1.0)'),
]


@pytest.mark.parametrize('call, name, message', MEANT, ids=lambda x: x if isinstance(x, str) else None)
def test_what_was_meant(call: Callable[..., Any], name: str, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        call(**{name: 1.0})
    assert message in str(caught.value)
    assert caught.value.__cause__ is None


WITHOUT_OPTIONS = ('identity', 'microbatch', 'value_and_grad_from_state', 'with_extra_args_support')


def makers() -> list[Any]:
    """All public functions and classes that make optimizers, transformations, schedules and solvers."""
    found = {}
    for module in (alias, contrib, transform, clip, combine, schedule, linear_solve, solver, jaxopt, optax):
        for name in module.__all__:
            value = getattr(module, name)
            maker = inspect.isfunction(value) or (inspect.isclass(value) and issubclass(value, solver.Solver))
            if not maker or inspect.isabstract(value) or name in WITHOUT_OPTIONS:
                continue
            returned = str(inspect.signature(value).return_annotation)
            makes = any(word in returned for word in ('GradientTransformation', 'Schedule', 'Callable'))
            if inspect.isclass(value) or (makes and module is not combine) or module is linear_solve:
                kinds = [p.kind for p in inspect.signature(value).parameters.values()]
                if inspect.Parameter.VAR_KEYWORD not in kinds:
                    found[f'{module.__name__}.{name}'] = value
    return [pytest.param(value, id=name) for name, value in found.items()]


@pytest.mark.parametrize('maker', makers())
def test_every_maker_says_what_it_takes(maker: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"got an unexpected keyword argument 'zzz'\. It takes "):
        maker(zzz=1.0)


PARAMETERS: list[tuple[str, Callable[[], Any]]] = [
    ('adam', lambda: torchopt.adam(NET.parameters())),
    ('adam', lambda: torchopt.adam(NET.parameters(), 0.1)),
    ('adam', lambda: torchopt.adam(NET.parameters(), lr=0.1)),
    ('adam', lambda: torchopt.adam(NET.parameters(), learning_rate=0.1)),
    ('sgd', lambda: torchopt.sgd(list(NET.parameters()), 0.1)),
    ('adamw', lambda: torchopt.adamw(NET, 0.1)),
    ('lion', lambda: torchopt.lion(NET.parameters(), 0.1)),
    ('lion', lambda: torchopt.lion(NET.parameters(), learning_rate=0.1)),
    ('sm3', lambda: torchopt.sm3(NET.named_parameters())),
    ('adam', lambda: optax.adam(NET.parameters(), learning_rate=0.1)),
]


@pytest.mark.parametrize('name, call', PARAMETERS)
def test_functions_take_no_parameters(name: str, call: Callable[[], Any]) -> None:
    message = f'{name}() takes hyper-parameters only, not the parameters to train. To train them in place, use '
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value).startswith(f'{message}torchopt.Optimizer(params, torchopt.{name}(...))')


def test_other_errors_stay_as_they_are() -> None:
    for call in (torchopt.lion, schedule.constant_schedule, contrib.muon, torchopt.LBFGS):
        with pytest.raises(TypeError, match='missing'):
            call()
    with pytest.raises(TypeError, match='Invalid learning rate'):
        torchopt.lion('0.1')
