# SPDX-License-Identifier: Apache-2.0
"""The functional face that keeps its own state."""

from __future__ import annotations

from typing import Any

from torchopt.base import GradientTransformation, UninitializedState
from torchopt.optim.from_alias import check_impl
from torchopt.optim.gradients import differentiable_gradients, with_integers, without_integers
from torchopt.update import update_params

__all__ = ['FuncOptimizer']


class FuncOptimizer:
    """A transformation and its state: from a loss and parameters to new parameters.

    Args:
        impl: The transformation.
        inplace: Whether steps write into the parameters and the state instead of making new ones.

    Attributes:
        impl: The transformation.
        optim_state: Its state, ``UninitializedState()`` before the first step.
        inplace: What ``step`` does by default.

    Raises:
        TypeError: If ``impl`` is not a GradientTransformation.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.FuncOptimizer(torchopt.sgd(0.25))
        >>> params = {'w': torch.tensor(2.0, requires_grad=True)}
        >>> new = optimizer.step(params['w'] ** 2, params)
        >>> new['w'].item(), params['w'].item(), torch.autograd.grad(new['w'], params['w'])[0].item()
        (1.0, 2.0, 0.5)
    """

    def __init__(self, impl: GradientTransformation, *, inplace: bool = False) -> None:
        self.impl = check_impl(impl)
        self.optim_state: Any = UninitializedState()
        self.inplace = bool(inplace)

    def step(self, loss: Any, params: Any, inplace: bool | None = None) -> Any:
        """Take one step.

        Args:
            loss: Scalar tensor computed from ``params``.
            params: Tree of tensors.  Those that do not require grad, or do not enter the loss, are returned as they
                are.
            inplace: Overrides the choice of the constructor.

        Returns:
            The new parameters.  Out of place they are differentiable in the old ones and in all that the loss
            depends on.
        """
        inplace = self.inplace if inplace is None else inplace
        grads = differentiable_gradients(loss, params, create_graph=not inplace)
        state = self.optim_state
        if isinstance(state, UninitializedState):
            state = self.impl.init(without_integers(params))
        new, state = update_params(self.impl, grads, state, without_integers(params), inplace=inplace)
        new = with_integers(new, params)
        self.optim_state = state
        return new

    def state_dict(self) -> Any:
        """The state itself, not a copy."""
        return self.optim_state

    def load_state_dict(self, state_dict: Any) -> None:
        """Go on from a state."""
        self.optim_state = state_dict
