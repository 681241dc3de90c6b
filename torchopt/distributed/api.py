# SPDX-License-Identifier: Apache-2.0
"""The path of TorchOpt 0.7.3 for remote calls; all names are in :mod:`torchopt.distributed`."""

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
