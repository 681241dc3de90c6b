# SPDX-License-Identifier: Apache-2.0
"""The optimizers of :mod:`torchopt.alias` as classes that train parameters in place."""

from __future__ import annotations

from typing import Any, overload

from typing_extensions import Unpack

from torchopt import alias
from torchopt.dtypes import DTypeLike
from torchopt.optim.base import Optimizer
from torchopt.optim.from_alias import constructor
from torchopt.spelling import OptaxAdam, OptaxRate, OptaxRmsProp


@constructor(alias.sgd)
class SGD(Optimizer):
    """The PyTorch-like class of :func:`torchopt.sgd`."""

    @overload
    def __init__(
        self,
        params: Any,
        lr: Any,
        momentum: Any = 0.0,
        weight_decay: Any = 0.0,
        dampening: Any = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
    ) -> None: ...

    @overload
    def __init__(
        self,
        params: Any,
        *,
        learning_rate: Any,
        momentum: Any = 0.0,
        weight_decay: Any = 0.0,
        dampening: Any = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
    ) -> None: ...

    def __init__(  # type: ignore[misc]  # makes it take the second signature too
        self,
        params: Any,
        lr: Any,
        momentum: Any = 0.0,
        weight_decay: Any = 0.0,
        dampening: Any = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        **optax: Unpack[OptaxRate],
    ) -> None: ...


@constructor(alias.adam)
class Adam(Optimizer):
    """The PyTorch-like class of :func:`torchopt.adam`."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[Any, Any] = (0.9, 0.999),
        eps: Any = 1e-8,
        weight_decay: Any = 0.0,
        *,
        eps_root: Any = 0.0,
        nesterov: bool = False,
        mu_dtype: DTypeLike | None = None,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
        **optax: Unpack[OptaxAdam],
    ) -> None: ...


@constructor(alias.adamw)
class AdamW(Optimizer):
    """The PyTorch-like class of :func:`torchopt.adamw`."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[Any, Any] = (0.9, 0.999),
        eps: Any = 1e-8,
        weight_decay: Any = 1e-2,
        *,
        eps_root: Any = 0.0,
        nesterov: bool = False,
        mu_dtype: DTypeLike | None = None,
        mask: Any = None,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
        **optax: Unpack[OptaxAdam],
    ) -> None: ...


@constructor(alias.adadelta)
class AdaDelta(Optimizer):
    """The PyTorch-like class of :func:`torchopt.adadelta`."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1.0,
        rho: Any = 0.9,
        eps: Any = 1e-6,
        weight_decay: Any = 0.0,
        **optax: Unpack[OptaxRate],
    ) -> None: ...


@constructor(alias.adagrad)
class AdaGrad(Optimizer):
    """The PyTorch-like class of :func:`torchopt.adagrad`."""

    def __init__(
        self,
        params: Any,
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
class AdaMax(Optimizer):
    """The PyTorch-like class of :func:`torchopt.adamax`."""

    def __init__(
        self,
        params: Any,
        lr: Any = 2e-3,
        betas: tuple[Any, Any] = (0.9, 0.999),
        eps: Any = 1e-8,
        weight_decay: Any = 0.0,
        **optax: Unpack[OptaxAdam],
    ) -> None: ...


@constructor(alias.radam)
class RAdam(Optimizer):
    """The PyTorch-like class of :func:`torchopt.radam`."""

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[Any, Any] = (0.9, 0.999),
        eps: Any = 1e-8,
        weight_decay: Any = 0.0,
        **optax: Unpack[OptaxAdam],
    ) -> None: ...


@constructor(alias.rmsprop)
class RMSProp(Optimizer):
    """The PyTorch-like class of :func:`torchopt.rmsprop`."""

    def __init__(
        self,
        params: Any,
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


Adadelta = AdaDelta
Adagrad = AdaGrad
Adamax = AdaMax
RMSprop = RMSProp
