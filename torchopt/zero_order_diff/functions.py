# SPDX-License-Identifier: Apache-2.0
"""Value, gradient and curvature of an objective, as autograd Functions; each is the derivative of the previous one.

The function is called only on plain tensors, outside of all transforms.  Under ``torch.func.vmap`` each element of the
batch is a separate problem, and the elements are evaluated one after another (each vectorized over its samples).  So
any function works under every transform, even if it does not support them.

The gradient is random.  For normal directions, its derivative is estimated from the same directions, drawn again from
their seed, and from the stored function values, without further function calls.  For other directions, and with respect
to arguments that are not perturbed, the function is evaluated again at the same points and differentiated by autograd.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchopt import checks, dtypes, levels
from torchopt.zero_order_diff.directions import Directions, real_view
from torchopt.zero_order_diff.estimators import Estimator, combine
from torchopt.zero_order_diff.evaluation import BoundObjective, Evaluator

# The default number of elements of the directions in a chunk: at most 64 MiB in single precision.  On a CPU they should
# fit into the cache, unless this leaves too few samples for vmap to be useful.
_MOST, _CACHED, _FEW = 2**24, 2**20, 16


@dataclasses.dataclass(frozen=True, eq=False)
class ZeroOrderProblem:
    """The call to differentiate, with the options.

    ``wanted`` are the indices of the tensors that get gradients, ``others`` those of the tensors with respect to which
    these gradients are differentiated.
    """

    objective: BoundObjective
    method: str
    estimator: Estimator
    directions: Directions
    evaluator: Evaluator
    num_samples: int
    sigma: float
    chunk_size: int | None
    next_seed: Callable[[], int]
    report: Callable[[int, int], Any] | None
    wanted: tuple[int, ...] = ()
    others: tuple[int, ...] = ()

    @property
    def has_curvature(self) -> bool:
        """Whether second derivatives are estimated from values."""
        return self.estimator.curvature is not None and self.directions.gaussian

    def chunks(self, seed: int, xs: list[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
        """Yield chunks of directions: the index of the first one, and the directions for each tensor."""
        size = self.chunk_size or self._balanced_chunk_size(xs)
        generator = torch.Generator('cpu').manual_seed(seed)
        for first in range(0, self.num_samples, size):
            of_chunk = int(torch.randint(2**63 - 1, (), generator=generator, device='cpu'))
            yield first, self.directions.draw(of_chunk, min(size, self.num_samples - first), xs)

    def _balanced_chunk_size(self, xs: list[Tensor]) -> int:
        dimension = max(1, sum(x.numel() for x in xs))
        most = max(1, _MOST // dimension)
        if all(x.device.type == 'cpu' for x in xs):
            most = min(most, max(_FEW, _CACHED // dimension))
        return math.ceil(self.num_samples / math.ceil(self.num_samples / most))


def value(problem: ZeroOrderProblem) -> Tensor:
    """The value of the function, with the derivatives of the estimator."""
    return levels.apply_function(_Value, problem, *problem.objective.tensors)


_Function = TypeVar('_Function', bound=type[torch.autograd.Function])


def _one_by_one(cls: _Function) -> _Function:
    """Let ``vmap`` process the elements of the batch one after another."""

    def vmap(info: Any, in_dims: tuple[Any, ...], problem: ZeroOrderProblem, *tensors: Any) -> Any:
        if info.randomness == 'same':
            seed = problem.next_seed()
            problem = dataclasses.replace(problem, next_seed=lambda: seed)
        rows = [
            levels.apply_function(
                cls, problem, *(x if d is None else x.select(d, i) for x, d in zip(tensors, in_dims[1:]))
            )
            for i in range(info.batch_size)
        ]
        if isinstance(rows[0], Tensor):
            return torch.stack(rows), 0
        return tuple(torch.stack(column) for column in zip(*rows)), (0,) * len(rows[0])

    cls.vmap = staticmethod(vmap)  # type: ignore[method-assign]
    return cls


@_one_by_one
class _Value(torch.autograd.Function):
    """The value of the function at its arguments: ``_Value.apply(problem, *tensors)``."""

    @staticmethod
    def forward(problem: ZeroOrderProblem, *tensors: Tensor) -> Tensor:
        return problem.evaluator.at(problem.objective, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.problem, *tensors = inputs
        ctx.save_for_backward(output, *tensors)
        ctx.save_for_forward(output, *tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[1:]
        wanted = tuple(i for i in ctx.problem.wanted if needed[i])
        result: list[Tensor | None] = [None] * len(needed)
        # Let autograd record this product, so that it is differentiable with respect to the cotangent in any case.
        for i, g in zip(wanted, _gradient(ctx.problem, levels.saved_tensors(ctx), wanted)):
            result[i] = g * cotangent.to(dtypes.real_dtype(g.dtype))
        return (None, *result)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:
        wanted = tuple(i for i in ctx.problem.wanted if tangents[i] is not None)
        with levels.forward_mode(ctx) as saved:
            total = torch.zeros_like(saved[0])
            for i, g in zip(wanted, _gradient(ctx.problem, saved, wanted)):
                total = total + (real_view(g) * real_view(tangents[i])).sum().to(total)
        return total


def _gradient(problem: ZeroOrderProblem, saved: Sequence[Tensor], wanted: tuple[int, ...]) -> list[Tensor]:
    if not wanted:
        return []
    output, *tensors = saved
    _, _, *slopes = levels.apply_function(
        _Gradient, dataclasses.replace(problem, wanted=wanted), output.detach(), *tensors
    )
    return slopes


@_one_by_one
class _Gradient(torch.autograd.Function):
    """An estimate of the gradient: ``_Gradient.apply(problem, center, *tensors)``.

    It returns the seed of the directions, the values of the function, and the gradients.
    """

    @staticmethod
    def forward(problem: ZeroOrderProblem, center: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        seed = problem.next_seed()
        return torch.tensor(seed, device='cpu'), *_estimate(problem, seed, center, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.problem, center, *tensors = inputs
        seed, values, *_ = output
        ctx.mark_non_differentiable(seed, values)
        ctx.save_for_backward(seed, values, center, *tensors)
        ctx.save_for_forward(seed, values, center, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        problem, kept = ctx.problem, levels.saved_tensors(ctx)
        needed = {i for i, needs in enumerate(ctx.needs_input_grad[2:]) if needs}
        result: list[Tensor | None] = [None] * len(kept[3:])
        if problem.has_curvature and not needed.isdisjoint(problem.wanted):
            for i, h in zip(problem.wanted, _curvature(problem, kept, cotangents[2:])):
                result[i] = h
            needed.difference_update(problem.wanted)
        if needed:
            others = tuple(sorted(needed))
            for i, h in zip(others, _derivative(problem, kept, others, cotangents[2:])):
                result[i] = h
        return (None, None, *result)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        wanted, moving = ctx.problem.wanted, tangents[2:]
        if not ctx.problem.has_curvature or any(t is not None for i, t in enumerate(moving) if i not in wanted):
            raise RuntimeError(
                'A zero-order gradient has forward-mode derivatives only with respect to its argnums, for normal '
                'directions (torch.distributions.Normal(0.0, 1.0)) and methods other than spsa. Use reverse mode '
                '(torch.autograd.grad, torch.func.jacrev), or detach the other arguments.'
            )
        # The estimate of the Hessian is symmetric.
        with levels.forward_mode(ctx) as saved:
            return (None, None, *_curvature(ctx.problem, saved, [moving[i] for i in wanted]))


def _curvature(problem: ZeroOrderProblem, kept: Sequence[Tensor], vs: Any) -> tuple[Tensor, ...]:
    """The estimate of the Hessian times a vector."""
    xs = [kept[3 + i] for i in problem.wanted]
    vs = [torch.zeros_like(x) if v is None else v for x, v in zip(xs, vs)]
    return levels.apply_function(_Curvature, problem, *kept[:3], *xs, *vs)


def _derivative(
    problem: ZeroOrderProblem, kept: Sequence[Tensor], others: tuple[int, ...], vs: Any
) -> tuple[Tensor, ...]:
    """The derivative of the product of the gradient and a vector, by autograd through the function."""
    seed, _, _, *tensors = kept
    vs = [torch.zeros_like(tensors[i]) if v is None else v for i, v in zip(problem.wanted, vs)]
    return levels.apply_function(_Derivative, dataclasses.replace(problem, others=others), seed, *tensors, *vs)


class _Last(torch.autograd.Function):
    """A second derivative, which cannot be differentiated again."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """Raise an error."""
        _refuse_third_order()

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Raise an error."""
        _refuse_third_order()


def _refuse_third_order() -> None:
    raise RuntimeError(
        'Zero-order gradients have no third derivatives. Detach the second derivative, or use '
        'torchopt.perturbations.make_perturbed_fun, which has derivatives of every order.'
    )


@_one_by_one
class _Curvature(_Last):
    """An estimate of a Hessian-vector product: ``_Curvature.apply(problem, seed, values, center, *xs, *vs)``."""

    @staticmethod
    def forward(
        problem: ZeroOrderProblem, seed: Tensor, values: Tensor, center: Tensor, *xs_and_vs: Tensor
    ) -> tuple[Any, ...]:
        half = len(xs_and_vs) // 2
        xs, vs = xs_and_vs[:half], xs_and_vs[half:]
        return _estimate_product(problem, int(seed), values, center, xs, vs)


@_one_by_one
class _Derivative(_Last):
    """The gradient times a vector, differentiated by autograd: ``_Derivative.apply(problem, seed, *tensors, *vs)``."""

    @staticmethod
    def forward(problem: ZeroOrderProblem, seed: Tensor, *tensors_and_vs: Tensor) -> tuple[Any, ...]:
        count = len(tensors_and_vs) - len(problem.wanted)
        return _differentiate(problem, int(seed), tensors_and_vs[:count], tensors_and_vs[count:])


# The arithmetic, on plain tensors ------------------------------------------------------------------------------------


def _estimate(problem: ZeroOrderProblem, seed: int, center: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The values at all points, of shape ``(num_samples, signs)``, and the gradients."""
    weights, signs = problem.estimator.slope, problem.estimator.signs
    xs = [real_view(tensors[i].detach()) for i in problem.wanted]
    for x in xs:
        checks.perturbation('sigma', problem.sigma, x, synchronize=True)
    sums: list[Any] = [0.0] * len(xs)
    found = []
    for first, zs in problem.chunks(seed, xs):
        points = _points(problem, tensors, xs, zs)
        advance = None if problem.report is None else functools.partial(_report, problem, first)
        values = problem.evaluator.around(problem.objective, tensors, points, len(zs[0]), advance)
        _check_finite(problem, first, values, center)
        found.append(values)
        slopes = combine(weights, signs, values, center)
        sums = [total + slopes.to(z) @ z.reshape(len(z), -1) for total, z in zip(sums, zs)]
    scale = 1.0 / (problem.num_samples * problem.sigma)
    gradients = [_like(total * scale, tensors[i]) for i, total in zip(problem.wanted, sums)]
    return torch.cat(found), *gradients


def _points(
    problem: ZeroOrderProblem, tensors: tuple[Tensor, ...], xs: list[Tensor], zs: list[Tensor]
) -> list[dict[int, Tensor]]:
    """The perturbed tensors of a chunk, for each sign."""
    return [
        {i: _shifted(tensors[i], x, s * problem.sigma, z) for i, x, z in zip(problem.wanted, xs, zs)}
        for s in problem.estimator.signs
    ]


def _differentiate(
    problem: ZeroOrderProblem, seed: int, tensors: tuple[Tensor, ...], vs: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The derivative of the product of the gradient and a vector, by autograd through the function."""
    weights, signs = problem.estimator.slope, problem.estimator.signs
    flat = [real_view(v.detach()).reshape(-1) for v in vs]
    given = tuple(x.detach().requires_grad_(i in problem.others) for i, x in enumerate(tensors))
    moving = [given[i] for i in problem.others]
    perturbed = [given[i] for i in problem.others if i in problem.wanted]
    sums = [torch.zeros_like(x) for x in moving]
    for first, zs in problem.chunks(seed, [real_view(tensors[i].detach()) for i in problem.wanted]):
        along = sum(z.reshape(len(z), -1) @ v.to(z) for z, v in zip(zs, flat))
        with torch.enable_grad():
            points = _points(problem, given, [real_view(given[i]) for i in problem.wanted], zs)
            values = problem.evaluator.recorded(problem.objective, given, points, len(zs[0]))
            center = problem.objective(given, recorded=True) if 0 in weights else values.new_zeros(())
            total = (combine(weights, signs, values, center) * along).sum()
        if perturbed and first == 0 and _is_flat(values, perturbed):
            raise RuntimeError(
                f'The gradient by zero_order (method {problem.method!r}) cannot be differentiated with respect to its '
                'argnums: for these directions that takes a derivative of the function by autograd, and it has none, '
                'or it is zero. Pass torch.distributions.Normal(0.0, 1.0) and another method than spsa, which need no '
                'derivative (in a ZeroOrderGradientModule: sample = staticmethod(torch.distributions.Normal(0.0, '
                '1.0).sample)), or detach the gradient.'
            )
        if total.requires_grad:
            found = torch.autograd.grad(total, moving, allow_unused=True)
            sums = [s if g is None else s + g for s, g in zip(sums, found)]
    return tuple(s / (problem.num_samples * problem.sigma) for s in sums)


def _is_flat(values: Tensor, xs: list[Tensor]) -> bool:
    """Whether autograd finds no derivative at any of the points; for example, the function counts errors."""
    if not values.requires_grad:
        return True
    found = torch.autograd.grad(values, xs, torch.ones_like(values), retain_graph=True, allow_unused=True)
    return not any(g is not None and bool(g.any()) for g in found)


def _report(problem: ZeroOrderProblem, first: int, done: int) -> None:
    """Report so many evaluations of the chunk that begins with sample ``first``."""
    signs = len(problem.estimator.signs)
    assert problem.report is not None
    problem.report(first * signs + done, problem.num_samples * signs)


def _estimate_product(
    problem: ZeroOrderProblem, seed: int, values: Tensor, center: Tensor, xs: Any, vs: Any
) -> tuple[Any, ...]:
    """The estimated second derivative times a vector, from the values and directions of the gradient."""
    weights, signs = problem.estimator.curvature, problem.estimator.signs
    assert weights is not None
    bends = combine(weights, signs, values, center)
    flat = [real_view(v.detach()).reshape(-1) for v in vs]
    sums: list[Any] = [0.0] * len(xs)
    for first, zs in problem.chunks(seed, [real_view(x.detach()) for x in xs]):
        rows = [z.reshape(len(z), -1) for z in zs]
        b = bends[first : first + len(zs[0])]
        along = sum((z @ v.to(z)).to(b) for z, v in zip(rows, flat))
        sums = [total + (b * along).to(z) @ z - b.sum().to(z) * v.to(z) for total, z, v in zip(sums, rows, flat)]
    scale = 1.0 / (problem.num_samples * problem.sigma**2)
    return tuple(_like(total * scale, x) for total, x in zip(sums, xs))


def _shifted(tensor: Tensor, x: Tensor, step: float, z: Tensor) -> Tensor:
    shifted = torch.add(x, z, alpha=step).to(x.dtype)
    return torch.view_as_complex(shifted) if tensor.is_complex() else shifted


def _like(flat: Tensor, tensor: Tensor) -> Tensor:
    """Convert a flat real tensor to the shape and dtype of ``tensor``."""
    if tensor.is_complex():
        return torch.view_as_complex(flat.reshape(*tensor.shape, 2)).to(tensor.dtype)
    return flat.reshape(tensor.shape).to(tensor.dtype)


def _check_finite(problem: ZeroOrderProblem, first: int, values: Tensor, center: Tensor) -> None:
    """Raise for values that are not finite, with the number of the sample."""
    if 0 in problem.estimator.slope and not center.isfinite():
        raise ValueError(f'The function returned {float(center)} at the point itself. {_FINITE}')
    if values.isfinite().all():
        return
    sample, column = (int(i) for i in (~values.isfinite()).nonzero()[0])
    sign = '+' if problem.estimator.signs[column] > 0 else '-'
    raise ValueError(
        f'The function returned {float(values[sample, column])} at x {sign} sigma * z for sample {first + sample} of '
        f'{problem.num_samples}, counted from 0. {_FINITE}'
    )


_FINITE = (
    'All values must be finite: let the function return a large finite number where it is not defined, or pass a '
    'smaller sigma.'
)
