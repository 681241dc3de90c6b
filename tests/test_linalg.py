# SPDX-License-Identifier: Apache-2.0
"""torchopt.linalg: conjugate gradients and Neumann series, against torch.linalg and sums written out."""

from __future__ import annotations

import re
from collections import OrderedDict

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import torchopt
from torchopt import tree
from torchopt.linalg import cg, ns, ns_inv
from torchopt.linear_solve import LinearSolveWarning

f64 = torch.float64


def draw(*shape: int, dtype: torch.dtype = f64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype)


def positive(n: int, dtype: torch.dtype = f64) -> torch.Tensor:
    """A hermitian positive definite matrix of a moderate condition number."""
    m = draw(n, n, dtype=dtype)
    return m @ m.mH / n + torch.eye(n, dtype=dtype)


def near_identity(n: int, dtype: torch.dtype = f64) -> torch.Tensor:
    return torch.eye(n, dtype=dtype) + 0.3 * draw(n, n, dtype=dtype) / n


def symmetric(A):
    """Perturbations that gradcheck makes must not leave the matrices that cg is for."""
    return (A + A.mT) / 2


def close(found, expected, rtol=1e-9, atol=1e-11):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


# -- cg: values --------------------------------------------------------------------------------------------------------


def system(kind: str):
    """A matrix (or trees of them, or a function), a right-hand side and the solution."""
    torch.manual_seed(3)
    A, b = positive(4), draw(4)
    other, c = positive(2), draw(2, 3)
    x, y = torch.linalg.solve(A, b), torch.linalg.solve(other, c)
    return {
        'vector': (A, b, x),
        'columns': (other, c, y),
        'function': (A.matmul, b, x),
        'tuple': ((A, other), (b, c), (x, y)),
        'list': ([A, other], [b, c], [x, y]),
        'dict': ({'p': A, 'q': other}, {'q': c, 'p': b}, {'p': x, 'q': y}),
        'ordered': (OrderedDict(p=A, q=other), OrderedDict(p=b, q=c), OrderedDict(p=x, q=y)),
        'nested': ({'p': [A], 'q': (other, None)}, {'p': [b], 'q': (c, None)}, {'p': [x], 'q': (y, None)}),
        'coupled function': (coupled, {'a': b, 'b': -b}, {'a': b / 1.5, 'b': -b / 1.5}),
        '0-d': (lambda x: 4 * x, torch.tensor(2.0, dtype=f64), torch.tensor(0.5, dtype=f64)),
        'empty': (torch.zeros(0, 0, dtype=f64), torch.zeros(0, dtype=f64), torch.zeros(0, dtype=f64)),
    }[kind]


def coupled(x):
    return {'a': 2 * x['a'] + 0.5 * x['b'], 'b': 2 * x['b'] + 0.5 * x['a']}


KINDS = [
    'vector', 'columns', 'function', 'tuple', 'list', 'dict', 'ordered', 'nested', 'coupled function', '0-d', 'empty'
]  # fmt: skip


@pytest.mark.parametrize('kind', KINDS)
def test_cg_solves(kind):
    A, b, x = system(kind)
    found = cg(A, b, rtol=1e-13)
    assert tree.structure(found) == tree.structure(b)
    close(found, x)


@pytest.mark.parametrize('kind', KINDS)
def test_cg_starts_anywhere(kind):
    A, b, x = system(kind)
    start = tree.map(lambda z: torch.full_like(z, 3.0), b)
    close(cg(A, b, start, rtol=1e-13), x)
    close(cg(A, b, x0=start, rtol=1e-13), x)
    close(cg(A, b, x, rtol=1e-6, maxiter=0), x, rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.complex64, torch.complex128])
def test_cg_in_other_dtypes(dtype):
    A, b = positive(5, dtype), draw(5, dtype=dtype)
    found = cg(A, b, rtol=1e-6)
    assert found.dtype == dtype
    close(found, torch.linalg.solve(A, b), rtol=1e-4, atol=1e-5)


def test_cg_of_zero_is_zero():
    A, b = positive(4), torch.zeros(4, dtype=f64)
    close(cg(A, b), b)
    # In 0.7.3 that was the initial guess; but a solution it is not.
    close(cg(A, b, torch.ones(4, dtype=f64), atol=1e-12), b)


def test_cg_tolerances():
    A, b = torch.diag(torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=f64)), torch.ones(4, dtype=f64)
    for options, limit in (({}, 2e-5), ({'rtol': 0.3}, 0.6), ({'rtol': 0.0, 'atol': 1e-3}, 1e-3)):
        assert torch.linalg.vector_norm(A @ cg(A, b, **options) - b) <= limit
    A = positive(20)
    b = draw(20)
    residuals = [torch.linalg.vector_norm(A @ cg(A, b, rtol=rtol) - b) / b.norm() for rtol in (0.3, 1e-2, 1e-5)]
    assert 1e-2 < residuals[0] <= 0.3 and 1e-5 < residuals[1] <= 1e-2 and residuals[2] <= 1e-5
    assert not cg(A, b, atol=2 * float(b.norm())).any()  # zero is good enough


def test_cg_stops_after_maxiter_and_says_so():
    A, b = positive(6), draw(6)
    products = []

    def matvec(x):
        products.append(1)
        return A @ x

    with pytest.warns(LinearSolveWarning, match='solve_cg reached maxiter'):
        cg(matvec, b, maxiter=2, rtol=1e-12)
    assert 2 <= len(products) <= 4  # those of the iterations, and one to look at the function
    for exact in (6, None):
        close(cg(A, b, maxiter=exact, rtol=1e-12), torch.linalg.solve(A, b), rtol=1e-8)


@pytest.mark.parametrize('form', ['matrix', 'function', 'tree'])
def test_cg_with_a_preconditioner(form):
    A, b = torch.diag(torch.logspace(0, 6, 30, dtype=f64)) + 0.1 * positive(30), draw(30)
    inverse = torch.diag(1 / A.diagonal())
    M = {'matrix': inverse, 'function': inverse.matmul, 'tree': [inverse]}[form]
    A_, b_ = ([A], [b]) if form == 'tree' else (A, b)
    close(tree.leaves(cg(A_, b_, M=M, maxiter=12, rtol=1e-10))[0], torch.linalg.solve(A, b), rtol=1e-6, atol=1e-8)
    with pytest.warns(LinearSolveWarning):
        cg(A_, b_, maxiter=12, rtol=1e-10)


# -- cg: derivatives ---------------------------------------------------------------------------------------------------


def test_cg_derivatives_in_matrix_and_right_hand_side():
    A, b = positive(3).requires_grad_(), draw(3).requires_grad_()
    assert gradcheck(lambda A, b: cg(symmetric(A), b, rtol=1e-13), (A, b), check_forward_ad=True)
    assert gradgradcheck(lambda A, b: cg(symmetric(A), b, rtol=1e-13), (A, b), atol=1e-4)


def test_cg_derivatives_of_complex_systems():
    A = positive(3, torch.complex128).requires_grad_()
    b = draw(3, dtype=torch.complex128).requires_grad_()
    assert gradcheck(lambda A, b: cg((A + A.mH) / 2, b, rtol=1e-13), (A, b))


@pytest.mark.parametrize('form', ['matrices', 'function'])
def test_cg_derivatives_of_trees(form):
    tensors = [x.requires_grad_() for x in (positive(3), positive(2), draw(3), draw(2, 2))]

    def solve(A, B, b, c):
        A, B = symmetric(A), symmetric(B)
        if form == 'matrices':
            x = cg({'a': A, 'b': [B]}, {'a': b, 'b': [c]}, rtol=1e-13)
        else:
            x = cg(lambda z: {'a': A @ z['a'], 'b': [B @ z['b'][0]]}, {'a': b, 'b': [c]}, rtol=1e-13)
        return x['a'], x['b'][0]

    def expected(A, B, b, c):
        return torch.linalg.solve(symmetric(A), b), torch.linalg.solve(symmetric(B), c)

    for i in range(2):
        found = torch.autograd.grad(solve(*tensors)[i].sin().sum(), tensors, allow_unused=True, materialize_grads=True)
        truth = torch.autograd.grad(
            expected(*tensors)[i].sin().sum(), tensors, allow_unused=True, materialize_grads=True
        )
        close(found, truth, rtol=1e-8)


def test_cg_derivative_in_what_a_function_closes_over():
    X, scale, b = draw(5, 3).requires_grad_(), torch.tensor(0.5, dtype=f64, requires_grad=True), draw(3)

    def matvec(v):
        return X.mT @ (X @ v) + scale.exp() * v

    found = torch.autograd.grad(cg(matvec, b, rtol=1e-13).cos().sum(), (X, scale))
    truth = torch.linalg.solve(X.mT @ X + scale.exp() * torch.eye(3, dtype=f64), b)
    close(found, torch.autograd.grad(truth.cos().sum(), (X, scale)), rtol=1e-8)


def test_cg_has_no_derivative_in_start_and_preconditioner():
    A, b = positive(3).requires_grad_(), draw(3)
    start, M = draw(3).requires_grad_(), torch.eye(3, dtype=f64).requires_grad_()
    x = cg(A, b, start, M=M, rtol=1e-12)
    found = torch.autograd.grad(x.sum(), (A, start, M), allow_unused=True)
    assert found[1] is None and found[2] is None
    close(found[0], torch.autograd.grad(torch.linalg.solve(A, b).sum(), A)[0], rtol=1e-8)


def test_cg_under_torch_func():
    A, b = torch.stack([positive(3), positive(3)]), draw(2, 3)

    def loss(solve):
        return lambda A, b: solve(A, b).square().sum()

    def solve(A, b):
        return cg(A, b, rtol=1e-13)

    close(torch.vmap(solve)(A, b), torch.linalg.solve(A, b))
    found = torch.vmap(torch.func.grad(loss(solve), argnums=(0, 1)))(A, b)
    close(found, torch.vmap(torch.func.grad(loss(torch.linalg.solve), argnums=(0, 1)))(A, b), rtol=1e-8)
    close(torch.func.jacfwd(solve, argnums=1)(A[0], b[0]), torch.linalg.inv(A[0]), rtol=1e-8)
    close(torch.func.jacrev(solve, argnums=1)(A[0], b[0]), torch.linalg.inv(A[0]), rtol=1e-8)


def test_cg_keeps_no_graph_of_its_iterations():
    A, b = positive(6).requires_grad_(), draw(6).requires_grad_()

    def nodes(x):
        found, pending = set(), [x.grad_fn]
        while pending:
            node = pending.pop()
            if node is not None and node not in found:
                found.add(node)
                pending += [following for following, _ in node.next_functions]
        return len(found)

    with pytest.warns(LinearSolveWarning):
        once = cg(A, b, maxiter=1, rtol=1e-13)
    assert nodes(once) == nodes(cg(A, b, rtol=1e-13)) < 10


# -- Neumann series ----------------------------------------------------------------------------------------------------


def powers(A, count, alpha):
    """The terms of the series, alpha (I - alpha A)^k."""
    identity = torch.eye(A.shape[0], dtype=A.dtype)
    return [alpha * torch.linalg.matrix_power(identity - alpha * A, k) for k in range(count)]


ALPHAS = [None, 1.0, 0.4]


@pytest.mark.parametrize('alpha', ALPHAS)
@pytest.mark.parametrize('maxiter', [None, 0, 1, 7])
def test_ns_sums_terms(maxiter, alpha):
    A, b = near_identity(4), draw(4)
    terms = 11 if maxiter is None else maxiter + 1
    inverse = sum(powers(A, terms, 1.0 if alpha is None else alpha))
    for operator, rhs in ((A, b), (A.matmul, b), (A, draw(4, 2)), ([A], [b])):
        found = ns(operator, rhs, maxiter, alpha=alpha)
        close(found, tree.map(lambda z: inverse @ z, rhs))
        close(ns(operator, rhs, maxiter=maxiter, alpha=alpha), found, rtol=0, atol=0)


@pytest.mark.parametrize('alpha', ALPHAS)
@pytest.mark.parametrize('maxiter', [None, 0, 1, 7])
def test_ns_inv_sums_one_term_fewer(maxiter, alpha):
    A = near_identity(4)
    terms = 10 if maxiter is None else maxiter
    expected = sum(powers(A, terms, 1.0 if alpha is None else alpha), torch.zeros(4, 4, dtype=f64))
    found = ns_inv(A, maxiter, alpha=alpha)
    close(found, expected)
    B = near_identity(2)
    both = ns_inv({'p': A, 'q': (B, None)}, maxiter, alpha=alpha)
    close(both, {'p': found, 'q': (ns_inv(B, maxiter, alpha=alpha), None)})


def test_the_series_approach_the_inverse():
    A, b = near_identity(4), draw(4)
    close(ns(A, b, 100), torch.linalg.solve(A, b))
    close(ns_inv(A, 100), torch.linalg.inv(A))
    close(ns(5 * A, b, 200, alpha=0.15), torch.linalg.solve(5 * A, b))


@pytest.mark.parametrize('dtype', [torch.float32, torch.complex128])
def test_the_series_in_other_dtypes(dtype):
    A, b = near_identity(3, dtype), draw(3, dtype=dtype)
    assert ns(A, b, alpha=0.5).dtype == ns_inv(A, alpha=0.5).dtype == dtype
    close(ns(A, b, 200), torch.linalg.solve(A, b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('alpha', ALPHAS)
def test_derivatives_of_the_series_are_those_of_polynomials(alpha):
    A, b = near_identity(3).requires_grad_(), draw(3).requires_grad_()
    assert gradcheck(lambda A, b: ns(A, b, 3, alpha=alpha), (A, b), check_forward_ad=True)
    assert gradgradcheck(lambda A, b: ns(A, b, 2, alpha=alpha), (A, b))
    assert gradcheck(lambda A: ns_inv(A, 3, alpha=alpha), (A,), check_forward_ad=True)
    assert gradgradcheck(lambda A: ns_inv(A, 3, alpha=alpha), (A,))
    # At so few terms the derivative of the inverse would be another.
    found = torch.autograd.grad(ns(A, b, 3, alpha=alpha).sum(), A)[0]
    inverse = torch.autograd.grad(torch.linalg.solve(A, b).sum(), A)[0]
    assert (found - inverse).abs().max() > 1e-5


def test_a_rate_can_be_learned():
    A, b, alpha = near_identity(3), draw(3), torch.tensor(0.4, dtype=f64, requires_grad=True)
    assert gradcheck(lambda alpha: ns(A, b, 3, alpha=alpha), (alpha,))
    assert gradcheck(lambda alpha: ns_inv(A, 3, alpha=alpha), (alpha,))


def test_the_series_leave_their_arguments_alone():
    A, b = near_identity(3), draw(3)
    before = A.clone(), b.clone()
    for maxiter in (0, 1, 3):
        assert ns(A, b, maxiter) is not b
        ns_inv(A, maxiter)
    close((A, b), before, rtol=0, atol=0)


def test_the_series_under_vmap():
    A, b = torch.stack([near_identity(3), near_identity(3)]), draw(2, 3)
    close(torch.vmap(ns)(A, b), torch.stack([ns(*pair) for pair in zip(A, b, strict=True)]))
    close(torch.vmap(ns_inv)(A), torch.stack([ns_inv(m) for m in A]))


# -- refusals ----------------------------------------------------------------------------------------------------------

NOT_SQUARE = [torch.ones(2, 3), torch.ones(2), torch.ones(()), torch.ones(2, 2, 2)]


@pytest.mark.parametrize('A', NOT_SQUARE, ids=lambda A: str(tuple(A.shape)))
def test_matrices_that_are_not_square(A):
    b = torch.ones(2)
    shape = re.escape(str(tuple(A.shape)))
    for matrices, rhs in ((A, b), ([A], [b])):
        with pytest.raises(TypeError, match=f'Linear operator must be a square matrix, but has shape: {shape}'):
            cg(matrices, rhs)
        with pytest.raises(TypeError, match=f'Linear operator must be a square matrix, but has shape: {shape}'):
            cg(tree.map(lambda _: torch.eye(2), rhs), rhs, M=matrices)
        with pytest.raises(ValueError, match=f'`A` must be a square matrix, but has shape: {shape}'):
            ns(matrices, rhs)
        with pytest.raises(ValueError, match=f'`A` must be a square matrix, but has shape: {shape}'):
            ns_inv(matrices)


@pytest.mark.parametrize('A', [3.0, 'x', [torch.eye(2), 1]])
def test_what_is_no_matrix(A):
    for call in (lambda: cg(A, torch.ones(2)), lambda: ns(A, torch.ones(2)), lambda: ns_inv(A)):
        with pytest.raises(TypeError, match='must be a square matrix'):
            call()


def test_trees_that_do_not_match():
    eye, b = torch.eye(2), torch.ones(2)
    for A, rhs in (([eye], [b, b]), ([eye, eye], [b]), ({'p': eye}, {'q': b}), ((eye,), [b])):
        for solve in (cg, ns):
            with pytest.raises(ValueError, match=r'A|b'):
                solve(A, rhs)


def test_starts_that_do_not_match():
    A, b = torch.eye(4), torch.ones(4)
    for x0 in (torch.ones(3), torch.ones(1, 4), torch.ones(())):
        with pytest.raises(ValueError, match='Tensors in x0 and b must have matching shapes'):
            cg(A, b, x0)
    with pytest.raises(ValueError, match='Tensors in x0 and b must have matching shapes'):
        cg([A, A], [b, b], [b, torch.ones(2)])
    with pytest.raises(ValueError, match='x0'):
        cg([A, A], [b, b], [b])
    with pytest.raises((TypeError, ValueError), match='x0'):
        cg(A, b, 3.0)


@pytest.mark.parametrize('maxiter', [-1, 2.5, True, '3'])
def test_bad_maxiter(maxiter):
    A, b = torch.eye(2), torch.ones(2)
    for call in (
        lambda: cg(A, b, maxiter=maxiter),
        lambda: ns(A, b, maxiter=maxiter),
        lambda: ns_inv(A, maxiter=maxiter),
    ):
        with pytest.raises(ValueError, match='Invalid maxiter'):
            call()


def test_other_bad_input():
    A, b = torch.eye(2), torch.ones(2)
    for options in ({'rtol': -1.0}, {'atol': -1.0}):
        with pytest.raises(ValueError, match='tol'):
            cg(A, b, **options)
    for bad in (float('nan'), float('inf')):
        with pytest.raises(ValueError, match='not finite'):
            cg(A, b * bad)
    with pytest.raises(ValueError, match='shape'):
        cg(lambda x: x[:1], b)
    with pytest.raises(ValueError, match='shape'):
        ns(lambda x: x[:1], b)
    for solve in (cg, ns):
        for matrix, rhs in ((torch.eye(3), b), (torch.eye(3), torch.ones(2, 3)), (torch.eye(1), torch.ones(()))):
            with pytest.raises(ValueError, match=r'A matrix of `A` has shape \(., .\), but'):
                solve(matrix, rhs)
    with pytest.raises(ValueError, match='A matrix of `M` has shape'):
        cg(A, b, M=torch.eye(3))


def test_a_matrix_that_is_not_positive_is_told():
    with pytest.warns(LinearSolveWarning, match='broke down'):
        cg(torch.zeros(2, 2), torch.ones(2))
    with pytest.warns(LinearSolveWarning):
        cg(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), torch.ones(2))


def test_names():
    assert torchopt.linalg.__all__ == ['cg', 'matrix_inverse_pth_root', 'nnls', 'ns', 'ns_inv', 'power_iteration']
    assert callable(torchopt.linalg.cg) and callable(torchopt.linalg.ns) and callable(torchopt.linalg.ns_inv)
