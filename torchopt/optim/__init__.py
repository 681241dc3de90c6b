# SPDX-License-Identifier: Apache-2.0
"""Optimizer classes: PyTorch-like (:class:`Optimizer`), functional, and differentiable (:class:`MetaOptimizer`)."""

from torchopt.optim import meta
from torchopt.optim.base import Optimizer
from torchopt.optim.classic import (
    SGD,
    AdaDelta,
    Adadelta,
    AdaGrad,
    Adagrad,
    Adam,
    AdaMax,
    Adamax,
    AdamW,
    RAdam,
    RMSProp,
    RMSprop,
)
from torchopt.optim.func import FuncOptimizer

__all__ = [
    'SGD',
    'AdaDelta',
    'AdaGrad',
    'AdaMax',
    'Adadelta',
    'Adagrad',
    'Adam',
    'AdamW',
    'Adamax',
    'FuncOptimizer',
    'Optimizer',
    'RAdam',
    'RMSProp',
    'RMSprop',
    'meta',
]
