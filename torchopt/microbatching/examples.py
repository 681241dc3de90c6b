# SPDX-License-Identifier: Apache-2.0
"""Functions of single examples applied to a batch: vectorization, and gradients per example."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from torchopt import tree
from torchopt.autodiff import differentiate
from torchopt.microbatching.accumulation import AccumulationType, compose, map_tensors
from torchopt.microbatching.batch import microbatch


class IndividualOutputs(NamedTuple):
    """The results of :func:`micro_grad` for each example of the batch: values, metrics, and auxiliary outputs."""

    values: Any
    metrics: Any
    aux: Any


def micro_vmap(
    fun: Callable[..., Any],
    in_axes: int | Sequence[int | None] = 0,
    out_axes: Any = 0,
    *,
    microbatch_size: int | None = None,
    vmap_fn: Callable[..., Any] = torch.func.vmap,
    accumulator: Any = AccumulationType.CONCAT,
    num_real_microbatches: int | torch.Tensor | None = None,
) -> Callable[..., Any]:
    """Vectorize a function over batches that are too large to vectorize at once.

    Args:
        fun: The function of one example.  Its value is a tree of tensors and None.
        in_axes: The batch axis of the positional arguments: one for all, or one for each, None for arguments without
            one.  The batch axis of keyword arguments is 0.
        out_axes: 0; other values are not implemented.
        microbatch_size: The number of examples to vectorize at once, a divisor of the batch size; all if None.
        vmap_fn: The vectorization, ``vmap_fn(function, in_dims, out_dims)``; for example
            ``functools.partial(torch.func.vmap, randomness='different')``.
        accumulator: How to accumulate the values of the examples, see :func:`microbatch`; by default they are
            concatenated, as in ``torch.func.vmap``.
        num_real_microbatches: See :func:`microbatch`.

    Returns:
        A function of batches of the arguments of ``fun``.

    Raises:
        NotImplementedError: If ``out_axes`` is not 0.
        TypeError: Raised by the new function if ``in_axes`` does not match the arguments.
        ValueError: Raised by the new function; see :func:`microbatch`.

    Example:
        >>> import torch, torchopt
        >>> torchopt.microbatching.micro_vmap(torch.sum, microbatch_size=2)(torch.arange(8.0).reshape(4, 2))
        tensor([ 1.,  5.,  9., 13.])
    """
    if out_axes != 0:
        raise NotImplementedError(
            f'out_axes is {out_axes!r}; only 0 is implemented. Move the axis of the result instead.'
        )

    def mapped(*args: Any, **kwargs: Any) -> Any:
        axes = (in_axes,) * len(args) if isinstance(in_axes, int) else tuple(in_axes)
        if len(axes) != len(args):
            raise TypeError(
                f'in_axes has {len(axes)} entries for {len(args)} arguments. Pass one for each, None if unmapped.'
            )

        def on_rows(*args: Any, **kwargs: Any) -> Any:
            return compose(accumulator, 1).aggregate(_vectorize(vmap_fn, fun, axes, args, kwargs))

        run = microbatch(
            on_rows,
            argnums=[i for i, axis in enumerate(axes) if axis is not None],
            microbatch_size=microbatch_size,
            accumulator=accumulator,
            argnames=tuple(kwargs),
            in_axes=[*[axis for axis in axes if axis is not None], *[0] * len(kwargs)],
            num_real_microbatches=num_real_microbatches,
        )
        return run(*args, **kwargs)

    return mapped


def micro_grad(
    fun: Callable[..., Any],
    has_aux: bool = False,
    argnums: int | Sequence[int] = 0,
    *,
    batch_argnums: int | Sequence[int] = 1,
    keep_batch_dim: bool = True,
    microbatch_size: int | None = None,
    accumulator: Any = AccumulationType.SUM,
    transform_fn: Callable[[Any], Any] = lambda x: x,
    metrics_fn: Callable[[Any], Any] = lambda x: None,
    num_real_microbatches: int | torch.Tensor | None = None,
) -> Callable[..., tuple[Any, IndividualOutputs]]:
    """Transform the gradient of each example, and accumulate over the batch.

    Use it to clip the gradients of examples, or for their moments or norms: only those of one microbatch are in memory.

    Args:
        fun: The loss ``fun(params, batch, ...)``, which returns a 0-d tensor.
        has_aux: Whether ``fun`` returns ``(loss, aux)``.
        argnums: The position or positions of the arguments to differentiate, trees of tensors.
        batch_argnums: The position or positions of the arguments whose axis 0 is that of the batch; it is that of all
            arguments given by name.
        keep_batch_dim: Whether ``fun`` receives batches of one example instead of examples, by position; arguments
            given by name are examples, as in Optax.
        microbatch_size: The number of examples to process at once, a divisor of the batch size; all if None.
        accumulator: How to accumulate the transformed gradients; see :func:`microbatch`.
        transform_fn: Applied to the gradient of each example; it may return another tree.
        metrics_fn: Applied to the gradient of each example, before its transformation.
        num_real_microbatches: See :func:`microbatch`.

    Returns:
        A function of the arguments of ``fun`` that returns the accumulated gradients and the
        :class:`IndividualOutputs` of the examples.  Random numbers that ``fun`` draws differ from example to example.

    Raises:
        ValueError: Raised by the new function; see :func:`microbatch`.

    Example:
        >>> import torch, torchopt
        >>> loss = lambda w, x, y: 0.5 * (x @ w - y).square().mean()
        >>> moments = torchopt.microbatching.micro_grad(
        ...     loss,
        ...     batch_argnums=(1, 2),
        ...     microbatch_size=2,
        ...     accumulator=torchopt.microbatching.AccumulationType.MEAN,
        ...     transform_fn=lambda g: (g, g**2),
        ... )
        >>> both, each = moments(torch.zeros(1), torch.ones(4, 1), torch.tensor([0.0, 2.0, 4.0, 6.0]))
        >>> both
        (tensor([-3.]), tensor([14.]))
        >>> each.values
        tensor([ 0.,  2.,  8., 18.])

    References:
        Lee et al., `Per-example gradients: a new frontier for understanding and improving optimizers
        <https://arxiv.org/abs/2510.00236>`_, 2025.
    """
    batched = {batch_argnums} if isinstance(batch_argnums, int) else set(batch_argnums)
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def on_example(*args: Any, **kwargs: Any) -> tuple[Any, IndividualOutputs]:
        found = differentiate(fun if has_aux else without_aux, positions, args, kwargs)
        gradient = found.gradients[0] if isinstance(argnums, int) else found.gradients
        return transform_fn(gradient), IndividualOutputs(found.value, metrics_fn(gradient), found.aux)

    def without_aux(*args: Any, **kwargs: Any) -> tuple[Any, None]:
        return fun(*args, **kwargs), None

    def on_batch(*args: Any, **kwargs: Any) -> tuple[Any, IndividualOutputs]:
        if keep_batch_dim:
            args = tuple(map_tensors(lambda x: x.unsqueeze(1), a) if i in batched else a for i, a in enumerate(args))
        run = micro_vmap(
            on_example,
            [0 if i in batched else None for i in range(len(args))],
            microbatch_size=microbatch_size,
            vmap_fn=functools.partial(torch.func.vmap, randomness='different'),
            accumulator=(accumulator, AccumulationType.CONCAT),
            num_real_microbatches=num_real_microbatches,
        )
        return run(*args, **kwargs)

    return on_batch


def _vectorize(
    vmap_fn: Callable[..., Any],
    fun: Callable[..., Any],
    axes: tuple[int | None, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """``torch.func.vmap`` for trees with None leaves and for keyword arguments."""
    mapped = {i: arg for i, (arg, axis) in enumerate(zip(args, axes)) if axis is not None}
    given = tree.Selection((mapped, kwargs), lambda x: True)
    axes_of = {i: tree.map(lambda _, axis=axes[i]: axis, arg) for i, arg in mapped.items()}
    dims = tree.leaves((axes_of, tree.map(lambda _: 0, kwargs)))
    outputs: list[tree.Selection] = []

    def on_leaves(*xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows, named = given.replace(xs)
        values = fun(*(rows.get(i, arg) for i, arg in enumerate(args)), **named)
        outputs[:] = [tree.Selection(values, lambda x: True)]
        return tuple(map(torch.as_tensor, outputs[0].selected))

    values = vmap_fn(on_leaves, tuple(dims), 0)(*map(torch.as_tensor, given.selected))
    return outputs[0].replace(values)
