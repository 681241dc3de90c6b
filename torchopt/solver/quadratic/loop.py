# SPDX-License-Identifier: Apache-2.0
"""Many box-constrained quadratic programs at once, each to its own end.

To torch a run is one operator: ``torch.vmap`` makes of many runs one, whose problems leave the batch as they end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt.levels import runs_directly
from torchopt.solver.quadratic import admm
from torchopt.solver.quadratic.admm import Iterate, Settings
from torchopt.solver.quadratic.interior import interior_point
from torchopt.solver.quadratic.kkt import clip
from torchopt.solver.quadratic.polish import polish
from torchopt.solver.quadratic.scaling import BoxQP, Scaled, equilibrate, product
from torchopt.solver.status import Status


class Ended(NamedTuple):
    """How a run ended: the variables, the number of steps, the status, the error, and the weight of the constraints."""

    x: Tensor
    z: Tensor
    y: Tensor
    iter_num: Tensor
    status: Tensor
    error: Tensor
    rho_bar: Tensor


def solve(qp: BoxQP, start: tuple[Tensor, Tensor], settings: Settings) -> Ended:
    """Solve problems, from the variables and multipliers ``start``."""
    return Ended(*_solve(*qp, *start, [float(v) for v in settings]))


def check(qp: BoxQP) -> None:
    """Require bounds in order, numbers, and a convex objective, as far as they can be read.

    In a batch, problems with values that are not finite end with their status.

    Raises:
        ValueError: If they are not.
    """
    if not runs_directly():
        return
    batch = qp.c.ndim - 1
    finite = torch.ones(qp.c.shape[:batch], dtype=torch.bool, device=qp.c.device)
    for name, value in (('params_obj', qp.Q), ('params_obj', qp.c), ('params_eq', qp.A)):
        known = value.isfinite().flatten(batch).all(-1)
        if not batch and not bool(known):
            raise ValueError(f'{name} has values that are NaN or infinite; expected finite numbers.')
        finite = finite & known
    crossing = (qp.l > qp.u) if batch else ~(qp.l <= qp.u)
    if bool(crossing.any()):
        place = crossing.nonzero()[0].tolist()
        i = tuple(place)
        raise ValueError(
            f'params_ineq: the bounds cross, or one is NaN: l = {qp.l[i].item():g}, u = {qp.u[i].item():g} at {place}. '
            f'Expected l <= u.'
        )
    if bool((qp.l.isposinf() | qp.u.isneginf()).any()):
        raise ValueError(
            'params_ineq: a lower bound is inf, or an upper bound is -inf. No point satisfies it. Exchange l and u, or '
            'their signs.'
        )
    Q = torch.where(finite[..., None, None], qp.Q, 0.0)
    size = Q.abs().amax((-2, -1))
    slack = torch.finfo(Q.dtype).eps ** 0.5 * size
    _, failed = torch.linalg.cholesky_ex(Q + torch.diag_embed((slack + (size == 0)).unsqueeze(-1).expand_as(qp.c)))
    if bool((failed > 0).any()):
        i = tuple((failed > 0).nonzero()[0].tolist()) if failed.ndim else ()
        lowest = torch.linalg.eigvalsh(qp.Q[i]).amin().item()
        raise ValueError(
            f'params_obj: Q has a negative eigenvalue, {lowest:g}{f" in problem {list(i)}" if i else ""}. The problem '
            f'is not convex, and may have no solution or several. Pass a positive semidefinite Q.'
        )


@torch.library.custom_op(
    'torchopt::box_qp',
    mutates_args=(),
    schema='(Tensor Q, Tensor c, Tensor A, Tensor l, Tensor u, Tensor x, Tensor y, float[] settings) '
    '-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)',
)
def _solve(
    Q: Tensor, c: Tensor, A: Tensor, l: Tensor, u: Tensor, x: Tensor, y: Tensor, settings: list[float]
) -> tuple[Tensor, ...]:
    check(BoxQP(Q, c, A, l, u))
    batch = c.shape[:-1]
    flat = [v.reshape((-1, *v.shape[len(batch) :])) for v in (Q, c, A, l, u, x, y)]
    options = Settings(*(type_(v) for type_, v in zip(_TYPES, settings)))
    with torch.no_grad():
        found = _run(BoxQP(*flat[:5]), flat[5], flat[6], options)
    return tuple(v.reshape((*batch, *v.shape[1:])).clone() for v in found)


_TYPES: list[Any] = [float] * 8 + [int] * 3 + [bool]


@_solve.register_fake
def _(
    Q: Tensor, c: Tensor, A: Tensor, l: Tensor, u: Tensor, x: Tensor, y: Tensor, settings: list[float]
) -> tuple[Tensor, ...]:
    one = c.new_empty(c.shape[:-1])
    count = one.to(torch.int64)
    return torch.empty_like(x), torch.empty_like(l), torch.empty_like(y), count, count.clone(), one, one.clone()


@_solve.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    *tensors, settings = args
    size = info.batch_size
    moved = [v.expand(size, *v.shape) if d is None else v.movedim(d, 0) for v, d in zip(tensors, in_dims)]
    return _solve(*moved, settings), (0,) * 7


def _run(qp: BoxQP, x: Tensor, y: Tensor, settings: Settings) -> Ended:
    size, device = len(x), x.device
    scaled = equilibrate(qp)
    z = clip(product(qp.A, x), qp.l, qp.u)
    now = Iterate(*scaled.scaled(x, z, y))
    rho_bar = torch.full((size,), settings.rho_start, dtype=x.dtype, device=device)
    factor = admm.factorize(scaled.qp, rho_bar, settings)
    alive = torch.arange(size, device=device)
    end = Ended(
        x.clone(),
        z,
        y.clone(),
        torch.full((size,), settings.maxiter, device=device),
        torch.zeros(size, dtype=torch.int64, device=device),
        torch.full_like(rho_bar, torch.inf),
        rho_bar.clone(),
    )
    next_polish, attempts = 2 * settings.check_every, 0
    earlier, next_mark = now, 2 * settings.check_every
    for count in range(1, settings.maxiter + 1):
        last, now = now, admm.step(scaled.qp, factor, now, settings)
        checks = count % settings.check_every == 0 or count == settings.maxiter
        if checks:
            error = qp.error(*scaled.original(*now))
            status = torch.where(error <= settings.tol, int(Status.CONVERGED), int(Status.RUNNING))
            status = torch.where(error.isfinite(), status, int(Status.NONFINITE))
            if count >= next_polish or count == settings.maxiter or bool((status == Status.CONVERGED).any()):
                if count >= next_polish:
                    next_polish = 2 * count
                attempts += 1
                now, error, status = _polished(scaled, qp, now, factor, error, status, settings, False)
                is_late = attempts == _PATIENCE or (count == settings.maxiter and attempts < _PATIENCE)
                if is_late and bool((status == Status.RUNNING).any()):
                    now, error, status = _polished(scaled, qp, now, factor, error, status, settings, True)
            if settings.check_infeasible:
                x, _, y = scaled.original(*now)
                # The change in one step, and that since long ago, which rounding blurs less.
                for before in (last, earlier):
                    dx, _, dy = scaled.original(*(a - b for a, b in zip(now, before)))
                    status = admm.with_certificates(qp, (x, y), (dx, dy), status, settings)
                if count >= next_mark:
                    earlier, next_mark = now, 2 * count
            done = status != Status.RUNNING
            if count == settings.maxiter:
                done = torch.ones_like(done)
            if bool(done.any()):
                x, z, y = scaled.original(*now)
                z = clip(z, qp.l, qp.u)  # in spite of rounding
                for into, value in zip(end[:3], (x, z, y)):
                    into[alive[done]] = value[done]
                end.iter_num[alive[done]] = count
                end.status[alive[done]] = status[done]
                end.error[alive[done]] = error[done]
                end.rho_bar[alive[done]] = rho_bar[done]
                if bool(done.all()):
                    break
                keep = ~done
                alive, rho_bar = alive[keep], rho_bar[keep]
                qp = BoxQP(*(v[keep] for v in qp))
                now, earlier = (Iterate(*(v[keep] for v in z)) for z in (now, earlier))
                scaled = scaled.part(keep)
                factor = admm.Factor(*(v[keep] for v in factor))
        if count % settings.rho_every == 0:
            better = admm.better_rho(scaled.qp, now, rho_bar, settings)
            ratio = better / rho_bar
            changed = (ratio > _ENOUGH) | (ratio < 1.0 / _ENOUGH)
            if bool(changed.any()):
                rho_bar = torch.where(changed, better, rho_bar)
                if bool(changed.all()):
                    factor = admm.factorize(scaled.qp, rho_bar, settings)
                else:
                    part = admm.factorize(BoxQP(*(v[changed] for v in scaled.qp)), rho_bar[changed], settings)
                    factor = admm.Factor(*(v.index_put((changed,), w) for v, w in zip(factor, part)))
    return end


_ROUNDS = 10
"""How many steps of Newton's method are tried at a time."""
_PATIENCE = 4
"""After how many attempts to finish an interior-point method is tried, once."""
_ENOUGH = 5.0
"""By which factor a weight must improve, so that the matrix is factored again."""


def _polished(
    scaled: Scaled,
    qp: BoxQP,
    now: Iterate,
    factor: admm.Factor,
    error: Tensor,
    status: Tensor,
    settings: Settings,
    interior: bool,
) -> tuple[Iterate, Tensor, Tensor]:
    """Points finished by Newton's method, from there or from where an interior-point method ends."""
    point = interior_point(scaled, qp, now, settings.tol) if interior else now
    better, polished_error = polish(scaled, qp, point, factor.rho, settings.tol, _ROUNDS)
    converged = polished_error <= settings.tol
    status = torch.where(converged, int(Status.CONVERGED), status)
    now = Iterate(*(torch.where(converged.unsqueeze(-1), a, b) for a, b in zip(better, now)))
    return now, torch.where(converged, polished_error, error), status
