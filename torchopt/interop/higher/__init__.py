# SPDX-License-Identifier: Apache-2.0
"""The inner loop of the library ``higher``, with its names, implemented by transformations.

``from torchopt.interop import higher`` replaces ``import higher``; its modules ``optim``, ``patch`` and ``utils`` are
here, too.  This is an independent implementation; the page "From higher" of the documentation lists the differences.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torchopt.base import TransformationLike
from torchopt.interop.higher import optim, patch, utils
from torchopt.interop.higher.optim import (
    DifferentiableOptimizer,
    apply_trainable_opt_params,
    create_diff_optim,
    get_diff_optim,
    get_trainable_opt_params,
)
from torchopt.interop.higher.options import Override
from torchopt.interop.higher.patch import FunctionalModule, monkeypatch
from torchopt.spelling import absent

__all__ = [
    'DifferentiableOptimizer',
    'FunctionalModule',
    'apply_trainable_opt_params',
    'create_diff_optim',
    'get_diff_optim',
    'get_trainable_opt_params',
    'innerloop_ctx',
    'monkeypatch',
    'optim',
    'patch',
    'utils',
]


@contextlib.contextmanager
def innerloop_ctx(
    model: nn.Module,
    opt: torch.optim.Optimizer | TransformationLike,
    device: torch.device | str | None = None,
    copy_initial_weights: bool = True,
    override: Override | None = None,
    track_higher_grads: bool = True,
) -> Iterator[tuple[FunctionalModule, DifferentiableOptimizer]]:
    """An inner loop: a functional copy of a model, and a differentiable optimizer that trains it.

    The model and its optimizer do not change.  At the end of the block the optimizer drops its state; the graph is
    released once ``fmodel`` and the losses are deleted.  After steps by functions this needs a backward pass, too, or
    ``fmodel.update_params`` with detached parameters after ``fmodel.track_higher_grads = False``: the functions, which
    the graph holds, refer to ``fmodel``.

    Args:
        model: The model.
        opt: An optimizer of its parameters, of ``torch.optim`` (if :func:`torchopt.interop.from_torch_optimizer`
            supports it) or :mod:`torchopt.optim`; the inner loop begins with its options, groups and state.  Or a
            transformation, for all parameters.
        device: The device of the copies; None means that of the originals.
        copy_initial_weights: Whether the loop begins with copies of the parameters, so that the originals get no
            meta-gradients; False, for MAML, begins with copies that have a graph.
        override: Options that replace those of ``opt``: for each, a list with one value for all groups, or with one for
            each group; or a 1-d tensor, or a ``torch.nn.ParameterList``.  Tensors that require grad are learned.
        track_higher_grads: False takes the same steps without a graph, for evaluation.

    Yields:
        The pair of :class:`FunctionalModule` and :class:`DifferentiableOptimizer`.

    Raises:
        TypeError: If the model or the optimizer has a wrong type, or the optimizer has no counterpart here.
        ValueError: If the optimizer contains parameters that are not those of the model.

    Example:
        >>> import torch
        >>> from torchopt.interop import higher
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> opt = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> x = torch.ones(1, 1)
        >>> with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fmodel, diffopt):
        ...     for _ in range(2):
        ...         _ = diffopt.step(0.5 * fmodel(x).square().sum())
        ...     fmodel(x).sum().backward()
        >>> net.weight.grad
        tensor([[0.8100]])

    References:
        Grefenstette et al.: Generalized Inner Loop Meta-Learning, 2019, https://arxiv.org/abs/1910.01727.
    """
    fmodel = monkeypatch(model, device, copy_initial_weights, track_higher_grads)
    diffopt = get_diff_optim(opt, model.parameters(), fmodel, device, override, track_higher_grads)
    try:
        yield fmodel, diffopt
    finally:
        diffopt._end()


if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        raise absent(sys.modules[__name__], name, optim.ABSENT)
