# SPDX-License-Identifier: Apache-2.0
"""The decorator that replaces the gradient of a function by an estimate of the gradient of its smoothing."""

from __future__ import annotations

import functools
import inspect
import math
import pickle
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.dtypes import is_inexact
from torchopt.kinds import described, kind_of
from torchopt.levels import eager
from torchopt.progress import Progress, reporter
from torchopt.spelling import names_checked
from torchopt.typing import Samplable, SampleFunc
from torchopt.zero_order_diff.directions import Directions
from torchopt.zero_order_diff.estimators import ESTIMATORS
from torchopt.zero_order_diff.evaluation import BoundObjective, Evaluator
from torchopt.zero_order_diff.functions import ZeroOrderProblem, value

Objective = Callable[..., Tensor]


@names_checked
def zero_order(
    distribution: Samplable | SampleFunc,
    method: str = 'naive',
    argnums: int | Sequence[int] = (0,),
    num_samples: int = 1,
    sigma: float = 1.0,
    *,
    vectorize: bool | None = None,
    chunk_size: int | None = None,
    executor: Executor | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    callback: Progress = None,
) -> Callable[[Objective], Objective]:
    r"""Decorator: differentiate a function by sampling.

    The value of the function does not change.  Its gradient becomes an estimate, from function values only, of the
    gradient of the smoothed function :math:`f_\sigma(x) = \mathbb{E}\, f(x + \sigma z)`.  With :math:`n` directions
    :math:`z_i`,

    .. math::
        \texttt{naive:}\ & \tfrac{1}{n\sigma} \textstyle\sum_i f(x + \sigma z_i)\, z_i \\
        \texttt{forward:}\ & \tfrac{1}{n\sigma} \textstyle\sum_i (f(x + \sigma z_i) - f(x))\, z_i \\
        \texttt{antithetic:}\ & \tfrac{1}{2n\sigma} \textstyle\sum_i (f(x + \sigma z_i) - f(x - \sigma z_i))\, z_i

    ``orthogonal`` is ``antithetic`` with orthogonal directions (within a chunk, in groups of at most as many as there
    are dimensions); the distribution of each direction is the same.  ``spsa`` is ``antithetic`` with the signs of the
    directions, as in the simultaneous perturbation method.  For normal directions the gradient is an unbiased estimate
    of that of :math:`f_\sigma`; for other distributions the bias is of order :math:`\sigma^2`.

    The directions are drawn in the backward pass.  They perturb the floating-point tensors that require grad in the
    arguments ``argnums``.  A tensor that occurs twice is perturbed once; of a complex tensor, both parts are perturbed.

    The result works with :func:`torch.autograd.grad`, ``backward``, and the transforms of ``torch.func`` (``grad``,
    ``jacrev``, ``jvp``, ``jacfwd``, ``hessian``, ``vmap``), for any function.  Under
    ``torch.compile`` it breaks the graph.

    Only these tensors get gradients; other arguments, and tensors that the function closes over, are constants.  The
    gradient itself can be differentiated: with respect to the perturbed tensors for
    ``torch.distributions.Normal(0.0, 1.0)`` and any method but ``spsa``, by Stein's identity from the same function
    values; for other directions, and with respect to other arguments, in reverse mode by autograd through the function,
    which is evaluated again at the same points.  With respect to perturbed tensors this raises an error if the function
    has no derivative, or only zeros.  Tensors that the function closes over get no derivative: pass them as arguments.

    Args:
        distribution: The distribution of the directions: an object with a method ``sample``, such as
            a distribution of :mod:`torch.distributions` over scalars, or a function.  Either is called with a shape,
            ``(number of samples, *shape of the tensor)``, and returns a tensor of that shape.  It must be symmetric,
            with variance one.  A distribution that is known to violate this raises an error.
        method: ``'naive'``, ``'forward'``, ``'antithetic'``, ``'orthogonal'`` or ``'spsa'``.
        argnums: The positions of the arguments to differentiate, one or several; they may be trees.
        num_samples: The number of directions :math:`n \ge 1`.
        sigma: The scale :math:`\sigma > 0` of the perturbations.
        vectorize: True evaluates many samples at once with :func:`torch.func.vmap`, False evaluates them in a loop.
            None tries ``vmap``; if it fails for a function, such as one that uses NumPy, all later calls use a loop.
        chunk_size: The number of directions in memory at the same time.  By default, they take at most 64 MiB in single
            precision; on a CPU at most 4 MiB, if this is enough for ``vmap`` to be useful.
        executor: An executor of :mod:`concurrent.futures` that evaluates the samples.  For processes, the function must
            be picklable.
        generator: The generator of the directions; every backward pass draws new ones.
        seed: A seed, for the same directions in every backward pass (common random numbers).  Without ``generator`` and
            ``seed``, torch's global generator is used.
        callback: A function that is called during a backward pass with the number of evaluations that are done and of
            all evaluations, or ``'bar'`` for a progress bar (needs tqdm). With ``vectorize`` it is called once a chunk.

    Returns:
        A decorator for functions that return a 0-d tensor of a real floating dtype.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``method`` is unknown, ``num_samples``, ``sigma`` or ``chunk_size`` is not positive, or
            ``distribution`` is known not to be symmetric with variance one.  In the backward pass, if the function
            returned NaN or infinity.

    Warns:
        UserWarning: In the backward pass, if ``sigma`` is so small that perturbations are lost to rounding.

    Example:
        >>> import torch
        >>> from torchopt.zero_order_diff import zero_order
        >>> normal = torch.distributions.Normal(0.0, 1.0)
        >>> @zero_order(normal, 'antithetic', num_samples=10_000, sigma=0.1, seed=0)
        ... def errors(w, x, y):
        ...     return ((x @ w > 0) != y).float().mean()
        >>> w = torch.zeros(1, requires_grad=True)
        >>> errors(w, torch.ones(4, 1), torch.tensor([True] * 4)).backward()
        >>> bool(w.grad < -3.9)  # the density of the normal distribution of scale 0.1 at zero
        True

    References:
        Nesterov and Spokoiny, `Random gradient-free minimization of convex functions
        <https://doi.org/10.1007/s10208-015-9296-2>`_, 2017.

        Salimans et al., `Evolution strategies as a scalable alternative to reinforcement learning
        <https://arxiv.org/abs/1703.03864>`_, 2017.

        Choromanski et al., `Structured evolution with compact architectures for scalable policy optimization
        <https://arxiv.org/abs/1804.02395>`_, 2018 (orthogonal directions).

        Spall, `Multivariate stochastic approximation using a simultaneous perturbation gradient approximation
        <https://doi.org/10.1109/9.119632>`_, 1992 (SPSA).
    """
    if method not in ESTIMATORS:
        raise ValueError(f'Invalid method: {method!r}; expected one of {", ".join(map(repr, ESTIMATORS))}.')
    estimator = ESTIMATORS[method]
    directions = Directions(distribution, estimator.arrange)
    positions = _positions(argnums)
    _positive_int('num_samples', num_samples)
    if chunk_size is not None:
        _positive_int('chunk_size', chunk_size)
    checks.positive('sigma', sigma)
    width = float(sigma)
    if math.isinf(width):
        raise ValueError(f'Invalid sigma: {sigma}; expected a finite number > 0.')
    if executor is not None and (not isinstance(executor, Executor) or vectorize):
        raise TypeError(
            f'Invalid executor: {executor!r}; expected an executor of concurrent.futures, and vectorize not True.'
        )
    report = reporter(callback, 'evaluations')
    next_seed = _seeds(generator, seed)

    def decorate(fn: Objective) -> Objective:
        if not callable(fn):
            raise TypeError(
                f'zero_order decorates a function; {described(fn)}. The first call takes the '
                f'distribution and options, the second one the function: zero_order(torch.distributions.Normal(0.0, '
                f'1.0), ...)(fun)(x).'
            )
        evaluator = Evaluator(vectorize, executor, lambda: _portable(fn, differentiable))

        @eager
        def evaluate(*args: Any, **kwargs: Any) -> Tensor:
            if kwargs:
                args, kwargs = _by_position(fn, args, kwargs)
            objective = BoundObjective(fn, args, kwargs)
            wanted = _wanted(objective, args, positions)
            problem = ZeroOrderProblem(
                objective,
                method,
                estimator,
                directions,
                evaluator,
                num_samples,
                width,
                chunk_size,
                next_seed,
                report,
                wanted,
            )
            return value(problem)

        @functools.wraps(fn)
        def differentiable(*args: Any, **kwargs: Any) -> Tensor:
            return evaluate(*args, **kwargs)

        return differentiable

    return decorate


def _positive_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f'Invalid {name}: {described(value)}; expected an int >= 1.')
    if value < 1:
        raise ValueError(f'Invalid {name}: {value}; expected an int >= 1.')


def _positions(argnums: int | Sequence[int]) -> tuple[int, ...]:
    positions = tuple(argnums) if isinstance(argnums, Iterable) else (argnums,)
    if not positions or not all(isinstance(i, int) and not isinstance(i, bool) for i in positions):
        raise TypeError(f'Invalid argnums: {argnums!r}; expected an int or a sequence of at least one.')
    return positions


def _seeds(generator: torch.Generator | None, seed: int | None) -> Callable[[], int]:
    """A function that returns the seed of the next estimate."""
    if seed is not None:
        if generator is not None:
            raise TypeError('generator and seed were both given; pass only one of them.')
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f'Invalid seed: {described(seed)}; expected an int.')
        return lambda: seed
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f'Invalid generator: {described(generator)}; expected a torch.Generator. Pass an int as seed.')
    device = 'cpu' if generator is None else generator.device
    return lambda: int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def _by_position(
    fn: Objective, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Convert keyword arguments to positional ones if possible, for ``argnums``; a wrong call raises a TypeError."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # functions not written in Python have no signature
        return args, kwargs
    bound = signature.bind(*args, **kwargs)
    return bound.args, bound.kwargs


def _wanted(objective: BoundObjective, args: tuple[Any, ...], positions: tuple[int, ...]) -> tuple[int, ...]:
    """The indices of the tensors in the arguments to differentiate."""
    wanted: dict[int, None] = {}
    for position in positions:
        if not -len(args) <= position < len(args):
            raise ValueError(
                f'argnums has {position}, but the function was called with {len(args)} positional arguments. '
                f'Number them from 0, or from -1 backwards.'
            )
        own = {id(x) for x in tree.leaves(args[position]) if is_inexact(x)}
        found = [i for i, x in enumerate(objective.tensors) if id(x) in own]
        if not found:
            raise TypeError(
                f'argnums has {position}, but that argument, {kind_of(args[position])}, contains no tensor of '
                f'a floating dtype. Pass the positions of arguments to differentiate, or convert it with x.float().'
            )
        wanted.update(dict.fromkeys(found))
    return tuple(sorted(wanted))


def _portable(fn: Objective, decorated: Objective) -> tuple[Objective, bool]:
    """A function that other processes can import by its name: the decorated one if the decorator replaced the name."""
    try:
        pickle.dumps(fn)
    except (pickle.PicklingError, AttributeError, TypeError):
        return decorated, True
    return fn, False
