# SPDX-License-Identifier: Apache-2.0
"""Names that releases of Optax before 0.2.8 had, or that 0.2.8 deprecates, and what to use instead of each."""

from __future__ import annotations

import sys

from torchopt.spelling import absent

__all__ = ['missing']

_EXPECTATIONS = (
    'Optax removed it. Differentiate an expectation by the pathwise estimator with rsample of torch.distributions, or '
    'without derivatives of the integrand with torchopt.diff.zero_order.'
)
_FORMER = {
    '': {
        'AdditiveWeightDecayState': 'It is AddDecayedWeightsState now.',
        'FactoredParameterStats': 'It is FactoredState now.',
        'MaybeUpdateState': 'It is ConditionallyTransformState now.',
        'ScaleByFromageState': 'Optax removed it: fromage has no state of its own.',
        'additive_weight_decay': 'It is add_decayed_weights now.',
        'control_delta_method': _EXPECTATIONS,
        'control_variates_jacobians': _EXPECTATIONS,
        'experimental': 'For gradients of single examples and of microbatches use contrib and microbatching.',
        'fisher_diag': 'It is second_order.fisher_diag now.',
        'hessian_diag': 'It is second_order.hessian_diag now.',
        'hvp': 'It is second_order.hvp now.',
        'maybe_update': 'It is conditionally_transform now.',
        'measure_valued_jacobians': _EXPECTATIONS,
        'monte_carlo': _EXPECTATIONS,
        'moving_avg_baseline': _EXPECTATIONS,
        'pathwise_jacobians': _EXPECTATIONS,
        'score_function_jacobians': _EXPECTATIONS,
    },
    'contrib': dict.fromkeys(('complex_valued', 'mechanic', 'privacy'), 'The names of this module are in contrib.'),
    'schedules': {'inject': 'The names of this module are in schedules.'},
    'tree_utils': {
        'tree_add_scalar_mul': 'It is tree_add_scale, or tree.add_scale, now.',
        'tree_l1_norm': 'Use tree_norm(..., ord=1), or tree.norm(..., ord=1).',
        'tree_l2_norm': 'It is tree_norm, or tree.norm, now.',
        'tree_linf_norm': "Use tree_norm(..., ord='inf'), or tree.norm(..., ord='inf').",
        'tree_scalar_mul': 'It is tree_scale, or tree.scale, now.',
    },
}
"""What to use instead, by the names of modules and of their attributes."""


def missing(module: str, name: str) -> AttributeError:
    """The error for a name that a module of this package does not have."""
    _, _, path = module.removeprefix('torchopt.compat.').partition('.')
    return absent(sys.modules[module], name, _FORMER[path])
