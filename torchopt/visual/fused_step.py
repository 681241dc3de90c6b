# SPDX-License-Identifier: Apache-2.0
"""Properties of the autograd node of a fused optimizer step: its rule, its leaves, the roles of its arguments."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torchopt import rules
from torchopt._C.call import Call, Order

# For each rule: its public name, and the fields of its state in the order of the kernel.
_RULES: dict[str, tuple[str, tuple[str, ...]]] = {
    'identity': ('SGD', ()),
    'trace': ('momentum', ('trace',)),
    'adam': ('Adam', ('mu', 'nu')),
    'amsgrad': ('AMSGrad', ('mu', 'nu', 'nu_max')),
    'yogi': ('Yogi', ('mu', 'nu')),
    'belief': ('AdaBelief', ('mu', 'nu')),
    'adamax': ('AdaMax', ('mu', 'nu')),
    'rms': ('RMSProp', ('nu',)),
    'stddev': ('centered RMSProp', ('mu', 'nu')),
    'rss': ('AdaGrad', ('sum_of_squares',)),
    'adadelta': ('AdaDelta', ('e_g', 'e_x')),
    'lion': ('Lion', ('mu',)),
}
_VERBS = {
    Order.FORWARD: '',
    Order.VJP: ', derivative',
    Order.VJP_WITH_COEFS: ', derivative',
    Order.VJP_OF_VJP: ', second derivative',
    Order.JVP: ', tangent',
}
_STEP_PREFIX = re.compile(r'^(?:step|state|init)[ _-]?\d*[./: ]')


class FusedStep(NamedTuple):
    """A node for a whole optimizer step, or for a derivative of one.

    Attributes:
        call: The computation.
        columns: The roles of its arguments, each with one argument per leaf; empty if they are not known.
        first: The number of arguments before the columns: 1 if coefficients are learned.
    """

    call: Call
    columns: tuple[str, ...]
    first: int

    @property
    def is_forward(self) -> bool:
        """Whether it is the step itself."""
        return self.call.order == Order.FORWARD

    @property
    def leaves(self) -> int:
        """The number of leaves that the step updates."""
        return self.call.leaves

    @property
    def results(self) -> tuple[str, ...]:
        """The roles of the columns that it computes."""
        first = 'params' if self.call.onto_params else 'updates'
        return (first, *moments(self.call)) if self.is_forward else ()

    @property
    def title(self) -> str:
        """The text of its box, without the number of the step."""
        kind = 'step' if self.call.onto_params else 'update'
        return f'{rule_name(self.call)} {kind}{_VERBS[self.call.order]}'

    def role(self, argument: int) -> tuple[str, int] | None:
        """The column and the leaf of one of ``next_functions``, if they are known."""
        place = argument - self.first
        if place < 0:
            return ('coefficients', 0)
        if not self.columns:
            return None
        return self.columns[place // self.leaves], place % self.leaves

    def facts(self) -> list[str]:
        """Lines for the tooltip."""
        lines = [f'rule: {" + ".join(rule.__name__ for rule in self.call.plan.rules)}', f'leaves: {self.leaves}']
        if moments(self.call):
            lines.append(f'moments: {", ".join(moments(self.call))}')
        if self.call.coefs is None:
            lines.append('coefficients: learned')
        else:
            factors = [f'{c:g}' for c in self.call.coefs[2 :: self.call.row_size]]
            lines.append(f'factor of the update: {", ".join(dict.fromkeys(factors))}')
        return lines


def moments(call: Call) -> tuple[str, ...]:
    """The names of the moments: the fields of the optimizer's state."""
    names = [name for rule in call.plan.rules for name in _RULES.get(rule.__name__, ('', ()))[1]]
    if len(names) != call.plan.moments or len({*names}) < len(names):
        return tuple(f'moment{i}' for i in range(call.plan.moments))
    return tuple(names)


def rule_name(call: Call) -> str:
    """The public name of the rule: Adam with decoupled decay is AdamW, with Nesterov momentum NAdam."""
    names = [_RULES.get(rule.__name__, (rule.__name__, ()))[0] for rule in call.plan.rules]
    if names == ['momentum']:
        return 'SGD'
    if names == ['Adam'] and call.coefs is not None:
        place = 4 + rules.coefficients(call.plan.rules[0]).index('gradient')
        nesterov = any(call.coefs[place :: call.row_size])
        decayed = call.onto_params and any(weight != 1.0 for weight in call.coefs[3 :: call.row_size])
        return f'{"N" if nesterov else ""}Adam{"W" if decayed else ""}'
    return ' + '.join(names)


def fused_step(fn: Any) -> FusedStep | None:
    """Read the node of a fused step; None for any other node."""
    call = getattr(fn, 'call', None)
    if not isinstance(call, Call):
        return None
    columns: tuple[str, ...] = ()
    first = int(call.coefs is None)
    if call.order == Order.FORWARD:
        roles = ('gradients', *moments(call), 'params')
        arguments = len(fn.next_functions) - first
        if arguments == len(roles) * call.leaves:
            columns = roles
        elif arguments == (len(roles) - 1) * call.leaves:  # the update does not depend on the parameters
            columns = roles[:-1]
    return FusedStep(call, columns, first)


def without_step(name: str) -> str:
    """A name without the prefix for the step number, such as ``visual_prefix='step0.'``."""
    return _STEP_PREFIX.sub('', name)
