# SPDX-License-Identifier: Apache-2.0
"""The initial state of every test: fixed seeds, one thread, the default dtype."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest_plugins = ['tests.sampling']

torch.set_num_threads(1)

# The compilation cache of JAX is in build/, one for all processes of pytest: what one has compiled, no other compiles
# again. (JAX compiles itself what it reads while another process writes it.)
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(__file__).parents[1] / 'build' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
# Optax and JAXopt take a few steps on small arrays here, so JAX spends its time on compiling, not on computing.
os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false '
    '--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_multi_thread_eigen=false',
)

# Without an accelerator, torch.manual_seed stores a traceback for a later one: 0.9 ms in each test.
seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed


@pytest.fixture(autouse=True, scope='module')
def light_collections() -> Iterator[None]:
    """Exclude the objects created by imports and compilation from garbage collection, which makes it faster."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    """Seed every generator before a test, and restore torch's global switches after it."""
    dtype = torch.get_default_dtype()
    grad = torch.is_grad_enabled()
    random.seed(0)
    np.random.seed(0)
    seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
