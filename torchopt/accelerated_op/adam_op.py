# SPDX-License-Identifier: Apache-2.0
"""Adam's rule as an operation on single tensors, as in TorchOpt 0.7.3."""

from __future__ import annotations

from typing import Any

import torch

from torchopt.transform.scaling.adam import ScaleByAdamState, scale_by_adam


class AdamOp:
    r"""Adam's rule on a gradient and its two moments.

    .. math::
        m' = \beta_1 m + (1 - \beta_1) g, \qquad v' = \beta_2 v + (1 - \beta_2) g^2, \qquad
        u = \frac{m' / (1 - \beta_1^t)}{\sqrt{v' / (1 - \beta_2^t) + \bar\epsilon} + \epsilon}

    It runs on the native engine if possible, and is differentiable to any order with respect to all tensors.

    Args:
        b1: Decay rate :math:`\beta_1` of the mean, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the mean square, in [0, 1).
        eps: :math:`\epsilon \ge 0`, outside the root.
        eps_root: :math:`\bar\epsilon \ge 0`, inside the root.
        inplace: Whether a call overwrites the moments and the gradient, outside autograd, instead of making new
            tensors.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch
        >>> from torchopt.accelerated_op import AdamOp
        >>> op = AdamOp(inplace=False)
        >>> mu, nu, update = op(torch.zeros(2), torch.zeros(2), torch.tensor([3.0, -0.5]), 1)
        >>> update
        tensor([ 1.0000, -1.0000])
    """

    def __init__(
        self, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, *, eps_root: Any = 0.0, inplace: bool = True
    ) -> None:
        self.b1, self.b2, self.eps, self.eps_root = b1, b2, eps, eps_root
        self.inplace = bool(inplace)
        self._rule = scale_by_adam(b1, b2, eps, eps_root)

    def __call__(self, mu: Any, nu: Any, updates: Any, count: Any) -> tuple[Any, Any, Any]:
        r"""Apply the rule.

        Args:
            mu: The mean :math:`m`.
            nu: The mean square :math:`v`.
            updates: The gradient :math:`g`; if None, the moments do not change.
            count: The number :math:`t \ge 1` of this step, an int or a 0-d tensor.

        Returns:
            The new moments and the update; with ``inplace``, the given tensors with new values.

        Raises:
            ValueError: If the shapes differ.
        """
        if updates is None:
            return mu, nu, None
        before = ScaleByAdamState(torch.as_tensor(count) - 1, mu, nu)
        u, after = self._rule.update(updates, before, inplace=self.inplace)
        if self.inplace:
            with torch.no_grad():
                u = updates.copy_(u)
        return after.mu, after.nu, u

    def __repr__(self) -> str:
        """The call that makes this operation."""
        return (
            f'AdamOp(b1={self.b1!r}, b2={self.b2!r}, eps={self.eps!r}, eps_root={self.eps_root!r}, '
            f'inplace={self.inplace!r})'
        )
