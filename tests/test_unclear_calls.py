# SPDX-License-Identifier: Apache-2.0
"""Calls that are natural for users of torch, and wrong here: the error says what to write."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import torchopt
from torchopt import implicit_diff, loop, optim, perturbations, schedule, solver
from torchopt.diff import implicit
from torchopt.zero_order_diff import zero_order

NORMAL = torch.distributions.Normal(0.0, 1.0)
X = torch.ones(2)
CASES: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {}


def case(error: type[Exception], *words: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def add(call: Callable[[], Any]) -> Callable[[], Any]:
        CASES[call.__name__] = call, error, list(words)
        return call

    return add


def each(name: str, error: type[Exception], words: list[str], calls: dict[str, Callable[[], Any]]) -> None:
    for key, call in calls.items():
        CASES[f'{name}: {key}'] = call, error, words


def square(x: Any, a: Any) -> Any:
    return x * x - a


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))


def scheduled() -> torchopt.Adam:
    optimizer = torchopt.Adam(net().parameters(), lr=schedule.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10))
    for p in optimizer.param_groups[0]['params']:
        p.grad = torch.zeros_like(p)
    return optimizer


def steps(make: Callable[[Any], Any], *args: Any) -> Callable[[], Any]:
    def run() -> None:
        optimizer = scheduled()
        scheduler = make(optimizer)
        for _ in range(3):
            optimizer.step()
            scheduler.step(*args)

    return run


each(
    'a scheduler of torch on a schedule',
    TypeError,
    ['is a schedule, a function of the step count', 'requires a number as lr'],
    {
        'step': steps(lambda o: lr_scheduler.StepLR(o, 1)),
        'exponential': steps(lambda o: lr_scheduler.ExponentialLR(o, 0.5)),
        'cosine': steps(lambda o: lr_scheduler.CosineAnnealingLR(o, 5)),
        'function': lambda: lr_scheduler.LambdaLR(scheduled(), lambda epoch: 1.0),
        'plateau': steps(lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0), 1.0),
    },
)
each(
    'a linear solver',
    TypeError,
    ['a str; expected a function', 'Pass None, or', 'torchopt.linear_solve.solve_cg'],
    {
        'custom_root': lambda: implicit_diff.custom_root(square, solve='cg'),
        'custom_fixed_point': lambda: implicit_diff.custom_fixed_point(square, solve='cg'),
        'of TorchOpt': lambda: implicit.custom_root(square, solve='cg'),
        'root_vjp': lambda: implicit_diff.root_vjp(square, X, (X,), X, solve='cg'),
        'root_jvp': lambda: implicit_diff.root_jvp(square, X, (X,), (X,), solve='cg'),
        'solver': lambda: solver.GradientDescent(torch.sum, implicit_diff_solve='cg'),
        'SciPy': lambda: solver.ScipyMinimize(fun=torch.sum, implicit_diff_solve='cg'),
        'equations': lambda: solver.EqualityConstrainedQP(solve='cg'),
        'module': lambda: type('M', (torchopt.nn.ImplicitMetaGradientModule,), {}, linear_solve='cg'),
    },
)
each(
    'a solver that returns no tensor',
    TypeError,
    ['The solver returned', 'can have no derivative', 'Return a tensor'],
    {
        'float': lambda: implicit_diff.custom_root(square)(lambda x, a: a.sqrt().sum().item())(None, X),
        'nothing': lambda: implicit_diff.custom_root(square)(lambda x, a: None)(None, X),
        'fixed point': lambda: implicit_diff.custom_fixed_point(square)(lambda x, a: 2.0)(None, X),
    },
)
each(
    'arguments of a loop in another order',
    TypeError,
    ['expected a function. The order is'],
    {
        'scan': lambda: loop.scan(X, lambda c, x: (c, x), X),
        'while_loop': lambda: loop.while_loop(X, lambda c: c, lambda c: c.sum() < 3),
        'fori_loop': lambda: loop.fori_loop(lambda i, c: c, 0, 3, X),
        'cond': lambda: loop.cond(torch.sin, torch.tensor(True), torch.cos, X),
    },
)
each(
    'a loss for a step that reads gradients',
    TypeError,
    ['Invalid closure', 'Call loss.backward() and then step()', 'MetaAdam'],
    {
        'tensor': lambda: torchopt.Adam(net().parameters()).step(X.sum()),
        'number': lambda: torchopt.Adam(net().parameters()).step(0.5),
    },
)


@case(TypeError, 'loss is missing', 'Call MetaAdam.step(loss)', 'without loss.backward()')
def no_loss() -> None:
    torchopt.MetaAdam(net()).step()


@case(ValueError, 'learning_rate has a list and params has an OrderedDict', 'module.named_parameters()')
def rates_of_a_module_in_a_list() -> None:
    module = net()
    torchopt.MetaSGD(module, lr=[0.1] * 4).step(module(X).sum())


@case(ValueError, 'module.named_parameters()')
def rates_of_layers() -> None:
    module = net()
    torchopt.MetaSGD(module, lr={'0': 0.1, '1': 0.2}).step(module(X).sum())


@case(ValueError, 'learning_rate has a dict and params has a list', 'as a list, in their order')
def rates_by_name_in_place() -> None:
    module = net()
    torchopt.SGD(module.parameters(), lr={'0.weight': 0.1}).step()


@case(TypeError, 'call checkpoint(fun)(x), not checkpoint(fun, x)')
def checkpoint_as_of_torch() -> None:
    torchopt.checkpoint(torch.sin, X)


@case(TypeError, 'call checkpoint(fun)(x)')
def checkpoint_with_options_of_torch() -> None:
    torchopt.checkpoint(torch.sin, use_reentrant=False)


@case(TypeError, 'is a Tensor', 'zero_order(torch.distributions.Normal(0.0, 1.0), ...)(fun)(x)')
def no_distribution() -> None:
    zero_order(torch.sum)(X)


each(
    'a name that is nearly right',
    TypeError,
    ['unexpected keyword argument', 'Did you mean'],
    {
        'zero_order': lambda: zero_order(NORMAL, num_sample=10),
        'custom_root': lambda: implicit_diff.custom_root(square, has_au=True),
        'custom_fixed_point': lambda: implicit_diff.custom_fixed_point(square, solver=None),
        'of TorchOpt': lambda: implicit.custom_root(square, argnum=1),
        'perturbed': lambda: perturbations.make_perturbed_fun(torch.sum, num_sample=3),
    },
)


@case(TypeError, 'Unpack it: torchopt.chain(*transformations)')
def chain_of_a_list() -> None:
    torchopt.chain([torchopt.clip_grad_norm(1.0), torchopt.sgd(0.1)])


@case(TypeError, 'RAdam() got', 'scale_by_radam()', 'add_decayed_weights', 'scale_by_learning_rate')
def decoupled_decay_of_radam() -> None:
    torchopt.RAdam(net().parameters(), decoupled_weight_decay=True)


each(
    'states of torch.optim that need a conversion',
    ValueError,
    ["state_dict['state'][0] has ", 'use torchopt.interop.from_torch_optimizer'],
    {name: lambda name=name: load_from_torch(name) for name in ('RMSprop', 'Adagrad', 'Adadelta')},
)


def load_from_torch(name: str) -> None:
    p = nn.Parameter(X.clone())
    p.grad = X.clone()
    theirs = getattr(torch.optim, name)([p])
    theirs.step()
    getattr(torchopt, name)([p]).load_state_dict(theirs.state_dict())


each(
    'names of torch',
    AttributeError,
    ['has no attribute', 'orch'],
    {name: lambda name=name: getattr(torchopt, name) for name in ('ASGD', 'SparseAdam', 'Muon', 'lr_scheduler')},
)
each(
    'clipping',
    AttributeError,
    ['torch.nn.utils.clip_grad_', 'for torchopt.chain'],
    {name: lambda name=name: getattr(torchopt, name) for name in ('clip_grad_norm_', 'clip_grad_value_')},
)
each(
    'optimizers without a class',
    AttributeError,
    ['has no class of its own: use torchopt.Optimizer(params, torchopt.'],
    {
        name: lambda name=name, module=module: getattr(module, name)
        for name, module in {'NAdam': torchopt, 'Rprop': torchopt, 'Adafactor': torchopt, 'Lion': optim}.items()
    },
)


@case(AttributeError, 'use torchopt.MetaOptimizer(module, torchopt.nadam(...))')
def a_differentiable_optimizer_without_a_class() -> None:
    torchopt.MetaNAdam  # noqa: B018


@pytest.mark.parametrize('name', CASES)
def test_the_error_says_what_to_write(name: str) -> None:
    call, error, words = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch.optim's schedulers warn of orders of calls
        with pytest.raises(error) as caught:
            call()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_every_class_of_torch_has_a_hint_or_a_twin() -> None:
    for name, kind in vars(torch.optim).items():
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and not hasattr(torchopt, name):
            with pytest.raises(AttributeError, match='torchopt'):
                getattr(torchopt, name)


def test_decorated_functions_keep_their_names_and_signatures() -> None:
    assert zero_order.__name__ == 'zero_order'
    assert torchopt.checkpoint(torch.sin)(X).shape == X.shape
    assert torchopt.checkpoint(fun=torch.sin)(X).shape == X.shape


def test_solutions_without_tensors_are_fine_where_nothing_is_differentiated() -> None:
    with torch.no_grad():
        assert implicit_diff.custom_root(square)(lambda x, a: 2.0)(None, X) == 2.0
