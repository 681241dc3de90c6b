# SPDX-License-Identifier: Apache-2.0
"""How torch distributes single tensors over processes: DTensor and FSDP, neither of which is imported for this."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch

__all__ = ['is_dtensor', 'is_fully_sharded', 'is_storage_freed']


def is_dtensor(x: Any) -> bool:
    """Whether ``x`` is a ``DTensor``, a tensor distributed over several processes."""
    module = sys.modules.get('torch.distributed.tensor')  # importing it takes a second, so do not import it here
    return module is not None and isinstance(x, module.DTensor)


def is_fully_sharded(module: Any) -> bool:
    """Whether a module is under FSDP, which gathers its parameters briefly and then frees them."""
    fsdp = sys.modules.get('torch.distributed.fsdp')
    return fsdp is not None and isinstance(module, (fsdp.FSDPModule, fsdp.FullyShardedDataParallel))


def is_storage_freed(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether the storage of one of the tensors was freed; reading it would crash."""
    if 'torch.distributed.fsdp' not in sys.modules:
        return False
    for x in tensors:
        # A tensor wrapped by torch.func has no storage of its own.
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)
        if x.layout is torch.strided and not wrapped and x.numel() > 0 and x.untyped_storage().size() == 0:
            return True
    return False
