# SPDX-License-Identifier: Apache-2.0
"""How torch distributes single tensors over processes: DTensor and FSDP, neither of which is imported for this."""

from __future__ import annotations

import sys
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


def is_storage_freed(x: Any) -> bool:
    """Whether the storage of a tensor was freed; reading the tensor would crash."""
    if 'torch.distributed.fsdp' not in sys.modules or x.layout is not torch.strided:
        return False
    # A tensor wrapped by torch.func has no storage of its own.
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return not wrapped and x.numel() > 0 and x.untyped_storage().size() == 0
