# SPDX-License-Identifier: Apache-2.0
"""What all solvers have in common: their options, and the functions that users call."""

from __future__ import annotations

import abc
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from torchopt import checks, progress, tree
from torchopt.levels import eager, without_wrappers
from torchopt.loop import while_loop
from torchopt.solver import adjoint
from torchopt.solver.objective import Objective, signature_with
from torchopt.solver.run import KKTSolution, OptStep, Task, check_start, conclude, iterate, names_the_start, params_of
from torchopt.spelling import check_names_of

__all__ = ['IterativeSolver', 'KKTSolution', 'OptStep', 'SmoothSolver', 'Solver', 'StochasticSolver']


class Solver(abc.ABC):
    """A method that solves a problem, with JAXopt's interface; subclasses are dataclasses.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.GradientDescent(lambda x: (x - 3.0) ** 2, stepsize=0.5)
        >>> isinstance(solver, torchopt.solver.Solver)
        True
    """

    maxiter: int
    tol: float

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Create a solver; the error for an unknown argument says which one was probably meant."""
        fields = cls.__dict__.get('__dataclass_fields__', kwargs)
        if not kwargs.keys() <= fields.keys():
            check_names_of(cls, kwargs)
        checks.linear_solver('implicit_diff_solve', kwargs.get('implicit_diff_solve'))
        return super().__new__(cls)

    @abc.abstractmethod
    def run(self, init_params: Any, *args: Any, **kwargs: Any) -> OptStep:
        """Solve the problem.

        Args:
            init_params: Where to start, a tree.
            *args: Data of the problem.
            **kwargs: Data of the problem, by name.

        Returns:
            The parameters, and the state.
        """

    optimality_fun: Callable[..., Any]
    """``optimality_fun(params, *args, **kwargs)``, zero at solutions: a method, or what the user gave."""
    problem_function: ClassVar[str] = 'optimality_fun'
    """The name of the function whose arguments :attr:`optimality_fun` takes too."""
    second_argument: ClassVar[str | None] = None
    """The name of an argument that :attr:`optimality_fun` takes after the parameters, and the function does not."""

    @property
    def optimality_condition(self) -> Callable[..., Any]:
        """:attr:`optimality_fun` without auxiliary output, a tree like the parameters."""
        return self.optimality_fun

    @functools.cached_property
    def reference_signature(self) -> Callable[..., Any] | inspect.Signature:
        """A function, or its signature, that names the arguments of :attr:`optimality_fun`."""
        function = getattr(self, self.problem_function)
        return function if self.second_argument is None else signature_with(function, self.second_argument)

    def l2_optimality_error(self, params: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The Euclidean norm of :attr:`optimality_fun`, a 0-d tensor."""
        return torch.as_tensor(tree.norm(self.optimality_condition(params, *args, **kwargs)))

    def attribute_names(self) -> tuple[str, ...]:
        """The names of the constructor's arguments."""
        return tuple(field.name for field in dataclasses.fields(self))  # type: ignore[arg-type]

    def attribute_values(self) -> tuple[Any, ...]:
        """The values of the constructor's arguments, in the order of :meth:`attribute_names`."""
        return tuple(getattr(self, name) for name in self.attribute_names())


class SmoothSolver(Solver):
    """A solver of a smooth problem, at whose solutions the gradient of the objective is zero."""

    _objective: Objective

    def optimality_fun(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """The gradient of the objective."""
        return self._objective.gradient(params_of(params), *args, **kwargs)


@dataclasses.dataclass(eq=False, kw_only=True)
class IterativeSolver(Solver):
    """A solver that repeats a step.

    A subclass is a dataclass with the fields ``maxiter`` and ``tol``, whose defaults differ from solver to solver.  It
    defines ``init_state``, ``update`` and ``optimality_fun``.  The state is a named tuple with at least the fields
    ``iter_num``, ``error`` and ``status``.

    Attributes:
        maxiter: The largest number of steps.
        tol: The run ends when ``state.error`` is at most this.
        verbose: Whether to print each step; an int prints every so many steps; ``'bar'`` shows a progress bar, which
            needs the package tqdm.
        callback: ``callback(params, state)``, called after each step.  Under ``torch.vmap`` it gets tensors of the
            transform, which hold the whole batch and must not be kept.
        implicit_diff: Whether derivatives of :meth:`run` come from the implicit function theorem.  If not, they come
            from the steps.
        implicit_diff_solve: The linear solver for them, ``solve(matvec, b)``; if None, the default of
            :func:`torchopt.implicit_diff.custom_root`.
        jit: Accepted for code written for JAXopt; nothing is compiled.
        unroll: How derivatives come from the steps where ``implicit_diff`` is False: ``'checkpoint'`` remembers about
            the square root of the steps and makes those between again in the backward pass; ``'auto'``, True and False
            remember all.
    """

    verbose: bool | int | str = False
    callback: Callable[[Any, Any], Any] | None = None
    implicit_diff: bool = True
    implicit_diff_solve: Callable[..., Any] | None = None
    jit: bool | str = True
    unroll: bool | str = 'auto'

    error_name: ClassVar[str] = 'Error'
    """What ``state.error`` measures, for :meth:`log_info`."""

    continues_from: ClassVar[tuple[type, ...]] = ()
    """The classes of states whose memory a run that starts from an :class:`OptStep` continues with."""

    def __post_init__(self) -> None:
        """Check the options."""
        checks.integer('maxiter', self.maxiter, 0)
        checks.at_least('tol', self.tol)
        if self.unroll not in (True, False, 'auto', 'checkpoint'):
            raise ValueError(f"Invalid unroll: {self.unroll!r}; expected True, False, 'auto' or 'checkpoint'.")
        if isinstance(self.verbose, str) and self.verbose != 'bar':
            raise ValueError(f"Invalid verbose: {self.verbose!r}; expected a bool, an int or 'bar'.")

    @abc.abstractmethod
    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> Any:
        """The state before the first step.

        Args:
            init_params: Where to start, a tree.
            *args: Data of the problem.
            **kwargs: Data of the problem, by name.
        """

    @abc.abstractmethod
    def update(self, params: Any, state: Any, *args: Any, **kwargs: Any) -> OptStep:
        """One step.

        Args:
            params: The parameters, a tree.
            state: The state that :meth:`init_state` or the last step returned.
            *args: Data of the problem.
            **kwargs: Data of the problem, by name.

        Returns:
            The new parameters and the new state.
        """

    @property
    def stop_tol(self) -> Any:
        """What ``state.error`` is compared with; a solver with a criterion of its own sets ``state.status`` instead."""
        return self.tol

    def task(self, init_params: Any, *args: Any, **kwargs: Any) -> Task:
        """The steps of a run.  Solvers that work on vectors override it, to flatten trees once."""
        start = OptStep(params_of(init_params), self.init_state(init_params, *args, **kwargs))
        return Task(start, lambda last: self.update(*last, *args, **kwargs), lambda last: last)

    def progress(self, state: Any) -> dict[str, Any]:
        """What to print about a step besides its number and its error."""
        return {}

    def log_info(
        self, state: Any, error_name: str | None = None, additional_info: dict[str, Any] | None = None
    ) -> None:
        """Print the number of the step, its error and more; of a batch, what is largest.

        Args:
            state: The state.
            error_name: What the error is; the solver's own name for it if None.
            additional_info: More to print; what the solver has to say if None.
        """
        print(f'INFO: torchopt.{type(self).__name__}: {self._describe(state, error_name, additional_info)}')

    def _describe(self, state: Any, error_name: str | None = None, additional_info: Any = None) -> str:
        more = self.progress(state) if additional_info is None else additional_info
        error_name = self.error_name if error_name is None else error_name
        parts = {'Iter': state.iter_num, f'{error_name} (stopping criterion)': state.error, **more}
        return ' '.join(f'{name}: {_largest(x)}' for name, x in parts.items())

    @eager
    def run(self, init_params: Any, *args: Any, **kwargs: Any) -> OptStep:
        """Repeat steps until ``state.error`` is at most ``tol``, or no step can be made any more.

        Under ``torch.vmap`` each problem stops by itself.

        A run that ends without a solution neither warns nor raises, as in JAXopt: ``state.status`` says how it ended,
        and ``torchopt.solver.Status(int(state.status)).message`` what can be done about it.  An implicit derivative is
        that of a solution, and wrong by about as much as the result is.

        Args:
            init_params: Where to start, a tree of tensors of floating dtypes; or the result of another run, an
                :class:`OptStep`: a solver of the same class with a memory, such as :class:`~torchopt.LBFGS`,
                continues with it, others start from the parameters.
            *args: Data of the problem, passed on to its functions.
            **kwargs: Data of the problem, by name.

        Returns:
            The parameters, and the state.  With ``implicit_diff``, the parameters are differentiable in the data, and
            in tensors that the functions close over; the state is not.

        Raises:
            TypeError: If a parameter is not a tensor, or has an integer dtype, or arguments do not match.
            ValueError: If a parameter is NaN or infinite.
        """
        check_start(init_params)
        if isinstance(init_params, OptStep) and not isinstance(init_params.state, self.continues_from):
            init_params = init_params.params
        with names_the_start(self.reference_signature, self.optimality_condition, init_params, *args, **kwargs):
            return self._differentiable_run(init_params, *args, **kwargs)

    def _differentiable_run(self, init_params: Any, *args: Any, **kwargs: Any) -> OptStep:
        if not self.implicit_diff:
            loop = adjoint.checkpointed_loop if self.unroll == 'checkpoint' else while_loop
            return self._iterate(loop, init_params, *args, **kwargs)

        def run(*args: Any, **kwargs: Any) -> OptStep:
            return self._iterate(while_loop, *args, **kwargs)

        return OptStep(
            *adjoint.implicit(
                run,
                self.optimality_condition,
                self.reference_signature,
                self.implicit_diff_solve,
                (init_params, *args),
                kwargs,
            )
        )

    def _iterate(self, loop: Callable[..., OptStep], init_params: Any, *args: Any, **kwargs: Any) -> OptStep:
        task = self.task(init_params, *args, **kwargs)
        with _Report(self) as report:
            return iterate(task, self.maxiter, self.stop_tol, report if report.wanted else None, loop)


class StochasticSolver(IterativeSolver):
    """A solver whose steps may each see other data."""

    def run_iterator(self, init_params: Any, iterator: Iterator[Any], *args: Any, **kwargs: Any) -> OptStep:
        """Make one step for each batch of data, at most ``maxiter``.

        The first batch serves to initialize the state, as in JAXopt.

        Args:
            init_params: Where to start, a tree, or the :class:`OptStep` of another run, whose parameters it takes.
            iterator: The batches; each is passed as the argument ``data``.
            *args: Further data.
            **kwargs: Further data, by name.

        Returns:
            The parameters, and the state.

        Raises:
            ValueError: If the iterator is empty.
        """
        init_params = params_of(init_params)
        check_start(init_params)
        iterator = iter(iterator)
        try:
            data = next(iterator)
        except StopIteration:
            raise ValueError('The iterator is empty; expected at least one batch of data.') from None
        step = OptStep(init_params, self.init_state(init_params, *args, **kwargs, data=data))
        with _Report(self) as report:
            for data in itertools.islice(iterator, self.maxiter):
                step = self.update(*step, *args, **kwargs, data=data)
                if report.wanted:
                    report(step)
        return conclude(step, self.tol)


class _Report:
    """Shows each step: by the callback, printed, or as a progress bar."""

    def __init__(self, solver: IterativeSolver) -> None:
        self.solver = solver
        self.every = 0 if isinstance(solver.verbose, str) else int(solver.verbose)
        self.count = 0
        self.bar: Any = None
        self.wanted = bool(solver.verbose) or solver.callback is not None
        self.closed = False

    def __enter__(self) -> _Report:
        if self.solver.verbose == 'bar':
            self.bar = progress.bar(self.solver.maxiter, type(self.solver).__name__)
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True
        if self.bar is not None:
            self.bar.close()

    def __call__(self, step: OptStep) -> None:
        if self.closed:  # the step is made again, for a derivative
            return
        self.count += 1
        if self.solver.callback is not None:
            self.solver.callback(*step)
        if self.bar is not None:
            self.bar.set_postfix_str(self.solver._describe(step.state))
            self.bar.update()
        elif self.every and self.count % self.every == 0:
            self.solver.log_info(step.state)


def _largest(x: Any) -> Any:
    """A number to print; of a batch, the largest."""
    return without_wrappers(x).detach().max().item() if isinstance(x, Tensor) else x
