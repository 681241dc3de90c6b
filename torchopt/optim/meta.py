# SPDX-License-Identifier: Apache-2.0
"""Differentiable optimizers for modules."""

from __future__ import annotations

from typing import Any, overload

from torch import nn
from typing_extensions import Unpack

from torchopt import alias
from torchopt.dtypes import DTypeLike
from torchopt.optim.from_alias import constructor
from torchopt.optim.meta_base import MetaOptimizer
from torchopt.spelling import OptaxAdam, OptaxRate, OptaxRmsProp

__all__ = [
    'MetaAdaDelta',
    'MetaAdaGrad',
    'MetaAdaMax',
    'MetaAdadelta',
    'MetaAdagrad',
    'MetaAdam',
    'MetaAdamW',
    'MetaAdamax',
    'MetaOptimizer',
    'MetaRAdam',
    'MetaRMSProp',
    'MetaRMSprop',
    'MetaSGD',
]


@constructor(alias.sgd)
class MetaSGD(MetaOptimizer):
    """The differentiable version of :func:`torchopt.sgd`, for modules."""

    @overload
    def __init__(
        self,
        module: nn.Module,
        lr: Any,
        momentum: Any = 0.0,
        weight_decay: Any = 0.0,
        dampening: Any = 0.0,
        nesterov: bool = False,
        moment_requires_grad: bool = True,
        maximize: bool = False,
    ) -> None: ...

    @overload
    def __init__(
        self,
        module: nn.Module,
        *,
        learning_rate: Any,
        momentum: Any = 0.0,
        weight_decay: Any = 0.0,
        dampening: Any = 0.0,
        nesterov: bool = False,
        moment_requires_grad: bool = True,
        maximize: bool = False,
    ) -> None: ...

    def __init__(  # type: ignore[misc]  # makes it take the second signature too
        self,
        module: nn.Module,
        lr: Any,
        momentum: Any = 0.0,
        weight_decay: Any = 0.0,
        dampening: Any = 0.0,
        nesterov: bool = False,
        moment_requires_grad: bool = True,
        maximize: bool = False,
        **optax: Unpack[OptaxRate],
    ) -> None: ...


@constructor(alias.adam)
class MetaAdam(MetaOptimizer):
    """The differentiable version of :func:`torchopt.adam`, for modules."""

    def __init__(
        self,
        module: nn.Module,
        lr: Any = 1e-3,
        betas: tuple[Any, Any] = (0.9, 0.999),
        eps: Any = 1e-8,
        weight_decay: Any = 0.0,
        *,
        eps_root: Any = 0.0,
        nesterov: bool = False,
        mu_dtype: DTypeLike | None = None,
        moment_requires_grad: bool = True,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
        **optax: Unpack[OptaxAdam],
    ) -> None: ...


@constructor(alias.adamw)
class MetaAdamW(MetaOptimizer):
    """The differentiable version of :func:`torchopt.adamw`, for modules."""

    def __init__(
        self,
        module: nn.Module,
        lr: Any = 1e-3,
        betas: tuple[Any, Any] = (0.9, 0.999),
        eps: Any = 1e-8,
        weight_decay: Any = 1e-2,
        *,
        eps_root: Any = 0.0,
        nesterov: bool = False,
        mu_dtype: DTypeLike | None = None,
        mask: Any = None,
        moment_requires_grad: bool = False,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
        **optax: Unpack[OptaxAdam],
    ) -> None: ...


@constructor(alias.adadelta)
class MetaAdaDelta(MetaOptimizer):
    """The differentiable version of :func:`torchopt.adadelta`, for modules."""

    def __init__(
        self,
        module: nn.Module,
        lr: Any = 1.0,
        rho: Any = 0.9,
        eps: Any = 1e-6,
        weight_decay: Any = 0.0,
        *,
        moment_requires_grad: bool = True,
        **optax: Unpack[OptaxRate],
    ) -> None: ...


@constructor(alias.adagrad)
class MetaAdaGrad(MetaOptimizer):
    """The differentiable version of :func:`torchopt.adagrad`, for modules."""

    def __init__(
        self,
        module: nn.Module,
        lr: Any = 1e-2,
        lr_decay: Any = 0.0,
        weight_decay: Any = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: Any = 1e-10,
        *,
        maximize: bool = False,
        **optax: Unpack[OptaxRate],
    ) -> None: ...


@constructor(alias.adamax)
class MetaAdaMax(MetaOptimizer):
    """The differentiable version of :func:`torchopt.adamax`, for modules."""

    def __init__(
        self,
        module: nn.Module,
        lr: Any = 2e-3,
        betas: tuple[Any, Any] = (0.9, 0.999),
        eps: Any = 1e-8,
        weight_decay: Any = 0.0,
        *,
        moment_requires_grad: bool = True,
        **optax: Unpack[OptaxAdam],
    ) -> None: ...


@constructor(alias.radam)
class MetaRAdam(MetaOptimizer):
    """The differentiable version of :func:`torchopt.radam`, for modules."""

    def __init__(
        self,
        module: nn.Module,
        lr: Any = 1e-3,
        betas: tuple[Any, Any] = (0.9, 0.999),
        eps: Any = 1e-8,
        weight_decay: Any = 0.0,
        *,
        moment_requires_grad: bool = True,
        **optax: Unpack[OptaxAdam],
    ) -> None: ...


@constructor(alias.rmsprop)
class MetaRMSProp(MetaOptimizer):
    """The differentiable version of :func:`torchopt.rmsprop`, for modules."""

    def __init__(
        self,
        module: nn.Module,
        lr: Any = 1e-2,
        alpha: Any = 0.99,
        eps: Any = 1e-8,
        weight_decay: Any = 0.0,
        momentum: Any = 0.0,
        centered: bool = False,
        *,
        initial_scale: float = 0.0,
        eps_in_sqrt: bool = False,
        bias_correction: bool = False,
        nesterov: bool = False,
        maximize: bool = False,
        **optax: Unpack[OptaxRmsProp],
    ) -> None: ...


MetaAdadelta = MetaAdaDelta
MetaAdagrad = MetaAdaGrad
MetaAdamax = MetaAdaMax
MetaRMSprop = MetaRMSProp
