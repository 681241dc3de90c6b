# SPDX-License-Identifier: Apache-2.0
"""Remote calls: the module of TorchOpt 0.7.3, whose names are all in :mod:`torchopt.distributed`."""

from torchopt.distributed.partition import (
    TensorDimensionPartitioner,
    batch_partitioner,
    dim_partitioner,
    exclusive_batch_partitioner,
    mean_reducer,
    sum_reducer,
)
from torchopt.distributed.remote import (
    parallelize,
    parallelize_async,
    parallelize_sync,
    remote_async_call,
    remote_sync_call,
)

__all__ = [
    'TensorDimensionPartitioner',
    'batch_partitioner',
    'dim_partitioner',
    'exclusive_batch_partitioner',
    'mean_reducer',
    'parallelize',
    'parallelize_async',
    'parallelize_sync',
    'remote_async_call',
    'remote_sync_call',
    'sum_reducer',
]
