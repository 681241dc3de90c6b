# SPDX-License-Identifier: Apache-2.0
"""Pullbacks of ``torch.func.vjp`` that are called after the transform has ended, for each differentiable function.

The pullback that ``torch.func.vjp`` returns outlives the transform that recorded it.  Whatever a backward pass decides
by looking at the transforms that are active right now is decided too late by then.  So each function is differentiated
in several ways that have to agree with plain autograd, to second order.
"""

import functools

import pytest
import torch

import torchopt
from torchopt import (
    assignment,
    clip,
    contrib,
    hook,
    linear_solve,
    linesearch,
    losses,
    perturbations,
    projections,
    second_order,
)
from torchopt.implicit_diff import custom_fixed_point, custom_root, root_jvp, root_vjp
from torchopt.zero_order_diff import zero_order


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


B, M, U = normal(3), normal(3, 3, seed=1), normal(3, seed=2)
SPD = M @ M.T + 3 * torch.eye(3, dtype=torch.float64)
ABOVE = SPD + 0.5 * (M - M.T)
TIGHT = {'tol': 1e-13, 'maxiter': 200}


def solver(solve, symmetric):
    def fun(b, A):
        A = A + A.mT if symmetric else A
        return solve(lambda x: A @ x, b)

    return fun, B, 0.5 * SPD if symmetric else ABOVE


def hessian_free(b, A):
    # The product comes from another transform.
    return linear_solve.solve_lu(lambda v: torch.func.jvp(lambda x: A @ x + x**3, (b,), (v,))[1], b)


def ridge_equation(w, X, penalty):
    return X.T @ (X @ w - U) + penalty.exp() * w


def ridge_solution(X, penalty):
    # By the inverse: torch.linalg.solve has wrong tangents in a backward pass that records no graph.
    return torch.linalg.inv(X.T @ X + penalty.exp() * torch.eye(3, dtype=X.dtype)) @ (X.T @ U)


def root(X, penalty, **options):
    solve = custom_root(ridge_equation, **options)(lambda _, X, penalty: ridge_solution(X, penalty))
    return solve(None, X, penalty)


def root_of_closure(X, penalty):
    # Everything that the equation depends on is closed over.
    solve = custom_root(lambda w: ridge_equation(w, X, penalty), solve=linear_solve.solve_lu)(
        lambda _: ridge_solution(X, penalty)
    )
    return solve(None)


def torchopt_root_of_closure(X, penalty):
    solve = torchopt.diff.implicit.custom_root(lambda w, X: ridge_equation(w, X, penalty), argnums=1)(
        lambda _, X: ridge_solution(X, penalty)
    )
    return solve(torch.zeros(3, dtype=torch.float64), X)


def cosines(a, c):
    x = torch.zeros_like(a + c)
    for _ in range(80):
        x = 0.5 * torch.cos(a * x) + c
    return x.detach()


def fixed_point(a, c):
    return custom_fixed_point(lambda x, a, c: 0.5 * torch.cos(a * x) + c)(lambda _, a, c: cosines(a, c))(None, a, c)


def fixed_point_of_closure(a, c):
    return custom_fixed_point(lambda x, a: 0.5 * torch.cos(a * x) + c)(lambda _, a: cosines(a, c))(None, a)


def pulled_back(X, penalty):
    return root_vjp(ridge_equation, ridge_solution(X, penalty), (X, penalty), U, solve=linear_solve.solve_lu)


def pulled_back_through_closure(X, penalty):
    w = ridge_solution(X, penalty)
    return root_vjp(lambda w, p: ridge_equation(w, X, p), w, (penalty,), U, solve=linear_solve.solve_lu)


def pushed_forward(X, penalty):
    w = ridge_solution(X, penalty)
    return root_jvp(ridge_equation, w, (X, penalty), (M, None), solve=linear_solve.solve_lu)


def pushed_forward_through_closure(X, penalty):
    w = ridge_solution(X, penalty)
    direction = torch.ones_like(penalty)
    return root_jvp(lambda w, p: ridge_equation(w, X, p), w, (penalty,), (direction,), solve=linear_solve.solve_lu)


class Inner(torchopt.nn.ImplicitMetaGradientModule, linear_solve=linear_solve.solve_lu()):
    """Ridge regression on data that the objective closes over."""

    def __init__(self, scale, X):
        super().__init__()
        self.scale = scale
        self.w = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.data = lambda: X

    def objective(self, penalty):
        fit = ((self.data() @ self.w - U) ** 2).sum()
        return 0.5 * self.scale * (fit + penalty.exp() * (self.w**2).sum())

    def solve(self, penalty):
        with torch.no_grad():
            self.w.copy_(ridge_solution(self.data(), penalty))


def implicit_module(X, penalty):
    inner = Inner(torch.ones((), dtype=torch.float64, requires_grad=True), X)
    inner.solve(penalty)
    return inner.w


def steps(make, count=2):
    def run(x, lr):
        optimizer = make(lr)
        params, state = {'x': x}, optimizer.init({'x': x})
        for _ in range(count):
            grads = {'x': params['x'] ** 3}
            updates, state = optimizer.update(grads, state, params)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return params['x']

    return run, B, torch.tensor(0.05, dtype=torch.float64)


def smoothed(x, y):
    fun = perturbations.make_perturbed_fun(lambda x: (x**2).sum() + x.prod(), num_samples=5, sigma=0.5)
    return fun(0, x) * y.sum()


def smoothed_maximum(x, y):
    fun = perturbations.make_perturbed_max(lambda x: (x == x.max()).to(x.dtype), num_samples=5, sigma=0.5)
    return fun(x, 0) * y.sum()


def estimated(method):
    def fun(x, y):
        distribution = torch.distributions.Normal(0.0, 1.0)
        f = zero_order(distribution, method=method, argnums=(0, 1), num_samples=4, sigma=0.1, seed=3)(
            lambda x, y: (x * y).sum() + (x**2 * y).sum()
        )
        return f(x, y)

    return fun, B, U


def quadratic(params, inputs, targets):
    return (inputs * params**4 - targets).sum()


TABLE = {
    'solve_cg': solver(functools.partial(linear_solve.solve_cg, **TIGHT), True),
    'solve_cg, preconditioned': solver(functools.partial(linear_solve.solve_cg, M=lambda r: 0.3 * r, **TIGHT), True),
    'solve_normal_cg': solver(functools.partial(linear_solve.solve_normal_cg, **TIGHT), False),
    'solve_bicgstab': solver(functools.partial(linear_solve.solve_bicgstab, **TIGHT), False),
    'solve_gmres': solver(functools.partial(linear_solve.solve_gmres, **TIGHT), False),
    'solve_lu': solver(linear_solve.solve_lu, False),
    'solve_qr': solver(linear_solve.solve_qr, False),
    'solve_inv': solver(linear_solve.solve_inv, False),
    'solve_cholesky': solver(linear_solve.solve_cholesky, True),
    'solve_iterative_refinement': solver(
        functools.partial(
            linear_solve.solve_iterative_refinement,
            tol=1e-13,
            solve=functools.partial(linear_solve.solve_gmres, tol=1e-8),
        ),
        False,
    ),
    'solve_lu of a jvp': (hessian_free, B, SPD),
    'ridge of a solver': (
        lambda b, r: linear_solve.solve_cg(lambda x: SPD @ x, b, ridge=r.exp(), **TIGHT),
        B,
        torch.tensor(0.3, dtype=torch.float64),
    ),
    'custom_root': (functools.partial(root, solve=linear_solve.solve_lu), M, B[0]),
    'custom_root, default solver': (
        functools.partial(root, solve=functools.partial(linear_solve.solve_normal_cg, **TIGHT)),
        M,
        B[0],
    ),
    'custom_root of a closure': (root_of_closure, M, B[0]),
    'diff.implicit.custom_root of a closure': (torchopt_root_of_closure, M, B[0]),
    'custom_fixed_point': (fixed_point, B, U),
    'custom_fixed_point of a closure': (fixed_point_of_closure, B, U),
    'root_vjp': (pulled_back, M, B[0]),
    'root_vjp of a closure': (pulled_back_through_closure, M, B[0]),
    'root_jvp': (pushed_forward, M, B[0]),
    'root_jvp of a closure': (pushed_forward_through_closure, M, B[0]),
    'ImplicitMetaGradientModule': (implicit_module, M, B[0]),
    'sgd': steps(lambda lr: torchopt.sgd(lr, momentum=0.9)),
    'adam': steps(torchopt.adam),
    'adam, weight decay': steps(lambda lr: torchopt.adamw(lr, weight_decay=0.1)),
    'adam, fixed rate': steps(lambda lr: torchopt.adam(0.1)),
    'adam, plain torch': steps(lambda lr: torchopt.adam(lr, use_accelerated_op=False)),
    'rmsprop': steps(lambda lr: torchopt.rmsprop(lr, centered=True)),
    'adadelta': steps(torchopt.adadelta),
    'adagrad': steps(torchopt.adagrad),
    'radam': steps(torchopt.radam),
    'lamb': steps(torchopt.lamb),
    'lion': steps(torchopt.lion),
    'adafactor': steps(torchopt.adafactor),
    'muon': (steps(contrib.muon)[0], M, torch.tensor(0.05, dtype=torch.float64)),
    'clipped': steps(lambda lr: torchopt.chain(clip.clip_by_global_norm(0.1), torchopt.sgd(lr))),
    'lbfgs, fixed rate': steps(lambda lr: torchopt.lbfgs(lr, linesearch=None)),
    'apply_updates': (lambda p, u: torchopt.apply_updates({'p': p}, {'p': u**2}, inplace=False)['p'] ** 2, B, U),
    'scale_gradient': (lambda x, y: hook.scale_gradient(x**2, 0.5) * y, B, U),
    'ctc_loss': (
        lambda x, y: losses.ctc_loss(
            (x[None] * y).reshape(1, 3, 3),
            torch.zeros(1, 3, dtype=torch.float64),
            torch.tensor([[1, 2]]),
            torch.zeros(1, 2, dtype=torch.float64),
        ),
        M,
        U[0],
    ),
    'sparsemax_loss': (lambda x, y: losses.sparsemax_loss(x * y, torch.tensor([1, 0, 1])), B, U),
    'multiclass_sparsemax_loss': (lambda x, y: losses.multiclass_sparsemax_loss(x * y, torch.tensor(1)), B, U),
    'make_fenchel_young_loss': (
        lambda x, y: losses.make_fenchel_young_loss(lambda s: s.logsumexp(-1))(x * y, torch.tensor([0.2, 0.3, 0.5])),
        B,
        U,
    ),
    'cosine_distance': (losses.cosine_distance, B, U),
    'kl_divergence': (lambda x, y: losses.kl_divergence(x.log_softmax(-1), y.softmax(-1)), B, U),
    'ntxent': (lambda x, y: losses.ntxent(x * y, torch.tensor([0, 0, 1])), M, U),
    'multiclass_generalized_dice_loss': (
        lambda x, y: losses.multiclass_generalized_dice_loss(x * y, torch.eye(3, dtype=torch.float64)),
        M,
        U,
    ),
    'projection_simplex': (lambda x, y: projections.projection_simplex(x * y), B, U),
    'projection_sparse_simplex': (lambda x, y: projections.projection_sparse_simplex(x * y, 2), B, U),
    'projection_l1_ball': (lambda x, y: projections.projection_l1_ball(x, y.exp()), B, 0.1 * B[0]),
    'projection_l2_ball': (lambda x, y: projections.projection_l2_ball(x, y.exp()), B, -B[0].abs() - 2),
    'projection_box_section': (lambda x, y: projections.projection_box_section(x, (-1.0, 1.0, y.exp(), 0.2)), B, U),
    'projection_affine_set': (
        lambda x, A: projections.projection_affine_set(x, (A[:2], torch.ones(2, dtype=torch.float64))),
        B,
        SPD,
    ),
    'assignment': (lambda x, y: ((x * y) * assigned(x * y)).sum(), M, U),
    'make_perturbed_fun': (smoothed, B, U),
    'make_perturbed_max': (smoothed_maximum, B, U),
    'zero_order naive': estimated('naive'),
    'zero_order forward': estimated('forward'),
    'zero_order antithetic': estimated('antithetic'),
    'hvp': (lambda p, x: second_order.hvp(quadratic, U, p, x, 0.0), B, U),
    'hessian_diag': (lambda p, x: second_order.hessian_diag(quadratic, p, x, 0.0), B, U),
    'fisher_diag': (lambda p, x: second_order.fisher_diag(quadratic, p, x, 0.0), B, U),
    'value_and_gradient': (
        lambda p, x: linesearch.value_and_gradient(lambda q: (q**4 * x).sum(), p, differentiable=True)[1],
        B,
        U,
    ),
}


def assigned(costs):
    rows, columns = assignment.hungarian_algorithm(costs.detach())
    return torch.zeros(3, 3, dtype=torch.float64).index_put((rows, columns), torch.ones(3, dtype=torch.float64))


def flat(fun):
    """The function with one vector as its result."""

    def run(*args):
        result = fun(*args)
        leaves = torchopt.tree.leaves(result)
        return torch.cat([x.reshape(-1) for x in leaves if x is not None])

    return run


def vectors(count):
    return [normal(count, seed=10 + i) for i in range(2)]


def by_autograd(fun, args, c, create_graph=False):
    return torch.autograd.grad(
        (fun(*args) * c).sum(), args, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def same(found, expected):
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize('name', TABLE)
def test_late_pullbacks_agree_with_autograd(name):
    fun, *args = TABLE[name]
    fun = flat(fun)
    tracked = [x.detach().clone().requires_grad_() for x in args]
    args = tuple(x.detach() for x in args)
    c, d = vectors(fun(*tracked).numel())
    expected, other = by_autograd(fun, tracked, c), by_autograd(fun, tracked, d)
    assert sum(bool(g.any()) for g in expected) >= 1
    _, pull = torch.func.vjp(fun, *args)
    same(pull(c), expected)
    same(pull(c), expected)
    same(pull(d), other)
    same(torch.func.grad(lambda *a: (fun(*a) * c).sum(), argnums=tuple(range(len(args))))(*args), expected)
    rows = torch.func.jacrev(fun, argnums=tuple(range(len(args))))(*args)
    same([torch.tensordot(c, J, 1) for J in rows], expected)
    same(torch.func.vmap(pull)(torch.stack([c, d])), [torch.stack(pair) for pair in zip(expected, other)])
    if name == 'ImplicitMetaGradientModule':
        return  # its solve writes to parameters, which vmap cannot map
    # The forward pass of a batch, of which each gets a cotangent of its own.
    _, pull = torch.func.vjp(torch.func.vmap(fun), *(torch.stack([x, x]) for x in args))
    same(pull(torch.stack([c, d])), [torch.stack(pair) for pair in zip(expected, other)])


@pytest.mark.parametrize('name', TABLE)
def test_late_pullbacks_can_be_differentiated(name):
    fun, *args = TABLE[name]
    fun = flat(fun)
    tracked = [x.detach().clone().requires_grad_() for x in args]
    args = tuple(x.detach() for x in args)
    c = vectors(fun(*args).numel())[0].requires_grad_()
    weights = [normal(*x.shape, seed=20 + i) for i, x in enumerate(args)]

    def weighted(grads):
        return sum((g * w).sum() for g, w in zip(grads, weights))

    first = weighted(by_autograd(fun, tracked, c, create_graph=True))
    expected = torch.autograd.grad(first, [*tracked, c], allow_unused=True, materialize_grads=True)
    c = c.detach()

    def pulled(*args_and_c):
        *args, c = args_and_c
        return weighted(torch.func.vjp(fun, *args)[1](c))

    numbers = tuple(range(len(args) + 1))
    same(torch.func.grad(pulled, argnums=numbers)(*args, c), expected)
    _, pull = torch.func.vjp(pulled, *args, c)
    same(pull(torch.ones((), dtype=torch.float64)), expected)
    # Arguments that autograd tracks, outside of the transform.
    with_graph = [*tracked, c.clone().requires_grad_()]
    same(torch.autograd.grad(pulled(*with_graph), with_graph, allow_unused=True, materialize_grads=True), expected)
    tangents = (*weights, vectors(c.numel())[1])
    forward = torch.func.jvp(pulled, (*args, c), tangents)[1]
    same([forward], [sum((g * t).sum() for g, t in zip(expected, tangents))])
