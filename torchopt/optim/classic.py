# SPDX-License-Identifier: Apache-2.0
"""The optimizers of :mod:`torchopt.alias` as classes that train parameters in place."""

from __future__ import annotations

from torchopt import alias
from torchopt.optim.base import Optimizer

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
    'RAdam',
    'RMSProp',
    'RMSprop',
]


class SGD(
    Optimizer,
    alias=alias.sgd,
    order=('lr', 'momentum', 'weight_decay', 'dampening', 'nesterov', 'maximize'),
):
    """The PyTorch-like class of :func:`torchopt.sgd`."""


class Adam(Optimizer, alias=alias.adam):
    """The PyTorch-like class of :func:`torchopt.adam`."""


class AdamW(Optimizer, alias=alias.adamw):
    """The PyTorch-like class of :func:`torchopt.adamw`."""


class AdaDelta(Optimizer, alias=alias.adadelta, lr=1.0):
    """The PyTorch-like class of :func:`torchopt.adadelta`."""


class AdaGrad(Optimizer, alias=alias.adagrad):
    """The PyTorch-like class of :func:`torchopt.adagrad`."""


class AdaMax(Optimizer, alias=alias.adamax, lr=2e-3, eps=1e-8):
    """The PyTorch-like class of :func:`torchopt.adamax`."""


class RAdam(Optimizer, alias=alias.radam, eps=1e-8):
    """The PyTorch-like class of :func:`torchopt.radam`."""


class RMSProp(Optimizer, alias=alias.rmsprop):
    """The PyTorch-like class of :func:`torchopt.rmsprop`."""


Adadelta = AdaDelta
Adagrad = AdaGrad
Adamax = AdaMax
RMSprop = RMSProp
