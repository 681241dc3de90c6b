# SPDX-License-Identifier: Apache-2.0
"""Distribute tasks over processes and machines, with PyTorch's collectives or RPC.

Prefer collectives (:func:`map_tasks`, :func:`all_reduce`): every process runs the same program on its part of the
tasks.  With RPC (:func:`parallelize`, :func:`remote_async_call`) one process calls functions on others.  In both cases
gradients equal those of a computation in one process.

RPC executes code that its peers send: use it on trusted networks only.
"""

import sys

from torch.distributed import rpc as rpc

from torchopt.distributed import api, autograd, world
from torchopt.distributed.collectives import all_reduce, replicate
from torchopt.distributed.errors import RemoteTraceback, WorkerDiedError, WorkerError, WorkerTimeoutError
from torchopt.distributed.launch import auto_init_process_group, auto_init_rpc
from torchopt.distributed.partition import (
    Part,
    Results,
    TensorDimensionPartitioner,
    batch_partitioner,
    dim_partitioner,
    exclusive_batch_partitioner,
    mean_reducer,
    sum_reducer,
)
from torchopt.distributed.ranks import (
    WorldInfo,
    barrier,
    get_local_rank,
    get_local_world_size,
    get_rank,
    get_worker_id,
    get_world_info,
    get_world_rank,
    get_world_size,
    is_available,
    not_on_rank,
    on_rank,
    rank_all,
    rank_non_zero_only,
    rank_zero_only,
)
from torchopt.distributed.remote import (
    parallelize,
    parallelize_async,
    parallelize_sync,
    remote_async_call,
    remote_sync_call,
)
from torchopt.distributed.tasks import map_tasks

sys.modules[f'{__name__}.rpc'] = rpc  # make this name importable, too

__all__ = [
    'Part',
    'RemoteTraceback',
    'Results',
    'TensorDimensionPartitioner',
    'WorkerDiedError',
    'WorkerError',
    'WorkerTimeoutError',
    'WorldInfo',
    'all_reduce',
    'api',
    'auto_init_process_group',
    'auto_init_rpc',
    'autograd',
    'barrier',
    'batch_partitioner',
    'dim_partitioner',
    'exclusive_batch_partitioner',
    'get_local_rank',
    'get_local_world_size',
    'get_rank',
    'get_worker_id',
    'get_world_info',
    'get_world_rank',
    'get_world_size',
    'is_available',
    'map_tasks',
    'mean_reducer',
    'not_on_rank',
    'on_rank',
    'parallelize',
    'parallelize_async',
    'parallelize_sync',
    'rank_all',
    'rank_non_zero_only',
    'rank_zero_only',
    'remote_async_call',
    'remote_sync_call',
    'replicate',
    'sum_reducer',
    'world',
]
