# SPDX-License-Identifier: Apache-2.0
"""Differentiable, functional optimization for PyTorch.

Transformations are pairs of pure functions, chained as in Optax; every optimizer has three more interfaces: ``Adam``
trains parameters in place as in ``torch.optim``, ``FuncOptimizer`` keeps the state of a functional loop, and
``MetaAdam`` takes steps that can be differentiated through.
"""

from importlib import import_module as _import_module
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING as _TYPE_CHECKING

from torchopt import (
    _old_paths as _old_paths,
    accelerated_op,
    alias,
    assignment,
    autodiff,
    base,
    clip,
    combine,
    contrib,
    diff,
    hook,
    implicit_diff,
    linalg,
    linear_solve,
    linesearch,
    loop,
    losses,
    microbatching,
    nn,
    optim,
    perturbations,
    projections,
    pytree,
    schedule,
    second_order,
    transform,
    tree,
    typing,
    update,
    utils,
    version,
    zero_order_diff,
)
from torchopt._C import is_available as accelerated_op_available
from torchopt.alias import (
    adabelief,
    adadelta,
    adafactor,
    adagrad,
    adam,
    adamax,
    adamaxw,
    adamw,
    adan,
    amsgrad,
    fromage,
    lamb,
    lars,
    lbfgs,
    lion,
    nadam,
    nadamw,
    noisy_sgd,
    novograd,
    optimistic_adam,
    optimistic_adam_v2,
    optimistic_gradient_descent,
    polyak_sgd,
    radam,
    rmsprop,
    rprop,
    sgd,
    sign_sgd,
    signum,
    sm3,
    yogi,
)
from torchopt.autodiff import grad, value_and_grad
from torchopt.clip import clip_grad_norm
from torchopt.combine import chain, named_chain
from torchopt.hook import register_hook
from torchopt.optim import (
    SGD,
    AdaDelta,
    Adadelta,
    AdaGrad,
    Adagrad,
    Adam,
    AdaMax,
    Adamax,
    AdamW,
    FuncOptimizer,
    Optimizer,
    RAdam,
    RMSProp,
    RMSprop,
)
from torchopt.optim.meta import (
    MetaAdaDelta,
    MetaAdadelta,
    MetaAdaGrad,
    MetaAdagrad,
    MetaAdam,
    MetaAdaMax,
    MetaAdamax,
    MetaAdamW,
    MetaOptimizer,
    MetaRAdam,
    MetaRMSProp,
    MetaRMSprop,
    MetaSGD,
)
from torchopt.transform import masked, nan_to_num, partition
from torchopt.update import apply_updates
from torchopt.utils import (
    extract_state_dict,
    module_clone,
    module_detach_,
    recover_state_dict,
    stop_gradient,
)
from torchopt.version import __version__

if _TYPE_CHECKING:
    from torchopt import compat, distributed, interop, visual

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
    'Optimizer',
    'RAdam',
    'RMSProp',
    'RMSprop',
    'accelerated_op_available',
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
    'apply_updates',
    'chain',
    'clip_grad_norm',
    'extract_state_dict',
    'fromage',
    'grad',
    'lamb',
    'lars',
    'lbfgs',
    'lion',
    'masked',
    'module_clone',
    'module_detach_',
    'nadam',
    'nadamw',
    'named_chain',
    'nan_to_num',
    'noisy_sgd',
    'novograd',
    'optimistic_adam',
    'optimistic_adam_v2',
    'optimistic_gradient_descent',
    'partition',
    'polyak_sgd',
    'radam',
    'recover_state_dict',
    'register_hook',
    'rmsprop',
    'rprop',
    'sgd',
    'sign_sgd',
    'signum',
    'sm3',
    'stop_gradient',
    'value_and_grad',
    'yogi',
]

_ON_FIRST_USE = ('compat', 'distributed', 'interop', 'visual')
"""Subpackages that most programs do not need: they are imported when they are first named."""

if not _TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> _ModuleType:
        if name in _ON_FIRST_USE:
            return _import_module(f'{__name__}.{name}')
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE})
