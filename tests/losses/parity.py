# SPDX-License-Identifier: Apache-2.0
"""Run a case here and in Optax, and compare values and gradients."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from tests.losses.cases import CASES
from tests.losses.differences import NUMBERS_FOR_NAN, OTHER_VALUES
from torchopt import losses


def reduction(library: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords, with the name of a reduction replaced by the function of the library."""
    if isinstance(kwargs.get('reduce_fn'), str):
        return {**kwargs, 'reduce_fn': getattr(library, kwargs['reduce_fn'])}
    return kwargs


def as_tensors(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, np.ndarray):
        x = torch.from_numpy(value.copy())
        return x.to(dtype) if x.is_floating_point() else x
    return value


def weights(shape: tuple[int, ...]) -> Any:
    """Fixed weights for the sum of outputs, so that errors of their gradients do not cancel."""
    return np.random.default_rng(1).uniform(0.5, 1.5, shape)


@functools.cache
def from_optax(title: str) -> tuple[list[Any], list[Any]]:
    """Values and gradients of Optax in double precision."""
    loss, args, kwargs, argnums = CASES[title]
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        kwargs = {k: jnp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in reduction(jnp, kwargs).items()}
        given = [jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in args]

        def f(*xs: Any) -> Any:
            filled = list(given)
            for i, x in zip(argnums, xs):
                filled[i] = x
            return jax.tree.leaves(getattr(optax.losses, loss)(*filled, **kwargs))

        def both(*xs: Any) -> Any:
            values, pull_back = jax.vjp(f, *xs)
            return values, pull_back([jnp.asarray(weights(v.shape)) for v in values]) if argnums else ()

        # One program compiles faster than its operations. But XLA computes 0 * inf = 0, and Optax reads the sums of
        # probabilities.
        run = jax.jit(both)
        if 'apply_softmax' in kwargs or any(np.isinf(x).any() for x in args):
            run = both
        values, gradients = run(*(given[i] for i in argnums))
        return [np.asarray(v) for v in values], [np.asarray(g) for g in gradients]


def ours(title: str, dtype: torch.dtype) -> tuple[Any, list[torch.Tensor]]:
    """Our loss as a function of the differentiated arguments, and these arguments."""
    loss, args, kwargs, argnums = CASES[title]
    given = [as_tensors(x, dtype) for x in args]
    kwargs = {k: as_tensors(v, dtype) for k, v in reduction(torch, kwargs).items()}

    def f(*xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        filled = list(given)
        for i, x in zip(argnums, xs):
            filled[i] = x
        values = getattr(losses, loss)(*filled, **kwargs)
        return values if isinstance(values, tuple) else (values,)

    return f, [given[i] for i in argnums]


def from_torchopt(title: str, dtype: torch.dtype) -> tuple[list[Any], list[Any]]:
    f, xs = ours(title, dtype)
    values, pull_back = torch.func.vjp(f, *xs) if xs else (f(), None)
    gradients = pull_back(tuple(torch.tensor(weights(v.shape)).to(v.dtype) for v in values)) if xs else ()
    return [v.numpy() for v in values], [g.numpy() for g in gradients]


def assert_close(found: list[Any], expected: list[Any], tolerance: float, least: float = 1e-3) -> None:
    """Compare relative to the size of each array, or to ``least`` if the size is smaller."""
    assert len(found) == len(expected)
    for x, y in zip(found, expected):
        assert x.shape == y.shape
        scale = max(size(y), least)
        np.testing.assert_allclose(x.astype(np.float64), y, rtol=tolerance, atol=tolerance * scale)


def size(x: Any) -> float:
    """The largest finite absolute value in an array."""
    return float(np.abs(x[np.isfinite(x)]).max(initial=0.0))


def titles(*names: str) -> list[str]:
    """The cases of some losses that must agree with Optax."""
    return [t for t, c in CASES.items() if c.loss in names and t not in NUMBERS_FOR_NAN and t not in OTHER_VALUES]


def fits_single_precision(title: str) -> bool:
    """Whether a case has floating numbers, and these are representable in single precision."""
    floats = [x for x in map(np.asarray, CASES[title].args) if x.dtype == np.float64]
    return bool(floats) and all(size(x) < 1e4 for x in floats)


def check_double(title: str) -> None:
    """Require that values and gradients agree with those of Optax to 1e-8."""
    values, gradients = from_torchopt(title, torch.float64)
    expected_values, expected_gradients = from_optax(title)
    assert_close(values, expected_values, 1e-8)
    assert_close(gradients, expected_gradients, 1e-8)


def check_single(title: str) -> None:
    """Require that values and gradients in single precision agree with those in double precision to 1e-5."""
    values, gradients = from_torchopt(title, torch.float32)
    assert {x.dtype for x in values + gradients} <= {np.dtype(np.float32)}
    expected_values, expected_gradients = from_optax(title)
    assert_close(values, expected_values, 1e-5, least=1.0)
    # If log 0 is -1e5, the other logarithms have no correct digits in single precision.
    if all(size(v) < 1e4 for v in expected_values):
        assert_close(gradients, expected_gradients, 1e-5, least=1.0)
