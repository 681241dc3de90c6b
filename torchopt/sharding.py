# SPDX-License-Identifier: Apache-2.0
"""How torch distributes single tensors over processes: DTensor and FSDP, neither of which is imported for this."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from torchopt.module_hooks import hooked

__all__ = ['check_gradients', 'is_dtensor', 'is_fully_sharded', 'refuse_fsdp']


def is_dtensor(x: Any) -> bool:
    """Whether ``x`` is a ``DTensor``, a tensor distributed over several processes."""
    module = sys.modules.get('torch.distributed.tensor')  # importing it takes a second, so do not import it here
    return module is not None and isinstance(x, module.DTensor)


def is_fully_sharded(module: Any) -> bool:
    """Whether a module is under FSDP, which gathers its parameters briefly and then frees them."""
    fsdp = sys.modules.get('torch.distributed.fsdp')
    return fsdp is not None and isinstance(module, (fsdp.FSDPModule, fsdp.FullyShardedDataParallel))


def check_gradients(params: Sequence[torch.Tensor], gradients: Iterable[torch.Tensor | None]) -> None:
    """Require that the gradients of distributed parameters exist, and that their memory was not released.

    Raises:
        RuntimeError: If the loss depends on none of the parameters, which are DTensors; or if these are the gathered
            parameters of a module under FSDP.
    """
    if 'torch.distributed.tensor' in sys.modules and any(map(is_dtensor, params)) and all(g is None for g in gradients):
        raise RuntimeError(
            'The loss does not depend on the DTensors in params. A module under FSDP computes with its own parameters, '
            'also in torch.func.functional_call: call a module that is not under FSDP.'
        )
    if 'torch.distributed.fsdp' in sys.modules and _is_storage_freed(params):
        raise RuntimeError(
            'params are the gathered parameters of a module under FSDP, whose memory the backward pass has released. '
            'Train such a module with torchopt.Optimizer, or take functional steps on its DTensors.'
        )


def _is_storage_freed(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether the storage of one of the tensors was freed; reading it would crash."""
    for x in tensors:
        # A tensor wrapped by torch.func has no storage of its own.
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)
        if x.layout is torch.strided and not wrapped and x.numel() > 0 and x.untyped_storage().size() == 0:
            return True
    return False


def refuse_fsdp(is_differentiated: Callable[[torch.Tensor], bool]) -> contextlib.AbstractContextManager[None]:
    """Raise if a module under FSDP is called, one of whose parameters is differentiated.

    FSDP computes with tensors of its own, in place of those that ``torch.func.functional_call`` puts into the module.
    So a gradient with respect to the latter would be zero.
    """
    if 'torch.distributed.fsdp' not in sys.modules:
        return contextlib.nullcontext()

    def check(module: torch.nn.Module, _: Any) -> None:
        if is_fully_sharded(module) and any(map(is_differentiated, module.parameters())):
            raise RuntimeError(_UNDER_FSDP)

    return hooked(check)


_UNDER_FSDP = (
    'The function calls a module under FSDP, which computes with its own parameters, also in '
    'torch.func.functional_call. Call a copy of the module that is not under FSDP, whose parameters are DTensors '
    '(torch.distributed.tensor.distribute_tensor). For a gradient that need not be differentiated, call backward(); '
    'for a module that is constant, call module.requires_grad_(False).'
)
