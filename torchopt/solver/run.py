# SPDX-License-Identifier: Apache-2.0
"""The loop of all solvers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import tree
from torchopt.dtypes import is_inexact, real_dtype
from torchopt.implicit_diff.binding import signature_of
from torchopt.kinds import kind_of
from torchopt.levels import host_values, in_transform, refuse_empty_batches
from torchopt.loop import while_loop
from torchopt.solver.status import Status, with_status
from torchopt.spelling import check_names


class OptStep(NamedTuple):
    """The result of a step, and of a run.

    Attributes:
        params: The parameters, a tree.
        state: The state of the solver.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.GradientDescent(lambda x: (x - 3.0) ** 2, stepsize=0.5)
        >>> params, state = solver.run(torch.tensor(0.0))
        >>> params
        tensor(3.)
    """

    params: Any
    state: Any


class KKTSolution(NamedTuple):
    """A solution of a constrained problem, with the multipliers of its constraints.

    Attributes:
        primal: The solution.
        dual_eq: The multipliers of the equations.
        dual_ineq: The multipliers of the inequalities.

    Example:
        >>> from torchopt.solver import KKTSolution
        >>> KKTSolution(1.0)
        KKTSolution(primal=1.0, dual_eq=None, dual_ineq=None)
    """

    primal: Any
    dual_eq: Any = None
    dual_ineq: Any = None


def params_of(start: Any) -> Any:
    """The parameters of a start, which may be an :class:`OptStep`, the result of another run."""
    return start.params if isinstance(start, OptStep) else start


class Task(NamedTuple):
    """What a run does.  A solver that works on vectors flattens its trees in ``start`` and restores them in ``finish``.

    Attributes:
        start: Parameters and state before the first step.
        step: ``step(last)`` takes an :class:`OptStep` and returns the next, a tree of the same structure.
        finish: ``finish(last)`` returns the step as users see it.
    """

    start: OptStep
    step: Callable[[OptStep], OptStep]
    finish: Callable[[OptStep], OptStep]


def iterate(
    task: Task,
    maxiter: int,
    tol: Any,
    report: Callable[[OptStep], None] | None = None,
    loop: Callable[..., OptStep] = while_loop,
) -> OptStep:
    """Repeat steps until the error is at most ``tol`` or NaN, the solver reports an end, or ``maxiter`` steps are made.

    Under ``torch.vmap`` each problem stops by itself, and is left alone from then on.  ``report`` gets each step as
    users see it, and ``loop`` is a function like :func:`torchopt.loop.while_loop`.
    """

    def running(step: OptStep) -> Any:
        return (step.state.error > tol) & (step.state.status == int(Status.RUNNING))

    def reported(step: OptStep) -> OptStep:
        step = task.step(step)
        assert report is not None
        report(task.finish(step))
        return step

    last = task.finish(loop(running, task.step if report is None else reported, task.start, maxiter))
    return conclude(last, tol)


def conclude(last: OptStep, tol: Any) -> OptStep:
    """The result of a run: the last step with its status, its numbers as tensors."""
    return OptStep(last.params, as_tensors(with_status(last.state, tol), last.params))


def as_tensors(state: Any, params: Any, *, keep_none: bool = False) -> Any:
    """The state with tensors for numbers, like the parameters in device and dtype.

    Inside transforms of ``torch.func``, which return tensors only, ``()`` stands for None, unless ``keep_none``.
    """
    like = next((x for x in tree.leaves(params) if is_inexact(x)), torch.zeros(()))
    dtype = real_dtype(like.dtype)

    def as_tensor(x: Any) -> Any:
        if isinstance(x, (bool, int)):
            return torch.full((), x, dtype=torch.bool if isinstance(x, bool) else torch.int64, device=like.device)
        return torch.full((), x, dtype=dtype, device=like.device) if isinstance(x, float) else x

    leaves, spec = tree.flatten(state)
    nothing: Any = None if keep_none else absent()
    return tree.unflatten(spec, [nothing if x is None else as_tensor(x) for x in leaves])


def as_before(number: Any, last: Any) -> Any:
    """A number in the dtype that it had in the last step, where both are tensors: arithmetic may have widened it."""
    return number.to(last.dtype) if isinstance(number, Tensor) and isinstance(last, Tensor) else number


def absent() -> Any:
    """None; inside transforms of ``torch.func``, which return tensors only, ``()``."""
    return () if in_transform() else None


def check_start(init_params: Any) -> None:
    """Require tensors of floating or complex dtypes that are finite, as far as they can be read.

    Raises:
        TypeError: If a parameter is not a tensor, or has another dtype.
        ValueError: If a value is NaN or infinite.
    """
    init_params = params_of(init_params)
    leaves = tree.leaves(init_params)
    for i, x in enumerate(leaves):
        if not isinstance(x, Tensor):
            raise TypeError(
                f'init_params{_path(init_params, i)} is {kind_of(x)}; expected a tensor of a floating dtype. '
                f'Convert it with torch.as_tensor.'
            )
        if not is_inexact(x):
            raise TypeError(
                f'init_params{_path(init_params, i)} has dtype {x.dtype}; expected a floating dtype. Convert it with '
                f'`.float()`.'
            )
        if (known := host_values(x)) is not None and not bool(torch.isfinite(known).all()):
            raise ValueError(
                f'init_params{_path(init_params, i)} has values that are NaN or infinite. Start from finite parameters.'
            )


def check_kkt(init_params: Any) -> None:
    """Require a KKTSolution, or None.

    Raises:
        TypeError: If it is something else.
    """
    if init_params is not None and not isinstance(init_params, KKTSolution):
        raise TypeError(
            f'init_params is {kind_of(init_params)}; expected a KKTSolution, which has multipliers too. Pass '
            f'None to start from zeros, or an earlier solution.'
        )


@contextlib.contextmanager
def names_the_start(
    reference: Any, fun: Callable[..., Any], init_params: Any, *args: Any, **kwargs: Any
) -> Iterator[None]:
    """In this block, an error of a function of the problem names ``init_params`` if ``fun`` fails there already."""
    try:
        yield
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        refuse_empty_batches(error)
        text = str(error)
        if 'unexpected keyword argument' in text and (signature := signature_of(reference)) is not None:
            _, *known = signature.parameters
            check_names('run', kwargs, known)
        if text.startswith('init_val.params'):  # the words of the loop
            text = text.replace('init_val.params', 'init_params').replace('body_fun', 'a step of the solver')
            raise type(error)(f'{text} The data may have another dtype or shape than init_params.') from error
        of_torch = type(error) in (RuntimeError, TypeError)  # a user's own class is left alone
        if not of_torch or any(words in text for words in ('init_params', 'missing', 'positional argument')):
            raise
        if not _fails(fun, init_params, *args, **kwargs):
            raise
        raise type(error)(
            f'A function of the problem fails at init_params: {text.removesuffix(".")}. '
            f'init_params: {_kinds(init_params)}; the data: {_kinds((args, kwargs))}. Pass init_params and the data '
            f'with the shapes and the dtypes that the function expects, in the order of its arguments.'
        ) from error


def _fails(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    try:
        fun(*args, **kwargs)
    except (RuntimeError, TypeError):
        return True
    return False


def _kinds(values: Any) -> str:
    kinds = (f'{x.dtype} of shape {tuple(x.shape)}' if isinstance(x, Tensor) else repr(x) for x in tree.leaves(values))
    return ', '.join(kinds) or 'empty'


def _path(params: Any, i: int) -> str:
    return [path for path, x in tree.flatten_with_path(params) if x is not None][i]
