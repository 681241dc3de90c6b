# SPDX-License-Identifier: Apache-2.0
"""Functional optimizers that store their state."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from torchopt import tree
from torchopt.base import TransformationLike, UninitializedState, check_impl
from torchopt.graphs import carries_graph, detach_graph
from torchopt.optim.gradients import (
    as_leaf,
    differentiable_gradients,
    is_closure,
    is_unrecorded,
    recomputed_gradients,
    warn_of_no_gradient,
    warn_of_repeated,
    with_integers,
    without_integers,
)
from torchopt.spelling import absent
from torchopt.update import update_params


class FuncOptimizer:
    """A transformation and its state: compute new parameters from a loss and parameters.

    In a loop of differentiable steps, the parameters and the state keep the graph of all steps.  If the parameters are
    leaves, for example after ``detach().requires_grad_()``, the state is detached too.  :func:`torchopt.stop_gradient`
    detaches only the state.  For training without meta-gradients, pass ``differentiable=False``.

    Args:
        impl: The transformation.
        inplace: Whether steps write into the parameters and the state instead of creating new ones.
        differentiable: Whether steps are differentiable.  If not, new parameters are leaves, and the state has no
            graph.

    Attributes:
        impl: The transformation.
        optim_state: Its state, ``UninitializedState()`` before the first step.
        inplace: The default of ``step``.
        differentiable: Whether steps are differentiable.

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

    def __init__(self, impl: TransformationLike, *, inplace: bool = False, differentiable: bool = True) -> None:
        self.impl = check_impl(impl)
        self.optim_state: Any = UninitializedState()
        self.inplace = bool(inplace)
        self.differentiable = bool(differentiable)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise absent(self, name, _NO_GRADIENTS)

    def step(self, loss: Any, params: Any, inplace: bool | None = None, *, checkpoint: str | None = 'reverse') -> Any:
        """Take one step.

        Args:
            loss: Scalar tensor computed from ``params``; or a function of the parameters that computes it.  With a
                function, a differentiable step keeps the parameters and the state instead of the graph of the loss: it
                computes the loss again in the backward pass, as :func:`torchopt.value_and_grad` with ``checkpoint``.
            params: Tree of tensors.  Those that do not require grad, or do not enter the loss, are returned as they
                are.  A tensor that occurs several times has the same gradient at each place: that of the loss with
                respect to the tensor.
            inplace: Overrides the choice of the constructor.  In place, a tensor that occurs several times is moved as
                often, and there is a warning.
            checkpoint: For a function: ``'reverse'`` or ``'mixed'``, how second derivatives are computed; None keeps
                the graph.

        Returns:
            The new parameters.  Out of place, they are differentiable with respect to the old ones and everything on
            which the loss depends; if the optimizer is not differentiable, or under ``torch.no_grad()``, they are
            leaves.
        """
        inplace = self.inplace if inplace is None else inplace
        if inplace:
            warn_of_repeated(params)
        recorded = self.differentiable and not inplace
        if is_closure(loss, checkpoint):
            _, grads = recomputed_gradients(loss, params, checkpoint=checkpoint, create_graph=recorded)
        else:
            grads = differentiable_gradients(loss, params, create_graph=recorded)
        if not tree.leaves(grads):
            warn_of_no_gradient()
        read = without_integers(params)
        state = self.optim_state
        if isinstance(state, UninitializedState):
            state = self.impl.init(read)
        elif not recorded or _begins_anew(params):
            state = tree.map(_detached, state)
        with contextlib.nullcontext() if recorded or inplace else torch.no_grad():
            new, state = update_params(self.impl, grads, state, read, inplace=inplace)
        new = with_integers(new, params)
        if not self.differentiable or is_unrecorded():
            new, state = tree.map(as_leaf, params, new), tree.map(_detached, state)
        self.optim_state = state
        return new

    def state_dict(self) -> Any:
        """The state itself, not a copy."""
        return self.optim_state

    def load_state_dict(self, state_dict: Any) -> None:
        """Continue from a state."""
        self.optim_state = state_dict


_NO_GRADIENTS = dict.fromkeys(
    ('zero_grad', 'backward'),
    'Leave it out: step(loss, params) computes the gradients itself, and neither reads nor writes .grad.',
)


def _begins_anew(params: Any) -> bool:
    """Whether all parameters that require grad are leaves, so that none is the result of a step."""
    return all(x.is_leaf for x in tree.leaves(params) if isinstance(x, torch.Tensor))


def _detached(x: Any) -> Any:
    return detach_graph(x) if carries_graph(x) else x
