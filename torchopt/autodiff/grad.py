# SPDX-License-Identifier: Apache-2.0
"""Gradients of scalar functions of trees, with the arguments and the order of results of JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.autodiff.arguments import check_leaves, checked, positions_of, resolve
from torchopt.autodiff.products import is_autograd_off
from torchopt.autodiff.recompute import recomputed_gradient
from torchopt.levels import is_tracing
from torchopt.sharding import refuse_fsdp

_P = ParamSpec('_P')


def value_and_grad(
    fun: Callable[_P, Any], argnums: int | Sequence[int] = 0, has_aux: bool = False, *, checkpoint: str | None = None
) -> Callable[_P, tuple[Any, Any]]:
    r"""Return a function that computes the value and the gradient of ``fun``, as ``jax.value_and_grad`` does.

    ``torch.func.grad_and_value`` returns the pair in the opposite order.

    Value, gradient and auxiliary output are differentiable with respect to the arguments and all tensors that ``fun``
    closes over, by autograd and by every transform of ``torch.func``; the function can be compiled.  They carry a graph
    only if one of these tensors requires grad; to avoid it, call the function under ``torch.no_grad()``.

    The graph of a gradient is large: it holds the activations of the forward and of the backward pass.  With
    ``checkpoint`` the results keep only the arguments and the tensors that ``fun`` closes over.  The derivative of
    the gradient, a product with the Hessian, is computed from these when it is needed.  A loop of :math:`K` gradient
    steps then keeps the parameters and the state of each step, and the graph of one step at a time.  The requirements
    on ``fun`` are those of :func:`torchopt.checkpoint`.

    Args:
        fun: A function whose value is a 0-d tensor of a real floating dtype, or a float.
        argnums: The position of the argument to differentiate with respect to, or a sequence of positions.  Negative
            positions count from the last positional argument.  Keyword arguments are constants.
        has_aux: Whether ``fun`` returns a pair, the value and auxiliary data.
        checkpoint: What the results keep: with None their graph, otherwise the arguments.  ``'reverse'`` computes
            products with the Hessian by reverse over reverse mode; ``'mixed'`` by forward over reverse mode
            (MixFlow-MG), which needs less memory.  It requires forward-mode formulas for all operations; without them
            it warns and uses reverse mode.

    Returns:
        A function with the arguments of ``fun``.  It returns ``(value, gradient)``, or with ``has_aux``
        ``((value, aux), gradient)``.  The gradient is a tree like the argument; for a sequence of positions, a tuple of
        trees.  The gradient of a None leaf is None.

        The arguments at these positions are trees of tensors or NumPy arrays of real floating dtypes, floats and None;
        all other arguments may be any object.

    Raises:
        TypeError: If ``fun`` is not callable, or ``argnums`` is neither an int nor a sequence of ints.  Raised in a
            call if a position is out of range, if a leaf is not of a real floating dtype, if the value is not a real
            scalar, or if ``has_aux`` is true and the result is not a pair.
        ValueError: If ``argnums`` is empty or has the same position twice, or if ``checkpoint`` is unknown.
        RuntimeError: If ``fun`` calls a module under FSDP with the arguments as its parameters.  With ``checkpoint``;
            see :func:`torchopt.checkpoint`.

    References:
        Kemaev et al., 2025, `Scalable Meta-Learning via Mixed-Mode Differentiation
        <https://arxiv.org/abs/2505.00793>`_.

    Example:
        >>> import torch, torchopt
        >>> def loss(params, x):
        ...     residual = x @ params['w'] - 1.0
        ...     return residual.square().sum(), residual
        >>> params, x = {'w': torch.tensor([1.0, 2.0])}, torch.eye(2)
        >>> (value, residual), gradient = torchopt.value_and_grad(loss, has_aux=True)(params, x)
        >>> value, residual, gradient
        (tensor(1.), tensor([0., 1.]), {'w': tensor([0., 2.])})
    """
    positions, single = positions_of(argnums)
    checks.function('fun', fun)
    if checkpoint not in (None, 'reverse', 'mixed'):
        raise ValueError(f"Invalid checkpoint: {checkpoint!r}; expected None, 'reverse' or 'mixed'.")
    checked_fun = checked(fun, has_aux)

    # Without the attributes of fun, which may be a module with parameters.
    @functools.wraps(fun, updated=())
    def with_gradient(*args: _P.args, **kwargs: _P.kwargs) -> tuple[Any, Any]:
        found_at = resolve(positions, len(args))
        check_leaves(found_at, args)
        if is_tracing():
            found = differentiate(checked_fun, found_at, args, kwargs)
        elif checkpoint is None or is_autograd_off():
            with refuse_fsdp(torch._C._functorch.is_functorch_wrapped_tensor):
                found = differentiate(checked_fun, found_at, args, kwargs)
        else:
            found = _recompute(checked_fun, found_at, args, kwargs, mixed=checkpoint == 'mixed')
        gradient = found.gradients[0] if single else found.gradients
        return ((found.value, found.aux) if has_aux else found.value), gradient

    return with_gradient


def grad(
    fun: Callable[_P, Any], argnums: int | Sequence[int] = 0, has_aux: bool = False, *, checkpoint: str | None = None
) -> Callable[_P, Any]:
    """Return a function that computes the gradient of ``fun``, as ``jax.grad`` does.

    It is :func:`value_and_grad` without the value; arguments and errors are the same.

    Args:
        fun: A function whose value is a 0-d tensor of a real floating dtype, or a float.
        argnums: The position of the argument to differentiate with respect to, or a sequence of positions.
        has_aux: Whether ``fun`` returns a pair, the value and auxiliary data.
        checkpoint: What the results keep: their graph, or with ``'reverse'`` or ``'mixed'`` the arguments.

    Returns:
        A function with the arguments of ``fun``.  It returns the gradient, or with ``has_aux`` ``(gradient, aux)``.

    Raises:
        TypeError: See :func:`value_and_grad`.
        ValueError: See :func:`value_and_grad`.

    Example:
        >>> import torch, torchopt
        >>> torchopt.grad(lambda x, y: x * y**2, argnums=(0, 1))(2.0, torch.tensor(3.0))
        (tensor(9.), tensor(12.))
    """
    compute = value_and_grad(fun, argnums, has_aux, checkpoint=checkpoint)

    @functools.wraps(fun, updated=())
    def gradient_of(*args: _P.args, **kwargs: _P.kwargs) -> Any:
        value, gradient = compute(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return gradient_of


class Differentiated(NamedTuple):
    """The result of :func:`differentiate`.

    Attributes:
        value: The value.
        aux: The auxiliary output.
        gradients: One tree for each position.
    """

    value: Any
    aux: Any
    gradients: tuple[Any, ...]


def differentiate(
    fun: Callable[..., tuple[Any, Any]], positions: Sequence[int], args: Sequence[Any], kwargs: dict[str, Any]
) -> Differentiated:
    """The value, the auxiliary output and the gradients of a function of trees, by ``torch.func``.

    Args:
        fun: Returns the value, a 0-d tensor, and anything else.
        positions: The positions of the arguments to differentiate with respect to, from 0.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Example:
        >>> import torch
        >>> from torchopt.autodiff.grad import differentiate
        >>> found = differentiate(lambda x: (x[0] ** 2, 'aux'), [0], ([torch.tensor(3.0), None],), {})
        >>> found.value, found.aux, found.gradients
        (tensor(9.), 'aux', ([tensor(6.), None],))
    """
    given = tree.Selection(tuple(args[i] for i in positions), lambda x: True)
    tensors = tuple(map(torch.as_tensor, given.selected))
    # torch.func returns tensors only; all other leaves of the auxiliary output are kept here.
    kept: list[tree.Selection] = []

    def of_tensors(xs: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        filled = list(args)
        for i, x in zip(positions, given.replace(xs)):
            filled[i] = x
        value, aux = fun(*filled, **kwargs)
        kept[:] = [tree.Selection(aux, lambda x: isinstance(x, Tensor))]
        return value, tuple(kept[0].selected)

    gradients: tuple[Tensor, ...] = ()
    if tensors:
        gradients, (value, found) = torch.func.grad_and_value(of_tensors, has_aux=True)(tensors)
    else:
        value, found = of_tensors(())
    return Differentiated(value, kept[0].replace(found), given.replace(gradients))


def _recompute(
    fun: Callable[..., tuple[Any, Any]],
    positions: Sequence[int],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    mixed: bool,
) -> Differentiated:
    """Like :func:`differentiate`, with results that keep the arguments instead of their graph."""
    filled, wrt, start = list(args), dict[int, range](), 0
    for i, x in enumerate(args):
        if i in positions:
            x = filled[i] = tree.map(torch.as_tensor, x)
        count = sum(isinstance(leaf, Tensor) for leaf in tree.leaves(x))
        wrt[i] = range(start, start + count)
        start += count
    numbers = [k for i in positions for k in wrt[i]]
    (value, aux), found = recomputed_gradient(fun, filled, kwargs, numbers, mixed=mixed)
    tensors = [x for i in positions for x in tree.leaves(filled[i]) if isinstance(x, Tensor)]
    rest = iter([torch.zeros_like(x) if g is None else g for x, g in zip(tensors, found)])
    gradients = tuple(tree.map(lambda _: next(rest), filled[i]) for i in positions)
    return Differentiated(value, aux, gradients)
