# SPDX-License-Identifier: Apache-2.0
"""Optimizers, each a chain: sign and decay, the rule that gives it its name, the learning rate.

Every one is a :class:`torchopt.base.GradientTransformation`.  Arguments take TorchOpt's names, and Optax's where they
mean the same.
"""

from torchopt.alias.adadelta import adadelta
from torchopt.alias.adagrad import adagrad
from torchopt.alias.adam import adam, adamw
from torchopt.alias.adamax import adamax
from torchopt.alias.radam import radam
from torchopt.alias.rmsprop import rmsprop
from torchopt.alias.sgd import sgd

__all__ = ['adadelta', 'adagrad', 'adam', 'adamax', 'adamw', 'radam', 'rmsprop', 'sgd']
