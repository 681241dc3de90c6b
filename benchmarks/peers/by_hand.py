# SPDX-License-Identifier: Apache-2.0
"""Hand-written code without a library: lower bounds for the differentiable loops, and the pytrees of torch."""

from __future__ import annotations

import functools
from collections.abc import Callable

import optree
import problems
import torch
import torch.nn.functional as F
import torch.utils._pytree as torch_pytree
from counting import allocations
from problems import Case, Cases
from torch import Tensor
from torch_problems import linear_layer, meta_losses, mlp, shared_tree, sum_of_squares, tensors
from workloads import BETAS, CG_ITERATIONS, LR, META_EPS, META_LR, RIDGE_PENALTY, ZERO_SAMPLES, ZERO_SIGMA, Workload

Update = Callable[[list[Tensor], list[Tensor]], list[Tensor]]


def cases(work: Workload) -> Cases:
    if work.kind == 'meta':
        return {'SGD': functools.partial(_meta, work, lambda: sgd), 'Adam': functools.partial(_meta, work, Adam)}
    if work.kind == 'small' and work.part:
        return {
            'functional': {'p - lr * g': functools.partial(_comprehension, work)},
            'meta': {'SGD': functools.partial(_meta_sgd, work)},
        }[work.part]
    if work.kind == 'share':
        return {'free update': functools.partial(_share, work)}
    if work.kind == 'zero_order':
        return {work.part: functools.partial(_zero_order, work)}
    if work.kind == 'implicit':
        return {
            'CG': functools.partial(_implicit, work, True),
            'CG, Hessian product by autograd': functools.partial(_implicit, work, False),
        }
    if work.kind == 'tree':
        return {
            'optree': functools.partial(_tree, work, optree.tree_flatten, optree.tree_unflatten, optree.tree_map),
            'torch.utils._pytree': functools.partial(
                _tree,
                work,
                torch_pytree.tree_flatten,
                lambda spec, leaves: torch_pytree.tree_unflatten(leaves, spec),
                torch_pytree.tree_map,
            ),
        }
    return {}


def sgd(params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    return [p - META_LR * g for p, g in zip(params, grads)]


class Adam:
    """The equations of the paper for each tensor."""

    def __init__(self) -> None:
        self.t, self.mu, self.nu = 0, None, None

    def __call__(self, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        b1, b2 = BETAS
        self.t += 1
        mu = self.mu or [torch.zeros_like(p) for p in params]
        nu = self.nu or [torch.zeros_like(p) for p in params]
        self.mu = [b1 * m + (1 - b1) * g for m, g in zip(mu, grads)]
        self.nu = [b2 * v + (1 - b2) * g * g for v, g in zip(nu, grads)]
        c1, c2 = 1 - b1**self.t, 1 - b2**self.t
        return [p - META_LR * (m / c1) / ((v / c2).sqrt() + META_EPS) for p, m, v in zip(params, self.mu, self.nu)]


def _comprehension(work: Workload) -> Case:
    params, grads = (dict(zip('wb', xs)) for xs in shared_tree(work.tree))

    def run() -> dict[str, Tensor]:
        return {name: p - LR * grads[name] for name, p in params.items()}

    return Case(run=run, check=lambda: list(run().values()))


def _meta_sgd(work: Workload) -> Case:
    net, loss_of = linear_layer(work.tree)
    start = list(net.parameters())

    def run() -> tuple[Tensor, ...]:
        w, b = start
        for _ in range(work.steps):
            loss = loss_of(lambda x, w=w, b=b: F.linear(x, w, b))
            dw, db = torch.autograd.grad(loss, (w, b), create_graph=True)
            w, b = w - META_LR * dw, b - META_LR * db
        return torch.autograd.grad(loss_of(lambda x: F.linear(x, w, b)), start)

    return Case(run=run, check=lambda: list(run()))


def _meta(work: Workload, optimizer: Callable[[], Update]) -> Case:
    start = [w.requires_grad_() for w in tensors(problems.mlp_weights())]
    inner_loss, outer_loss = meta_losses()

    def run() -> tuple[Tensor, ...]:
        params, update = start, optimizer()
        for _ in range(work.steps):
            loss = inner_loss(functools.partial(mlp, params))
            params = update(params, torch.autograd.grad(loss, params, create_graph=True))
        return torch.autograd.grad(outer_loss(functools.partial(mlp, params)), start)

    check = None if optimizer() is sgd else lambda: list(run())
    return Case(run=run, check=check, memory=lambda: allocations(run))


def _zero_order(work: Workload) -> Case:
    """One ``vmap`` over perturbed parameters (two for pairs), and one product for each of them."""
    params = tensors(problems.mlp_weights())
    loss, _ = meta_losses()
    over_samples = torch.func.vmap(lambda *ps: loss(functools.partial(mlp, ps)))

    def values(zs: list[Tensor], step: float) -> Tensor:
        return over_samples(*(torch.add(p, z, alpha=step) for p, z in zip(params, zs)))

    def estimate(zs: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            weights = values(zs, ZERO_SIGMA)
            if work.part == 'forward':
                weights = weights - loss(functools.partial(mlp, params))
            elif work.part == 'antithetic':
                weights = (weights - values(zs, -ZERO_SIGMA)) / 2
            return [torch.tensordot(weights, z, 1) / (ZERO_SAMPLES * ZERO_SIGMA) for z in zs]

    return Case(
        run=lambda: estimate([torch.randn(ZERO_SAMPLES, *p.shape, device=p.device) for p in params]),
        check=lambda: estimate(tensors(problems.directions())),
    )


def conjugate_gradients(matvec: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """Conjugate gradients in place, with coefficients on the host."""
    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    rr = torch.dot(r, r).item()
    for _ in range(CG_ITERATIONS):
        if rr <= 0.0:
            break
        Ap = matvec(p)
        alpha = rr / torch.dot(p, Ap).item()
        x.add_(p, alpha=alpha)
        r.sub_(Ap, alpha=alpha)
        rr, before = torch.dot(r, r).item(), rr
        p.mul_(rr / before).add_(r)
    return x


def _implicit(work: Workload, closed_form: bool) -> Case:
    """The implicit function theorem: one solve for the solution, one for the cotangent, and their product."""
    X, y, X_val, y_val = tensors(problems.ridge(work.tree))
    n = len(y)
    log_penalty = torch.tensor(RIDGE_PENALTY, device=X.device).log().requires_grad_()

    def gradient(w: Tensor, penalty: Tensor) -> Tensor:
        loss = 0.5 * (X @ w - y).square().sum() / n + 0.5 * penalty * torch.dot(w, w)
        return torch.autograd.grad(loss, w, create_graph=True)[0]

    def product(w: Tensor, penalty: Tensor) -> Callable[[Tensor], Tensor]:
        if closed_form:
            shift = penalty.item()
            return lambda v: torch.add(X.T @ (X @ v) / n, v, alpha=shift)
        w = w.requires_grad_()
        with torch.enable_grad():
            grad = gradient(w, penalty)
        return lambda v: torch.autograd.grad(grad, w, v, retain_graph=True)[0]

    def run() -> Tensor:
        with torch.no_grad():
            penalty = log_penalty.exp()
            zero = torch.zeros(X.shape[1], device=X.device)
            w = conjugate_gradients(product(zero, penalty), X.T @ y / n)
            w_bar = 2 * (X_val.T @ (X_val @ w - y_val)) / len(y_val)
            u = conjugate_gradients(product(w, penalty), w_bar)
            return -penalty * torch.dot(u, w)

    return Case(run=run, check=lambda: [run().reshape(1)])


def _share(work: Workload) -> Case:
    """The update p - g: one subtraction per leaf, the cheapest one with both edges of the graph."""
    start = [w.requires_grad_() for w in tensors(problems.share_weights())]

    def run() -> tuple[Tensor, ...]:
        params = start
        for _ in range(work.steps):
            grads = torch.autograd.grad(sum_of_squares(params), params, create_graph=True)
            params = [p - g for p, g in zip(params, grads)]
        return torch.autograd.grad(sum_of_squares(params), start)

    return Case(run=run)


def _tree(work: Workload, flatten: Callable, unflatten: Callable, tree_map: Callable) -> Case:
    tree = problems.nested_dict(lambda: torch.zeros(()))
    leaves, spec = flatten(tree)
    return Case(
        run={
            'flatten': lambda: flatten(tree),
            'map': lambda: tree_map(lambda x: x, tree),
            'unflatten': lambda: unflatten(spec, leaves),
        }[work.part]
    )
