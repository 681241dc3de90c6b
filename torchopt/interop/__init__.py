# SPDX-License-Identifier: Apache-2.0
"""Between this package and others: transformations as optimizers of torch, optimizers of torch as ours."""

from torchopt.interop.torch_optim import as_torch_optimizer, from_torch_optimizer

__all__ = ['as_torch_optimizer', 'from_torch_optimizer']
