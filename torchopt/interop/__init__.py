# SPDX-License-Identifier: Apache-2.0
"""Interoperability: conversion to and from ``torch.optim``, states of TorchOpt 0.7.3, the interface of ``higher``."""

from torchopt.interop import higher
from torchopt.interop.torch_optim import as_torch_optimizer, from_torch_optimizer
from torchopt.interop.torchopt_states import from_torchopt_state, load_torchopt_state

__all__ = ['as_torch_optimizer', 'from_torch_optimizer', 'from_torchopt_state', 'higher', 'load_torchopt_state']
