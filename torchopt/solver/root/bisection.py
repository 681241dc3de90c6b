# SPDX-License-Identifier: Apache-2.0
"""Bisection."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.levels import is_readable
from torchopt.scalars import where
from torchopt.solver.arguments import check_state, split_aux
from torchopt.solver.base import IterativeSolver, OptStep
from torchopt.solver.status import Status


class BisectionState(NamedTuple):
    """The state of :class:`Bisection`.

    Attributes:
        iter_num: The number of steps.
        value: The value of the function at the parameters.
        error: Its absolute value.
        low: The lower end of the interval that contains the root.
        high: The upper end.
        sign: 1 if the function increases from end to end, -1 if it decreases, 0 if there is no change of sign.
        aux: The auxiliary output.
        num_fun_eval: How often the function was called.
        status: How the run ended; ``INFEASIBLE`` if there was no change of sign.
    """

    iter_num: Any
    value: Any
    error: Any
    low: Any
    high: Any
    sign: Any
    aux: Any
    num_fun_eval: Any
    status: Any


@dataclasses.dataclass(eq=False)
class Bisection(IterativeSolver):
    r"""The root of a function of one number in an interval, by halving it.

    The function must be continuous, and have opposite signs at the ends.  Each step gains one binary digit.  The result
    is differentiable in the arguments of the function: by the implicit function theorem,
    :math:`\mathrm{d}x = -\partial_\theta F\, \mathrm{d}\theta / \partial_x F`.  The ends have no influence on it.

    Args:
        optimality_fun: ``optimality_fun(x, *args, **kwargs)`` of a 0-d tensor returns a 0-d tensor.
        lower: The lower end, a number or a 0-d tensor.
        upper: The upper end.
        maxiter: The largest number of steps.
        tol: The run ends when the absolute value of the function is at most this.
        check_bracket: Whether to raise an error if the function has the same sign at both ends.  Under ``torch.vmap``,
            where signs cannot be read, and without this check, the status says so.
        has_aux: Whether ``optimality_fun`` returns a pair, its value and auxiliary output.

    The computation is in the widest floating dtype of all arguments, and of the ends.

    Raises:
        ValueError: If an end is not one number, there is no change of sign, ``lower`` is not less than ``upper``, or
            ``implicit_diff`` is False: the steps have no derivative.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.Bisection(lambda x, a: x**3 - a, lower=0.0, upper=4.0, tol=1e-6)
        >>> a = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
        >>> x = solver.run(None, a).params
        >>> x.item(), torch.autograd.grad(x, a)[0].item()
        (2.0, 0.0833...)
    """

    optimality_fun: Callable[..., Any] = dataclasses.field()
    lower: Any
    upper: Any
    maxiter: int = 30
    tol: float = 1e-5
    check_bracket: bool = True
    _: dataclasses.KW_ONLY
    has_aux: bool = False

    error_name = 'Absolute value'

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        checks.function('optimality_fun', self.optimality_fun)
        if not self.implicit_diff:
            raise ValueError(
                'Invalid implicit_diff: False; the steps of bisection are constant almost everywhere, so that their '
                'derivative is zero. Leave it True.'
            )
        for name in ('lower', 'upper'):
            shape = tuple(torch.as_tensor(getattr(self, name)).shape)
            if shape not in ((), (1,)):
                raise ValueError(
                    f'Invalid {name}: a tensor of shape {shape}; expected a number. For several roots use torch.vmap.'
                )
        ordered = torch.as_tensor(self.lower) < torch.as_tensor(self.upper)
        if is_readable(ordered) and not bool(ordered.all()):
            raise ValueError(f'Invalid lower: {self.lower}; expected a number below upper={self.upper}.')

    @property
    def optimality_condition(self) -> Callable[..., Any]:
        """The function without auxiliary output."""
        return lambda x, *args, **kwargs: self._value(x, *args, **kwargs)[0]

    def _value(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        value, aux = split_aux(self.optimality_fun(x, *args, **kwargs), self.has_aux, 'optimality_fun')
        value = torch.as_tensor(value)
        if value.numel() != 1:
            raise ValueError(
                f'optimality_fun returned a tensor of shape {tuple(value.shape)}; expected one number. For several '
                f'functions of one number use torch.vmap.'
            )
        return value.reshape(()), aux

    def _ends(self, init_params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The ends, as 0-d tensors."""
        given = [x for x in tree.leaves((init_params, self.lower, self.upper, args, kwargs)) if isinstance(x, Tensor)]
        dtypes = [x.dtype for x in given if x.is_floating_point()]
        dtype = functools.reduce(torch.promote_types, dtypes) if dtypes else torch.get_default_dtype()
        device = given[0].device if given else None
        low, high = (torch.as_tensor(x, dtype=dtype, device=device).reshape(()) for x in (self.lower, self.upper))
        return low, high

    def run(self, init_params: Any = None, *args: Any, **kwargs: Any) -> OptStep:
        """Find the root.

        Args:
            init_params: Not used, except for its dtype.
            *args: Data, passed on to the function.
            **kwargs: Data, by name.
        """
        low, high = self._ends(init_params, args, kwargs)
        return super().run(0.5 * (low.detach() + high.detach()), *args, **kwargs)

    def init_state(self, init_params: Any = None, *args: Any, **kwargs: Any) -> BisectionState:
        """The state before the first step."""
        low, high = self._ends(init_params, args, kwargs)
        at_low, _ = self._value(low, *args, **kwargs)
        at_high, aux = self._value(high, *args, **kwargs)
        rises, falls = (at_low <= 0) & (at_high >= 0), (at_low >= 0) & (at_high <= 0)
        sign = torch.where(rises, 1, torch.where(falls, -1, 0))
        if self.check_bracket and is_readable(sign) and int(sign) == 0:
            raise ValueError(
                f'optimality_fun is {at_low.item():.3g} at lower={low.item():g} and {at_high.item():.3g} at '
                f'upper={high.item():g}; expected opposite signs. Choose ends with a root between them.'
            )
        status = torch.where(sign == 0, int(Status.INFEASIBLE), int(Status.RUNNING))
        infinite = torch.full_like(at_low, math.inf)
        return BisectionState(0, infinite, infinite, low, high, sign, aux, 2, status)

    def update(self, params: Any, state: BisectionState, *args: Any, **kwargs: Any) -> OptStep:
        """One step, to the middle of the interval."""
        check_state(state)
        x = 0.5 * (state.low + state.high)
        value, aux = self._value(x, *args, **kwargs)
        is_beyond = state.sign * value > 0
        low, high = torch.where(is_beyond, state.low, x), torch.where(is_beyond, x, state.high)
        # Two neighbouring numbers have no middle.
        exhausted = ((x == state.low) | (x == state.high)) & (state.status == int(Status.RUNNING))
        status = where(exhausted, int(Status.STALLED), state.status)
        new_state = BisectionState(
            state.iter_num + 1, value, value.abs(), low, high, state.sign, aux, state.num_fun_eval + 1, status
        )
        return OptStep(x, new_state)
