# SPDX-License-Identifier: Apache-2.0
"""The names of ``optax.microbatching``."""

from torchopt.microbatching import AccumulationType, Accumulator, micro_grad, micro_vmap, microbatch, reshape_batch_axis

__all__ = ['AccumulationType', 'Accumulator', 'micro_grad', 'micro_vmap', 'microbatch', 'reshape_batch_axis']
