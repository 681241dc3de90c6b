# SPDX-License-Identifier: Apache-2.0
"""``torchopt.value_and_grad`` and ``torchopt.grad`` are those of JAX, for tensors; checked against JAX and autograd."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import torchopt
from tests.oracle import assert_trees_close

DOUBLE = torch.float64


class Pair(NamedTuple):
    """A node of a tree."""

    left: Any
    right: Any


def loss(params: Any, x: Any, *, power: float = 3.0) -> Any:
    """Not quadratic in anything, the same for both libraries."""
    return ((params['w'] * x) ** power).sum() + (params['b'].left ** 2 * x[0]).sum()


def arguments(make: Callable[[Any], Any]) -> tuple[Any, Any]:
    return {'w': make([1.0, -2.0]), 'b': Pair(make([0.5]), None), 'none': None}, make([0.5, 1.5])


OURS, THEIRS = arguments(torch.tensor), arguments(jnp.asarray)


@pytest.mark.parametrize('argnums', [0, 1, -1, -2, (0,), (1, 0), (0, -1), [-1]], ids=str)
@pytest.mark.parametrize('has_aux', [False, True])
def test_results_come_in_the_order_of_jax(argnums: Any, has_aux: bool) -> None:
    def fun(params: Any, x: Any, **kwargs: Any) -> Any:
        value = loss(params, x, **kwargs)
        return (value, {'x': x * 2, 'name': 'aux', 'none': None, 'pair': Pair(value, 3)}) if has_aux else value

    for name in ('value_and_grad', 'grad'):
        found = getattr(torchopt, name)(fun, argnums, has_aux)(*OURS, power=2.0)
        wanted = getattr(jax, name)(fun, argnums, has_aux)(*THEIRS, power=2.0)
        assert jax.tree.structure(wanted) == jax.tree.structure(found)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            if isinstance(y, str):
                assert x == y
            else:
                assert_trees_close(x, y, 1e-6)


def test_the_pair_of_torch_is_the_other_way_round() -> None:
    x = torch.tensor([1.0, 2.0])
    gradient, value = torch.func.grad_and_value(lambda x: (x**3).sum())(x)
    assert_trees_close(torchopt.value_and_grad(lambda x: (x**3).sum())(x), (value, gradient), 0.0)


@pytest.mark.parametrize('leaf', [2.0, np.float32(2.0), np.float64(2.0), np.array(2.0, np.float32)], ids=repr)
def test_numbers_are_leaves(leaf: Any) -> None:
    value, gradient = torchopt.value_and_grad(lambda p: p['x'] ** 3)({'x': leaf})
    assert isinstance(gradient['x'], torch.Tensor)
    assert (float(value), float(gradient['x'])) == (8.0, 12.0)


def test_a_pair_may_be_a_list_and_a_value_a_float() -> None:
    assert torchopt.grad(lambda x: [x * 2, 'aux'], has_aux=True)(1.0) == (torch.tensor(2.0), 'aux')
    value, gradient = torchopt.value_and_grad(lambda x: 3.0)(torch.ones(2))
    assert (value, gradient.tolist()) == (torch.tensor(3.0), [0.0, 0.0])
    assert torchopt.value_and_grad(lambda p: torch.tensor(1.0))({'none': None}) == (torch.tensor(1.0), {'none': None})
    assert torchopt.grad(lambda p: 1.0)({}) == {}


def test_what_is_not_differentiated_may_be_anything() -> None:
    batch = {'labels': torch.tensor([1, 0]), 'name': 'batch', 'mask': np.array([True, False])}

    def fun(w: torch.Tensor, batch: Any, flag: bool) -> torch.Tensor:
        assert batch is given
        assert flag is True
        return w[batch['labels']].sum()

    given = batch
    assert torchopt.grad(fun)(torch.ones(2), batch, True).tolist() == [1.0, 1.0]


WEIGHT = [0.7, -1.1, 0.4]


def cubic(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return ((x * w) ** 3).sum() + torch.sin(x).dot(w)


def by_hand(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The gradient of it in x."""
    return 3 * (x * w) ** 2 * w + torch.cos(x) * w


def leaves(requires_grad: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.tensor([0.3, 1.2, -0.6], dtype=DOUBLE, requires_grad=requires_grad)
    return x, torch.tensor(WEIGHT, dtype=DOUBLE, requires_grad=requires_grad)


def test_results_carry_a_graph_to_arguments_and_closures_that_require_grad() -> None:
    """The weight is closed over; both derivatives of value and gradient are those by hand."""
    x, w = leaves()
    value, gradient = torchopt.value_and_grad(lambda x: cubic(x, w))(x)
    found = torch.autograd.grad(value + (gradient**2).sum(), (x, w))
    wanted = torch.autograd.grad(cubic(x, w) + (by_hand(x, w) ** 2).sum(), (x, w))
    assert_trees_close(found, wanted, 1e-12)


def test_nothing_carries_a_graph_that_nobody_wants() -> None:
    x, w = leaves(requires_grad=False)
    assert not torchopt.value_and_grad(cubic)(x, w)[1].requires_grad
    x, w = leaves()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            value, gradient = torchopt.value_and_grad(cubic)(x, w)
        assert not value.requires_grad
        assert not gradient.requires_grad
        assert_trees_close(gradient, by_hand(x, w).detach(), 1e-12)
    assert x.grad is None
    assert w.grad is None


def test_gradients_of_gradients_pass_the_checks() -> None:
    x, w = leaves()
    gradient = torchopt.grad(cubic, argnums=(0, 1))
    assert torch.autograd.gradcheck(gradient, (x, w))
    assert torch.autograd.gradgradcheck(gradient, (x, w))


def test_auxiliary_output_is_differentiable_too() -> None:
    x, w = leaves()
    aux = torchopt.grad(lambda x: (cubic(x, w), {'twice': x * w}), has_aux=True)(x)[1]
    assert_trees_close(torch.autograd.grad(aux['twice'].sum(), (x, w)), (w.detach(), x.detach()), 1e-12)


def late_vjp(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Any:
    """What is pulled back after the transform has ended, twice."""
    _, pull = torch.func.vjp(f, x)
    return pull(x), pull(2 * x)


TRANSFORMS = {
    'grad': lambda f, x: torch.func.grad(lambda x: f(x).square().sum())(x),
    'own': lambda f, x: torchopt.grad(lambda x: f(x).square().sum())(x),
    'jacrev': lambda f, x: torch.func.jacrev(f)(x),
    'jacfwd': lambda f, x: torch.func.jacfwd(f)(x),
    'hessian': lambda f, x: torch.func.hessian(lambda x: f(x).square().sum())(x),
    'jvp': lambda f, x: torch.func.jvp(f, (x,), (torch.arange(3, dtype=DOUBLE),)),
    'late vjp': late_vjp,
    'vmap': lambda f, x: torch.func.vmap(f)(torch.stack([x, 2 * x])),
}


@pytest.mark.parametrize('name', TRANSFORMS)
def test_transforms_apply(name: str) -> None:
    """In the argument, and with the roles of the argument and of what is closed over exchanged."""
    x, w = leaves(requires_grad=False)
    transform: Any = TRANSFORMS[name]
    assert_trees_close(transform(torchopt.grad(lambda x: cubic(x, w)), x), transform(lambda x: by_hand(x, w), x), 1e-12)
    assert_trees_close(
        transform(lambda w: torchopt.grad(lambda x: cubic(x, w))(x), w), transform(lambda w: by_hand(x, w), w), 1e-12
    )


@pytest.mark.parametrize('has_aux', [False, True])
def test_a_step_compiles_whole(has_aux: bool) -> None:
    optimizer = torchopt.adam(0.1)

    def objective(params: Any, x: Any) -> Any:
        value = loss(params, x, power=2.0)
        return (value, {'x': x, 'name': 'aux'}) if has_aux else value

    def step(params: Any, state: Any, x: torch.Tensor) -> Any:
        value, gradient = torchopt.value_and_grad(objective, has_aux=has_aux)(params, x)
        updates, state = optimizer.update(gradient, state, params)
        return torchopt.apply_updates(params, updates), state, value[0] if has_aux else value

    params, x = OURS
    del (params := dict(params))['none']
    params['b'] = Pair(params['b'].left, torch.zeros(1))
    state = optimizer.init(params)
    found = torch.compile(step, fullgraph=True, backend='aot_eager')(params, state, x)
    assert_trees_close(found, step(params, state, x), 1e-6)


def test_a_module_is_trained() -> None:
    """The loop of a user of JAX, with ``functional_call`` for ``model.apply``."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1)
    x = torch.randn(16, 3)
    y = x.sum(dim=1, keepdim=True)

    @functools.partial(torchopt.value_and_grad, has_aux=True)
    def objective(params: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.func.functional_call(net, params, (x,))
        return (out - y).square().mean(), out

    params = {key: p.detach() for key, p in net.named_parameters()}
    optimizer = torchopt.sgd(0.1)
    state, values = optimizer.init(params), []
    for _ in range(60):
        (value, _), gradient = objective(params, x, y)
        values.append(value)
        updates, state = optimizer.update(gradient, state, params)
        params = torchopt.apply_updates(params, updates)
    assert values[-1] < 1e-2 * values[0]
    assert not values[-1].requires_grad


def test_the_result_is_named_after_the_function() -> None:
    for transform in (torchopt.value_and_grad, torchopt.grad):
        assert transform(loss).__name__ == 'loss'
        assert inspect.signature(transform(loss)) == inspect.signature(loss)
        module = torch.nn.Linear(1, 1)
        assert not hasattr(transform(module), '_parameters')


ONES = torch.ones(2)
REFUSED = {
    'no function': (lambda: torchopt.grad(3), TypeError, 'Invalid fun: an int; expected a function'),
    'no int': (lambda: torchopt.grad(loss, 'x'), TypeError, "Invalid argnums: 'x'; expected an int"),
    'a float': (lambda: torchopt.grad(loss, (0, 1.0)), TypeError, 'Invalid argnums'),
    'empty': (lambda: torchopt.grad(loss, ()), ValueError, 'argnums is empty'),
    'twice': (lambda: torchopt.grad(cubic, (0, -2))(ONES, ONES), ValueError, 'names one argument twice'),
    'too few': (lambda: torchopt.grad(cubic, 2)(ONES, ONES), TypeError, 'argnums has 2, but .* 2 positional'),
    'too low': (lambda: torchopt.grad(cubic, -3)(ONES, ONES), TypeError, 'argnums has -3'),
    'by name': (lambda: torchopt.grad(torch.sum)(input=ONES), TypeError, '0 positional arguments. Pass .* by position'),
    'an int': (lambda: torchopt.grad(lambda x: x)(1), TypeError, 'Argument 0 is an int; .* real floating .* `.float'),
    'integers': (
        lambda: torchopt.grad(lambda x, p: x, 1)(ONES, {'step': torch.tensor(1)}),
        TypeError,
        r"Argument 1\['step'\] is of dtype torch.int64; expected a real floating dtype",
    ),
    'booleans': (lambda: torchopt.grad(lambda x: x)(ONES > 0), TypeError, 'of dtype torch.bool'),
    'NumPy integers': (lambda: torchopt.grad(lambda x: x)(np.arange(2)), TypeError, 'Argument 0 is of dtype int64'),
    'complex': (lambda: torchopt.grad(torch.abs)(torch.tensor(1j)), TypeError, 'complex64; .* the conjugates of JAX'),
    'a complex number': (lambda: torchopt.grad(abs)(1j), TypeError, 'Argument 0 is a complex; .* the conjugate'),
    'a string': (lambda: torchopt.grad(lambda p: 1.0)(['a']), TypeError, r'Argument 0\[0\] is a str; expected a tens'),
    'a module': (
        lambda: torchopt.grad(lambda net: 1.0)(torch.nn.Linear(1, 1)),
        TypeError,
        'Argument 0 is a Linear; .*functional_call',
    ),
    'a vector': (lambda: torchopt.grad(lambda x: x)(ONES), TypeError, r'shape \(2,\) and .* mean or its sum'),
    'one element': (lambda: torchopt.grad(lambda x: x)(ONES[:1]), TypeError, r'shape \(1,\)'),
    'a complex value': (lambda: torchopt.grad(lambda x: x * 1j)(1.0), TypeError, 'complex64; .* its real part'),
    'an integer value': (lambda: torchopt.grad(lambda x: (x > 0).sum())(ONES), TypeError, 'torch.int64; expected'),
    'an int as value': (lambda: torchopt.grad(lambda x: 3)(1.0), TypeError, 'fun returned an int; expected a real'),
    'nothing': (lambda: torchopt.grad(lambda x: None)(1.0), TypeError, 'fun returned None'),
    'a pair': (lambda: torchopt.grad(lambda x: (x, x))(1.0), TypeError, 'a tuple of 2; .* has_aux=True'),
    'no pair': (
        lambda: torchopt.grad(lambda x: x, has_aux=True)(1.0),
        TypeError,
        'expected a pair of the value and the auxiliary output',
    ),
    'a triple': (lambda: torchopt.grad(lambda x: (x, 1, 2), has_aux=True)(1.0), TypeError, 'a tuple of 3; .* pair'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_nonsense_is_refused(name: str) -> None:
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()
