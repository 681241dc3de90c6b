# SPDX-License-Identifier: Apache-2.0
"""Fenchel-Young losses of regularized maximum functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchopt.kinds import described
from torchopt.losses.arguments import broadcastable, floating, real
from torchopt.losses.masked import finite_where


def make_fenchel_young_loss(max_fun: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    r"""Make the Fenchel-Young loss of a regularized maximum function.

    Let :math:`F(s) = \max_p \langle p, s \rangle - \Omega(p)` be a regularized maximum of the scores :math:`s`, such
    as ``logsumexp``.  Its loss

    .. math::
        \ell(s, y) = F(s) - \langle y, s \rangle, \qquad \nabla_s \ell = \nabla F(s) - y,

    is nonnegative up to the constant :math:`\Omega(y)`, and minimal if :math:`\nabla F(s) = y`.  For ``logsumexp`` it
    is the cross entropy, and the gradient is the softmax minus the target.

    Args:
        max_fun: ``max_fun(scores, *args, **kwargs)``, the differentiable :math:`F`, maps a vector to a 0-d tensor.

    Returns:
        The loss ``fenchel_young_loss(scores, targets, *args, **kwargs)``.  It takes ``scores`` and ``targets`` of
        shape ``[..., n]``, floating, and returns losses of shape ``[...]``.  It passes the further arguments to
        ``max_fun``.  Leading dimensions are handled by ``torch.func.vmap``; random numbers that ``max_fun`` draws
        differ from row to row.

    Raises:
        TypeError: If ``max_fun`` is not callable.  The loss raises it if ``scores`` are not floating.
        ValueError: Raised by the loss if the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> loss = torchopt.losses.make_fenchel_young_loss(lambda s: torch.logsumexp(s, 0))
        >>> loss(torch.tensor([[0.0, 0.0], [0.0, 9.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([6.9315e-01, 1.2302e-04])

    References:
        Blondel, Martins and Niculae, `Learning with Fenchel-Young losses <https://arxiv.org/abs/1901.02324>`_, 2020.
    """
    if not callable(max_fun):
        raise TypeError(f'Invalid max_fun: {described(max_fun)}; expected a function of a vector of scores.')

    def fenchel_young_loss(scores: torch.Tensor, targets: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        scores = floating('scores', scores)
        targets = real('targets', targets, scores)
        if scores.ndim == 0:
            raise ValueError('scores is a 0-d tensor; expected shape [..., n]. Pass a vector.')
        broadcastable('scores', scores, 'targets', targets)

        def of_vector(s: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(max_fun(s, *args, **kwargs))

        if scores.ndim == 1:
            largest = of_vector(scores)
        else:
            rows = scores.flatten(end_dim=-2)
            largest = torch.func.vmap(of_vector, randomness='different')(rows).reshape(scores.shape[:-1])
        return largest - (targets * finite_where(targets, scores)).sum(-1)

    return fenchel_young_loss
