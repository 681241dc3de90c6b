# SPDX-License-Identifier: Apache-2.0
"""Gradients by forward mode: for few arguments of long loops."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.autodiff.arguments import check_leaves, checked, positions_of, resolve
from torchopt.autodiff.products import missing_forward_mode

_P = ParamSpec('_P')


def forward_value_and_grad(
    fun: Callable[_P, Any], argnums: int | Sequence[int] = 0, has_aux: bool = False, *, chunk_size: int | None = 1
) -> Callable[_P, tuple[Any, Any]]:
    r"""Like :func:`torchopt.value_and_grad`, but computed by forward mode.

    The gradient with respect to :math:`n` numbers takes :math:`n` Jacobian-vector products.  Each costs about as much
    as two to three runs of ``fun``, and needs the memory of one: nothing is kept for a backward pass, however many
    steps ``fun`` takes.  So the hypergradient of a learning rate through a loop of :math:`K` steps takes memory
    independent of :math:`K`, and of the activations of all steps but one.

    - With :math:`n \le 2` it takes about the time of reverse mode, or less.
    - With more it takes about :math:`n / 2` times as long, which pays only if reverse mode does not fit: compare with
      ``checkpoint='mixed'`` and :func:`torchopt.loop.scan` with ``checkpoint='auto'``, whose memory grows with
      :math:`K` and :math:`\sqrt K` sets of parameters and states, whose time does not grow with :math:`n`.

    Inside ``fun``, take gradients by :func:`torchopt.grad` or ``torch.func.grad``.

    Args:
        fun: A function whose value is a 0-d tensor of a real floating dtype, or a float.
        argnums: The position of the argument to differentiate with respect to, or a sequence of positions.
        has_aux: Whether ``fun`` returns a pair, the value and auxiliary data.
        chunk_size: The number of products to compute at once by ``vmap``, which is faster and needs that many times
            the memory; all if None.

    Returns:
        A function with the arguments of ``fun``, which returns ``(value, gradient)``, or with ``has_aux``
        ``((value, aux), gradient)``.

    Raises:
        TypeError: See :func:`torchopt.value_and_grad`.
        ValueError: See :func:`torchopt.value_and_grad`; also if ``chunk_size`` is not positive.
        NotImplementedError: Raised in a call if an operation has no forward mode in torch.

    Example:
        >>> import torch, torchopt
        >>> def after_three_steps(rate):
        ...     x = torch.tensor(1.0)
        ...     for _ in range(3):
        ...         x = x - rate * torchopt.grad(lambda x: x**2)(x)
        ...     return x**2
        >>> torchopt.forward_value_and_grad(after_three_steps)(torch.tensor(0.25))
        (tensor(0.0156), tensor(-0.3750))
    """
    wanted, single = positions_of(argnums)
    checks.function('fun', fun)
    checks.integer('chunk_size', chunk_size, 1, optional=True)
    checked_fun = checked(fun, has_aux)

    @functools.wraps(fun, updated=())
    def with_gradient(*args: _P.args, **kwargs: _P.kwargs) -> tuple[Any, Any]:
        positions = resolve(wanted, len(args))
        check_leaves(positions, args)
        given = tree.Selection(tuple(args[i] for i in positions), lambda x: True)
        point = tuple(map(torch.as_tensor, given.selected))
        kept: list[tree.Selection] = []

        def of_tensors(*xs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            filled = list(args)
            for i, value in zip(positions, given.replace(xs)):
                filled[i] = value
            value, aux = checked_fun(*filled, **kwargs)
            kept[:] = [tree.Selection(aux, lambda x: isinstance(x, Tensor))]
            return value, tuple(kept[0].selected)

        def product(*tangents: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
            try:
                found: Any = torch.func.jvp(of_tensors, point, tangents, has_aux=True)
            except (NotImplementedError, RuntimeError) as error:
                reason = missing_forward_mode(error)
                if not reason:
                    raise
                raise NotImplementedError(
                    f'fun has no forward mode: {reason} Or call torchopt.value_and_grad, which uses reverse mode.'
                ) from error
            value, tangent, aux = found
            return value, tangent, aux

        value, found, tensors = _all_products(of_tensors, product, point, chunk_size)
        aux, gradients = kept[0].replace(tensors), given.replace(found)
        return ((value, aux) if has_aux else value), (gradients[0] if single else gradients)

    return with_gradient


def _all_products(
    fun: Callable[..., Any], product: Callable[..., Any], point: tuple[Tensor, ...], chunk_size: int | None
) -> tuple[Tensor, list[Tensor], tuple[Tensor, ...]]:
    """Value, gradient and auxiliary output from one product for each element of the arguments."""
    sizes = [x.numel() for x in point]
    total = sum(sizes)
    if total == 0:
        value, aux = fun(*point)
        return value, [torch.zeros_like(x) for x in point], aux
    size = total if chunk_size is None else chunk_size
    rows: list[Tensor] = []
    for start in range(0, total, size):
        directions = _directions(point, start, min(start + size, total))
        if size == 1:
            value, row, aux = product(*[d[0] for d in directions])
            rows.append(row[None])
        else:
            values, row, samples = torch.vmap(product, randomness='same')(*directions)
            value, aux = values[0], tuple(x[0] for x in samples)  # the same for all directions
            rows.append(row)
    found = torch.cat(rows).split(sizes)  # type: ignore[no-untyped-call]
    return value, [g.reshape(x.shape).to(x.dtype) for g, x in zip(found, point)], aux


def _directions(point: tuple[Tensor, ...], start: int, stop: int) -> list[Tensor]:
    """The unit vectors ``start`` to ``stop - 1``, split into the parts of each tensor."""
    found, before = [], 0
    for x in point:
        rows = torch.arange(start, stop, device=x.device)[:, None] == torch.arange(
            before, before + x.numel(), device=x.device
        )
        found.append(rows.to(x.dtype).reshape(stop - start, *x.shape))
        before += x.numel()
    return found
