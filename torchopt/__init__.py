# SPDX-License-Identifier: Apache-2.0
"""Differentiable, functional optimization for PyTorch.

Transformations are pairs of pure functions, chained as in Optax.  Optimizers also have three other interfaces: ``Adam``
trains parameters in place as in ``torch.optim``, ``FuncOptimizer`` stores the state of a functional loop, and
``MetaAdam`` takes differentiable steps.
"""

from importlib import import_module as _import_module
from pkgutil import iter_modules as _iter_modules
from typing import TYPE_CHECKING as _TYPE_CHECKING, Any as _Any

from torchopt import (
    accelerated_op,
    alias,
    autodiff,
    base,
    clip,
    combine,
    hook,
    optim,
    schedule,
    transform,
    tree,
    typing,
    update,
    utils,
    version,
)
from torchopt._C import is_available as accelerated_op_available
from torchopt.alias import *
from torchopt.alias import __all__
from torchopt.autodiff import checkpoint, forward_value_and_grad, grad, value_and_grad
from torchopt.clip import clip_grad_norm
from torchopt.combine import chain, named_chain
from torchopt.hook import register_hook
from torchopt.optim import FuncOptimizer, Optimizer
from torchopt.optim.classic import *
from torchopt.optim.meta import *
from torchopt.spelling import no_such_name as _no_such_name
from torchopt.transform import masked, nan_to_num, partition
from torchopt.update import apply_updates, update_params
from torchopt.utils import extract_state_dict, module_clone, module_detach_, recover_state_dict, stop_gradient
from torchopt.version import __version__

if _TYPE_CHECKING:
    from torchopt import (
        assignment,
        compat,
        contrib,
        diff,
        distributed,
        implicit_diff,
        interop,
        isotonic,
        linalg,
        linear_solve,
        linesearch,
        loop,
        losses,
        microbatching,
        nn,
        objective,
        perturbations,
        polytopes,
        projections,
        prox,
        pytree,
        second_order,
        solver,
        visual,
        zero_order_diff,
    )
    from torchopt.solver import *

__all__ = [
    *__all__,
    'BlockCoordinateDescent',
    'MirrorDescent',
    'ProjectedGradient',
    'ProximalGradient',
    'OSQP',
    'BoxCDQP',
    'BoxOSQP',
    'CvxpyQP',
    'EqualityConstrainedQP',
    'AndersonAcceleration',
    'AndersonWrapper',
    'Bisection',
    'Broyden',
    'FixedPointIteration',
    'GaussNewton',
    'IterativeRefinement',
    'LevenbergMarquardt',
    'ScipyBoundedLeastSquares',
    'ScipyBoundedMinimize',
    'ScipyLeastSquares',
    'ScipyMinimize',
    'ScipyRootFinding',
    'BFGS',
    'LBFGS',
    'LBFGSB',
    'SGD',
    'AdaDelta',
    'AdaGrad',
    'AdaMax',
    'Adadelta',
    'Adagrad',
    'Adam',
    'AdamW',
    'Adamax',
    'ArmijoSGD',
    'BacktrackingLineSearch',
    'FuncOptimizer',
    'GradientDescent',
    'HagerZhangLineSearch',
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
    'NonlinearCG',
    'OptaxSolver',
    'PolyakSGD',
    'Optimizer',
    'RAdam',
    'RMSProp',
    'RMSprop',
    'ZoomLineSearch',
    'accelerated_op_available',
    'apply_updates',
    'chain',
    'checkpoint',
    'clip_grad_norm',
    'extract_state_dict',
    'forward_value_and_grad',
    'grad',
    'masked',
    'module_clone',
    'module_detach_',
    'named_chain',
    'nan_to_num',
    'partition',
    'recover_state_dict',
    'register_hook',
    'stop_gradient',
    'update_params',
    'value_and_grad',
]

_ON_FIRST_USE = [module.name for module in _iter_modules(__path__) if not module.name.startswith('_')]
"""Subpackages that most programs do not need: they are imported when they are first named, as are the solvers."""

if not _TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> _Any:
        if name in _ON_FIRST_USE:
            return _import_module(f'{__name__}.{name}')
        if name in __all__:
            return getattr(_import_module(f'{__name__}.solver'), name)
        raise _no_such_name(__name__, name, __all__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ON_FIRST_USE})
