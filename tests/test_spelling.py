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


# A call in the way of torch.optim, and the call that makes what its error tells to pass to torchopt.Optimizer.
PARAMETERS: list[tuple[Callable[[], Any], str]] = [
    (lambda: torchopt.adam(NET.parameters()), 'torchopt.adam'),
    (lambda: torchopt.adam(NET.parameters(), 0.1), 'torchopt.adam'),
    (lambda: torchopt.adam(NET.parameters(), lr=0.1), 'torchopt.adam'),
    (lambda: torchopt.adam(NET.parameters(), learning_rate=0.1), 'torchopt.adam'),
    (lambda: torchopt.adam(NET), 'torchopt.adam'),
    (lambda: torchopt.sgd(NET, 0.1), 'torchopt.sgd'),
    (lambda: torchopt.sgd(list(NET.parameters()), 0.1), 'torchopt.sgd'),
    (lambda: torchopt.sgd(dict(NET.named_parameters()), 0.1), 'torchopt.sgd'),
    (lambda: torchopt.sgd([{'params': list(NET.parameters())}], 0.1), 'torchopt.sgd'),
    (lambda: torchopt.adamw(NET, 0.1), 'torchopt.adamw'),
    (lambda: torchopt.lion(NET.parameters(), 0.1), 'torchopt.lion'),
    (lambda: torchopt.lion(NET.parameters(), lr=0.1), 'torchopt.lion'),
    (lambda: torchopt.lion(NET, 0.1), 'torchopt.lion'),
    (lambda: torchopt.lion(NET.parameters(), learning_rate=0.1), 'torchopt.lion'),
    (lambda: torchopt.sm3(NET.named_parameters()), 'torchopt.sm3'),
    (lambda: contrib.muon(NET.parameters(), 0.1), 'torchopt.contrib.muon'),
    (lambda: optax.adam(NET.parameters(), learning_rate=0.1), 'optax.adam'),
]


@pytest.mark.parametrize('call, maker', PARAMETERS)
def test_functions_take_no_parameters(call: Callable[[], Any], maker: str) -> None:
    name = maker.rpartition('.')[2]
    message = f'{name}() takes hyper-parameters only, not the parameters to train. To train them in place, use '
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value).startswith(f'{message}torchopt.Optimizer(params, {maker}(...))')


def functions_of_rates() -> list[str]:
    return [name for module in (alias, contrib) for name in module.__all__ if _has_rate(getattr(module, name))]


def _has_rate(value: Any) -> bool:
    if not inspect.isfunction(value) or 'GradientTransformation' not in str(value.__annotations__.get('return')):
        return False
    return bool({'lr', 'learning_rate', 'max_learning_rate'} & inspect.signature(value).parameters.keys())


NO_RATES: dict[str, Callable[[], Any]] = {
    'a module': lambda: NET,
    'an iterator': NET.parameters,
    'a list of parameters': lambda: list(NET.parameters()),
    'a dict of parameters': lambda: dict(NET.named_parameters()),
    'a tensor': lambda: torch.ones(3),
    'text': lambda: '0.1',
    'bytes': lambda: b'1',
    'a list of schedules': lambda: [schedule.linear_schedule(0.1, 0.0, 10)],
    'a class': lambda: torch.optim.Adam,
    'a scheduler of torch': lambda: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(NET.parameters(), lr=0.1), 3),
    'a transformation': lambda: torchopt.adam(0.1),
    'a bool': lambda: True,
    'a complex number': lambda: 1j,
}


@pytest.mark.filterwarnings('ignore:`optimistic_adam` is deprecated')
@pytest.mark.parametrize('name', functions_of_rates())
def test_what_is_no_learning_rate_is_found_when_the_optimizer_is_made(name: str) -> None:
    make = getattr(alias, name, None) or getattr(contrib, name)
    keyword = next(n for n in ('lr', 'learning_rate', 'max_learning_rate') if n in inspect.signature(make).parameters)
    for what, value in NO_RATES.items():
        with pytest.raises((TypeError, ValueError)):
            make(**{keyword: value()})
            pytest.fail(f'{name}() accepts {what}')


CLASSES: list[tuple[Callable[[], Any], str]] = [
    (lambda: torchopt.Adam(lr=0.1), "required argument: 'params'. For a transformation, without params, use "),
    (lambda: torchopt.MetaSGD(lr=0.1), "'module'. For a transformation, without module, use torchopt.sgd(...)"),
    (lambda: torchopt.Adam(0.1), 'params is 0.1; expected an iterable of tensors'),
    (lambda: torchopt.Adam(NET, lr=0.1), 'Pass module.parameters()'),
    (lambda: torchopt.Adam(torchopt.adam(0.1)), 'torchopt.Optimizer(module.parameters(), transformation)'),
    (lambda: torchopt.Adam(NET.parameters(), torchopt.adam(0.1)), 'torchopt.Optimizer(params, transformation)'),
    (lambda: torchopt.Adam(NET.parameters(), NET), 'Invalid learning rate: Linear('),
    (lambda: torchopt.MetaAdam(NET.parameters(), lr=0.1), 'Pass the module, not its parameters()'),
    (lambda: torchopt.Optimizer(NET.parameters(), torchopt.adam), 'is not a GradientTransformation'),
    (lambda: torchopt.clip_grad_norm(NET.parameters(), 1.0), 'Invalid max_norm value: <generator object'),
    (lambda: transform.scale_by_adam(NET.parameters()), 'is a generator; expected a number'),
    (lambda: contrib.prodigy(NET), 'Invalid learning rate: Linear('),
    (lambda: torchopt.FuncOptimizer(torchopt.adam), 'is not a GradientTransformation'),
    (lambda: torchopt.chain(torchopt.Adam(NET.parameters())), 'is not a GradientTransformation'),
    (lambda: torchopt.adam(lr=[schedule.linear_schedule(0.1, 0.0, 9)]), 'A schedule is passed alone'),
    (lambda: schedule.cosine_decay_schedule(NET.parameters(), 9), 'lr=torchopt.schedule.cosine_decay_schedule(...))'),
]


@pytest.mark.parametrize('call, message', CLASSES)
def test_each_kind_is_called_in_its_own_way(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        call()
    assert message in str(caught.value)


def test_other_errors_stay_as_they_are() -> None:
    for call in (torchopt.lion, schedule.constant_schedule, contrib.muon, torchopt.LBFGS):
        with pytest.raises(TypeError, match='missing'):
            call()
    with pytest.raises(TypeError, match='Invalid learning rate'):
        torchopt.lion('0.1')
