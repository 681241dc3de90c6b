# SPDX-License-Identifier: Apache-2.0
"""Reproducible random trees, with one key per leaf.

A key is a seed (an int or a 0-d integer tensor) or a :class:`torch.Generator`.  The same seed always gives the same
numbers; every use of a generator advances it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from torchopt.dtypes import DTypeLike, as_dtype
from torchopt.kinds import described
from torchopt.levels import is_readable
from torchopt.tree.ops import map
from torchopt.tree.registry import flatten, unflatten

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Key: TypeAlias = 'int | np.integer[Any] | torch.Tensor | torch.Generator'
"""A seed (a Python or NumPy integer, or a 0-d integer tensor) or a generator."""


def as_seed(key: Any, name: str = 'key') -> int:
    """Convert a seed, a Python or NumPy integer or a 0-d integer tensor, to an int; ``name`` is for error messages.

    Raises:
        TypeError: If ``key`` is not an integer, or its value cannot be read, for example inside ``torch.func.vmap``.
    """
    if not is_readable(key):
        raise TypeError(
            f'Invalid {name}: a tensor inside torch.func.vmap or a trace, whose value cannot be read. Pass an int.'
        )
    if (isinstance(key, (int, np.integer)) and not isinstance(key, bool)) or is_seed(key):
        return int(key)
    raise TypeError(f'Invalid {name}: {described(key)}; expected an int, a 0-d integer tensor or a torch.Generator.')


def seed_or_generator(key: Key, name: str = 'key') -> int | torch.Generator:
    """Return a generator unchanged; convert a seed with :func:`as_seed`."""
    return key if isinstance(key, torch.Generator) else as_seed(key, name)


def is_seed(key: Any) -> bool:
    """Whether a key is an integer in a 0-d tensor or array."""
    if isinstance(key, np.ndarray):
        return key.shape == () and key.dtype.kind in 'iu'
    if not isinstance(key, torch.Tensor) or key.dim() or key.dtype == torch.bool:
        return False
    return not (key.is_floating_point() or key.is_complex())


def normal(
    key: torch.Generator, shape: Sequence[int], dtype: DTypeLike | None = None, device: torch.device | None = None
) -> torch.Tensor:
    """Draw from the standard normal distribution, the default sampler of :func:`random_like`.

    For complex dtypes, the real and the imaginary part have variance 1/2 each.
    """
    kind = None if dtype is None else as_dtype(dtype)
    return torch.randn(tuple(shape), generator=key, dtype=kind, device=device)


def split_key_like(rng_key: Key, target_tree: Any) -> Any:
    """Derive an independent key for every leaf of a tree.

    Args:
        rng_key: A seed, or a generator, which advances.
        target_tree: The tree whose structure the result has; its ``None`` leaves stay ``None``.

    Returns:
        A tree of seeds for a seed, or of generators on the same device for a generator.

    Raises:
        TypeError: If ``rng_key`` is neither a seed nor a generator.

    Example:
        >>> import torch, torchopt
        >>> keys = torchopt.tree.split_key_like(0, {'w': torch.ones(2), 'b': torch.ones(1)})
        >>> keys == torchopt.tree.split_key_like(0, {'w': 1, 'b': 2}), keys['w'] == keys['b']
        (True, False)
    """
    return map(lambda _, seed: _same_kind(rng_key, seed), target_tree, _seeds_like(rng_key, target_tree))


def random_like(
    rng_key: Key, target_tree: Any, sampler: Callable[..., torch.Tensor] = normal, dtype: DTypeLike | None = None
) -> Any:
    """A tree of random leaves with the shapes, dtypes and devices of another tree.

    Args:
        rng_key: A seed, or a generator, which advances.
        target_tree: Tree of tensors; its ``None`` leaves stay ``None``.
        sampler: ``sampler(generator, shape, dtype)`` draws one leaf with a generator on the device of the leaf.  If
            it also has a parameter ``device``, it receives that device.
        dtype: The dtype passed to the sampler; by default that of the leaf.

    Raises:
        TypeError: If ``rng_key`` is neither a seed nor a generator.

    Example:
        >>> import torch, torchopt
        >>> params = {'w': torch.ones(2, 3), 'b': None}
        >>> noise = torchopt.tree.random_like(0, params)
        >>> noise['w'].shape, noise['b']
        (torch.Size([2, 3]), None)
        >>> def uniform(key, shape, dtype):
        ...     return torch.rand(shape, generator=key, dtype=dtype)
        >>> bool(torchopt.tree.random_like(0, params, uniform)['w'].min() >= 0)
        True
    """
    takes_device = 'device' in inspect.signature(sampler).parameters
    kind = None if dtype is None else as_dtype(dtype)

    def draw(leaf: torch.Tensor, seed: int) -> torch.Tensor:
        generator = torch.Generator(leaf.device).manual_seed(seed)
        extra = {'device': leaf.device} if takes_device else {}
        return sampler(generator, tuple(leaf.shape), kind or leaf.dtype, **extra)

    return map(draw, target_tree, _seeds_like(rng_key, target_tree))


def unwrap_random_key_data(input_tree: Any) -> Any:
    """Replace the generators in a tree by their states, so that the tree can be compared or saved.

    Returns:
        The tree with a uint8 tensor in place of every :class:`torch.Generator`.

    Example:
        >>> import torch, torchopt
        >>> tree = {'key': torch.Generator().manual_seed(0), 'count': 3}
        >>> data = torchopt.tree.unwrap_random_key_data(tree)
        >>> data['count'], data['key'].dtype
        (3, torch.uint8)
    """
    return map(lambda x: x.get_state() if isinstance(x, torch.Generator) else x, input_tree)


def _seeds_like(rng_key: Key, target_tree: Any) -> Any:
    """A tree of seeds whose low 32 bits differ, since torch's CPU generator uses only these."""
    found, spec = flatten(target_tree)
    key = seed_or_generator(rng_key, 'rng_key')
    source = key if isinstance(key, torch.Generator) else torch.Generator().manual_seed(key)
    drawn = torch.randint(2**31, (len(found) + 1,), generator=source, device=source.device).tolist()
    odd = 0x9E3779B1  # the first 2**32 multiples of an odd number differ modulo 2**32
    return unflatten(spec, [high << 32 | (drawn[0] + i * odd) % 2**32 for i, high in enumerate(drawn[1:])])


def _same_kind(rng_key: Key, seed: int) -> Key:
    if isinstance(rng_key, torch.Generator):
        return torch.Generator(rng_key.device).manual_seed(seed)
    return seed
