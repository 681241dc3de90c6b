# SPDX-License-Identifier: Apache-2.0
"""L-BFGS: a quasi-Newton method that approximates the inverse Hessian from the last few steps."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import elementwise, tree
from torchopt.base import GradientTransformation, factory
from torchopt.elementwise.leaves import as_constant
from torchopt.elementwise.moments import check_writable
from torchopt.numerics import advance, as_python_scalar, as_scalar_like, in_transform, real_dtype, zero_count
from torchopt.preconditions import params_for, state_of

__all__ = ['ScaleByLBFGSState', 'scale_by_lbfgs']


@tree.safe_to_load
class ScaleByLBFGSState(NamedTuple):
    """State of :func:`scale_by_lbfgs`, whose memories are rings.

    Attributes:
        count: The steps taken.
        params: The parameters at the last step.
        updates: The gradients at the last step.
        diff_params_memory: The last differences of parameters, stacked in a new first dimension of each leaf.
        diff_updates_memory: The last differences of gradients, likewise.
        weights_memory: Their weights, one over the inner product of each pair of differences, in double precision;
            zero for a pair that was skipped.
    """

    count: Any
    params: Any
    updates: Any
    diff_params_memory: Any
    diff_updates_memory: Any
    weights_memory: Any


@factory
def scale_by_lbfgs(memory_size: int = 10, scale_init_precond: bool = True) -> GradientTransformation:
    r"""Multiply gradients by an approximation of the inverse Hessian, made from the last :math:`m` steps.

    With the differences of parameters :math:`s_j = w_{j+1} - w_j` and of gradients :math:`y_j = g_{j+1} - g_j`, and
    their weights :math:`\rho_j = 1 / \langle y_j, s_j \rangle`, the approximation :math:`H_k` is the last of

    .. math::
        H_k^{(0)} = \gamma_k I, \qquad
        H_k^{(i+1)} = (I - \rho_j s_j y_j^\mathsf{T})\, H_k^{(i)}\, (I - \rho_j y_j s_j^\mathsf{T})
        + \rho_j s_j s_j^\mathsf{T}, \qquad j = k - m + i,

    where :math:`\gamma_k = \langle s_{k-1}, y_{k-1} \rangle / \lVert y_{k-1} \rVert^2`, and
    :math:`\gamma_0 = \min(1, 1 / \lVert g_0 \rVert)`, so that the first step is at most 1 long; derivatives
    take it for a constant, as in Optax.  The product
    :math:`H_k g_k` takes :math:`4 m` vector operations, and no matrix is made.

    A pair without positive curvature, :math:`\langle y_j, s_j \rangle \le \epsilon \lVert y_j \rVert
    \lVert s_j \rVert` with the machine precision :math:`\epsilon`, would make :math:`H_k` indefinite.  It is skipped:
    zeros with the weight zero take its place, and :math:`\gamma_k = 1`.  So :math:`H_k` is positive definite; where
    rounding prevents this, the updates are :math:`\gamma_k g_k`.  Internal scaling makes the
    magnitude of parameters and gradients irrelevant.

    The updates are :math:`H_k g_k`: negate them for a descent direction, and use a line search for the step size,
    as :func:`torchopt.lbfgs` does.  For complex parameters all inner products are their real parts.

    Args:
        memory_size: :math:`m`, at least 1.
        scale_init_precond: Whether to start from :math:`\gamma_k I`; otherwise from :math:`I`.

    Returns:
        A transformation whose ``update`` needs ``params``.  A parameter without a gradient has no part in the pair of
        that step.

    Raises:
        ValueError: If ``memory_size`` is less than 1; in ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.chain(torchopt.transform.scale_by_lbfgs(), torchopt.transform.scale(-1.0))
        >>> p = torch.tensor(4.0)
        >>> state = tx.init(p)
        >>> for _ in range(2):
        ...     updates, state = tx.update(3 * p, state, p)
        ...     p = p + updates
        >>> p  # of a parabola the second step knows the Hessian
        tensor(0.)

    References:
        Liu and Nocedal, `On the limited memory BFGS method for large scale optimization
        <https://doi.org/10.1007/BF01589116>`_, 1989.  Nocedal and Wright, `Numerical optimization
        <https://doi.org/10.1007/978-0-387-40065-5>`_, algorithm 7.4, 2006.
    """
    if isinstance(memory_size, bool) or not isinstance(memory_size, int) or memory_size < 1:
        raise ValueError(f'Invalid memory_size: {memory_size!r}; expected an int >= 1.')

    def init(params: Any) -> ScaleByLBFGSState:
        last_p, last_g = elementwise.zero_moment(params), elementwise.zero_moment(params)
        s, y = (tree.map(lambda x: x.new_zeros((memory_size, *x.shape)), last_p) for _ in range(2))
        device = next((x.device for x in tree.leaves(last_p)), None)
        weights = torch.zeros(memory_size, dtype=torch.float64, device=device)
        return ScaleByLBFGSState(zero_count(), last_p, last_g, s, y, weights)

    def update(
        updates: Any, state: ScaleByLBFGSState, params: Any = None, *, inplace: bool = False
    ) -> tuple[Any, ScaleByLBFGSState]:
        elementwise.check_inexact(updates, name='updates')
        elementwise.check_updates(updates, params)
        inplace = inplace and not in_transform() and not torch.compiler.is_compiling()
        if inplace:
            check_writable([*tree.leaves(state), *tree.leaves(updates)])
        with torch.set_grad_enabled(torch.is_grad_enabled() and not inplace):
            return _step(updates, state, params, memory_size, scale_init_precond, inplace)

    return GradientTransformation.requiring(init, update, state_of(ScaleByLBFGSState), params_for('L-BFGS'))


def _step(
    updates: Any, state: ScaleByLBFGSState, params: Any, size: int, scaled: bool, inplace: bool
) -> tuple[Any, ScaleByLBFGSState]:
    gradients, spec = tree.flatten(updates)
    columns = [tree.flatten_up_to(spec, x, name='state', like='updates') for x in state[1:5]]
    moved = [i for i, g in enumerate(gradients) if g is not None]
    given = tree.flatten_up_to(spec, params, name='params', like='updates')
    g = [gradients[i] for i in moved]
    p = [as_constant(given[i], gradients[i]) for i in moved]
    last_p, last_g, old_s, old_y = ([column[i] for i in moved] for column in columns)

    # The pair of the last step.  A leaf that has not been seen before has no part in it.
    pairs = [_difference(*leaf) for leaf in zip(p, last_p, g, last_g)]
    s, y, product, square = _with_curvature([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    curved = product > 0
    product, square = (torch.where(curved, x, 1.0).to(state.weights_memory) for x in (product, square))
    weight = torch.where(curved, 1.0 / product, 0.0)

    # Where it is stored, and the order from the oldest pair to this one.
    known = as_python_scalar(state.count)
    place: Any = (state.count - 1) % size if known is None else (int(known) - 1) % size
    write = _Ring(place, size, inplace)
    s_memory, y_memory = list(map(write, old_s, s)), list(map(write, old_y, y))
    for i, column in ((i, column) for column in columns[2:] for i, x in enumerate(gradients) if x is None):
        if column[i] is not None:
            column[i] = write(column[i], torch.zeros_like(column[i][0]))
    weights = write(state.weights_memory, weight)
    order = write.rows(None if known is None else int(known))

    # Divided by its largest element, which comes back in the end: H is linear, and no product over- or underflows.
    size_of_g = tree.norm(g, ord=math.inf).detach().to(state.weights_memory)
    size_of_g = torch.where(size_of_g > 0, size_of_g, 1.0)
    unit = [x / as_scalar_like(size_of_g, x) for x in map(_flat, g)]
    gamma: Any = 1.0
    if scaled:
        gamma = product / square
        if known is None or known == 0:
            norm = _product(unit, unit).detach().sqrt() * size_of_g
            begin = torch.where(norm > 1.0, 1.0 / torch.where(norm > 1.0, norm, 1.0), 1.0)
            gamma = begin if known == 0 else torch.where((state.count > 0).to(begin.device), gamma, begin)
    rows = [_rows([x.reshape(size, x[0].numel()) for x in memory], order) for memory in (s_memory, y_memory)]
    multiplied = _multiply(unit, list(zip(*rows, _rows([weights], order))), gamma)
    direction = _descending(unit, multiplied, g, gamma * size_of_g)

    count, _ = advance(state.count)
    keep = _lay_into if inplace else _copy
    for column, new in zip(columns, (map(keep, last_p, p), map(keep, last_g, g), s_memory, y_memory)):
        for i, x in zip(moved, new):
            column[i] = x
    for i, x in zip(moved, direction):
        gradients[i] = x
    new_p, new_g, new_s, new_y = (tree.unflatten(spec, column) for column in columns)
    return tree.unflatten(spec, gradients), ScaleByLBFGSState(count, new_p, new_g, new_s, new_y, weights)


def _difference(p: Tensor, last_p: Tensor, g: Tensor, last_g: Tensor) -> tuple[Tensor, Tensor]:
    """How far a leaf and its gradient have gone since the last step; zero if there was none.

    There was none if all that is remembered is zero.
    """
    seen = (last_p != 0).any() | (last_g != 0).any()
    return torch.where(seen, p - last_p, 0.0), torch.where(seen, g - last_g, 0.0)


def _with_curvature(s: list[Tensor], y: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """A pair, its inner product and the square of ``y`` in double precision; all are zero without curvature.

    Differences so small that they have lost their digits, or that derivatives of ``1 / product`` overflow, have none.
    """
    wide = [[_flat(x).to(torch.complex128 if x.is_complex() else torch.float64) for x in xs] for xs in (s, y)]
    product, ss, yy = _product(*wide), _product(wide[0], wide[0]), _product(wide[1], wide[1])
    kinds = [torch.finfo(_flat(x).dtype) for x in s]
    eps, least = max([0.0, *[kind.eps for kind in kinds]]), max([_TINY**0.25, *[kind.tiny for kind in kinds]])
    s_norm, y_norm = ss.detach().sqrt(), yy.detach().sqrt()
    curved = (product > eps * s_norm * y_norm) & (product > _TINY**0.5)
    for norm in (s_norm, y_norm):
        curved = curved & (norm > least) & (norm < 1.0 / least)
    s, y = ([torch.where(curved.to(x.device), x, 0.0) for x in xs] for xs in (s, y))
    return s, y, torch.where(curved, product, 0.0), torch.where(curved, yy, 0.0)


class _Ring:
    """Memories of the last few pairs: where the new one goes, and in what order they were made."""

    def __init__(self, place: Any, size: int, inplace: bool) -> None:
        self.place, self.size, self.inplace = place, size, inplace

    def __call__(self, memory: Tensor, row: Tensor) -> Tensor:
        """The memory with a new row; of a memory that rests, the old one."""
        row = row.to(memory.dtype)
        if isinstance(self.place, Tensor):
            here = (torch.arange(self.size, device=memory.device) == self.place.to(memory.device)).view(
                -1, *[1] * row.dim()
            )
            return torch.where(here, row, memory)
        if self.inplace:
            memory[self.place].copy_(row)
            return memory
        return torch.select_scatter(memory, row, 0, self.place)

    def rows(self, count: int | None) -> list[Any]:
        """The places of the pairs, the oldest first; where it is known, only of those that have been stored."""
        if count is None:
            return [(self.place + 1 + i) % self.size for i in range(self.size)]
        return [(self.place + 1 + i) % self.size for i in range(max(0, self.size - count), self.size)]


def _rows(memories: list[Tensor], order: list[Any]) -> list[list[Tensor]]:
    """The rows of some memories in an order, those of one place side by side."""
    if any(isinstance(place, Tensor) for place in order):
        columns = [[x.index_select(0, k.to(x.device).reshape(1)).squeeze(0) for k in order] for x in memories]
    else:
        every = [x.unbind() for x in memories]
        columns = [[rows[k] for k in order] for rows in every]
    return [list(row) for row in zip(*columns)] if memories else [[] for _ in order]


def _multiply(
    g: list[Tensor], pairs: list[tuple[list[Tensor], list[Tensor], list[Tensor]]], gamma: Any
) -> list[Tensor]:
    r"""The product of the inverse Hessian with a vector, divided by :math:`\gamma`.

    Applied to :math:`q`, one step of the recursion above is

    .. math::
        \alpha = \rho \langle s, q \rangle, \qquad q' = q - \alpha y, \qquad r' = H q', \qquad
        \beta = \rho \langle y, r' \rangle, \qquad r = r' + (\alpha - \beta) s,

    so that all :math:`q` are found from the newest pair to the oldest, and then all :math:`r` on the way back.
    """
    alphas = []
    for s, y, (weight,) in reversed(pairs):
        alpha = weight * _product(s, g)
        g = [_add(q, alpha, x, -1) for q, x in zip(g, y)]
        alphas.append(alpha)
    if alphas:
        alphas = list((torch.stack(alphas) / gamma).unbind())
    for (s, y, (weight,)), alpha in zip(pairs, reversed(alphas)):
        scalar = alpha - weight * _product(y, g)
        g = [_add(r, scalar, x, 1) for r, x in zip(g, s)]
    return g


def _descending(unit: list[Tensor], r: list[Tensor], g: list[Tensor], factor: Any) -> list[Tensor]:
    """The direction, in the dtypes of the gradients; along the gradient where rounding has left no descent."""
    r_norm, norm = (_product(x, x).detach().sqrt() for x in (r, unit))
    eps = max([0.0, *[torch.finfo(x.dtype).eps for x in unit]])
    descends = (_product(unit, r) > eps * r_norm * norm) | (norm == 0)
    # What is longer than the dtype reaches is as long as that.
    longest = min([math.inf, *[torch.finfo(x.dtype).max for x in g]])
    factor = torch.minimum(factor, longest / torch.where(descends, r_norm, norm).to(factor))
    return [
        (torch.where(descends.to(x.device), x, u) * as_scalar_like(factor, x)).to(old.dtype).view(old.shape)
        for x, u, old in zip(r, unit, g)
    ]


_FUSED = (torch.float32, torch.float64)
_TINY = torch.finfo(torch.float64).tiny


def _flat(x: Tensor) -> Tensor:
    """The elements in a row, in single precision or more."""
    x = x.reshape(-1)
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _product(x: list[Tensor], y: list[Tensor]) -> Tensor:
    """The real inner product of vectors of which each is in parts; it is what a step mostly consists of."""
    products = [
        torch.dot(a, b) if a.dtype is b.dtype and a.dtype in _FUSED else (a.conj() * b).sum().real for a, b in zip(x, y)
    ]
    return sum((part.to(products[0].device) for part in products[1:]), products[0]) if products else torch.zeros(())


def _add(x: Tensor, scalar: Tensor, y: Tensor, sign: int) -> Tensor:
    scalar = scalar.to(x.device, real_dtype(x.dtype))
    if x.dtype in _FUSED:
        return torch.addcmul(x, y.to(x.dtype), scalar, value=sign)
    return x + sign * scalar * y.to(x.dtype)


def _copy(old: Tensor, new: Tensor) -> Tensor:
    """What the state remembers: others may write to parameters and gradients."""
    return new.to(old.dtype, copy=True)


def _lay_into(old: Tensor, new: Tensor) -> Tensor:
    return old.copy_(new)
