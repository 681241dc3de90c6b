# SPDX-License-Identifier: Apache-2.0
"""Scale updates by a step size from a backtracking line search.

The search is :func:`torchopt.linesearch.backtracking`.  It depends on values, so a step synchronizes with its device at
each evaluation.  Under ``torch.func.vmap`` and ``torch.compile`` it does not synchronize and always makes the maximum
number of evaluations, without a graph break, so choose this number with care.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torchopt import checks, elementwise, linesearch, tree
from torchopt.base import GradientTransformationExtraArgs, factory
from torchopt.levels import is_readable
from torchopt.numerics import zero_count
from torchopt.preconditions import params_for, state_of
from torchopt.scalars import numbers, where
from torchopt.transform.linesearch.search_problem import SearchProblem, counted, number_dtype, report, stored


@tree.safe_to_load
class BacktrackingLinesearchInfo(NamedTuple):
    """The outcome of a search by :func:`scale_by_backtracking_linesearch`.

    Attributes:
        num_linesearch_steps: The number of evaluations.
        decrease_error: The violation of the decrease condition: 0 if it holds.
    """

    num_linesearch_steps: Any
    decrease_error: Any


@tree.safe_to_load
class ScaleByBacktrackingLinesearchState(NamedTuple):
    """State of :func:`scale_by_backtracking_linesearch`.

    Attributes:
        learning_rate: The last step size.
        value: The objective after the step.
        grad: The gradient after the step, or None.
        info: The outcome of the search.
    """

    learning_rate: Any
    value: Any
    grad: Any
    info: Any


@factory
def scale_by_backtracking_linesearch(
    max_backtracking_steps: int,
    slope_rtol: Any = 1e-4,
    decrease_factor: Any = 0.8,
    increase_factor: Any = 1.5,
    max_learning_rate: Any = 1.0,
    atol: Any = 0.0,
    rtol: Any = 0.0,
    store_grad: bool = False,
    verbose: bool = False,
) -> GradientTransformationExtraArgs:
    r"""Scale updates by a step size with a sufficient decrease of the objective, found by backtracking.

    For updates :math:`u` the step size :math:`\eta` satisfies Armijo's condition

    .. math::
        f(w + \eta u) \le (1 + \delta) f(w) + c\, \eta \operatorname{Re} \langle \nabla f(w), u \rangle + \epsilon.

    The first trial step size is somewhat larger than the last step size; the search decreases it until the condition
    holds.  Such a step size exists if the updates are a descent direction, so put this after ``sgd`` or another
    transformation that returns a descent direction.

    If the search fails, it uses the last trial step size, or zero if the objective is NaN or infinite there.  After a
    step size of zero it stays at zero, as in Optax, unless ``increase_factor`` is infinite.

    Args:
        max_backtracking_steps: The maximum number of decreases of the step size.
        slope_rtol: :math:`c`.
        decrease_factor: The factor of each decrease, in (0, 1).
        increase_factor: The ratio of the first trial step size to the last step size; infinity always begins with
            ``max_learning_rate``.
        max_learning_rate: The largest step size.
        atol: :math:`\epsilon`.
        rtol: :math:`\delta`.
        store_grad: Whether to compute and store the gradient after the step, for :func:`value_and_grad_from_state`.
        verbose: Print diagnostics if the search fails.

    Returns:
        A transformation whose ``update`` requires ``params``, ``value``, ``grad`` and ``value_fn``.

    Raises:
        ValueError: If an argument is out of its range; in ``update``, if the parameters are not given.
        TypeError: In ``update``, if an extra argument is missing, or ``value_fn`` does not accept it.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.transform import scale_by_backtracking_linesearch
        >>> tx = torchopt.chain(torchopt.sgd(1.0), scale_by_backtracking_linesearch(10, decrease_factor=0.5))
        >>> f = lambda p: (p**2).sum()
        >>> p = torch.tensor([1.0, -2.0])
        >>> updates, state = tx.update(2 * p, tx.init(p), p, value=f(p), grad=2 * p, value_fn=f)
        >>> updates, state[-1].learning_rate, state[-1].value
        (tensor([-1.,  2.]), tensor(0.5000), tensor(0.))

    References:
        Armijo, `Minimization of functions having Lipschitz continuous first partial derivatives
        <https://doi.org/10.2140/pjm.1966.16.1>`_, 1966.  Vaswani et al., `Painless stochastic gradient
        <https://arxiv.org/abs/1905.09997>`_, 2019.
    """
    checks.integer('max_backtracking_steps', max_backtracking_steps, 0)
    checks.at_least('slope_rtol', slope_rtol)
    checks.positive('decrease_factor', decrease_factor)
    checks.unit_interval('decrease_factor', decrease_factor)
    checks.positive('increase_factor', increase_factor)
    checks.positive('max_learning_rate', max_learning_rate)
    checks.at_least('atol', atol)
    checks.at_least('rtol', rtol)

    def init(params: Any) -> ScaleByBacktrackingLinesearchState:
        elementwise.check_inexact(params, name='params')
        kind = number_dtype(params)
        info = BacktrackingLinesearchInfo(zero_count(), stored(math.inf, kind))
        grad = tree.zeros_like(params) if store_grad else None
        return ScaleByBacktrackingLinesearchState(stored(1.0, kind), stored(math.inf, kind), grad, info)

    def update(
        updates: Any,
        state: ScaleByBacktrackingLinesearchState,
        params: Any = None,
        *,
        value: Any = None,
        grad: Any = None,
        value_fn: Any = None,
        inplace: bool = False,
        **extra: Any,
    ) -> tuple[Any, ScaleByBacktrackingLinesearchState]:
        problem = SearchProblem.of(updates, params, value, grad, value_fn, extra)
        kind = state.learning_rate.dtype
        with problem.recording():
            slope = linesearch.inner_product(problem.grad, problem.updates)
            last, largest = numbers(state.learning_rate, max_learning_rate)
            guess = largest if increase_factor == math.inf else increase_factor * last
            guess = where(guess < largest, guess, largest)
            found = linesearch.backtracking(
                lambda rate: problem.value_at(problem.moved(rate)),
                problem.value,
                slope,
                guess,
                limit=max_backtracking_steps,
                slope_rtol=slope_rtol,
                decrease_factor=decrease_factor,
                atol=atol,
                rtol=rtol,
            )
            nowhere = found.decrease_error == math.inf
            rate = where(nowhere, 0.0, found.stepsize)
            # Store a value only if it belongs to the step.
            new_value = where(nowhere & (abs(found.value) < math.inf), math.inf, found.value)
            new_grad = problem.value_and_gradient(problem.moved(found.stepsize))[1] if store_grad else None
            if verbose and is_readable(found.running) and found.running:
                report('scale_by_backtracking_linesearch', problem, slope, found.stepsize, found.decrease_error)
            scaled = problem.scaled(rate)
        info = BacktrackingLinesearchInfo(counted(found.steps), stored(found.decrease_error, kind))
        return scaled, ScaleByBacktrackingLinesearchState(stored(rate, kind), stored(new_value, kind), new_grad, info)

    return GradientTransformationExtraArgs.requiring(
        init, update, state_of(ScaleByBacktrackingLinesearchState), params_for('line searches')
    )
