# SPDX-License-Identifier: Apache-2.0
"""The native engine by hand: whether it runs, and Adam's rule on single tensors.

Optimizers use the engine by themselves wherever it can run; nothing here is needed for that.
"""

from torchopt._C import is_available
from torchopt.accelerated_op.adam_op import AdamOp

__all__ = ['AdamOp', 'is_available']
