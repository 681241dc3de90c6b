# SPDX-License-Identifier: Apache-2.0
"""Zero-order differentiation, with the names of TorchOpt 0.7.3.

The module is callable: ``torchopt.diff.zero_order(...)`` is ``torchopt.diff.zero_order.zero_order(...)``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from torchopt.diff.zero_order import decorator, nn
from torchopt.nn.zero_order_module import ZeroOrderGradientModule
from torchopt.zero_order_diff import zero_order

__all__ = ['ZeroOrderGradientModule', 'decorator', 'nn', 'zero_order']


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return zero_order(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
