# SPDX-License-Identifier: Apache-2.0
"""Optimizer classes: PyTorch-like (:class:`Optimizer`), functional, and differentiable (:class:`MetaOptimizer`)."""

from typing import TYPE_CHECKING

from torchopt import alias
from torchopt._old_paths import register_old_paths
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
from torchopt.spelling import no_such_name

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

if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> object:
        raise no_such_name(__name__, name, alias.__all__)


register_old_paths(__name__)
