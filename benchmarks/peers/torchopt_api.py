# SPDX-License-Identifier: Apache-2.0
"""This package and TorchOpt 0.7.3: the names are the same, so both use this file, each in its own process."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import problems
import torch
import torch_problems
from counting import Saved, allocations
from problems import Case, Cases
from torch import Tensor, nn
from torch_problems import MLP, Leaves, linear_layer, meta_losses, parameters, shared_tree, tensors, two_steps
from workloads import (
    ALIASES,
    BETAS,
    CG_ITERATIONS,
    EPS,
    LR,
    META_EPS,
    META_LR,
    MOMENTUM,
    OP_SIZE,
    OP_TRAFFIC,
    RIDGE_PENALTY,
    WEIGHT_DECAY,
    ZERO_SAMPLES,
    ZERO_SIGMA,
    Workload,
)

import torchopt

OLD = torchopt.__version__ == '0.7.3'
if OLD:
    NATIVE = importlib.util.find_spec('torchopt._C') is not None
    ACCELERATED = ', accelerated' if NATIVE else ', accelerated but without its native op'
    ENGINES = {'': {}, ACCELERATED: {'use_accelerated_op': True}}
else:
    ENGINES = {'': {}, ', plain torch': {'use_accelerated_op': False}}


def cases(work: Workload) -> Cases:
    build = {
        'step': {'class': _class_step} if OLD else {'class': _class_step, **FUNCTIONAL},
        'functional': FUNCTIONAL,
        'small': _small(work),
        'alias': {} if OLD else {'functional': FUNCTIONAL['functional']},
        'meta': {'MetaAdam': _meta},
        'closure': {} if OLD else CLOSURE.get(work.part, {}),
        'share': {'MetaAdam': _share},
        'zero_order': {work.part: _zero_order},
        'implicit': IMPLICIT_OLD if OLD else IMPLICIT,
        'op': {'update': _op},
        'tree': {} if OLD else {'torchopt.tree': _tree},
    }[work.kind]
    without = ('tree', 'zero_order', 'implicit', 'alias', 'closure')
    engines = {'': {}} if work.optimizer == 'sgd' or work.kind in without else ENGINES
    found = {
        variant + suffix: functools.partial(builder, work, options)
        for variant, builder in build.items()
        for suffix, options in engines.items()
    }
    if work.kind == 'op' and not OLD:
        found['copy_ of as many bytes'] = functools.partial(_copy, work, False)
        found['clone of as many bytes'] = functools.partial(_copy, work, True)
    return found


def _small(work: Workload) -> dict[str, Callable[..., Case]]:
    if work.part == 'meta':
        return {'MetaSGD': _small_meta}
    if work.part == 'functional':
        return {name: functools.partial(_out_of_place, take) for name, take in STEPS.items()}
    return {'class': _class_step}


def _hyper_parameters(work: Workload, options: dict[str, Any]) -> dict[str, Any]:
    if work.kind == 'small' and work.optimizer == 'sgd':
        return {'lr': LR}
    if work.optimizer == 'sgd':
        return {'lr': LR, 'momentum': MOMENTUM}
    decay = {'weight_decay': WEIGHT_DECAY} if work.optimizer == 'adamw' else {}
    return {'lr': LR, 'betas': BETAS, 'eps': EPS, **decay, **options}


def _class_step(work: Workload, options: dict[str, Any]) -> Case:
    params = parameters(work.tree)
    face = {'adam': torchopt.Adam, 'adamw': torchopt.AdamW, 'sgd': torchopt.SGD}[work.optimizer]
    optimizer = face(params, **_hyper_parameters(work, options))
    renew = _renewal(params) if OLD else None

    def step() -> list[Tensor]:
        if renew:
            renew()
        optimizer.step()
        return params

    return Case(
        run=optimizer.step,
        check=lambda: two_steps(step, work),
        before=renew,
        memory=lambda: allocations(optimizer.step),
    )


def _renewal(params: list[Tensor]) -> Callable[[], None]:
    """Restore the gradients before each step, untimed, since 0.7.3 overwrites them with its updates."""
    grads = [p.grad for p in params]
    for p in params:
        p.grad = p.grad.clone()
    return lambda: torch._foreach_copy_([p.grad for p in params], grads)


def _in_two(tx: Any, grads: Any, state: Any, params: Any, *, inplace: bool = False) -> tuple[Any, Any]:
    updates, state = tx.update(grads, state, params=params, inplace=inplace)
    return torchopt.apply_updates(params, updates, inplace=inplace), state


STEPS = {'functional': _in_two} if OLD else {'functional': _in_two, 'update_params': torchopt.update_params}


def _functional_step(take: Callable[..., Any], work: Workload, options: dict[str, Any]) -> Case:
    """A step by functions: in place for the kind 'step', otherwise always from the same arguments."""
    inplace = work.kind == 'step'
    start, grads = shared_tree(work.tree)
    if work.kind == 'alias':
        tx = getattr(torchopt.compat.optax, work.optimizer)(LR, **ALIASES[work.optimizer])
    else:
        tx = getattr(torchopt, work.optimizer)(**_hyper_parameters(work, options))
    params = [p.clone() for p in start] if inplace else start
    state = tx.init(params)

    def in_sequence() -> list[Tensor]:
        nonlocal params, state
        params, state = take(tx, grads, state, params, inplace=inplace)
        return params

    def check() -> list[Tensor]:
        nonlocal params, state
        first = params, state
        added = two_steps(in_sequence, work)
        if not inplace:
            params, state = first
        return added

    run = in_sequence if inplace else (lambda: take(tx, grads, state, params, inplace=False))
    return Case(run=run, check=check, memory=lambda: allocations(run))


FUNCTIONAL = {name: functools.partial(_functional_step, take) for name, take in STEPS.items()}


def _out_of_place(take: Callable[..., Any], work: Workload, options: dict[str, Any]) -> Case:
    """Gradient descent on a dict."""
    params, grads = (dict(zip('wb', xs)) for xs in shared_tree(work.tree))
    tx = torchopt.sgd(LR)
    state = tx.init(params)

    def run() -> dict[str, Tensor]:
        return take(tx, grads, state, params)[0]

    return Case(run=run, check=lambda: list(run().values()))


def _loop(
    net: nn.Module, make: Callable[[], Any], steps: int, inner: Any, outer: Any, step: Any = None
) -> Callable[[], Any]:
    """A meta-gradient with respect to the initial parameters, to which the module is reset at the end."""
    start = dict(net._parameters)
    step = step or (lambda optimizer: optimizer.step(inner(net)))

    def run() -> tuple[Tensor, ...]:
        optimizer = make()
        for _ in range(steps):
            step(optimizer)
        result = torch.autograd.grad(outer(net), list(start.values()))
        net._parameters.update(start)
        return result

    return run


def _meta(work: Workload, options: dict[str, Any]) -> Case:
    net = MLP(problems.mlp_weights())
    inner, outer = meta_losses()
    hyper = {**META, **options}
    run = _loop(net, lambda: torchopt.MetaAdam(net, **hyper), work.steps, inner, outer)

    def memory() -> dict[str, float]:
        """One more loop, to count what the optimizer saves; the computation of gradients is not counted."""
        saved, params = Saved(), [w.requires_grad_() for w in tensors(problems.mlp_weights())]
        leaves, tx = params, torchopt.adam(**hyper, moment_requires_grad=True)
        state = tx.init(params)
        for _ in range(work.steps):
            loss = inner(functools.partial(torch_problems.mlp, params))
            grads = torch.autograd.grad(loss, params, create_graph=True)
            with saved.counting():
                updates, state = tx.update(list(grads), state, params=params, inplace=False)
                params = torchopt.apply_updates(params, updates, inplace=False)
        return {**allocations(run), **saved.report(leaves, work.steps)}

    return Case(run=run, check=lambda: list(run()), memory=memory)


def _closure(checkpoint: str | None, work: Workload, options: dict[str, Any]) -> Case:
    """The same loop as :func:`_meta`; without ``checkpoint`` it keeps the graph of each loss."""
    net = MLP(problems.mlp_weights())
    inner, outer = meta_losses()

    def step(optimizer: Any) -> None:
        if checkpoint is None:
            optimizer.step(inner(net))
        else:
            optimizer.step(lambda: inner(net), checkpoint=checkpoint)

    run = _loop(net, lambda: torchopt.MetaAdam(net, **META), work.steps, inner, outer, step)
    return Case(run=run, check=lambda: list(run()), memory=lambda: allocations(run))


def _gradient(checkpoint: str | None, work: Workload, options: dict[str, Any]) -> Case:
    """The same by functions."""
    start = [w.requires_grad_() for w in tensors(problems.mlp_weights())]
    inner, outer = meta_losses()
    tx = torchopt.adam(**META, moment_requires_grad=True)

    def loss_of(loss: Any) -> Callable[[list[Tensor]], Tensor]:
        return lambda params: loss(functools.partial(torch_problems.mlp, params))

    gradient = torchopt.grad(loss_of(inner), checkpoint=checkpoint)

    def run() -> tuple[Tensor, ...]:
        params, state = start, tx.init(start)
        for _ in range(work.steps):
            params, state = torchopt.update_params(tx, gradient(params), state, params)
        return torch.autograd.grad(loss_of(outer)(params), start)

    return Case(run=run, check=lambda: list(run()), memory=lambda: allocations(run))


META = {'lr': META_LR, 'betas': BETAS, 'eps': META_EPS}
CLOSURE = {
    'step': {
        'loss': functools.partial(_closure, None),
        'closure': functools.partial(_closure, 'reverse'),
        'closure, mixed': functools.partial(_closure, 'mixed'),
    },
    'grad': {
        'kept': functools.partial(_gradient, None),
        'reverse': functools.partial(_gradient, 'reverse'),
        'mixed': functools.partial(_gradient, 'mixed'),
    },
}


def _small_meta(work: Workload, options: dict[str, Any]) -> Case:
    net, loss_of = linear_layer(work.tree)
    run = _loop(net, lambda: torchopt.MetaSGD(net, lr=META_LR), work.steps, loss_of, loss_of)
    return Case(run=run, check=lambda: list(run()))


def _share(work: Workload, options: dict[str, Any]) -> Case:
    net = Leaves()
    loss = Leaves.__call__
    return Case(run=_loop(net, lambda: torchopt.MetaAdam(net, **options), work.steps, loss, loss))


def _zero_order(work: Workload, options: dict[str, Any]) -> Case:
    """One forward and one backward pass."""
    params = [w.requires_grad_() for w in tensors(problems.mlp_weights())]
    inner, _ = meta_losses()
    normal = torch.distributions.Normal(0.0, 1.0)

    def gradient(distribution: Any, **more: int) -> Callable[[], tuple[Tensor, ...]]:
        decorate = importlib.import_module('torchopt.diff.zero_order').zero_order(
            distribution, work.part, argnums=0, num_samples=ZERO_SAMPLES, sigma=ZERO_SIGMA, **more
        )
        loss = decorate(lambda ps: inner(functools.partial(torch_problems.mlp, ps)))
        return lambda: torch.autograd.grad(loss(params), params)

    def check() -> list[Tensor]:
        drawn = iter(tensors(problems.directions()))  # one for each tensor, in their order
        return list(gradient(lambda shape: next(drawn), chunk_size=ZERO_SAMPLES)())

    # 0.7.3 draws a direction for each sample, and its forward estimates are wrong, so they cannot be compared.
    return Case(run=gradient(normal), check=None if OLD else check)


class Ridge:
    """The problem of the implicit gradients; ``mean_squares`` is the outer loss."""

    def __init__(self, work: Workload) -> None:
        self.X, self.y, *self.validation = tensors(problems.ridge(work.tree))
        self.n, self.zero = len(self.y), torch.zeros(self.X.shape[1], device=self.X.device)
        self.log_penalty = torch.tensor(RIDGE_PENALTY, device=self.X.device).log().requires_grad_()

    def product(self, v: Tensor, penalty: Tensor) -> Tensor:
        return self.X.T @ (self.X @ v) / self.n + penalty * v

    def gradient(self, w: Tensor, penalty: Tensor) -> Tensor:
        return self.X.T @ (self.X @ w - self.y) / self.n + penalty * w

    def objective(self, w: Tensor, penalty: Tensor) -> Tensor:
        return 0.5 * (self.X @ w - self.y).square().sum() / self.n + 0.5 * penalty * torch.dot(w, w)

    def mean_squares(self, w: Tensor) -> Tensor:
        X, y = self.validation
        return (X @ w - y).square().mean()

    def case(self, fit: Callable[[Tensor, Tensor], Tensor]) -> Case:
        def run() -> tuple[Tensor, ...]:
            return torch.autograd.grad(self.mean_squares(fit(self.zero, self.log_penalty.exp())), self.log_penalty)

        return Case(run=run, check=lambda: [run()[0].reshape(1)])


def _cg(matvec: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """Return the status, since otherwise the limit of the iterations would cause a warning."""
    if OLD:
        return torchopt.linear_solve.solve_cg(rtol=0.0, maxiter=CG_ITERATIONS)(matvec, b)
    return torchopt.linear_solve.solve_cg(matvec, b, tol=0.0, maxiter=CG_ITERATIONS, return_status=True)[0]


def _custom_root(optimality: Callable[..., Tensor]) -> Callable[..., Any]:
    if OLD:
        return torchopt.diff.implicit.custom_root(optimality, argnums=1, solve=_cg)
    return torchopt.implicit_diff.custom_root(optimality, solve=_cg)


def _through_solver(work: Workload, options: dict[str, Any]) -> Case:
    """Differentiate the solution of the linear system directly; its derivative is a solve without a status."""
    ridge = Ridge(work)
    warnings.simplefilter('ignore', torchopt.linear_solve.LinearSolveWarning)

    def fit(init: Tensor, penalty: Tensor) -> Tensor:
        return _cg(lambda v: ridge.product(v, penalty), ridge.X.T @ ridge.y / ridge.n)

    return ridge.case(fit)


def _root(work: Workload, options: dict[str, Any]) -> Case:
    ridge = Ridge(work)

    @_custom_root(ridge.gradient)
    def fit(init: Tensor, penalty: Tensor) -> Tensor:
        with torch.no_grad():
            return _cg(lambda v: ridge.product(v, penalty), ridge.X.T @ ridge.y / ridge.n)

    return ridge.case(fit)


def _root_of_objective(work: Workload, options: dict[str, Any]) -> Case:
    ridge = Ridge(work)

    @_custom_root(torch.func.grad(ridge.objective))
    def fit(init: Tensor, penalty: Tensor) -> Tensor:
        with torch.no_grad():
            return _cg(lambda v: ridge.product(v, penalty), ridge.X.T @ ridge.y / ridge.n)

    return ridge.case(fit)


# The gradient through the solver of 0.7.3 is wrong if the matrix depends on the tensor.
IMPLICIT_OLD = {'custom_root': _root, 'custom_root, gradient of the objective': _root_of_objective}
IMPLICIT = {'solve_cg': _through_solver, **IMPLICIT_OLD}


def _op(work: Workload, options: dict[str, Any]) -> Case:
    """Forward: one update from a gradient and moments that all require grad. Backward: through the same graph again."""
    torch.manual_seed(0)
    params, grads, *cotangents = (torch.randn(OP_SIZE, device=torch_problems.DEVICE) for _ in range(5))
    tx = torchopt.adam(LR, moment_requires_grad=True, **options)
    _, state = tx.update([grads], tx.init([params]), params=[params], inplace=False)
    state = torchopt.pytree.tree_map(lambda x: x.detach().requires_grad_() if _is_moment(x) else x, state)
    inputs = [grads.requires_grad_(), *_moments(state)]

    def forward() -> list[Tensor]:
        (update,), new = tx.update([grads], state, params=[params], inplace=False)
        return [update, *_moments(new)]

    if work.part == 'forward':
        return Case(run=forward, check=lambda: [x.detach() for x in forward()])
    outputs = forward()

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True)

    return Case(run=backward, check=lambda: list(backward()))


def _is_moment(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.numel() == OP_SIZE


def _moments(state: Any) -> list[Tensor]:
    return [x for x in torchopt.pytree.tree_leaves(state) if _is_moment(x)]


def _copy(work: Workload, fresh: bool) -> Case:
    """Half of the bytes are read, half written; ``copy_`` into existing memory, ``clone`` into new memory."""
    source = torch.randn(OP_TRAFFIC[work.part] * OP_SIZE // 2, device=torch_problems.DEVICE)
    target = torch.empty_like(source)
    return Case(run=source.clone if fresh else (lambda: target.copy_(source)))


def _tree(work: Workload, options: dict[str, Any]) -> Case:
    tree = problems.nested_dict(lambda: torch.zeros(()))
    leaves, spec = torchopt.tree.flatten(tree)
    return Case(
        run={
            'flatten': lambda: torchopt.tree.flatten(tree),
            'map': lambda: torchopt.tree.map(lambda x: x, tree),
            'unflatten': lambda: torchopt.tree.unflatten(spec, leaves),
        }[work.part]
    )
