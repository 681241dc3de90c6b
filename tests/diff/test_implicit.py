# SPDX-License-Identifier: Apache-2.0
"""torchopt.diff.implicit.custom_root: which arguments get gradients, in which forms, and what is refused."""

from __future__ import annotations

import functools
import inspect
from typing import NamedTuple

import pytest
import torch
from torch import nn

import torchopt
from tests.nn.ridge import X, Y, close, f64, gradient, penalty, ridge
from torchopt.diff.implicit import custom_root
from torchopt.linear_solve import solve_cg, solve_inv, solve_lu, solve_normal_cg


def stationary(w, x, y, penalty):
    return x.mT @ (x @ w - y) + penalty * w


def solve_ridge(w, x, y, penalty):
    """Solve in closed form."""
    return ridge(x, y, penalty)


def arguments():
    return X.clone().requires_grad_(), Y.clone().requires_grad_(), penalty()


START = torch.zeros(3, dtype=f64)

# -- argnums -----------------------------------------------------------------------------------------------------------

CHOICES = {
    'all': (None, (1, 2, 3)),
    'one': (3, (3,)),
    'tuple': ((1, 3), (1, 3)),
    'list': ([2, 1], (1, 2)),
    'set of one': ((2,), (2,)),
    'none of them': ((), ()),
    'last': (-1, (3,)),
    'counted from the end': ((-3, -1), (1, 3)),
    'twice the same': ((3, -1), (3,)),
}


@pytest.mark.parametrize(('argnums', 'chosen'), CHOICES.values(), ids=CHOICES)
def test_argnums(argnums, chosen):
    solve = custom_root(stationary, argnums, solve=solve_lu())(solve_ridge)
    args = arguments()
    w = solve(START, *args)
    expected = ridge(*args)
    close(w, expected)
    if not chosen:
        assert not w.requires_grad
        return
    found = gradient(w.sin().sum(), *args, allow_unused=True)
    expected = gradient(expected.sin().sum(), *args)
    for i, (g, e) in enumerate(zip(found, expected, strict=True), start=1):
        if i in chosen:
            close(g, e)
        else:
            assert g is None


@pytest.mark.parametrize('argnums', [0, (0,), (1, 0), -4, [-4]])
def test_the_initial_solution_has_no_gradient(argnums):
    with pytest.raises(ValueError, match='Invalid argnums: 0 is the initial solution'):
        custom_root(stationary, argnums)(solve_ridge)


@pytest.mark.parametrize(
    ('argnums', 'error', 'words'),
    [
        ('1', TypeError, "Invalid argnums: '1'; expected an int or a sequence of ints"),
        (1.0, TypeError, 'Invalid argnums: 1.0'),
        ((1, 'a'), TypeError, 'Invalid argnums'),
    ],
)
def test_positions_that_are_no_ints(argnums, error, words):
    with pytest.raises(error, match=words):
        custom_root(stationary, argnums)(solve_ridge)


@pytest.mark.parametrize('argnums', [4, (1, 17), -5])
def test_positions_that_do_not_exist(argnums):
    with pytest.raises(ValueError, match='the solver has 4 positional arguments'):
        custom_root(stationary, argnums)(solve_ridge)


@pytest.mark.parametrize('argnums', [None, 1])
def test_gradient_with_respect_to_the_initial_solution_is_none(argnums):
    start, args = START.clone().requires_grad_(), arguments()
    w = custom_root(stationary, argnums)(solve_ridge)(start, *args)
    assert gradient(w.sum(), start, args[0], allow_unused=True)[0] is None


def test_argnums_with_star_args():
    def F(x, *factors):
        return x - factors[0] * factors[1]

    @custom_root(F, argnums=-1)
    def solve(x, *factors):
        return factors[0] * factors[1]

    a, b = penalty(2.0), penalty(3.0)
    found = gradient(solve(None, a, b), a, b, allow_unused=True)
    assert found[0] is None
    close(found[1], a.detach())


# -- arguments ---------------------------------------------------------------------------------------------------------


def test_keywords_and_defaults():
    def F(w, x, y, penalty=2.0, *, scale=1.0):
        return stationary(w, x, scale * y, penalty)

    @custom_root(F, solve=solve_lu())
    def solve(w, x, y, penalty=2.0, *, scale=1.0):
        return ridge(x, scale * y, torch.as_tensor(penalty))

    x, y, phi = arguments()
    scale = penalty(3.0)
    two = torch.tensor(2.0, dtype=f64)
    calls = [
        (solve(START, x, y), ridge(x, y, two)),
        (solve(START, x, y=y), ridge(x, y, two)),
        (solve(w=START, y=y, x=x, penalty=phi), ridge(x, y, phi)),
        (solve(START, x, y, phi, scale=scale), ridge(x, scale * y, phi)),
        (solve(START, scale=scale, y=y, x=x), ridge(x, scale * y, two)),
    ]
    for found, expected in calls:
        inputs = (x, y, phi, scale)
        close(
            gradient(found.cos().sum(), *inputs, allow_unused=True),
            gradient(expected.cos().sum(), *inputs, allow_unused=True),
        )


def test_arguments_that_are_no_tensors():
    def F(w, batch, options, fun):
        return fun(w, *batch, options['penalty'])

    @custom_root(F, argnums=(1, 2), solve=solve_lu())
    def solve(w, batch, options, fun):
        assert options['name'] == 'ridge' and options['steps'] == (3, None)
        return ridge(*batch, options['penalty'])

    x, y, phi = arguments()
    w = solve(START, (x, y), {'penalty': phi, 'name': 'ridge', 'steps': (3, None)}, stationary)
    close(gradient(w.sum(), x, y, phi), gradient(ridge(x, y, phi).sum(), x, y, phi))


def test_integers_among_the_arguments():
    labels = torch.tensor([0, 2, 1, 1])

    def F(w, x, labels, penalty):
        return stationary(w, x, labels.to(f64), penalty)

    @custom_root(F, solve=solve_lu())
    def solve(w, x, labels, penalty):
        return ridge(x, labels.to(f64), penalty)

    x, _, phi = arguments()
    close(gradient(solve(START, x, labels, phi).sum(), x, phi), gradient(ridge(x, labels.to(f64), phi).sum(), x, phi))


def test_a_solver_may_train_by_any_means():
    @custom_root(stationary, solve=solve_lu())
    def solve(w, x, y, penalty):
        assert w.requires_grad and not (x.requires_grad or y.requires_grad or penalty.requires_grad)
        optimizer = torch.optim.SGD([w], lr=0.5)
        for _ in range(120):
            optimizer.zero_grad()
            (((x @ w - y) ** 2).sum() / 2 + penalty * (w**2).sum() / 2).backward()
            optimizer.step()
        return w

    start, args = START.clone().requires_grad_(), arguments()
    w = solve(start, *args)
    close(gradient(w.sum(), *args), gradient(ridge(*args).sum(), *args), rtol=1e-8)
    assert all(p.grad is None for p in (start, *args)) and not start.any()


def test_modules_whose_gradient_would_be_lost():
    def F(w, net, y):
        return w - net(y)

    def solver(w, net, y):
        return net(y)

    net = nn.Linear(4, 3, dtype=f64)
    with pytest.raises(TypeError, match='Linear whose parameters require gradients'):
        custom_root(F)(solver)(START, net, Y)
    # A choice of arguments says that the module is none of them.
    y = Y.clone().requires_grad_()
    w = custom_root(F, argnums=2)(solver)(START, net, y)
    found = torch.autograd.grad(w.sum(), (y, net.weight), allow_unused=True)
    close(found[:1], gradient(net(y).sum(), y), rtol=1e-5)
    assert found[1] is None


# -- results -----------------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    a: torch.Tensor
    rest: list


def coupled(phi):
    """Two unknowns, 0-d and of one dimension: x + y.sum() / 2 = sin(phi), y + x / 4 = phi."""
    y_sum = (2 * phi - torch.sin(phi) / 2) / (1 - 1 / 4)
    x = torch.sin(phi) - y_sum / 2
    return x, (phi - x / 4).expand(2)


def residual(x, y, phi):
    return x + y.sum() / 2 - torch.sin(phi), y + x / 4 - phi


TREES = {
    'tuple': (lambda x, y: (x, y), lambda t: t),
    'list': (lambda x, y: [x, y], lambda t: t),
    'dict': (lambda x, y: {'y': y, 'x': x}, lambda t: (t['x'], t['y'])),
    'nested': (lambda x, y: {'b': [(x,)], 'a': y}, lambda t: (t['b'][0][0], t['a'])),
    'named tuple': (lambda x, y: Point(y, [x]), lambda t: (t.rest[0], t.a)),
    'with None': (lambda x, y: (None, x, {'y': y, 'z': None}), lambda t: (t[1], t[2]['y'])),
}
LINEAR_SOLVERS = {'default': None, 'normal_cg': solve_normal_cg(), 'inv': solve_inv(), 'lu': solve_lu()}


@pytest.mark.parametrize('solver', LINEAR_SOLVERS.values(), ids=LINEAR_SOLVERS)
@pytest.mark.parametrize(('pack', 'unpack'), TREES.values(), ids=TREES)
def test_trees(pack, unpack, solver):
    def F(solution, phi):
        return pack(*residual(*unpack(solution), phi))

    @custom_root(F, argnums=1, solve=solver)
    def solve(_, phi):
        return pack(*coupled(phi))

    phi = penalty()
    x, y = unpack(solve(None, phi))
    e, f = coupled(phi)
    for found, expected in ((x, e), (y[0], f[0]), (x * y.sum(), e * f.sum())):
        close(
            gradient(found, phi, retain_graph=True),
            gradient(expected, phi, retain_graph=True),
            rtol=1e-4 if solver is None else 1e-6,
        )


def test_trees_of_arguments():
    def F(w, data, penalty):
        return stationary(w, data['x'], data['y'][0], penalty)

    @custom_root(F, argnums=1, solve=solve_lu())
    def solve(w, data, penalty):
        return ridge(data['x'], data['y'][0], penalty)

    x, y, phi = arguments()
    w = solve(START, {'x': x, 'y': [y, None]}, phi)
    found = gradient(w.sum(), x, y, phi, allow_unused=True)
    close(found[:2], gradient(ridge(x, y, phi).sum(), x, y))
    assert found[2] is None


def test_auxiliary_results():
    @custom_root(stationary, has_aux=True, solve=solve_lu())
    def solve(w, x, y, penalty):
        w = ridge(x, y, penalty)
        return w, {'loss': ((x @ w - y) ** 2).sum(), 'steps': 3, 'path': ['a', None]}

    args = arguments()
    w, aux = solve(START, *args)
    close(gradient(w.sum(), *args), gradient(ridge(*args).sum(), *args))
    assert not aux['loss'].requires_grad
    assert aux['steps'] == 3 and aux['path'] == ['a', None]


def test_solutions_have_values_of_their_own():
    kept = ridge(X, Y, penalty()).detach()
    solve = custom_root(stationary)(lambda w, x, y, penalty: kept)
    w = solve(START, *arguments())
    assert w is not kept and w.data_ptr() != kept.data_ptr() and torch.equal(w, kept)


def test_metadata():
    solve = custom_root(stationary)(solve_ridge)
    assert solve.__name__ == 'solve_ridge' and solve.__doc__ == 'Solve in closed form.'
    assert solve.__module__ == solve_ridge.__module__
    assert inspect.signature(solve) == inspect.signature(solve_ridge)


def test_callables_other_than_functions():
    class Solver:
        def __call__(self, w, x, y, penalty):
            return ridge(x, y, penalty)

        def solve(self, w, x, y, penalty):
            return ridge(x, y, penalty)

    args = arguments()
    expected = gradient(ridge(*args).sum(), *args)
    for solver in (Solver().solve, functools.partial(solve_ridge)):
        close(gradient(custom_root(stationary, solve=solve_lu())(solver)(START, *args).sum(), *args), expected)


# -- derivatives -------------------------------------------------------------------------------------------------------

SOLVE = custom_root(stationary, argnums=(1, 2, 3), solve=solve_lu())(solve_ridge)


def test_gradcheck_to_second_order():
    args = arguments()
    assert torch.autograd.gradcheck(lambda *a: SOLVE(START, *a), args, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *a: SOLVE(START, *a), args)


TRANSFORMS = {
    'grad': lambda f: torch.func.grad(lambda *a: f(*a).sin().sum(), argnums=(0, 1, 2)),
    'jacrev': lambda f: torch.func.jacrev(f, argnums=(0, 2)),
    'jacfwd': lambda f: torch.func.jacfwd(f, argnums=(1, 2)),
    'hessian': lambda f: torch.func.hessian(lambda *a: f(*a).sin().sum(), argnums=2),
    'jacrev of jacrev': lambda f: torch.func.jacrev(torch.func.jacrev(f, argnums=2), argnums=1),
    'vmap': lambda f: torch.vmap(f, in_dims=(None, None, 0)),
    'vmap of grad': lambda f: torch.vmap(torch.func.grad(lambda *a: f(*a).prod(), argnums=2), in_dims=(None, None, 0)),
    'grad of vmap': lambda f: torch.func.grad(
        lambda x, y, p: torch.vmap(f, in_dims=(None, None, 0))(x, y, p).sin().sum(), argnums=(0, 2)
    ),
}


@pytest.mark.parametrize('name', TRANSFORMS)
def test_torch_func(name):
    transform = TRANSFORMS[name]
    p = torch.tensor([0.5, 1.0, 2.0], dtype=f64) if 'vmap' in name else torch.tensor(0.7, dtype=f64)
    found = transform(functools.partial(SOLVE, START))(X, Y, p)
    close(found, transform(ridge)(X, Y, p))


def test_per_sample_problems():
    xs = torch.stack([X, X.flip(0) + 0.1, 2 * X])
    ys = torch.stack([Y, -Y, Y**2])
    phi = torch.tensor(0.7, dtype=f64)

    def loss(solve):
        return lambda x, y, p: solve(x, y, p).square().sum()

    for solver in (solve_lu(), solve_cg(rtol=1e-12), solve_normal_cg(rtol=1e-12)):
        solve = functools.partial(custom_root(stationary, solve=solver)(solve_ridge), START)
        found = torch.vmap(torch.func.grad(loss(solve), argnums=(0, 2)), in_dims=(0, 0, None))(xs, ys, phi)
        close(found, torch.vmap(torch.func.grad(loss(ridge), argnums=(0, 2)), in_dims=(0, 0, None))(xs, ys, phi))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_dtypes(dtype):
    """x = a * b, whatever the numbers are."""

    @custom_root(lambda x, a, b: x - a * b)
    def solve(_, a, b):
        return a * b

    a, b = (torch.tensor([1.5, -0.5], dtype=dtype).requires_grad_() for _ in range(2))
    if dtype.is_complex:
        a = torch.complex(a.real, 2 * b.real).detach().requires_grad_()

    def loss(x):
        return (x.abs() ** 2).sum()

    found = gradient(loss(solve(None, a, b)), a, b)
    close(found, gradient(loss(a * b), a, b), rtol=1e-5)
    assert found[0].dtype == dtype


# -- refusals ----------------------------------------------------------------------------------------------------------

PREFIX = r'custom_root\(optimality_fn\)\(solver_fn\)\(\*args\): output of function solver_fn should be'


@pytest.mark.parametrize('result', [None, 3.0, 'x', (), {'a': None}, torch.tensor(3)])
def test_results_without_unknowns(result):
    solve = custom_root(lambda x, a: x, argnums=1)(lambda x, a: result)
    with pytest.raises(RuntimeError, match=f'{PREFIX} a torch.Tensor or a tuple of torch.Tensor'):
        solve(None, penalty())


@pytest.mark.parametrize('result', [torch.ones(()), (torch.ones(()),), [torch.ones(()), 3], (torch.ones(()), 1, 2)])
def test_results_without_auxiliary_results(result):
    solve = custom_root(lambda x, a: x, argnums=1, has_aux=True)(lambda x, a: result)
    with pytest.raises(RuntimeError, match=f'{PREFIX} a tuple'):
        solve(None, penalty())


@pytest.mark.parametrize('argument', [3.0, None, 'x', (), torch.tensor([1, 2]), {'a': 1}])
def test_chosen_arguments_without_tensors(argument):
    solve = custom_root(lambda x, a: x, argnums=1)(lambda x, a: torch.ones(2))
    text = 'argument of function solver_fn specified with `argnums` should be a torch.Tensor or a tuple of torch.Tensor'
    with pytest.raises(RuntimeError, match=text):
        solve(None, argument)


BAD_OPTIMALITY = {
    'shape': (lambda w, a: w.sum(), r'shape \(\), but .* has shape \(3,\)'),
    'structure': (lambda w, a: (w, w), 'the result of optimality_fun'),
    'None': (lambda w, a: None, 'is None'),
    'number': (lambda w, a: 0.0, 'float'),
}


@pytest.mark.parametrize(('fun', 'text'), BAD_OPTIMALITY.values(), ids=BAD_OPTIMALITY)
def test_optimality_of_another_structure(fun, text):
    a = torch.ones(3, dtype=f64, requires_grad=True)
    w = custom_root(fun, argnums=1)(lambda w, a: 2 * a)(START, a)
    with pytest.raises(ValueError, match=text):
        gradient(w.sum(), a)


def test_arguments_that_do_not_fit():
    solve = custom_root(lambda w, x: w, argnums=1)(lambda w, x, y: x)
    with pytest.raises(TypeError, match='do not match the optimality function'):
        solve(START, X, Y)
    with pytest.raises(TypeError, match='unexpected keyword argument'):
        custom_root(stationary)(solve_ridge)(START, X, Y, 1.0, wrong=3)
    with pytest.raises(TypeError, match='missing a required argument'):
        custom_root(stationary)(solve_ridge)(START, X)


def test_singular_systems_are_told():
    a = torch.ones(3, dtype=f64, requires_grad=True)
    w = custom_root(lambda w, a: 0 * w + a, solve=solve_lu())(lambda w, a: 2 * a)(START, a)
    with pytest.raises(torch.linalg.LinAlgError, match='singular'):
        gradient(w.sum(), a)
    w = custom_root(lambda w, a: 0 * w + a, solve=solve_cg())(lambda w, a: 2 * a)(START, a)
    with pytest.warns(torchopt.linear_solve.LinearSolveWarning, match='broke down'):
        gradient(w.sum(), a)


def test_gradients_that_are_not_finite_are_told():
    a = torch.ones(3, dtype=f64, requires_grad=True)
    w = custom_root(lambda w, a: w - a)(lambda w, a: a.clone())(START, a)
    with pytest.raises(ValueError, match='not finite'):
        gradient((w * float('nan')).sum(), a)


def test_what_the_functions_close_over_gets_gradients():
    hidden, a = penalty(), X[0].clone().requires_grad_()
    w = custom_root(lambda w, a: w - a * hidden)(lambda w, a: a * hidden)(START, a)
    found = gradient(w.sum(), a, hidden)
    close(found[0], hidden.detach().expand(3), rtol=1e-5)
    close(found[1], a.detach().sum(), rtol=1e-5)
