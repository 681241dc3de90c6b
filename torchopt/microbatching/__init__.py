# SPDX-License-Identifier: Apache-2.0
"""Large batches in the memory of small ones: a function runs on one microbatch after the other.

What a microbatch leaves behind is only what is accumulated, so long as no gradient is taken through the loop: put the
gradient inside, ``microbatch(torch.func.grad(loss), ...)``, or use :func:`micro_grad`.  A graph that autograd records
from outside holds on to every microbatch.
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
