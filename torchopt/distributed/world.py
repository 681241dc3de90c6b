# SPDX-License-Identifier: Apache-2.0
"""The path of TorchOpt 0.7.3 for ranks and initialization; all names are in :mod:`torchopt.distributed`."""

from torchopt.distributed.launch import auto_init_rpc
from torchopt.distributed.ranks import (
    WorldInfo,
    barrier,
    default_worker_name_format,
    get_local_rank,
    get_local_world_size,
    get_rank,
    get_worker_id,
    get_world_info,
    get_world_rank,
    get_world_size,
    not_on_rank,
    on_rank,
    rank_all,
    rank_non_zero_only,
    rank_zero_only,
)

__all__ = [
    'WorldInfo',
    'auto_init_rpc',
    'barrier',
    'default_worker_name_format',
    'get_local_rank',
    'get_local_world_size',
    'get_rank',
    'get_worker_id',
    'get_world_info',
    'get_world_rank',
    'get_world_size',
    'not_on_rank',
    'on_rank',
    'rank_all',
    'rank_non_zero_only',
    'rank_zero_only',
]
