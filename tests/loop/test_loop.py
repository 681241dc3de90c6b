# SPDX-License-Identifier: Apache-2.0
"""Loops and branches against ``jax.lax``: values, derivatives, batches, compilation."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from torchopt import loop, tree

jax.config.update('jax_enable_x64', True)

START = np.array([0.3, 1.7, 40.0, 2.5])


def to_numpy(found):
    return jax.tree.map(lambda x: np.asarray(x.detach() if isinstance(x, torch.Tensor) else x), found)


def assert_same(found, expected):
    chex.assert_trees_all_close(to_numpy(found), to_numpy(expected), rtol=1e-12, atol=0.0)


# Each program is written once, for a loop library and its tensor library; it maps a number to a tree.


def growth(lax, xp, x):
    return lax.while_loop(
        lambda s: s['x'] < 10.0, lambda s: {'x': s['x'] ** 2 + s['x'], 'k': s['k'] + 1}, {'x': x, 'k': xp.zeros_like(x)}
    )


def newton(lax, xp, x):
    """A root of y^3 = x, to which each start needs another number of steps."""

    def step(s):
        y, _ = s
        new = y - (y**3 - x) / (3 * y**2)
        return new, abs(new - y)

    return lax.while_loop(lambda s: s[1] > 1e-13, step, (x, xp.ones_like(x)))[0]


def series(lax, xp, x):
    return lax.fori_loop(1, 8, lambda i, s: (s[0] * x / i, s[1] + s[0] * x / i), (xp.ones_like(x), xp.ones_like(x)))


def empty_range(lax, xp, x):
    return lax.fori_loop(5, 2, lambda i, s: s * 100.0, x)


def averages(lax, xp, x):
    xs = {'a': xp.stack([x, x * 2, x * 3]), 'b': (xp.stack([x, x, -x]),)}
    return lax.scan(lambda c, z: (0.5 * c + z['a'], {'y': c * z['b'][0]}), x, xs)


def averages_reversed(lax, xp, x):
    return lax.scan(lambda c, z: (0.5 * c + z, c * z), x, xp.stack([x, x * 2, x * 3]), reverse=True)


def powers(lax, xp, x):
    return lax.scan(lambda c, _: (c * x, c), x, None, length=5)


def no_steps(lax, xp, x):
    return lax.scan(lambda c, _: (c * x, {'y': c}), x, None, length=0)


def branches(lax, xp, x):
    return lax.cond(x > 1.0, lambda a, b: {'z': a * b}, lambda a, b: {'z': a - b}, xp.sin(x), x**2)


PROGRAMS = [growth, newton, series, empty_range, averages, averages_reversed, powers, no_steps, branches]
by_name = pytest.mark.parametrize('program', PROGRAMS, ids=lambda p: p.__name__)


def ours(program):
    return lambda x: program(loop, torch, x)


def theirs(program):
    return lambda x: program(jax.lax, jnp, x)


def total(leaves):
    return sum((z.sum() for z in leaves), 0.0 * leaves[0].sum())


@by_name
@pytest.mark.parametrize('x', START)
def test_values_are_those_of_jax(program, x):
    assert_same(ours(program)(torch.tensor(x)), theirs(program)(jnp.asarray(x)))


@by_name
@pytest.mark.parametrize('x', START)
def test_derivatives_are_those_of_jax(program, x):
    expected = jax.jacfwd(theirs(program))(jnp.asarray(x))
    assert_same(torch.func.jacfwd(ours(program))(torch.tensor(x)), expected)
    assert_same(torch.func.jacrev(ours(program))(torch.tensor(x)), expected)
    leaf = torch.tensor(x, requires_grad=True)
    loss = total(tree.leaves(ours(program)(leaf)))
    (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
    np.testing.assert_allclose(grad.item(), sum(np.sum(z) for z in jax.tree.leaves(expected)), rtol=1e-12)


@by_name
def test_batches_are_those_of_jax(program):
    x = torch.tensor(START)
    assert_same(torch.vmap(ours(program))(x), jax.vmap(theirs(program))(jnp.asarray(START)))
    second = torch.vmap(torch.func.jacfwd(torch.func.jacrev(ours(program))))(x)
    assert_same(second, jax.vmap(jax.jacfwd(jax.jacfwd(theirs(program))))(jnp.asarray(START)))


@by_name
def test_gradient_of_a_batch_is_that_of_each_sample(program):
    f = ours(program)
    x = torch.tensor(START, requires_grad=True)
    (batched,) = torch.autograd.grad(total(tree.leaves(torch.vmap(f)(x))), x)
    alone = [torch.func.grad(lambda z: total(tree.leaves(f(z))))(torch.tensor(z)) for z in START]
    torch.testing.assert_close(batched, torch.stack(alone), rtol=1e-12, atol=0)


@pytest.mark.parametrize('program', [p for p in PROGRAMS if p not in (growth, newton)], ids=lambda p: p.__name__)
def test_compiles_whole_with_its_gradient(program):
    f = ours(program)
    gradient = torch.func.grad(lambda z: total(tree.leaves(f(z))))
    for function in (f, gradient):
        compiled = torch.compile(function, fullgraph=True, backend='eager', dynamic=False)
        for x in START[:2]:
            assert_same(compiled(torch.tensor(x)), function(torch.tensor(x)))


def halving(x, maxiter):
    return loop.while_loop(lambda s: s[0].abs().sum() > 1.0, lambda s: (s[0] / 2, s[1] + 1), (x, 0), maxiter)


@pytest.mark.parametrize('maxiter', [None, 0, 3, 9])
def test_while_loops_compile_whole(maxiter):
    compiled = torch.compile(lambda x: halving(x, maxiter), fullgraph=True, backend='eager', dynamic=False)
    for x in (torch.tensor([16.0, 3.0]), torch.tensor([0.1, 0.2])):
        (found, k), (expected, n) = compiled(x), halving(x, maxiter)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert int(k) == n


def test_numbers_are_tensors_of_their_kind_in_a_compiled_while_loop():
    def count(x):
        return loop.while_loop(lambda s: s[0] < 10.0, lambda s: (s[0] * 1.5, s[1] + 1, s[2] * 2), (x, 0, 0.5))

    compiled = torch.compile(count, fullgraph=True, backend='eager')
    found = compiled(torch.tensor(2.0))
    assert [x.dtype for x in found] == [torch.float32, torch.int64, torch.float64]
    assert list(map(float, found)) == list(map(float, count(torch.tensor(2.0))))


@pytest.mark.parametrize(
    ('init', 'body'),
    [(torch.tensor(2), lambda s: s * 1.5), (2, lambda s: s + 0.5), (True, lambda s: s + 1)],
    ids=['tensor', 'number', 'bool'],
)
def test_a_compiled_while_loop_does_not_round_to_the_first_kind(init, body):
    def count(x):
        return loop.while_loop(lambda s: s[0] < 10.0, lambda s: (s[0] * 1.5, body(s[1])), (x, init))

    compiled = torch.compile(count, fullgraph=True, backend='eager')
    with pytest.raises(Exception, match=r'has dtype .*, but body_fun changes'):
        compiled(torch.tensor(2.0))


def test_gradient_of_a_limited_while_loop_compiles_whole():
    gradient = torch.func.grad(lambda x: halving(x, 6)[0].square().sum())
    compiled = torch.compile(gradient, fullgraph=True, backend='eager', dynamic=False)
    for x in (torch.tensor([16.0, 3.0]), torch.tensor([0.1, 0.2])):
        torch.testing.assert_close(compiled(x), gradient(x), rtol=0, atol=0)


def shrink(x):
    """A step that has no value and no derivative where the loop has stopped."""
    return loop.while_loop(lambda s: s > 1.0, lambda s: torch.sqrt(s - 1.0), x, maxiter=20)


def test_a_sample_that_has_stopped_has_no_nan_from_the_others():
    x = torch.tensor([1.5, 2.0, 5.0, 30.0], dtype=torch.float64)
    alone = torch.stack([torch.func.grad(shrink)(z) for z in x])
    assert torch.isfinite(alone).all()
    torch.testing.assert_close(torch.vmap(torch.func.grad(shrink))(x), alone, rtol=1e-12, atol=0)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(torch.vmap(shrink)(leaf).sum(), leaf)[0], alone, rtol=1e-12, atol=0)


def test_a_sample_that_fails_does_not_disturb_the_others():
    def run(x):
        start = (torch.zeros((), dtype=torch.int64), x)
        return loop.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1].log()), start)

    k, x = torch.vmap(run)(torch.tensor([2.0, 1e9]))
    assert k.tolist() == [3, 3] and torch.isnan(x[0])
    torch.testing.assert_close(x[1], torch.tensor(1e9).log().log().log())


def test_a_batch_ends_when_no_sample_goes_on():
    calls = []
    torch.vmap(lambda x: loop.while_loop(lambda x: x < 8, lambda x: calls.append(1) or 2 * x, x, maxiter=1000))(
        torch.tensor([1.0, 3.0, 9.0])
    )
    assert len(calls) == 3


def test_nested_batches_and_bounds_of_each_sample():
    def f(n, x):
        return loop.fori_loop(0, n, lambda i, y: y * x + i, torch.ones_like(x))

    n, x = torch.tensor([0, 1, 4]), torch.tensor([2.0, 3.0], dtype=torch.float64)
    found = torch.vmap(lambda m: torch.vmap(lambda z: f(m, z))(x))(n)
    expected = [[float(f(int(m), z)) for z in x] for m in n]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_none_and_numbers_stay():
    state = loop.while_loop(lambda s: s['k'] < 3, lambda s: {'k': s['k'] + 1, 'none': None}, {'k': 0, 'none': None})
    assert state == {'k': 3, 'none': None}
    carry, ys = loop.scan(lambda c, x: (c + x['a'], (c, None)), 0, {'a': torch.arange(3), 'none': None})
    assert carry == 3 and ys[1] is None and ys[0].tolist() == [0, 0, 1]


def test_gradients_flow_through_closures_and_modules():
    net = torch.nn.Linear(2, 2).double()
    x = torch.tensor([0.5, -0.25], dtype=torch.float64)
    last, ys = loop.scan(lambda c, z: (torch.tanh(net(c)) + z, c.sum()), x, torch.ones(4, 2, dtype=torch.float64))
    grads = torch.autograd.grad(last.sum() + ys.sum(), tuple(net.parameters()))
    c, sums = x, 0.0
    for _ in range(4):
        sums = sums + c.sum()
        c = torch.tanh(net(c)) + 1.0
    torch.testing.assert_close(grads, torch.autograd.grad(c.sum() + sums, tuple(net.parameters())))


x = torch.ones(2)
WRONG = {
    'branches of two dtypes': (
        lambda: torch.vmap(lambda z: loop.cond(z > 0, lambda z: z, lambda z: z.double(), z))(x),
        TypeError,
        'result of true_fun has dtype torch.float32, but false_fun',
    ),
    'branches of two shapes': (
        lambda: torch.vmap(lambda z: loop.cond(z > 0, lambda z: z, lambda z: z.expand(3), z))(x),
        ValueError,
        r'result of true_fun has shape \(\), but false_fun changes it to \(3,\)',
    ),
    'condition with a shape': (
        lambda: loop.while_loop(lambda s: s < 3, lambda s: s + 1, x),
        TypeError,
        r'result of cond_fun has shape \(2,\)',
    ),
    'predicate with a shape': (lambda: loop.cond(x > 0, torch.sin, torch.cos, x), TypeError, r'pred has shape \(2,\)'),
    'negative maxiter': (
        lambda: loop.while_loop(lambda s: False, lambda s: s, x, maxiter=-1),
        ValueError,
        'maxiter: -1',
    ),
    'another shape': (
        lambda: loop.while_loop(lambda s: True, lambda s: {'a': s['a'][:1]}, {'a': x}),
        ValueError,
        r"init_val\['a'\] has shape \(2,\), but body_fun changes it to \(1,\)",
    ),
    'another dtype': (
        lambda: loop.fori_loop(0, 2, lambda i, s: s.double(), x),
        TypeError,
        'has dtype torch.float32, but body_fun',
    ),
    'another structure': (
        lambda: loop.while_loop(lambda s: True, lambda s: s[0], (x, x)),
        ValueError,
        'result of body_fun does not have the structure',
    ),
    'bounds that are no integers': (lambda: loop.fori_loop(0, 2.5, lambda i, s: s, x), TypeError, 'upper: 2.5'),
    'no length': (lambda: loop.scan(lambda c, z: (c, z), x), ValueError, 'number of steps is not known'),
    'two lengths': (
        lambda: loop.scan(lambda c, z: (c, z), x, {'a': x, 'b': torch.ones(3)}),
        ValueError,
        r"2 by xs\['a'\], 3 by xs\['b'\]",
    ),
    'length and xs': (lambda: loop.scan(lambda c, z: (c, z), x, x, length=3), ValueError, '2 by xs, 3 by length'),
    'rows of a number': (
        lambda: loop.scan(lambda c, z: (c, z), x, {'a': torch.tensor(1.0)}),
        TypeError,
        r"xs\['a'\] is a 0-d tensor",
    ),
    'no pair': (lambda: loop.scan(lambda c, z: c, x, x), TypeError, 'f returned a Tensor'),
    'another carry': (
        lambda: loop.scan(lambda c, z: (c.double(), z), x, x),
        TypeError,
        'init has dtype torch.float32, but f',
    ),
    'branches of two structures': (
        lambda: torch.vmap(lambda z: loop.cond(z > 0, lambda z: (z,), lambda z: [z], z))(x),
        ValueError,
        'result of false_fun',
    ),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_arguments(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()
