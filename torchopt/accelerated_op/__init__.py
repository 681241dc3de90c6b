# SPDX-License-Identifier: Apache-2.0
"""Direct access to the native engine: whether it is available, and Adam's rule on single tensors.

Optimizers use the engine automatically if it can run.
"""

from torchopt._C import is_available
from torchopt.accelerated_op.adam_op import AdamOp

__all__ = ['AdamOp', 'is_available']
