# SPDX-License-Identifier: Apache-2.0
"""Large batches by way of small ones, as ``optax.microbatching`` has them."""

from torchopt.microbatching import (
    AccumulationType,
    Accumulator,
    micro_grad,
    micro_vmap,
    microbatch,
    reshape_batch_axis,
)

__all__ = [
    'AccumulationType',
    'Accumulator',
    'micro_grad',
    'micro_vmap',
    'microbatch',
    'reshape_batch_axis',
]
