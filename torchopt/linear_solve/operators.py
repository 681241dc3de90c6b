# SPDX-License-Identifier: Apache-2.0
r"""Linear maps between trees, written as pure functions of all tensors that they depend on.

An operator computes ``matvec(consts, x)`` and, for the transpose, ``rmatvec(consts, u)``; ``x``, ``u`` and the results
are lists of leaves.  Since the tensors are an argument, a solution can be differentiated with respect to
them, and ``vmap`` can give each system its own.  Transposes are adjoints, :math:`A^\mathsf{H}`, for complex tensors.

For the many products of an iteration, ``prepare`` records the graph of one product and runs torch's backward pass
through it: the transpose of a linear map is its vector-Jacobian product, and the transpose of that is the map again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from torchopt.autodiff.closure import Converted, closure_convert
from torchopt.autodiff.products import jvp, map_product, pullback, recorded, replacing, vjp
from torchopt.autodiff.tape import Leaves, Product, taped
from torchopt.levels import in_transform


class Operator:
    """A linear map; the defaults derive everything else from :meth:`matvec`."""

    def matvec(self, consts: Leaves, x: Leaves) -> Leaves:
        """The product with a vector."""
        raise NotImplementedError

    def rmatvec(self, consts: Leaves, u: Leaves) -> Leaves:
        """The product of the transpose with a vector."""
        return vjp(lambda *x: self.matvec(consts, x), self.domain_like(u), u)

    def pull(self, consts: Leaves, wanted: Sequence[int], x: Leaves, u: Leaves) -> Leaves:
        """The vector-Jacobian product of the product with a constant vector, for some of the tensors."""
        return vjp(replacing(self.matvec, consts, wanted, x), [consts[i] for i in wanted], u)

    def product(self, consts: Leaves) -> Product:
        """The product with a vector, for many calls."""
        return functools.partial(self.matvec, consts)

    def domain_like(self, u: Leaves) -> list[Tensor]:
        """Zeros in the domain of the map; like ``u`` if the map is square."""
        return [torch.zeros_like(x) for x in u]

    def prepare(self, consts: Leaves, like: Leaves) -> tuple[Product, Product]:
        """The products with the map and with its transpose, for many calls."""
        product = self.product(consts)
        transposed: list[Product] = []

        def adjoint(u: Leaves) -> Leaves:
            if not transposed:
                _, pull = recorded(lambda *x: product(x), self.domain_like(like))
                transposed.append(taped(pull))
            return transposed[0](u)

        return product, adjoint

    def lasting(self) -> Operator:
        """The same map, for later calls."""
        return self

    def many(self, consts: Leaves, x: Leaves, transposed: bool = False) -> Leaves:
        """The products with many vectors, along the first dimension; with the transpose if ``transposed``."""
        return map_product(functools.partial(self.rmatvec if transposed else self.matvec, consts))(x)

    def batched(self, consts: Leaves, dims: Sequence[int | None], size: int) -> tuple[Operator, Leaves]:
        """The maps of many systems as one; all vectors get a new first dimension.

        Args:
            consts: The tensors that the maps depend on.
            dims: For each of them 0 if its first dimension is that of the systems, None if all share it.
            size: The number of systems.
        """
        return Mapped(self, dims, size), consts


@dataclass(eq=False)
class Closure(Operator):
    """The map that a function computes, which may close over tensors.

    Attributes:
        converted: The function of lists of leaves, linear in its argument.
        domain: Shapes and dtypes of the leaves of its argument.
        is_plain: Whether the tensors that replace the captured ones have the same values, outside of torch.func.
    """

    converted: Converted
    domain: Sequence[tuple[torch.Size, torch.dtype]]
    is_plain: bool = True

    @functools.cached_property
    def is_replaceable(self) -> bool:
        """Whether the captured tensors can be replaced, which most first derivatives do not need."""
        _, captured, _, _, remembered, is_seen = self.converted
        if is_seen or remembered is None:
            return is_seen
        example = [some_vector(torch.empty(s, dtype=d, device=captured[0].device)) for s, d in self.domain]
        with temporarily_clear_interpreter_stack(), torch.enable_grad():
            found = closure_convert(remembered.again(), example)
        # The mode also sees tensors that are used without a derivative, as by detach().
        return found.is_complete and set(map(id, found.captured)) >= set(map(id, captured))

    def matvec(self, consts: Leaves, x: Leaves) -> Leaves:
        """The product with a vector."""
        if not self.is_replaceable:
            raise RuntimeError(
                'The matvec of a linear system depends on tensors in a way that cannot be detected here, such as '
                'through a torch.autograd.Function or a cached result. Compute the product with operations of torch.'
            )
        return self.converted(consts, x)

    def product(self, consts: Leaves) -> Product:
        """The function itself if no tensor must be replaced, which saves the time of a mode."""
        fun, _, _, _, remembered, _ = self.converted
        return super().product(consts) if not self.is_plain else fun if remembered is None else remembered.again()

    def pull(self, consts: Leaves, wanted: Sequence[int], x: Leaves, u: Leaves) -> Leaves:
        """From the graph of the product itself, unless that is to be differentiated."""
        tensors = [self.converted.captured[i] for i in wanted]
        # Hooks of the tensors would run here, and again when autograd continues from the solution.
        has_hooks = any(t._backward_hooks or t.retains_grad for t in tensors)
        if self.converted.is_seen or torch.is_grad_enabled() or in_transform() or has_hooks:
            return super().pull(consts, wanted, x, u)
        with torch.inference_mode(False), torch.enable_grad():
            product = self.product(consts)(x)
        return pullback(product, tensors)(u)

    def lasting(self) -> Operator:
        """The same map, if a variable of the function changes later."""
        return self if self.converted.remembered else replace(self, converted=self.converted.lasting())

    def domain_like(self, u: Leaves) -> list[Tensor]:
        """Zeros in the domain of the map."""
        device = u[0].device if u else None
        return [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in self.domain]


class Jacobian(Operator):
    r"""The Jacobian :math:`\partial_x F(x, \theta)` of a function; the tensors that it depends on are ``[*x, *theta]``.

    Args:
        fun: ``fun(theta, x)``, a function of lists of leaves.
        unknowns: The number of leaves of ``x``.
        each: For many systems, the operator of each.
    """

    def __init__(self, fun: Callable[[Leaves, Leaves], Leaves], unknowns: int, each: Mapped | None = None) -> None:
        self.fun, self.unknowns, self.each = fun, unknowns, each

    def matvec(self, consts: Leaves, x: Leaves) -> Leaves:
        """The product with a vector."""
        point, theta = self._split(consts)
        return jvp(lambda *z: self.fun(theta, z), point, x)

    def rmatvec(self, consts: Leaves, u: Leaves) -> Leaves:
        """The product of the transpose with a vector."""
        point, theta = self._split(consts)
        return vjp(lambda *z: self.fun(theta, z), point, u)

    def _split(self, consts: Leaves) -> tuple[tuple[Tensor, ...], Leaves]:
        # The views are for `closure`, which records the tensors of operations, but not those that torch.func.vjp wraps.
        return tuple(x.view_as(x) for x in consts[: self.unknowns]), consts[self.unknowns :]

    def prepare(self, consts: Leaves, like: Leaves) -> tuple[Product, Product]:
        """Evaluate the function once; a product with the transpose is one backward pass through its graph."""
        point, theta = self._split(consts)
        value, pull = recorded(lambda *z: self.fun(theta, z), point)
        products: list[Product] = []

        def apply(x: Leaves) -> Leaves:
            if not products:
                _, push = recorded(lambda *u: pull(u), [torch.zeros_like(y) for y in value])
                products.append(taped(push))
            return products[0](x)

        return apply, taped(pull)

    def many(self, consts: Leaves, x: Leaves, transposed: bool = False) -> Leaves:
        """The products with many vectors."""
        return super().many(consts, x, transposed) if self.each is None else self.each.many(consts, x, transposed)

    def batched(self, consts: Leaves, dims: Sequence[int | None], size: int) -> tuple[Operator, Leaves]:
        """The block-diagonal Jacobian of the mapped function."""
        if all(d is None for d in dims):
            return Mapped(self, dims, size), consts
        n, fun = self.unknowns, self.fun
        point = [x if d == 0 else x.expand(size, *x.shape) for x, d in zip(consts[:n], dims)]
        theta_dims = list(dims[n:])
        each = Mapped(self, [0] * n + theta_dims, size)
        mapped = Jacobian(lambda theta, x: _vmap(fun, theta_dims)(list(theta), list(x)), n, each)
        return mapped, [*point, *consts[n:]]


class Adjoint(Operator):
    """The transpose of an operator."""

    def __init__(self, of: Operator) -> None:
        self.of = of

    def matvec(self, consts: Leaves, x: Leaves) -> Leaves:
        """The product with a vector."""
        return self.of.rmatvec(consts, x)

    def rmatvec(self, consts: Leaves, u: Leaves) -> Leaves:
        """The product of the transpose with a vector."""
        return self.of.matvec(consts, u)

    def prepare(self, consts: Leaves, like: Leaves) -> tuple[Product, Product]:
        """The same two products, exchanged."""
        apply, adjoint = self.of.prepare(consts, like)
        return adjoint, apply

    def many(self, consts: Leaves, x: Leaves, transposed: bool = False) -> Leaves:
        """The products with many vectors."""
        return self.of.many(consts, x, not transposed)

    def batched(self, consts: Leaves, dims: Sequence[int | None], size: int) -> tuple[Operator, Leaves]:
        """The transpose of the batched operator."""
        of, consts = self.of.batched(consts, dims, size)
        return Adjoint(of), consts


def some_vector(like: Tensor) -> Tensor:
    """A vector that is neither zero nor constant, since many matrices map those to zero."""
    return torch.arange(1, like.numel() + 1, device=like.device).sin().reshape(like.shape).to(like.dtype)


def per_system(number: Tensor, x: Tensor) -> Tensor:
    """A number for each system of a batch, with the dtype and the shape to multiply a leaf."""
    dtype = x.dtype.to_real() if x.is_complex() else x.dtype
    return number.to(dtype).reshape(number.shape + (1,) * (x.dim() - number.dim()))


class Shifted(Operator):
    r"""The ridge :math:`A + \lambda I`; :math:`\lambda`, a real 0-d tensor, is the last of the tensors."""

    def __init__(self, of: Operator) -> None:
        self.of = of

    def lasting(self) -> Operator:
        """The shift of the lasting operator."""
        return Shifted(self.of.lasting())

    def _plus(self, ridge: Tensor, x: Leaves, y: Leaves) -> Leaves:
        return [a + per_system(ridge, a) * z for a, z in zip(y, x)]

    def matvec(self, consts: Leaves, x: Leaves) -> Leaves:
        """The product with a vector."""
        return self._plus(consts[-1], x, self.of.matvec(consts[:-1], x))

    def rmatvec(self, consts: Leaves, u: Leaves) -> Leaves:
        """The product of the transpose with a vector."""
        return self._plus(consts[-1], u, self.of.rmatvec(consts[:-1], u))

    def prepare(self, consts: Leaves, like: Leaves) -> tuple[Product, Product]:
        """The products of the operator, plus the shift."""
        apply, adjoint = self.of.prepare(consts[:-1], like)
        ridge = consts[-1].detach()
        return lambda x: self._plus(ridge, x, apply(x)), lambda u: self._plus(ridge, u, adjoint(u))

    def many(self, consts: Leaves, x: Leaves, transposed: bool = False) -> Leaves:
        """The products with many vectors."""
        y = self.of.many(consts[:-1], x, transposed)
        return [torch.stack(z) for z in zip(*(self._plus(consts[-1], *rows) for rows in zip(zip(*x), zip(*y))))]

    def batched(self, consts: Leaves, dims: Sequence[int | None], size: int) -> tuple[Operator, Leaves]:
        """The shift of the batched operator."""
        if all(d is None for d in dims):
            return Mapped(self, dims, size), consts
        of, inner = self.of.batched(consts[:-1], dims[:-1], size)
        return Shifted(of), [*inner, consts[-1]]


class Mapped(Operator):
    """An operator for each of many systems, or the same for all; see :meth:`Operator.batched`."""

    def __init__(self, of: Operator, dims: Sequence[int | None], size: int) -> None:
        self.of, self.dims, self.size = of, list(dims), size

    def domain_like(self, u: Leaves) -> list[Tensor]:
        """Zeros in the domain of the map."""
        return [x.new_zeros((self.size, *x.shape)) for x in self.of.domain_like([x[0] for x in u])]

    def matvec(self, consts: Leaves, x: Leaves) -> Leaves:
        """The product with a vector."""
        return _vmap(self.of.matvec, self.dims)(list(consts), list(x))

    def rmatvec(self, consts: Leaves, u: Leaves) -> Leaves:
        """The product of the transpose with a vector."""
        return _vmap(self.of.rmatvec, self.dims)(list(consts), list(u))

    def prepare(self, consts: Leaves, like: Leaves) -> tuple[Product, Product]:
        """The products of the operator, for all systems at once if they share it."""
        if any(d is not None for d in self.dims):
            return super().prepare(consts, like)
        apply, adjoint = self.of.prepare(consts, [x[0] for x in like])
        return map_product(apply), map_product(adjoint)

    def many(self, consts: Leaves, x: Leaves, transposed: bool = False) -> Leaves:
        """The products with many vectors, all of those of a system together: torch copies no matrix for them."""

        def of_one(consts: Leaves, x: Leaves) -> tuple[Tensor, ...]:
            return tuple(self.of.many(consts, x, transposed))

        return torch.vmap(of_one, in_dims=(self.dims, 1), out_dims=1, randomness='different')(list(consts), list(x))


def _vmap(fun: Callable[..., Leaves], dims: list[int | None]) -> Callable[..., Leaves]:
    return torch.vmap(lambda consts, x: tuple(fun(consts, x)), in_dims=(dims, 0), randomness='different')
