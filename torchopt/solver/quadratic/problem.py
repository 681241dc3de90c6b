# SPDX-License-Identifier: Apache-2.0
"""The data of quadratic programs, as users give them: trees, functions and matrices, made matrices and vectors.

Everything here is differentiable, so that derivatives of a solution in the matrices reach what the matrices came from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchopt import tree
from torchopt.autodiff.grad import grad
from torchopt.dtypes import is_inexact, wide_dtype
from torchopt.kinds import kind_of
from torchopt.solver.objective import Vectors
from torchopt.solver.quadratic.kkt import clip, inequality_residual
from torchopt.solver.quadratic.scaling import product
from torchopt.solver.run import KKTSolution, absent

Matvec = Callable[[Any, Any], Any]


def check_objective(fun: Any, matvec_Q: Any) -> None:
    """Require that at most one of two functions is given, which both define the objective."""
    if fun is not None and matvec_Q is not None:
        raise ValueError('fun and matvec_Q both define the objective. Pass one of them.')


def objective_of(
    params_obj: Any, matvec_Q: Matvec | None, fun: Matvec | None, init_x: Any = None
) -> tuple[Tensor, Tensor, Vectors]:
    """The matrix and the vector of an objective, and the structure of its variables.

    ``params_obj`` is ``(Q, c)``; ``(params_Q, c)`` with ``matvec_Q(params_Q, x)``; or with ``fun`` the data of the
    quadratic function ``fun(x, params_obj)``, which needs ``init_x``, a tree like the variables.
    """
    if fun is not None:
        if init_x is None:
            raise ValueError('init_params is None; with fun it gives the structure of the variables. Pass a start.')
        _check_floating(init_x, 'init_params')
        x = Vectors(init_x)
        gradient = grad(fun)
        c = x.pack(gradient(tree.zeros_like(init_x), params_obj), 'the gradient of fun')
        Q = _matrix(lambda v: x.pack(gradient(v, params_obj), 'the gradient of fun') - c, x, c.dtype)
    else:
        if not isinstance(params_obj, (tuple, list)) or len(params_obj) != 2:
            raise ValueError(f'params_obj is {kind_of(params_obj)}; expected a pair (Q, c).')
        given, linear = params_obj
        _check_floating(linear, 'params_obj[1]')
        x = Vectors(linear, 'c')
        c = x.pack(linear)
        if matvec_Q is not None:
            Q = _matrix(lambda v: x.pack(matvec_Q(given, v), 'the result of matvec_Q'), x, c.dtype)
        else:
            Q, rows = _blocks(given, x, 'params_obj[0]', 'params_obj[1]')
            if rows != [len(part) for part in x.likes]:
                raise ValueError(f'params_obj[0] has blocks of {rows} rows; Q must be square. Check its shape.')
    return 0.5 * (Q + Q.mT), c, x


def constraints_of(params: Any, matvec: Matvec | None, x: Vectors, name: str) -> tuple[Tensor, Vectors]:
    """The matrix of a linear function of the variables, and the structure of its values.

    ``params`` is a matrix, a tree of matrices like the variables, the data of ``matvec(params, x)``, or None for the
    identity; ``name`` is its name in error messages.
    """
    dtype = wide_dtype(x.dtype)
    if matvec is not None:
        zeros = torch.zeros(x.layout.size, dtype=x.dtype, device=x.likes[0].device)
        z = Vectors(matvec(params, x.unpack(zeros)), 'the product A x')
        return _matrix(lambda v: z.pack(matvec(params, v), 'the result of matvec'), x, dtype), z
    if params is None:
        return torch.eye(x.layout.size, dtype=dtype, device=x.likes[0].device), x
    A, rows = _blocks(params, x, name, 'the variables')
    values = [part.new_empty(count) for part, count in zip(x.likes, rows)]
    return A, Vectors(tree.unflatten(x.spec, values), 'the product A x')


def box_of(params_ineq: Any, z: Vectors) -> tuple[Tensor, Tensor]:
    """The bounds of the values of constraints, as vectors; None stands for no bound."""
    if params_ineq is None:
        params_ineq = (None, None)
    if not isinstance(params_ineq, (tuple, list)) or len(params_ineq) != 2:
        raise ValueError(f'params_ineq is {kind_of(params_ineq)}; expected a pair of bounds (l, u).')
    sides = []
    for i, (bound, missing) in enumerate(zip(params_ineq, (-torch.inf, torch.inf))):
        sides.append(_spread(missing if bound is None else bound, z, f'params_ineq[{i}]'))
    return sides[0], sides[1]


def _pair_of(params: Any, name: str) -> tuple[Any, Any]:
    """Constraints as a pair, a matrix and a right-hand side."""
    if not isinstance(params, (tuple, list)) or len(params) != 2:
        raise ValueError(f'{name} is {kind_of(params)}; expected a pair, a matrix and a vector.')
    return params[0], params[1]


def common_dtype(*tensors: Tensor) -> list[Tensor]:
    """The same tensors, in the dtype to which they promote, and at least in single precision."""
    dtype = tensors[0].dtype
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return [x.to(wide_dtype(dtype)) for x in tensors]


def _matrix(linear: Callable[[Any], Tensor], x: Vectors, dtype: torch.dtype) -> Tensor:
    """The matrix of a linear function of trees, from its values at the unit vectors."""
    unit = torch.eye(x.layout.size, dtype=x.dtype, device=x.likes[0].device)
    return torch.vmap(lambda e: linear(x.unpack(e)))(unit).mT.to(dtype)


def _blocks(given: Any, x: Vectors, name: str, like: str) -> tuple[Tensor, list[int]]:
    """The block-diagonal matrix of a tree of matrices, one for each leaf, and the number of rows of each."""
    _check_floating(given, name)
    blocks = [
        tree_leaf for tree_leaf in tree.flatten_up_to(x.spec, given, name=name, like=like) if tree_leaf is not None
    ]
    for block, part in zip(blocks, x.likes):
        if part.ndim != 1:
            raise ValueError(f'{like} holds a tensor of shape {tuple(part.shape)}; with matrices expected vectors.')
        if block.ndim != 2 or block.shape[1] != len(part):
            raise ValueError(
                f'{name} has shape {tuple(block.shape)}; expected [m, {len(part)}]: {like} has {len(part)} elements.'
            )
    if len(blocks) == 1:
        return blocks[0], [len(blocks[0])]
    total, before, rows = x.layout.size, 0, []
    for block in blocks:
        rows.append(torch.nn.functional.pad(block, (before, total - before - block.shape[1])))
        before += block.shape[1]
    return torch.cat(rows), [len(block) for block in blocks]


def _spread(bound: Any, z: Vectors, name: str) -> Tensor:
    """A bound as a vector: a number, or a tree that equals the values of the constraints or their top."""
    like = tree.unflatten(z.spec, z.leaves)
    bounds = tree.flatten(tree.broadcast_prefix(bound, like, name=name, like='the constraints'))[0]
    pieces = []
    for part, value in zip(z.likes, bounds):
        value = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else part.dtype, device=part.device)
        _check_floating(value, name)
        if value.ndim and value.shape != part.shape:
            raise ValueError(
                f'{name} has shape {tuple(value.shape)}; expected {tuple(part.shape)}, one number for each row.'
            )
        pieces.append(value.expand(part.shape).reshape(-1))
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def _check_floating(given: Any, name: str) -> None:
    for x in tree.leaves(given):
        if not isinstance(x, Tensor):
            raise TypeError(f'{name} holds {kind_of(x)}; expected tensors.')
        if not is_inexact(x) or x.is_complex():
            raise TypeError(f'{name} has dtype {x.dtype}; expected a real floating dtype. Convert it with `.float()`.')


class OneSided:
    """A problem with equations and inequalities, as matrices, with the structures of its variables.

    Attributes:
        rows: The matrices of all constraints.
        bounds: Their bounds.
        data: Those of the tensors Q, c, A, b, G and h that the problem has, by name.
        duals: The right-hand sides and the structures of equations and inequalities; None where there are none.
    """

    def __init__(self, Q: Tensor, c: Tensor, x: Vectors, rows: list[Tensor | None], duals: list[Any]) -> None:
        self.Q, self.c, self.x, self.parts, self.duals = Q, c, x, rows, duals
        self.sizes = [0 if b is None else len(b) for b, _ in duals]
        named = {'Q': Q, 'c': c, 'A': rows[0], 'b': duals[0][0], 'G': rows[1], 'h': duals[1][0]}
        self.data = {name: value for name, value in named.items() if value is not None}
        self.rows = torch.cat([A for A in rows if A is not None] or [Q[:0]])
        (b, _), (h, _) = duals
        upper = torch.cat([v for v in (b, h) if v is not None] or [c[:0]])
        lower = [v for v in (b, None if h is None else torch.full_like(h, -torch.inf)) if v is not None]
        self.bounds = torch.cat(lower or [c[:0]]), upper

    @classmethod
    def of(cls, objective: tuple[Tensor, Tensor, Vectors], equations: Any, inequalities: Any) -> OneSided:
        """The problem of an objective and of two pairs of data and function."""
        Q, c, x = objective
        rows: list[Tensor | None] = []
        duals: list[Any] = []
        for (params, matvec), name in ((equations, 'params_eq'), (inequalities, 'params_ineq')):
            if params is None:
                rows.append(None)
                duals.append((None, None))
                continue
            given, right = _pair_of(params, name)
            if given is None and matvec is None:
                raise ValueError(f'{name}[0] is None; expected a matrix.')
            A, z = constraints_of(given, matvec, x, f'{name}[0]')
            rows.append(A)
            duals.append((_spread(right, z, f'{name}[1]'), z))
        tensors = [v for v in (Q, c, *rows, *(b for b, _ in duals)) if v is not None]
        found = iter(common_dtype(*tensors))
        Q, c = next(found), next(found)
        rows = [None if A is None else next(found) for A in rows]
        return cls(Q, c, x, rows, [(None if b is None else next(found), z) for b, z in duals])

    def pack(self, duals: tuple[Any, Any]) -> list[Tensor | None]:
        """The multipliers as vectors."""
        names = ('dual_eq', 'dual_ineq')
        return [
            None if z is None else z.pack(given, f'init_params.{name}').to(self.c.dtype)
            for given, (_, z), name in zip(duals, self.duals, names)
        ]

    def start(self, params: KKTSolution) -> KKTSolution:
        """Where the run with two-sided constraints starts."""
        x = self.x.pack(params.primal, 'init_params.primal').to(self.c.dtype)
        y = torch.cat([v for v in self.pack((params.dual_eq, params.dual_ineq)) if v is not None])
        z = clip(product(self.rows, x), self.bounds[0], self.bounds[1])
        return KKTSolution((x, z), y, (torch.relu(y), torch.relu(-y)))

    def solution(self, found: KKTSolution) -> KKTSolution:
        """The solution as trees."""
        y = torch.split(found.dual_eq, self.sizes)
        dual_eq, dual_ineq = (absent() if z is None else z.unpack(v) for v, (_, z) in zip(y, self.duals))
        return KKTSolution(self.x.unpack(found.primal[0]), dual_eq, dual_ineq)

    def residual(self, params: KKTSolution) -> KKTSolution:
        """The residuals of the optimality conditions."""
        x = self.x.pack(params.primal, 'params.primal').to(self.c.dtype)
        y, multipliers = self.pack((params.dual_eq, params.dual_ineq))
        stationarity, *parts = one_sided_residual(x, y, multipliers, **self.data)
        duals = (None if part is None else z.unpack(part) for part, (_, z) in zip(parts, self.duals))
        return KKTSolution(self.x.unpack(stationarity), *duals)


def one_sided_residual(
    x: Tensor,
    y: Any,
    multipliers: Any,
    Q: Tensor,
    c: Tensor,
    A: Tensor | None = None,
    b: Any = None,
    G: Tensor | None = None,
    h: Any = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Zero at the solution and the multipliers of equations and inequalities; None for those that there are not."""
    stationarity = product(Q, x) + c
    of_equations = of_inequalities = None
    if A is not None:
        stationarity = stationarity + product(A.mT, y)
        of_equations = product(A, x) - b
    if G is not None:
        stationarity = stationarity + product(G.mT, multipliers)
        of_inequalities = inequality_residual(product(G, x) - h, multipliers)
    return stationarity, of_equations, of_inequalities
