# SPDX-License-Identifier: Apache-2.0
"""Gradients of scalar functions of trees, with the arguments and the order of results of JAX."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec

import numpy as np
import torch
from torch import Tensor

from torchopt import tree
from torchopt.autodiff.products import is_autograd_off
from torchopt.autodiff.recompute import recomputed_gradient
from torchopt.numerics import is_tracing

__all__ = ['Differentiated', 'differentiate', 'grad', 'value_and_grad']

_P = ParamSpec('_P')


def value_and_grad(
    fun: Callable[_P, Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    checkpoint: str | None = None,
) -> Callable[_P, tuple[Any, Any]]:
    r"""Return a function that computes the value and the gradient of ``fun``, as ``jax.value_and_grad`` does.

    ``torch.func.grad_and_value`` returns the pair in the opposite order.

    Value, gradient and auxiliary output are differentiable with respect to the arguments and all tensors that ``fun``
    closes over, by autograd and by every transform of ``torch.func``; the function can be compiled.  They carry a graph
    only if one of these tensors requires grad; to avoid it, call the function under ``torch.no_grad()``.

    The graph of a gradient is large: it holds the activations of the forward and of the backward pass.  With
    ``checkpoint`` the results keep only the arguments and the tensors that ``fun`` closes over.  The derivative of
    the gradient, a product with the Hessian, is computed from these when it is needed.  A loop of :math:`K` gradient
    steps then keeps :math:`K` sets of parameters and states, and one graph at a time.  The requirements on ``fun`` are
    those of :func:`torchopt.checkpoint`.

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
        RuntimeError: With ``checkpoint``; see :func:`torchopt.checkpoint`.

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
    positions, single = _positions(argnums)
    if not callable(fun):
        raise TypeError(f'fun is a {type(fun).__name__}; expected a function.')
    if checkpoint not in (None, 'reverse', 'mixed'):
        raise ValueError(f"Invalid checkpoint: {checkpoint!r}; expected None, 'reverse' or 'mixed'.")
    checked = _checked(fun, has_aux)

    # Without the attributes of fun, which may be a module with parameters.
    @functools.wraps(fun, updated=())
    def with_gradient(*args: _P.args, **kwargs: _P.kwargs) -> tuple[Any, Any]:
        found_at = _resolve(positions, len(args))
        _check_leaves(found_at, args)
        if checkpoint is None or is_tracing() or is_autograd_off():
            found = differentiate(checked, found_at, args, kwargs)
        else:
            found = _recompute(checked, found_at, args, kwargs, mixed=checkpoint == 'mixed')
        gradient = found.gradients[0] if single else found.gradients
        return ((found.value, found.aux) if has_aux else found.value), gradient

    return with_gradient


def grad(
    fun: Callable[_P, Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    checkpoint: str | None = None,
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
    rest = iter(found)
    gradients = tuple(tree.map(lambda x: _or_zeros(next(rest), x), filled[i]) for i in positions)
    return Differentiated(value, aux, gradients)


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _positions(argnums: Any) -> tuple[tuple[int, ...], bool]:
    """The positions as a tuple, and whether ``argnums`` was a single int."""
    try:
        single = not isinstance(argnums, (tuple, list))
        positions = (operator.index(argnums),) if single else tuple(map(operator.index, argnums))
    except TypeError:
        raise TypeError(f'Invalid argnums: {argnums!r}; expected an int or a sequence of ints.') from None
    if not positions:
        raise ValueError('argnums is empty; expected the position of at least one argument.')
    return positions, single


def _resolve(positions: tuple[int, ...], count: int) -> list[int]:
    """Convert positions to the range from 0 to ``count - 1``."""
    for i in positions:
        if not -count <= i < count:
            raise TypeError(
                f'argnums has {i}, but the function was called with {count} positional arguments. Pass the arguments '
                f'to differentiate by position.'
            )
    found = [i % count for i in positions]
    if len(set(found)) < len(found):
        raise ValueError(f'argnums names one argument twice: {positions} of {count} arguments. Pass each once.')
    return found


def _check_leaves(positions: Sequence[int], args: Sequence[Any]) -> None:
    """Require that the arguments at these positions are trees of real numbers."""
    for i in positions:
        for j, x in enumerate(tree.flatten(args[i])[0]):
            kind = _kind(x)
            if kind != 'real':
                name = f'Argument {i}{tree.flatten_with_path(args[i])[j][0]}'
                raise TypeError(f'{name} {_REFUSED[kind].format(found=_describe(x))}')


_REFUSED = {
    'integer': (
        'is {found}; expected a real floating dtype. Convert it with `.float()`, or pass it as '
        'an argument that argnums does not name.'
    ),
    'complex': (
        "is {found}; expected a real floating dtype. PyTorch's gradients for complex arguments are the conjugates of "
        "JAX's: pass the real and the imaginary part, or use `torch.func.grad`."
    ),
    'other': (
        'is {found}; expected a tensor, a NumPy array, a float or None. Pass the parameters of a module as '
        '`dict(module.named_parameters())`, and call it with `torch.func.functional_call`.'
    ),
}


def _kind(x: Any) -> str:
    """Whether a leaf is real, integer, complex or something else; None is real."""
    if x is None or isinstance(x, float):
        return 'real'
    if isinstance(x, Tensor):
        return 'real' if x.is_floating_point() else 'complex' if x.is_complex() else 'integer'
    if isinstance(x, (np.ndarray, np.generic)):
        return {'f': 'real', 'c': 'complex', 'b': 'integer', 'i': 'integer', 'u': 'integer'}.get(x.dtype.kind, 'other')
    return 'integer' if isinstance(x, int) else 'complex' if isinstance(x, complex) else 'other'


def _describe(x: Any) -> str:
    dtype = getattr(x, 'dtype', None)
    return f'a {type(x).__name__}' if dtype is None else f'of dtype {dtype}'


def _checked(fun: Callable[..., Any], has_aux: bool) -> Callable[..., tuple[Tensor, Any]]:
    """Wrap a function: check its value, and return auxiliary output in any case."""

    def checked(*args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        value, aux = fun(*args, **kwargs), None
        if has_aux:
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                raise TypeError(
                    f'fun returned {_output(value)}; expected a pair of the value and the auxiliary output, since '
                    f'has_aux=True.'
                )
            value, aux = value
        if isinstance(value, float):
            value = torch.tensor(value)
        if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
            raise TypeError(f'fun returned {_output(value)}; expected a real 0-d tensor. {_remedy(value)}')
        return value, aux

    return checked


def _output(value: Any) -> str:
    if isinstance(value, Tensor):
        return f'a tensor of shape {tuple(value.shape)} and dtype {value.dtype}'
    length = f' of {len(value)}' if isinstance(value, (tuple, list)) else ''
    return f'a {type(value).__name__}{length}'


def _remedy(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return 'Pass has_aux=True if the first item of a pair is the value.'
    if isinstance(value, Tensor) and value.dim():
        return 'Return its mean or its sum; for the Jacobian of several values use torch.func.jacrev.'
    if isinstance(value, Tensor) and value.is_complex():
        return 'Return its real part or its absolute value.'
    return 'Return the loss as a tensor of a floating dtype.'
