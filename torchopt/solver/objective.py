# SPDX-License-Identifier: Apache-2.0
"""A smooth objective of a solver: its value, gradient and auxiliary output, at trees or at vectors."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchopt import checks, tree
from torchopt.autodiff.products import gradients_of
from torchopt.dtypes import is_inexact, real_dtype
from torchopt.graphs import leaves_of
from torchopt.implicit_diff.binding import signature_of
from torchopt.kinds import kind_of
from torchopt.levels import host_values, in_transform
from torchopt.linear_solve.problem import Layout
from torchopt.solver.arguments import split_aux
from torchopt.tree.ops import detached

_RETURNS = {
    (False, False): 'value',
    (False, True): '(value, aux)',
    (True, False): '(value, gradient)',
    (True, True): '((value, aux), gradient)',
}


class Objective:
    """A function ``fun(params, *args, **kwargs)`` with its gradient.

    Args:
        fun: The function.
        value_and_grad: Whether ``fun`` returns the value and the gradient; or a function that does.
        has_aux: Whether in place of the value there is a pair, the value and auxiliary output.
    """

    def __init__(
        self, fun: Callable[..., Any], value_and_grad: bool | Callable[..., Any] = False, has_aux: bool = False
    ) -> None:
        checks.function('fun', fun)
        self.fun, self.has_aux = fun, has_aux
        self.given = value_and_grad if callable(value_and_grad) else fun if value_and_grad else None
        self.fun_has_gradient = value_and_grad is True

    def value(self, params: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        """The value and the auxiliary output."""
        found = self.fun(params, *args, **kwargs)
        if self.fun_has_gradient:
            found = self._pair(found)[0]
        return self._value(found)

    def auxiliary_at_start(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """The auxiliary output at the start, where the value must be finite, as far as it can be read.

        Without the data that the function needs it is None: ``init_state(params)`` makes a state for steps with data.

        Raises:
            ValueError: If the value is NaN or infinite.
        """
        if self._lacks_data(params, args, kwargs):
            return None
        value, aux = self.value(params, *args, **kwargs)
        known = host_values(value)  # within torch.func.grad too
        if known is not None and not math.isfinite(known.item()):
            raise ValueError(f'The objective is {known.item()} at init_params. Start where it is finite.')
        return aux

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Any, Any]:
        """The value, the gradient and the auxiliary output.

        Where nothing is differentiated they carry no graph.  Otherwise they are differentiable.
        """
        if self.given is not None:
            found, gradient = self._pair(self.given(params, *args, **kwargs))
            value, aux = self._value(found)
            return value, gradient, aux
        if isinstance(params, Tensor):
            value, (gradient,), aux = _differentiate(lambda x: self._value(self.fun(x[0], *args, **kwargs)), (params,))
            return value, gradient, aux
        chosen = tree.Selection(params, is_inexact)
        value, gradients, aux = _differentiate(
            lambda xs: self._value(self.fun(chosen.replace(xs), *args, **kwargs)), tuple(chosen.selected)
        )
        return value, chosen.alone(gradients), aux

    def gradient(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """The gradient alone."""
        return self(params, *args, **kwargs)[1]

    def _lacks_data(self, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether arguments are missing, and all that are there have their place."""
        if (signature := signature_of(self.fun)) is None:
            return False
        try:
            signature.bind_partial(params, *args, **kwargs)
        except TypeError:
            return False
        try:
            signature.bind(params, *args, **kwargs)
        except TypeError:
            return True
        return False

    def _pair(self, found: Any) -> tuple[Any, Any]:
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            raise TypeError(
                f'With value_and_grad the function returned {kind_of(found)}; expected {_RETURNS[True, self.has_aux]}.'
            )
        return found[0], found[1]

    def _value(self, found: Any) -> tuple[Tensor, Any]:
        """The value, made sure of, and the auxiliary output."""
        value, aux = split_aux(found, self.has_aux, 'fun')
        if isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point():
            return value, aux
        if isinstance(value, float):
            return torch.tensor(value, dtype=torch.float64), aux
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = f'a tensor of dtype {value.dtype}' if isinstance(value, Tensor) else kind_of(value)
            remedy = (
                'Pass has_aux=True if fun returns a pair, value_and_grad=True if it returns its gradient too.'
                if isinstance(value, (tuple, list))
                else 'Return the value alone.'
            )
            raise TypeError(f'fun returned {kind}; expected a real tensor of one element. {remedy}')
        if value.numel() != 1:
            raise ValueError(
                f'fun returned a tensor of shape {tuple(value.shape)}; expected one element. Return its mean or its '
                f'sum.'
            )
        return value.reshape(()), aux


def _differentiate(
    fun: Callable[[tuple[Tensor, ...]], tuple[Tensor, Any]], xs: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...], Any]:
    """Value, gradients and auxiliary output; without a graph where there is nothing to differentiate."""
    if in_transform() or forward_ad._current_level >= 0 or torch.is_inference_mode_enabled():
        return _functional(fun, xs)
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        # A view, for the function may also depend on x in other ways, which do not count.
        inputs = tuple([x.view_as(x) if recording and x.requires_grad else x.detach().requires_grad_() for x in xs])
        value, aux = fun(inputs)
    if not value.requires_grad:
        return value, tuple(torch.zeros_like(x) for x in xs), aux
    recording = recording and (any(x.requires_grad for x in xs) or len(leaves_of([value])) > len(xs))
    found = gradients_of((value,), (torch.ones_like(value),), inputs, retain_graph=recording, create_graph=recording)
    gradients = tuple([torch.zeros_like(x) if g is None else g for g, x in zip(found, xs)])
    if recording:
        return value, gradients, aux
    return value.detach(), gradients, None if aux is None else detached(aux)


def _functional(
    fun: Callable[[tuple[Tensor, ...]], tuple[Tensor, Any]], xs: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...], Any]:
    kept: list[Any] = []

    def of_tensors(xs: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        value, aux = fun(xs)
        kept[:] = tree.flatten(aux)
        return value, tuple(x for x in kept[0] if isinstance(x, Tensor))

    gradients, (value, found) = torch.func.grad_and_value(of_tensors, has_aux=True)(xs)
    rest = iter(found)
    aux = tree.unflatten(kept[1], [next(rest) if isinstance(x, Tensor) else x for x in kept[0]])
    return value, gradients, aux


def signature_with(fun: Callable[..., Any], name: str) -> inspect.Signature:
    """The signature of a function of parameters and data, with one more argument after the parameters.

    Raises:
        TypeError: If the function has an argument of this name.
    """
    # An objective that is a function of predictions names its arguments there.
    found = signature_of(getattr(fun, 'subfun', fun)) or signature_of(lambda *args, **kwargs: None)
    assert found is not None
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [p.replace(kind=kind) if p.kind is p.POSITIONAL_ONLY else p for p in found.parameters.values()]
    if any(p.name == name for p in parameters):
        raise TypeError(f'fun has an argument {name!r}, which is the name of an argument of the solver. Rename it.')
    new = inspect.Parameter(name, kind)
    if not parameters or parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return inspect.Signature([inspect.Parameter('init_params', kind), new, *parameters])
    return inspect.Signature([parameters[0].replace(kind=kind, default=inspect.Parameter.empty), new, *parameters[1:]])


class Vectors:
    """Trees as real vectors: every element of every floating leaf, complex numbers as pairs; other leaves stay."""

    def __init__(self, params: Any, name: str = 'init_params') -> None:
        self.name = name
        self.leaves, self.spec = tree.flatten(params)
        self.places = [i for i, x in enumerate(self.leaves) if is_inexact(x)]
        self.likes: list[Tensor] = [self.leaves[i] for i in self.places]
        dtypes = [real_dtype(x.dtype) for x in self.likes] or [torch.float32]
        self.dtype = functools.reduce(torch.promote_types, dtypes)
        self.is_vector = isinstance(params, Tensor) and params.dim() == 1 and not params.is_complex()

    @functools.cached_property
    def layout(self) -> Layout:
        """The layout of the leaves in a vector."""
        return Layout.of(self.likes)._replace(dtype=self.dtype, is_vector=False)

    def pack(self, other: Any, name: str = 'the gradient') -> Tensor:
        """The vector of a tree of the same structure and shapes.

        Raises:
            ValueError: If structures or shapes differ.
        """
        if self.is_vector and isinstance(other, Tensor) and other.shape == self.likes[0].shape:
            return other if other.dtype == self.dtype else other.to(self.dtype)
        found = tree.flatten_up_to(self.spec, other, name=name, like=self.name)
        pieces = []
        for i, like in zip(self.places, self.likes):
            x = found[i]
            if not isinstance(x, Tensor) or x.shape != like.shape:
                kind = f'has shape {tuple(x.shape)}' if isinstance(x, Tensor) else f'is {kind_of(x)}'
                path = tree.flatten_with_path(tree.unflatten(self.spec, self.leaves))[i][0]
                raise ValueError(
                    f'{name}{path} {kind}, but {self.name}{path} has shape {tuple(like.shape)}. They must be the same.'
                )
            x = torch.view_as_real(x.to(like.dtype).resolve_conj()) if like.is_complex() else x
            pieces.append(x.reshape(-1).to(self.dtype))
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0] if pieces else torch.zeros(0)

    def unpack(self, vector: Tensor) -> Any:
        """The tree of a vector; of a matrix, a tree of its rows, whose leaves have one more dimension in front."""
        if self.is_vector:
            return vector if vector.dtype == self.likes[0].dtype else vector.to(self.likes[0].dtype)
        leaves = list(self.leaves)
        for i, x in zip(self.places, self.layout.unravel(vector)):
            leaves[i] = x
        return tree.unflatten(self.spec, leaves)

    def pack_rows(self, rows: Any) -> Tensor:
        """The matrix of a tree whose leaves have one more dimension in front."""
        if self.is_vector:
            return torch.as_tensor(rows)
        found = tree.flatten_up_to(self.spec, rows, name='the history', like='init_params')
        rows = [found[i] for i in self.places]
        return self.layout._replace(batch=rows[0].shape[:1]).ravel(rows)
