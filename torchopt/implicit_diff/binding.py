# SPDX-License-Identifier: Apache-2.0
"""Map the arguments of a solver to those of its optimality function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from torchopt import tree
from torchopt.graphs import carries_graph
from torchopt.kinds import kind_of

Reference = Callable[..., Any] | inspect.Signature | None


def signature_of(fun: Reference) -> inspect.Signature | None:
    """The signature of a function, or None if Python cannot determine it."""
    if fun is None or isinstance(fun, inspect.Signature):
        return fun
    try:
        return inspect.signature(fun)
    except ValueError:
        return None


def bind(signature: inspect.Signature | None, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword-only arguments, with defaults."""
    if signature is None:
        return tuple(args), dict(kwargs)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.args, bound.kwargs


def match(
    signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the optimality function, without the solution, from those of the solver.

    Keyword arguments that only the solver has are omitted, unless they contain tensors that can have a gradient.

    Raises:
        TypeError: If they do not match.
    """
    if signature is None:
        return args[1:], kwargs
    kinds = {p.kind for p in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        foreign = {k: v for k, v in kwargs.items() if k not in signature.parameters}
        for name, value in foreign.items():
            if any(map(carries_graph, tree.leaves(value))):
                raise TypeError(
                    f'The solver takes the argument {name!r}, which requires a gradient, but the optimality function '
                    f'{signature} does not. Add this argument to the optimality function, or detach it.'
                )
        kwargs = {k: v for k, v in kwargs.items() if k not in foreign}
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f'The arguments of the solver do not match the optimality function {signature}: {error}. Both must take '
            f'the solution first, then the same arguments: pass those that are missing. If the signature does not show '
            f'all arguments, as that of a wrapped function, pass as reference_signature a function that has them.'
        ) from None
    return bound.args[1:], bound.kwargs


def parameters_within(arguments: Any) -> list[Tensor]:
    """The parameters of modules among arguments."""
    return [p for leaf in tree.leaves(arguments) if isinstance(leaf, nn.Module) for p in leaf.parameters()]


def refuse_hidden_parameters(arguments: Any) -> None:
    """Raise for modules whose parameters require gradients, since these would be silently lost."""
    if not any(p.requires_grad for p in parameters_within(arguments)):
        return
    for path, leaf in tree.flatten_with_path(arguments):
        if isinstance(leaf, nn.Module) and any(p.requires_grad for p in leaf.parameters()):
            raise TypeError(
                f'An argument ({path}) is {kind_of(leaf)} whose parameters require gradients, but would get '
                'none. Pass dict(module.named_parameters()) and use torch.func.functional_call, or call '
                'module.requires_grad_(False).'
            )
