# SPDX-License-Identifier: Apache-2.0
"""Derivatives of functions of trees."""

from torchopt.autodiff.grad import Differentiated, differentiate, grad, value_and_grad

__all__ = ['Differentiated', 'differentiate', 'grad', 'value_and_grad']
