# SPDX-License-Identifier: Apache-2.0
"""L-BFGS."""

from __future__ import annotations

from typing import Any

from torchopt.alias.stages import shared_prose
from torchopt.base import GradientTransformation, identity
from torchopt.combine import chain
from torchopt.spelling import suggesting
from torchopt.transform import scale, scale_by_lbfgs, scale_by_learning_rate, scale_by_zoom_linesearch

_ZOOM = scale_by_zoom_linesearch(max_linesearch_steps=20, initial_guess_strategy='one')


@suggesting
@shared_prose
def lbfgs(
    learning_rate: Any = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: GradientTransformation | None = _ZOOM,
) -> GradientTransformation:
    r"""L-BFGS: a quasi-Newton method that approximates the inverse Hessian from the last few steps, with a line search.

    With :math:`H_k` as in :func:`torchopt.transform.scale_by_lbfgs`, and :math:`\eta_k` from the line search,
    :math:`w_{k+1} = w_k - \eta_k H_k g_k`.

    The objective must be the same in every step, so use full batches.  A line search requires the extra arguments
    ``value``, ``grad`` and ``value_fn`` of ``update``; :func:`torchopt.transform.value_and_grad_from_state` reads the
    first two from the state of the line search.

    Args:
        learning_rate: A further factor of the steps: a number, a 0-d tensor, or a schedule.  None means 1.
        memory_size: The number of past steps from which :math:`H_k` is computed, at least 1.
        scale_init_precond: Whether the initial approximation of :math:`H_k` is the identity scaled according to the
            last step; if False, it is the identity.
        linesearch: A transformation that scales a descent direction.  The default is
            :func:`torchopt.transform.scale_by_zoom_linesearch` with at most 20 evaluations and the first step size 1.
            None means no line search.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> rosenbrock = lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2
        >>> optimizer, p = torchopt.lbfgs(), torch.tensor([-1.2, 1.0], dtype=torch.float64)
        >>> state = optimizer.init(p)
        >>> value_and_grad = torchopt.transform.value_and_grad_from_state(rosenbrock)
        >>> for _ in range(40):
        ...     value, grad = value_and_grad(p, state=state)
        ...     updates, state = optimizer.update(grad, state, p, value=value, grad=grad, value_fn=rosenbrock)
        ...     p = torchopt.apply_updates(p, updates)
        >>> p
        tensor([1., 1.], dtype=torch.float64)

    References:
        Liu and Nocedal, `On the limited memory BFGS method for large scale optimization
        <https://doi.org/10.1007/BF01589116>`_, 1989.  Nocedal and Wright, `Numerical optimization
        <https://doi.org/10.1007/978-0-387-40065-5>`_, 2006.
    """
    return chain(
        scale_by_lbfgs(memory_size, scale_init_precond),
        scale(-1.0) if learning_rate is None else scale_by_learning_rate(learning_rate),
        identity() if linesearch is None else linesearch,
    )
