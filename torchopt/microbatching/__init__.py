# SPDX-License-Identifier: Apache-2.0
"""Microbatching: run a function on one microbatch after another, so that a large batch needs the memory of a small one.

Only the accumulated values are kept, unless autograd records a graph through the loop, which keeps all microbatches.
So compute gradients inside the loop, ``microbatch(torch.func.grad(loss), ...)``, or use :func:`micro_grad`.
"""

from torchopt.microbatching.accumulation import AccumulationType, Accumulator
from torchopt.microbatching.batch import microbatch, reshape_batch_axis
from torchopt.microbatching.examples import IndividualOutputs, micro_grad, micro_vmap

__all__ = [
    'AccumulationType',
    'Accumulator',
    'IndividualOutputs',
    'micro_grad',
    'micro_vmap',
    'microbatch',
    'reshape_batch_axis',
]
