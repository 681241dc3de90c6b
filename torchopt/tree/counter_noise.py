# SPDX-License-Identifier: Apache-2.0
"""Gaussian noise as a pure function of a key, which works under ``torch.func.vmap`` and ``torch.compile``.

A :class:`torch.Generator` is mutable, which these transforms cannot trace.  A pure transformation needs random numbers
that depend only on its state.  So for each element the key is hashed with the index of the element, and two hashes give
one normal variable.  The numbers do not depend on the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchopt import tree
from torchopt.dtypes import real_dtype
from torchopt.tree.random import Key, as_seed, is_seed


def make_key(key: Key) -> Tensor:
    """Make a key, a 0-d int64 tensor on the CPU, from a seed, or draw it from a generator.

    Raises:
        TypeError: If ``key`` is neither a seed nor a generator.
    """
    if isinstance(key, torch.Generator):
        return torch.randint(-(2**63), 2**63 - 1, (), generator=key, device=key.device, dtype=torch.int64).cpu()
    if isinstance(key, Tensor) and is_seed(key):
        return key.to(torch.int64)  # without reading the value, which torch.func.vmap may map over
    return torch.tensor(_signed(as_seed(key) % 2**64), dtype=torch.int64, device='cpu')


def split_key(key: Tensor) -> tuple[Tensor, Tensor]:
    """Derive two keys whose numbers are independent of those of ``key`` and of each other."""
    return _mix(key + _GOLDEN), _mix(key + _signed(2 * _STEP % 2**64))


def normal_like(key: Tensor, target: Any) -> Any:
    """A tree of standard normal variables with the shapes, dtypes and devices of another tree.

    The real and the imaginary part of complex variables have variance 1/2 each.
    """
    leaves, spec = tree.flatten(target)
    drawn = [None if x is None else _normal(_mix(key + _signed(i * _STEP % 2**64)), x) for i, x in enumerate(leaves)]
    return tree.unflatten(spec, drawn)


def _normal(key: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        parts = _normal(key, torch.view_as_real(like.detach()))
        return torch.view_as_complex(parts) * math.sqrt(0.5)
    # The Box-Muller transform.
    place = torch.arange(like.numel(), dtype=torch.int64, device=like.device) * 2
    key = key.to(like.device)
    length = torch.sqrt(-2.0 * torch.log(_uniform(_mix(key + place * _GOLDEN))))
    angle = 2.0 * math.pi * _uniform(_mix(key + (place + 1) * _GOLDEN))
    return (length * torch.cos(angle)).to(real_dtype(like.dtype)).reshape(like.shape)


def _uniform(bits: Tensor) -> Tensor:
    """Uniform numbers in the open interval (0, 1)."""
    dtype, digits = (torch.float32, 23) if bits.device.type == 'mps' else (torch.float64, 52)
    return (_shift(bits, 64 - digits).to(dtype) + 0.5) * 0.5**digits


def _mix(x: Tensor) -> Tensor:
    """Hash 64 bits with the finalizer of `SplitMix64 <https://doi.org/10.1145/2714064.2660195>`_."""
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, n: int) -> Tensor:
    """Shift right by ``n`` bits as for unsigned integers."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


_STEP = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, odd
_GOLDEN = _signed(_STEP)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
