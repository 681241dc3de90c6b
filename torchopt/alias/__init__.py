# SPDX-License-Identifier: Apache-2.0
"""Optimizers, each a chain of weight decay, the rule of the optimizer and the learning rate.

Each is a :class:`torchopt.base.GradientTransformation`.  The optimizers of TorchOpt 0.7.3 have its arguments and also
accept Optax's names for the same arguments; the others have Optax's arguments.

A learning rate, decay rate, epsilon, momentum or weight decay is a number or a 0-d tensor, which is learned if it
requires grad.  For a different value per parameter, pass a tree of these with the structure of the parameters or a
prefix of it (one value then holds for a whole subtree): ``torchopt.adam(lr={'head': 0.1, 'body': [0.01, rate]})``.
"""

from torchopt._old_paths import register_old_paths
from torchopt.alias.adabelief import adabelief
from torchopt.alias.adadelta import adadelta
from torchopt.alias.adafactor import adafactor
from torchopt.alias.adagrad import adagrad
from torchopt.alias.adam import adam, adamw
from torchopt.alias.adamax import adamax, adamaxw
from torchopt.alias.adan import adan
from torchopt.alias.amsgrad import amsgrad
from torchopt.alias.fromage import fromage
from torchopt.alias.lbfgs import lbfgs
from torchopt.alias.lion import lion
from torchopt.alias.nadam import nadam, nadamw
from torchopt.alias.novograd import novograd
from torchopt.alias.optimistic import optimistic_adam, optimistic_adam_v2, optimistic_gradient_descent
from torchopt.alias.radam import radam
from torchopt.alias.rmsprop import rmsprop
from torchopt.alias.rprop import rprop
from torchopt.alias.sgd import noisy_sgd, polyak_sgd, sgd
from torchopt.alias.sign import sign_sgd, signum
from torchopt.alias.sm3 import sm3
from torchopt.alias.trust_ratio import lamb, lars
from torchopt.alias.yogi import yogi

__all__ = [
    'adabelief',
    'adadelta',
    'adafactor',
    'adagrad',
    'adam',
    'adamax',
    'adamaxw',
    'adamw',
    'adan',
    'amsgrad',
    'fromage',
    'lamb',
    'lars',
    'lbfgs',
    'lion',
    'nadam',
    'nadamw',
    'noisy_sgd',
    'novograd',
    'optimistic_adam',
    'optimistic_adam_v2',
    'optimistic_gradient_descent',
    'polyak_sgd',
    'radam',
    'rmsprop',
    'rprop',
    'sgd',
    'sign_sgd',
    'signum',
    'sm3',
    'yogi',
]

register_old_paths(__name__)
