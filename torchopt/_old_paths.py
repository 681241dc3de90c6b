# SPDX-License-Identifier: Apache-2.0
"""Module paths of TorchOpt 0.7.3 that do not exist here: importing from them still works.

``from torchopt.optim.meta.adam import MetaAdam`` imports from a module with the public names that it had in 0.7.3.  The
table has one line for each such path.
"""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ['register_old_paths']

# For each path below torchopt, the module that contains the names now, and the names.
_MOVED: dict[str, tuple[str, str]] = {
    'alias.adamw': ('alias', 'adamw'),
    'alias.utils': ('alias.stages', 'flip_sign_and_add_weight_decay scale_by_neg_lr'),
    'linalg.cg': ('linalg', 'cg'),
    'linalg.ns': ('linalg', 'ns ns_inv'),
    'linear_solve.inv': ('linear_solve', 'solve_inv'),
    'linear_solve.normal_cg': ('linear_solve', 'solve_normal_cg'),
    'nn.module': ('nn', 'MetaGradientModule'),
    'nn.stateless': ('nn', 'swap_state reparametrize reparameterize'),
    'optim.adadelta': ('optim', 'AdaDelta Adadelta'),
    'optim.adagrad': ('optim', 'AdaGrad Adagrad'),
    'optim.adam': ('optim', 'Adam'),
    'optim.adamax': ('optim', 'AdaMax Adamax'),
    'optim.adamw': ('optim', 'AdamW'),
    'optim.radam': ('optim', 'RAdam'),
    'optim.rmsprop': ('optim', 'RMSProp RMSprop'),
    'optim.sgd': ('optim', 'SGD'),
    'optim.func.base': ('optim.func', 'FuncOptimizer'),
    'optim.meta.adadelta': ('optim.meta', 'MetaAdaDelta MetaAdadelta'),
    'optim.meta.adagrad': ('optim.meta', 'MetaAdaGrad MetaAdagrad'),
    'optim.meta.adam': ('optim.meta', 'MetaAdam'),
    'optim.meta.adamax': ('optim.meta', 'MetaAdaMax MetaAdamax'),
    'optim.meta.adamw': ('optim.meta', 'MetaAdamW'),
    'optim.meta.base': ('optim.meta', 'MetaOptimizer'),
    'optim.meta.radam': ('optim.meta', 'MetaRAdam'),
    'optim.meta.rmsprop': ('optim.meta', 'MetaRMSProp MetaRMSprop'),
    'optim.meta.sgd': ('optim.meta', 'MetaSGD'),
    'schedule.exponential_decay': ('schedule', 'exponential_decay'),
    'transform.add_decayed_weights': ('transform', 'masked add_decayed_weights'),
    'transform.nan_to_num': ('transform', 'nan_to_num'),
    'transform.scale': ('transform', 'scale'),
    'transform.scale_by_adadelta': ('transform', 'scale_by_adadelta'),
    'transform.scale_by_adam': ('transform', 'scale_by_adam scale_by_accelerated_adam'),
    'transform.scale_by_adamax': ('transform', 'scale_by_adamax'),
    'transform.scale_by_radam': ('transform', 'scale_by_radam'),
    'transform.scale_by_rms': ('transform', 'scale_by_rms'),
    'transform.scale_by_rss': ('transform', 'scale_by_rss'),
    'transform.scale_by_schedule': ('transform', 'scale_by_schedule'),
    'transform.scale_by_stddev': ('transform', 'scale_by_stddev'),
    'transform.trace': ('transform', 'trace'),
}


def register_old_paths(package: str) -> None:
    """Make the old paths below a subpackage importable; each such subpackage calls this when it has its names.

    A module becomes an attribute of its parent, unless there is one already, such as a function, as in 0.7.3.
    """
    for path, (home, names) in _MOVED.items():
        parent, _, child = f'torchopt.{path}'.rpartition('.')
        if not f'{parent}.'.startswith(f'{package}.'):
            continue
        source = sys.modules[f'torchopt.{home}']
        module = ModuleType(f'{parent}.{child}', f'Names of TorchOpt 0.7.3, which are in {source.__name__} now.')
        vars(module).update({name: getattr(source, name) for name in names.split()}, __all__=names.split())
        sys.modules[module.__name__] = module
        if child not in vars(sys.modules[parent]):
            setattr(sys.modules[parent], child, module)
