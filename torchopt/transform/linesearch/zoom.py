# SPDX-License-Identifier: Apache-2.0
"""Scale updates by a step size that meets the strong Wolfe conditions.

The search is :func:`torchopt.linesearch.zoom`.  It depends on values, so a step synchronizes with its device at each
evaluation.  Under ``torch.func.vmap`` and ``torch.compile`` it does not synchronize and always makes the maximum number
of evaluations, without a graph break, so choose this number with care.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torchopt import checks, elementwise, linesearch, tree
from torchopt.base import GradientTransformationExtraArgs, factory
from torchopt.levels import is_readable
from torchopt.numerics import zero_count
from torchopt.preconditions import params_for, state_of
from torchopt.transform.linesearch.search_problem import SearchProblem, counted, number_dtype, report, stored


@tree.safe_to_load
class ZoomLinesearchInfo(NamedTuple):
    """The outcome of a search by :func:`scale_by_zoom_linesearch`.

    Attributes:
        num_linesearch_steps: The number of evaluations.
        decrease_error: The violation of the decrease condition by the last trial step: 0 if it holds.
        curvature_error: The violation of the curvature condition by the last trial step: 0 if it holds.
    """

    num_linesearch_steps: Any
    decrease_error: Any
    curvature_error: Any


@tree.safe_to_load
class ScaleByZoomLinesearchState(NamedTuple):
    """State of :func:`scale_by_zoom_linesearch`.

    Attributes:
        learning_rate: The last step size.
        value: The objective after the step.
        grad: The gradient after the step.
        info: The outcome of the search.
    """

    learning_rate: Any
    value: Any
    grad: Any
    info: Any


@factory
def scale_by_zoom_linesearch(
    max_linesearch_steps: int,
    max_learning_rate: Any = None,
    tol: Any = 0.0,
    increase_factor: Any = 2.0,
    slope_rtol: Any = 1e-4,
    curv_rtol: Any = 0.9,
    approx_dec_rtol: Any = 1e-6,
    stepsize_precision: Any = 1e-5,
    initial_guess_strategy: str = 'keep',
    verbose: bool = False,
) -> GradientTransformationExtraArgs:
    r"""Scale updates by a step size with a sufficient decrease of the objective and a small slope.

    With :math:`\varphi(\eta) = f(w + \eta u)` for updates :math:`u`, it satisfies the strong Wolfe conditions

    .. math::
        \varphi(\eta) \le \varphi(0) + c_1 \eta\, \varphi'(0) + \epsilon, \qquad
        |\varphi'(\eta)| \le c_2\, |\varphi'(0)| + \epsilon,

    If :math:`\varphi(\eta) \le \varphi(0) + c_3 |\varphi(0)|`, the first condition may be replaced by
    :math:`\varphi'(\eta) \le (2 c_1 - 1)\, \varphi'(0)`.  See :func:`torchopt.linesearch.zoom` for the search.

    If the search fails, it uses the best step size with a sufficient decrease; if there is none, the last trial step
    size; and if the objective is not finite there, zero.

    Args:
        max_linesearch_steps: The maximum number of evaluations, at least 1.
        max_learning_rate: The largest step size; no bound if None.
        tol: :math:`\epsilon`.
        increase_factor: The factor by which a step size that is too small is increased, larger than 1.
        slope_rtol: :math:`c_1`.
        curv_rtol: :math:`c_2`; infinity turns the second condition off.
        approx_dec_rtol: :math:`c_3`; None never replaces the first condition.
        stepsize_precision: The length of the search interval at which the search ends with any sufficient decrease.
        initial_guess_strategy: ``'keep'`` begins with the last step size; ``'one'`` with 1, for quasi-Newton methods.
        verbose: Print diagnostics if the search fails.

    Returns:
        A transformation whose ``update`` requires ``params``, ``value``, ``grad`` and ``value_fn``.

    Raises:
        ValueError: If an argument is out of its range; in ``update``, if the parameters are not given.
        TypeError: In ``update``, if an extra argument is missing, or ``value_fn`` does not accept it.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.chain(torchopt.sgd(1.0), torchopt.transform.scale_by_zoom_linesearch(10))
        >>> f = lambda p: (p**2).sum()
        >>> p = torch.tensor([1.0, -2.0])
        >>> updates, state = tx.update(2 * p, tx.init(p), p, value=f(p), grad=2 * p, value_fn=f)
        >>> updates, state[-1].learning_rate, state[-1].grad
        (tensor([-1.,  2.]), tensor(0.5000), tensor([0., 0.]))

    References:
        Nocedal and Wright, `Numerical optimization <https://doi.org/10.1007/978-0-387-40065-5>`_, algorithms 3.5 and
        3.6, 2006.  Hager and Zhang, `Algorithm 851: CG_DESCENT <https://doi.org/10.1145/1132973.1132979>`_, 2006.
    """
    checks.integer('max_linesearch_steps', max_linesearch_steps, 1)
    if max_learning_rate is not None:
        checks.positive('max_learning_rate', max_learning_rate)
    for name, given in (('tol', tol), ('slope_rtol', slope_rtol), ('curv_rtol', curv_rtol)):
        checks.at_least(name, given)
    checks.at_least('increase_factor', increase_factor, 1.0)
    checks.at_least('stepsize_precision', stepsize_precision)
    if approx_dec_rtol is not None:
        checks.at_least('approx_dec_rtol', approx_dec_rtol)
    if initial_guess_strategy not in ('keep', 'one'):
        raise ValueError(f"Invalid initial_guess_strategy: {initial_guess_strategy!r}; expected 'keep' or 'one'.")

    def init(params: Any) -> ScaleByZoomLinesearchState:
        elementwise.check_inexact(params, name='params')
        kind = number_dtype(params)
        info = ZoomLinesearchInfo(zero_count(), stored(math.inf, kind), stored(math.inf, kind))
        return ScaleByZoomLinesearchState(stored(1.0, kind), stored(math.inf, kind), tree.zeros_like(params), info)

    def update(
        updates: Any,
        state: ScaleByZoomLinesearchState,
        params: Any = None,
        *,
        value: Any = None,
        grad: Any = None,
        value_fn: Any = None,
        inplace: bool = False,
        **extra: Any,
    ) -> tuple[Any, ScaleByZoomLinesearchState]:
        problem = SearchProblem.of(updates, params, value, grad, value_fn, extra)
        kind = state.learning_rate.dtype
        with problem.recording():
            slope = linesearch.inner_product(problem.grad, problem.updates)
            found = linesearch.zoom(
                linesearch.along(problem.value_and_gradient, problem.params, problem.updates),
                linesearch.Point(0.0, problem.value, slope, problem.start_grad()),
                state.learning_rate if initial_guess_strategy == 'keep' else 1.0,
                limit=max_linesearch_steps,
                largest=max_learning_rate,
                tol=tol,
                increase_factor=increase_factor,
                slope_rtol=slope_rtol,
                curv_rtol=curv_rtol,
                approx_dec_rtol=approx_dec_rtol,
                precision=stepsize_precision,
            )
            if verbose and is_readable(found.failed) and found.failed:
                report('scale_by_zoom_linesearch', problem, slope, found.point.stepsize, found.decrease_error)
            scaled = problem.scaled(found.point.stepsize)
        info = ZoomLinesearchInfo(
            counted(found.steps), stored(found.decrease_error, kind), stored(found.curvature_error, kind)
        )
        return scaled, ScaleByZoomLinesearchState(
            stored(found.point.stepsize, kind), stored(found.point.value, kind), found.point.extra, info
        )

    return GradientTransformationExtraArgs.requiring(
        init, update, state_of(ScaleByZoomLinesearchState), params_for('line searches')
    )
