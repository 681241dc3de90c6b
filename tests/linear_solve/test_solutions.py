# SPDX-License-Identifier: Apache-2.0
"""What the linear solvers return, for every solver and every kind of tree, beside torch.linalg and JAXopt."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxopt
import pytest
import torch

from torchopt import linear_solve, tree
from torchopt.linear_solve import Outcome, solve_cg, solve_gmres, solve_normal_cg

jax.config.update('jax_enable_x64', True)
torch64 = partial(torch.tensor, dtype=torch.float64)


class Case(NamedTuple):
    """A solver, the options with which it is exact to float64, and whether it needs a positive definite matrix."""

    name: str
    options: dict[str, Any]
    positive: bool = False

    @property
    def solve(self) -> Callable[..., Any]:
        return partial(getattr(linear_solve, self.name), **self.options)


CASES = [
    Case('solve_cg', {'tol': 1e-14}, positive=True),
    Case('solve_normal_cg', {'tol': 1e-14}),
    Case('solve_bicgstab', {'tol': 1e-14}),
    Case('solve_gmres', {'tol': 1e-14}),
    Case('solve_gmres', {'tol': 1e-14, 'restart': 3}),
    Case('solve_lu', {}),
    Case('solve_cholesky', {}, positive=True),
    Case('solve_qr', {}),
    Case('solve_inv', {}),
    Case('solve_inv', {'ns': True, 'maxiter': 400, 'alpha': 0.15}),
    Case('solve_iterative_refinement', {'tol': 1e-13, 'maxiter': 30}),
]
IDS = ['-'.join([c.name, *map(str, c.options.values())]) for c in CASES]
every_solver = pytest.mark.parametrize('case', CASES, ids=IDS)


def matrix(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A symmetric positive definite matrix with eigenvalues between 1 and 10."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=dtype))
    return (q * torch.linspace(1, 10, n, dtype=torch.float64).to(dtype)) @ q.mH


def vector(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flat(x: Any) -> torch.Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in tree.leaves(x)])


class Coupled:
    """A matrix as a function of a tree, all of whose blocks are coupled."""

    def __init__(self, example: Any, dtype: torch.dtype) -> None:
        self.example = example
        self.matrix = matrix(flat(example).numel(), dtype=dtype)

    def unflat(self, v: torch.Tensor) -> Any:
        leaves, spec = tree.flatten(self.example)
        parts = iter(v.split([x.numel() for x in leaves if x is not None]))
        return tree.unflatten(spec, [None if x is None else next(parts).reshape(x.shape) for x in leaves])

    def __call__(self, x: Any) -> Any:
        return self.unflat(self.matrix @ flat(x))


TREES = {
    '0-d': torch64(2.0),
    'vector': torch64([1.0, -2.0, 3.0]),
    'matrix': torch64([[1.0, -2.0], [0.5, 3.0]]),
    'dict': {'a': torch64(1.0), 'b': torch64([[2.0], [3.0]]), 'none': None},
    'nested': (torch64([1.0]), [torch64(2.0), {'w': torch64([0.0, -1.0, 1.0])}]),
    'strided': torch64([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).T[::2],
    'empty leaf': [torch.zeros(0, 3, dtype=torch.float64), torch64([1.0, 2.0])],
    'complex': [torch.tensor([1 + 2j, 3.0, -1j], dtype=torch.complex128)],
}


@every_solver
@pytest.mark.parametrize('name', TREES)
def test_coupled_trees(case: Case, name: str) -> None:
    b = TREES[name]
    dtype = torch.complex128 if name == 'complex' else torch.float64
    A = Coupled(b, dtype)
    x = case.solve(A, b)
    expected = A.unflat(torch.linalg.solve(A.matrix, flat(b)))
    assert tree.structure(x) == tree.structure(b)
    torch.testing.assert_close(flat(x), flat(expected), rtol=1e-9, atol=1e-9)
    assert [leaf.shape for leaf in tree.leaves(x)] == [leaf.shape for leaf in tree.leaves(b)]


@every_solver
def test_matrices_that_are_not_symmetric(case: Case) -> None:
    A = matrix(6) + torch.triu(vector(6, 6), 1)
    if case.positive or 'ns' in case.options:
        pytest.skip('needs a symmetric matrix')
    torch.testing.assert_close(case.solve(A.matmul, vector(6)), torch.linalg.solve(A, vector(6)), rtol=1e-9, atol=1e-9)


@every_solver
@pytest.mark.parametrize('ridge', [0.5, torch64(0.5)], ids=['number', 'tensor'])
def test_ridge(case: Case, ridge: Any) -> None:
    if case.name == 'solve_iterative_refinement':
        pytest.skip('JAXopt gives it no ridge')
    A, b = matrix(5), vector(5)
    if case.name == 'solve_normal_cg':
        expected = torch.linalg.solve(A @ A + 0.5 * torch.eye(5), A @ b)
    else:
        expected = torch.linalg.solve(A + 0.5 * torch.eye(5), b)
    torch.testing.assert_close(case.solve(A.matmul, b, ridge=ridge), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
@every_solver
def test_dtype_is_kept(case: Case, dtype: torch.dtype) -> None:
    options = {k: v for k, v in case.options.items() if k != 'tol'}
    if case.name == 'solve_iterative_refinement':
        options['tol'] = 1e-2
    A = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
    # Half precision has no products on every device; a diagonal plus a sum has.
    x = partial(getattr(linear_solve, case.name), **options)(
        lambda v: torch.stack([4 * v[0] + v[1], v[0] + 3 * v[1]]), torch.tensor([1.0, 2.0]).to(dtype)
    )
    assert x.dtype == dtype
    expected = torch.linalg.solve(A, torch.tensor([1.0, 2.0])).to(dtype)
    torch.testing.assert_close(x, expected, rtol=2e-2, atol=2e-2)


@every_solver
def test_zero_and_empty_right_hand_sides(case: Case) -> None:
    assert case.solve(lambda x: 2 * x, torch.zeros(3)).tolist() == [0, 0, 0]
    assert case.solve(lambda x: 2 * x, torch.zeros(0)).shape == (0,)
    assert case.solve(lambda x: x, {}) == {}


@every_solver
def test_each_system_of_a_batch(case: Case) -> None:
    generator = torch.Generator().manual_seed(0)
    As = torch.stack([matrix(4, seed) for seed in range(5)])
    bs = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    expected = torch.linalg.solve(As, bs)
    solve = lambda A, b: case.solve(A.matmul, b)  # noqa: E731
    torch.testing.assert_close(torch.vmap(solve)(As, bs), expected, rtol=1e-9, atol=1e-9)
    # one matrix for all, one right-hand side for all, batches in other dimensions, batches of batches
    shared = torch.linalg.solve(As[0], bs.mT).mT
    torch.testing.assert_close(torch.vmap(solve, (None, 0))(As[0], bs), shared, rtol=1e-9, atol=1e-9)
    many = torch.linalg.solve(As, bs[0])
    torch.testing.assert_close(torch.vmap(solve, (2, None))(As.movedim(0, 2), bs[0]), many, rtol=1e-9, atol=1e-9)
    nested = torch.vmap(torch.vmap(solve, (None, 0)), (0, None))(As, bs)
    torch.testing.assert_close(nested, torch.linalg.solve(As, bs.mT.expand(5, 4, 5)).mT, rtol=1e-9, atol=1e-9)


def test_a_batch_waits_for_its_hardest_system() -> None:
    As = torch.stack([torch.eye(30, dtype=torch.float64), matrix(30)])
    bs = torch.stack([vector(30), vector(30)])
    solve = lambda A, b: solve_cg(A.matmul, b, tol=1e-12, return_status=True)  # noqa: E731
    x, status = torch.vmap(solve)(As, bs)
    torch.testing.assert_close(x, torch.linalg.solve(As, bs), rtol=1e-10, atol=1e-10)
    assert status.converged.tolist() == [True, True]


@pytest.mark.parametrize('init', [None, 'zeros', 'solution'])
@pytest.mark.parametrize('name', ['solve_cg', 'solve_normal_cg', 'solve_bicgstab', 'solve_gmres'])
def test_init(name: str, init: str | None) -> None:
    A, b = matrix(8), vector(8)
    expected = torch.linalg.solve(A, b)
    start = {None: None, 'zeros': torch.zeros_like(b), 'solution': expected.clone()}[init]
    x, status = getattr(linear_solve, name)(A.matmul, b, init=start, tol=1e-10, return_status=True)
    torch.testing.assert_close(x, expected, rtol=1e-8, atol=1e-8)
    assert (int(status.iterations) == 0) == (init == 'solution')


@pytest.mark.parametrize('name', ['solve_cg', 'solve_bicgstab', 'solve_gmres'])
def test_a_preconditioner_saves_iterations(name: str) -> None:
    diagonal = torch.logspace(0, 4, 40, dtype=torch.float64)
    solve = partial(getattr(linear_solve, name), lambda x: diagonal * x, vector(40), tol=1e-9, return_status=True)
    x, status = solve(M=lambda r: r / diagonal)
    plain = solve()[1]
    torch.testing.assert_close(x, vector(40) / diagonal, rtol=1e-8, atol=1e-12)
    assert int(status.iterations) <= 2 < int(plain.iterations)


@pytest.mark.parametrize('reused', ['M', 'matvec'])
@pytest.mark.parametrize('name', ['solve_cg', 'solve_normal_cg', 'solve_bicgstab', 'solve_gmres'])
def test_functions_may_return_the_same_buffer_each_time(name: str, reused: str) -> None:
    A, b, buffer = matrix(30), vector(30), torch.empty(30, dtype=torch.float64)
    functions = {'matvec': A.matmul, 'M': lambda r: r / A.diagonal()}
    function = functions[reused]
    with_buffer = functions | {reused: lambda x: buffer.copy_(function(x))}
    solve = partial(getattr(linear_solve, name), b=b, tol=1e-10, return_status=True)
    expected, found = (solve(f['matvec'], M=f['M']) for f in (functions, with_buffer))
    torch.testing.assert_close(found, expected)


def test_least_squares() -> None:
    A, b = vector(7, 3), vector(7, seed=5)
    expected = torch.linalg.lstsq(A, b).solution
    x = solve_normal_cg(A.matmul, b, init=torch.zeros(3, dtype=torch.float64), tol=1e-13)
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)
    wide = solve_normal_cg(A.T.matmul, b[:3], init=torch.zeros(7, dtype=torch.float64), tol=1e-13)
    torch.testing.assert_close(wide, torch.linalg.pinv(A.T) @ b[:3], rtol=1e-9, atol=1e-9)
    with pytest.raises(TypeError, match='init'):
        solve_normal_cg(A.matmul, b)


JAX_OPTIONS = {'tol': 1e-12}


@pytest.mark.parametrize('ridge', [None, 0.3])
@pytest.mark.parametrize(
    'name', ['solve_cg', 'solve_normal_cg', 'solve_bicgstab', 'solve_gmres', 'solve_lu', 'solve_inv']
)
def test_as_jaxopt(name: str, ridge: float | None) -> None:
    A, b = matrix(6), vector(6)
    options = JAX_OPTIONS if name in ('solve_cg', 'solve_normal_cg', 'solve_bicgstab', 'solve_gmres') else {}
    theirs = getattr(jaxopt.linear_solve, name)(
        lambda x: jnp.asarray(A.numpy()) @ x, jnp.asarray(b.numpy()), ridge=ridge, **options
    )
    ours = getattr(linear_solve, name)(A.matmul, b, ridge=ridge, **options)
    torch.testing.assert_close(ours, torch.tensor(jax.device_get(theirs)), rtol=1e-8, atol=1e-8)


def test_iterations_as_counted_by_hand() -> None:
    # Conjugate gradients end after as many steps as there are different eigenvalues.
    diagonal = torch64([1.0, 1.0, 2.0, 2.0, 5.0, 5.0])
    x, status = solve_cg(lambda v: diagonal * v, torch.ones(6, dtype=torch.float64), tol=1e-12, return_status=True)
    torch.testing.assert_close(x, 1 / diagonal)
    assert (int(status.iterations), int(status.outcome)) == (3, Outcome.CONVERGED)
    assert float(status.residual) <= 1e-12 * 6**0.5


def test_gmres_ends_when_the_space_is_complete() -> None:
    # A projector plus the identity has two eigenvalues: two vectors span the solution.
    u = vector(9)
    u = u / u.norm()
    x, status = solve_gmres(lambda v: v + u * (u @ v), vector(9, seed=3), tol=1e-12, return_status=True)
    expected = vector(9, seed=3) - u * (u @ vector(9, seed=3)) / 2
    torch.testing.assert_close(x, expected)
    assert int(status.iterations) == 2


def test_neumann_series_is_the_sum_of_its_terms() -> None:
    A, b = torch.eye(3, dtype=torch.float64) + 0.1 * vector(3, 3), vector(3)
    N = torch.eye(3, dtype=torch.float64) - 0.9 * A
    expected = 0.9 * sum(torch.linalg.matrix_power(N, k) @ b for k in range(6))
    ours = linear_solve.solve_inv(A.matmul, b, ns=True, maxiter=5, alpha=0.9)
    torch.testing.assert_close(ours, expected)


def test_refinement_with_an_approximate_matrix() -> None:
    A, b = matrix(5), vector(5)
    rough = A + 0.05 * vector(5, 5)
    calls = []

    def solve(matvec: Any, r: torch.Tensor) -> torch.Tensor:
        calls.append(r)
        return torch.linalg.solve(torch.func.jacrev(matvec)(r), r)

    x = linear_solve.solve_iterative_refinement(A.matmul, b, matvec_A_bar=rough.matmul, solve=solve, maxiter=50)
    torch.testing.assert_close(x, torch.linalg.solve(A, b), rtol=1e-7, atol=1e-7)
    assert len(calls) > 2


@every_solver
def test_the_configured_form(case: Case) -> None:
    A, b = matrix(4), vector(4)
    configured = getattr(linear_solve, case.name)(**case.options)
    for solve in (configured, pickle.loads(pickle.dumps(configured)), copy.deepcopy(configured)):
        torch.testing.assert_close(solve(A.matmul, b), torch.linalg.solve(A, b), rtol=1e-9, atol=1e-9)


def test_other_leaves_pass_through() -> None:
    b = {'count': torch.tensor(3), 'name': 'x', 'w': torch64([2.0])}
    x = solve_cg(lambda v: {**v, 'w': 4 * v['w']}, b)
    assert (x['name'], int(x['count']), x['w'].tolist()) == ('x', 3, [0.5])


def test_arguments_are_not_changed() -> None:
    A, b, start = matrix(5), vector(5), vector(5, seed=9)
    copies = [t.clone() for t in (A, b, start)]
    for name in ('solve_cg', 'solve_normal_cg', 'solve_bicgstab', 'solve_gmres'):
        getattr(linear_solve, name)(A.matmul, b, init=start)
    for before, after in zip(copies, (A, b, start)):
        assert torch.equal(before, after)
