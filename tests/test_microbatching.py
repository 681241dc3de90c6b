# SPDX-License-Identifier: Apache-2.0
"""Microbatches against Optax and against the whole batch; that memory is that of one microbatch; transforms; errors."""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torchopt import microbatching, tree
from torchopt.microbatching import AccumulationType, Accumulator, micro_grad, micro_vmap, microbatch, reshape_batch_axis

rng = np.random.default_rng(0)
X, Y, Z = rng.standard_normal((12, 3)), rng.standard_normal((12, 3)), np.array(0.5)
KINDS = list(AccumulationType)
optax_micro = optax.microbatching


def theirs(kind: Any) -> Any:
    """Optax's accumulators for ours."""
    return tree.map(lambda a: optax_micro.AccumulationType[a.name], kind)


def assert_close(found: Any, expected: Any) -> None:
    leaves = [np.asarray(x) for x in tree.leaves(found)]
    chex.assert_trees_all_close(leaves, jax.tree.leaves(expected), rtol=1e-12, atol=1e-12)


def both_ways(run: Any) -> tuple[Any, Any]:
    """Run with our library on tensors, and with Optax on arrays."""
    with jax.enable_x64(True):
        expected = run(optax_micro, jnp, jnp.asarray, theirs)
    return run(microbatching, torch, torch.tensor, lambda kind: kind), expected


@pytest.mark.parametrize('size', [1, 3, 12])
@pytest.mark.parametrize('kind', KINDS, ids=lambda k: k.name)
def test_each_accumulation_is_that_of_optax(kind: Any, size: int) -> None:
    def run(library: Any, numpy: Any, array: Any, accumulator: Any) -> Any:
        def fun(z: Any, x: Any, y: Any) -> Any:
            return {'rows': z + x * y, 'scalar': (x + 2 * y).sum()}

        options = {'argnums': (1, 2), 'microbatch_size': size, 'accumulator': accumulator(kind)}
        return [
            library.microbatch(fun, num_real_microbatches=real, **options)(array(Z), array(X), array(Y))
            for real in (None, 12 // size - 1, 12 // size)
        ]

    found, expected = both_ways(run)
    assert_close(found, expected)


def test_trees_of_accumulations_axes_and_names() -> None:
    def run(library: Any, numpy: Any, array: Any, accumulator: Any) -> Any:
        def fun(x: Any, z: Any, *, y: Any) -> Any:
            return {'a': (x[0] * z, (x[1] + y.T).sum()), 'b': [(x[0] ** 2).mean()], 'c': x[0].sum(0)}

        kinds = {
            'a': (AccumulationType.CONCAT, AccumulationType.SUM),
            'b': AccumulationType.MEAN,
            'c': AccumulationType.RUNNING_MEAN,
        }
        made = library.microbatch(fun, 0, 4, accumulator(kinds), argnames='y', in_axes=(0, 1))
        return made((array(X), array(Y)), array(Z), y=array(Y.T.copy()))

    assert_close(*both_ways(run))


def test_rows_of_a_microbatch_are_those_of_optax() -> None:
    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, optax_micro.reshape_batch_axis({'x': jnp.asarray(X)}, 4))
        other = np.asarray(
            optax_micro.reshape_batch_axis(jnp.asarray(np.ones((2, 6, 3)).cumsum().reshape(2, 6, 3)), 2, 1)
        )
    assert_close(reshape_batch_axis({'x': torch.tensor(X)}, 4), expected)
    numbers = torch.ones(36).cumsum(0).double().reshape(2, 6, 3)
    assert_close([reshape_batch_axis(numbers, 2, 1), reshape_batch_axis(numbers, 2, -2)], [other, other])
    assert reshape_batch_axis(numbers, 2, 1).untyped_storage().data_ptr() == numbers.untyped_storage().data_ptr()
    seen: list[Any] = []
    microbatch(lambda x: seen.append(x) or x.sum(), 0, 2)(torch.arange(6))
    assert [x.tolist() for x in seen] == reshape_batch_axis(torch.arange(6), 2).tolist()


@pytest.mark.parametrize('size', [None, 1, 3])
@pytest.mark.parametrize('kind', KINDS, ids=lambda k: k.name)
def test_vmap_is_that_of_optax(kind: Any, size: int | None) -> None:
    def run(library: Any, numpy: Any, array: Any, accumulator: Any) -> Any:
        def fun(x: Any, z: Any, *, y: Any) -> Any:
            return {'v': x * y + z, 's': x.sum()}

        made = library.micro_vmap(fun, (1, None), microbatch_size=size, accumulator=accumulator(kind))
        return made(array(X.T.copy()), array(Z), y=array(Y))

    assert_close(*both_ways(run))


@pytest.mark.parametrize('size', [None, 4])
@pytest.mark.parametrize('keep', [True, False])
@pytest.mark.parametrize(('has_aux', 'by_name'), [(True, False), (False, False), (False, True)])
def test_gradients_of_examples_are_those_of_optax(has_aux: bool, by_name: bool, keep: bool, size: int | None) -> None:
    def run(library: Any, numpy: Any, array: Any, accumulator: Any) -> Any:
        def loss(params: Any, x: Any, y: Any) -> Any:
            error = x @ params['w'] - y.sum(-1)
            value = 0.5 * (error**2).mean() + params['b'] ** 2
            return (value, {'error': error}) if has_aux else value

        made = library.micro_grad(
            loss,
            has_aux,
            batch_argnums=(1,) if by_name else (1, 2),
            keep_batch_dim=keep,
            microbatch_size=size,
            accumulator=accumulator((AccumulationType.SUM, {'b': AccumulationType.CONCAT, 'w': AccumulationType.MEAN})),
            transform_fn=lambda g: (g, {'b': g['b'] ** 2, 'w': g['w'] ** 2}),
            metrics_fn=lambda g: abs(g['w']).max(),
        )
        params = {'b': array(Z), 'w': array(np.arange(3.0))}
        result, each = made(params, array(X), y=array(Y)) if by_name else made(params, array(X), array(Y))
        assert (each.aux is None) is not has_aux
        return result, tuple(each)

    assert_close(*both_ways(run))


def test_gradients_in_several_arguments_and_numbers() -> None:
    def run(library: Any, numpy: Any, array: Any, accumulator: Any) -> Any:
        made = library.micro_grad(
            lambda c, x, d: (c * x).sum() * d, argnums=(0, 2), microbatch_size=4, num_real_microbatches=2
        )
        if library is optax_micro:  # which wants an axis for every argument
            made = library.micro_grad(
                lambda c, d, x: (c * x).sum() * d,
                argnums=(0, 1),
                batch_argnums=2,
                microbatch_size=4,
                num_real_microbatches=2,
            )
            return made(2.0, 3.0, array(X))[0]
        return made(2.0, array(X), 3.0)[0]

    found, expected = both_ways(run)
    for x, y in zip(found, expected):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_none_leaves_and_random_numbers() -> None:
    params = {'frozen': None, 'w': torch.ones(3)}
    gradients, each = micro_grad(lambda p, x: (p['w'] * x * torch.rand(())).sum(), microbatch_size=2)(
        params, torch.ones(4, 3)
    )
    assert gradients['frozen'] is None
    assert each.metrics is None
    assert len(each.values.unique()) == 4


def test_the_gradient_of_the_whole_batch() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    params = dict(model.named_parameters())
    loss = lambda p, x, y: (torch.func.functional_call(model, p, (x,)) - y).square().mean()  # noqa: E731
    x, y = torch.tensor(X), torch.tensor(Y[:, :1])
    whole = torch.func.grad(loss)(params, x, y)
    parts = microbatch(torch.func.grad(loss), (1, 2), 4, AccumulationType.MEAN)(params, x, y)
    for name in params:
        torch.testing.assert_close(parts[name], whole[name])
    # From outside it is right too, though it takes the memory of the whole batch.
    total = microbatch(loss, (1, 2), 4, AccumulationType.MEAN)(params, x, y)
    for name, gradient in zip(params, torch.autograd.grad(total, list(params.values()))):
        torch.testing.assert_close(gradient, whole[name])


class Peak(TorchDispatchMode):
    """The largest number of bytes of tensors made inside that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, Any] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor) and x._base is None:
                self.alive[id(x)] = weakref.ref(x)
        living = {
            x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
            for r in self.alive.values()
            if (x := r()) is not None
        }
        self.alive = {key: r for key, r in self.alive.items() if r() is not None}
        self.bytes = max(self.bytes, sum(living.values()))
        return result


def peak(run: Any) -> int:
    with Peak() as mode:
        run()
    return mode.bytes


WIDE = torch.randn(1000)
LOSS = lambda w, x: (x[:, None] * w).tanh().square().mean()  # noqa: E731
MEMORY = {
    'forward': lambda size: functools.partial(microbatch(LOSS, 1, size), WIDE),
    'gradient inside': lambda size: functools.partial(microbatch(torch.func.grad(LOSS), 1, size), WIDE),
    'per example': lambda size: functools.partial(micro_grad(LOSS, microbatch_size=size), WIDE),
    'vectorized sum': lambda size: micro_vmap(
        lambda x: (x * WIDE).tanh(), microbatch_size=size, accumulator=AccumulationType.SUM
    ),
}


@pytest.mark.parametrize('make', MEMORY.values(), ids=MEMORY)
def test_memory_is_that_of_a_microbatch(make: Any) -> None:
    x = torch.randn(64)
    small = peak(lambda: make(4)(x))
    assert small < 1.2 * peak(lambda: make(4)(x[:16]))  # it does not grow with the batch
    assert 6 * small < peak(lambda: make(64)(x))  # but with the microbatch


def test_values_are_gone_before_the_next_microbatch() -> None:
    seen: list[Any] = []

    def fun(x: torch.Tensor) -> torch.Tensor:
        assert [r for r in seen if r() is not None] == []
        value = x * 2.0
        seen.append(weakref.ref(value))
        return value

    microbatch(fun, 0, 2)(torch.arange(8.0))
    assert len(seen) == 4


def test_the_function_runs_once_for_each_real_microbatch() -> None:
    calls: list[int] = []
    fun = lambda x: calls.append(len(x)) or x.sum()  # noqa: E731
    assert microbatch(fun, 0, 2, num_real_microbatches=3)(torch.ones(8)) == 6.0
    assert calls == [2, 2, 2]
    assert microbatch(fun, 0, 2, num_real_microbatches=torch.tensor(0))(torch.ones(8)) == 0.0
    assert microbatch(torch.sum, 0, 2)(torch.ones(0)) == 0.0


def test_no_microbatches_is_the_function_itself() -> None:
    assert microbatch(torch.sum, 0, None) is torch.sum


def test_integers_keep_their_dtype() -> None:
    x = torch.arange(6, dtype=torch.int32)
    assert microbatch(lambda x: x[:1], 0, 2)(x).dtype == torch.int32
    assert micro_vmap(lambda x: x, accumulator=AccumulationType.SUM)(x).dtype == torch.int32
    assert micro_vmap(lambda x: x, accumulator=AccumulationType.MEAN, microbatch_size=2)(x) == 2.5


def test_custom_accumulators() -> None:
    largest = Accumulator(
        lambda v: tree.map(lambda x: torch.full_like(x, -torch.inf), v),
        lambda c, v, i: tree.map(torch.maximum, c, v),
        lambda c: c,
        lambda v: tree.map(lambda x: x.amax(0), v),
    )
    x = torch.tensor(X)
    found = microbatch(lambda x: {'m': x.amax(0), 's': x.sum()}, 0, 3, {'m': largest, 's': AccumulationType.SUM})(x)
    torch.testing.assert_close(found['m'], x.amax(0))
    assert micro_vmap(lambda x: {'v': x.sum()}, microbatch_size=4, accumulator=largest)(x)['v'] == x.sum(1).max()


@pytest.mark.long
def test_vmap_of_microbatches_compile_and_a_count_that_is_not_known() -> None:
    x = torch.tensor(X)
    kinds = (AccumulationType.CONCAT, AccumulationType.SUM, AccumulationType.RUNNING_MEAN)
    fun = lambda x: (x * 2, x.sum(), x.mean())  # noqa: E731

    def on(x: torch.Tensor, real: Any) -> Any:
        return microbatch(fun, 0, 3, kinds, num_real_microbatches=real)(x)

    batch = torch.stack([x, x + 1, -x, x])
    counts = torch.tensor([1, 4, 2, 0])
    found = torch.func.vmap(on)(batch, counts)
    for i in range(4):
        for a, b in zip(found, on(batch[i], int(counts[i]))):
            torch.testing.assert_close(a[i], b)
    compiled = torch.compile(on, fullgraph=True, backend='eager')
    for real in (None, torch.tensor(2)):
        for a, b in zip(compiled(x, real), on(x, real)):
            torch.testing.assert_close(a, b)
    loss = lambda p, x, y: (x @ p['w'] - y.sum() + p['b']).square().mean()  # noqa: E731

    def examples(w: Any, x: torch.Tensor) -> Any:
        return micro_grad(loss, batch_argnums=1, microbatch_size=4)(w, x, y=x)

    w = {'w': torch.ones(3).double(), 'b': torch.ones(()).double()}
    gradient, each = torch.compile(examples, fullgraph=True, backend='eager')(w, x)
    torch.testing.assert_close((gradient, each.values), (examples(w, x)[0], examples(w, x)[1].values))


def test_differentiable_from_outside() -> None:
    x = torch.tensor(X, requires_grad=True)
    for kind in KINDS:
        assert torch.autograd.gradcheck(lambda x, k=kind: microbatch(lambda x: x**3, 0, 4, k)(x), x, fast_mode=True)


@pytest.mark.parametrize('name', ['microbatch', 'micro_vmap', 'micro_grad', 'reshape_batch_axis', 'Accumulator'])
def test_signatures_are_those_of_optax(name: str) -> None:
    def plain(f: Any) -> list[Any]:
        parameters = inspect.signature(f).parameters.values()
        return [
            (p.name, p.kind, getattr(p.default, 'name', getattr(p.default, '__name__', p.default))) for p in parameters
        ]

    assert plain(getattr(microbatching, name)) == plain(getattr(optax_micro, name))


def test_every_name_of_optax_is_here() -> None:
    public = {name for name in vars(optax_micro) if name[0] != '_'}
    assert public <= set(microbatching.__all__)
    assert [(k.name, k.value) for k in AccumulationType] == [(k.name, k.value) for k in optax_micro.AccumulationType]


x = torch.ones(6, 2)
ERRORS = {
    'indivisible': (
        lambda: microbatch(torch.sum, 0, 4)(x),
        ValueError,
        '6 must be divisible by microbatch_size, which is 4',
    ),
    'reshape': (lambda: reshape_batch_axis(x, 4), ValueError, 'must be divisible'),
    'no size': (lambda: microbatch(torch.sum, 0, 0)(x), ValueError, 'microbatch_size is 0; expected at least 1'),
    'leaf': (
        lambda: reshape_batch_axis(x, 2, 3),
        ValueError,
        r'A leaf of tree has shape \(6, 2\), which has no axis 3',
    ),
    'axis': (
        lambda: microbatch(torch.sum, 0, 2, in_axes=2)(x),
        ValueError,
        r'Argument 0 has shape \(6, 2\), which has no',
    ),
    'sizes': (
        lambda: microbatch(torch.add, (0, 1), 2)(x, {'a': x[:2]}),
        ValueError,
        r"Argument 1\['a'\] has batch size 2, but those before it have batch size 6",
    ),
    'axes': (lambda: microbatch(torch.add, (0, 1), 2, in_axes=(0,)), TypeError, 'in_axes has 1 axes, but'),
    'by name': (
        lambda: microbatch(torch.sum, 0, 2)(input=x),
        TypeError,
        'argument 0 has a batch axis, but was not passed',
    ),
    'name': (
        lambda: microbatch(torch.sum, (), 2, argnames='y')(x),
        TypeError,
        "argument 'y' has a batch axis, but was",
    ),
    'no batch': (lambda: microbatch(torch.sum, 0, 2)({}), ValueError, 'contain no tensors'),
    'mean of integers': (
        lambda: microbatch(lambda x: x.sum(), 0, 2, AccumulationType.MEAN)(x.long()),
        ValueError,
        'MEAN and RUNNING_MEAN require floating-point values',
    ),
    'empty': (lambda: microbatch(torch.sum, 0, 2, AccumulationType.MEAN)(x[:0]), ValueError, 'The batch is empty'),
    'too few': (
        lambda: microbatch(torch.sum, 0, 2, num_real_microbatches=-1)(x),
        ValueError,
        'num_real_microbatches is -1',
    ),
    'too many': (
        lambda: microbatch(torch.sum, 0, 2, num_real_microbatches=4)(x),
        ValueError,
        'num_real_microbatches is 4, but the batch has 3',
    ),
    'accumulator': (lambda: microbatch(torch.sum, 0, 2, 'sum')(x), ValueError, "accumulator contains 'sum'; expected"),
    'structure': (
        lambda: microbatch(torch.sum, 0, 2, [AccumulationType.SUM])(x),
        ValueError,
        'The value of the function does not have the structure of accumulator',
    ),
    'out_axes': (lambda: micro_vmap(torch.sum, out_axes=1), NotImplementedError, 'out_axes is 1'),
    'in_axes': (lambda: micro_vmap(torch.add, (0,))(x, x), TypeError, 'in_axes has 1 entries for 2 arguments'),
}


@pytest.mark.parametrize(('call', 'error', 'message'), ERRORS.values(), ids=ERRORS)
def test_errors_name_the_argument(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize('argnums', [1, -1, ()])
def test_arguments_may_be_listed_by_position_and_given_by_name(argnums: Any) -> None:
    """And the other way round."""

    def fun(scale: float, batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return scale * batch.sum(dim=0)

    seen: list[int] = []
    batch = torch.arange(8.0).reshape(4, 2)
    run = microbatch(fun, argnums, 2, argnames=() if argnums != () else 'batch')
    assert run(2.0, batch).tolist() == [24.0, 32.0]
    if argnums != -1:
        assert run(2.0, batch=batch).tolist() == [24.0, 32.0]
        assert run(batch=batch, scale=2.0).tolist() == [24.0, 32.0]
    assert set(seen) == {2}


def test_an_empty_batch_has_no_microbatches() -> None:
    batch = torch.ones(0, 3)
    kinds = (AccumulationType.SUM, AccumulationType.CONCAT, AccumulationType.CONCAT)
    total, rows, each = microbatch(lambda x: (x.sum(), 2 * x, x.sum()), 0, 2, kinds)(batch)
    assert (total, rows.shape, each.shape) == (0.0, (0, 3), (0,))
    assert micro_vmap(torch.sum, microbatch_size=2)(batch).shape == (0,)
    gradient, outputs = micro_grad(lambda w, x: (x @ w).sum(), microbatch_size=2)(torch.ones(3), batch)
    assert gradient.tolist() == [0.0, 0.0, 0.0]
    assert outputs.values.shape == (0,)
