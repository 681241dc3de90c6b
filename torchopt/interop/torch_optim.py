# SPDX-License-Identifier: Apache-2.0
"""Conversion to and from the optimizers of ``torch.optim``."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from torchopt import optim
from torchopt.base import TransformationLike
from torchopt.optim.rule_options import require_options

_RULES: dict[type, type[optim.Optimizer]] = {
    torch.optim.SGD: optim.SGD,
    torch.optim.Adam: optim.Adam,
    torch.optim.AdamW: optim.AdamW,
    torch.optim.Adamax: optim.Adamax,
    torch.optim.Adadelta: optim.Adadelta,
    torch.optim.Adagrad: optim.Adagrad,
    torch.optim.RAdam: optim.RAdam,
    torch.optim.RMSprop: optim.RMSprop,
}
_WHY_NOT: dict[type, str] = {
    torch.optim.Adafactor: (
        ' The transformation torchopt.adafactor(lr, min_dim_size_to_factor=1), from its initial state, takes the same '
        'steps.'
    ),
    torch.optim.NAdam: ' Its first decay rate increases with the steps; that of torchopt.nadam is constant.',
}


def as_torch_optimizer(transformation: TransformationLike, params: Any) -> optim.Optimizer:
    """Make a ``torch.optim.Optimizer`` from a transformation.

    Args:
        transformation: Any transformation, such as a :func:`torchopt.chain`.
        params: The parameters, as for :class:`torchopt.Optimizer`: tensors, pairs of name and tensor, groups, or a
            tree.

    Returns:
        A ``torch.optim.Optimizer``, which works with training loops, schedulers, gradient scalers and checkpoints
        written for torch.  Its ``zero_grad()`` sets gradients to None, as in ``torch.optim``; that of
        :class:`torchopt.Optimizer` fills them with zeros.

    Raises:
        TypeError: If ``transformation`` is not a transformation, or ``params`` contains anything but tensors.
        ValueError: If there are no parameters.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(2, 1)
        >>> tx = torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam(1e-2))
        >>> optimizer = torchopt.interop.as_torch_optimizer(tx, net.parameters())
        >>> isinstance(optimizer, torch.optim.Optimizer)
        True
    """
    return _like_torch(optim.Optimizer(params, transformation))


def from_torch_optimizer(optimizer: torch.optim.Optimizer) -> optim.Optimizer:
    """Make an optimizer with the parameters, options and state of an optimizer of ``torch.optim``.

    ``SGD``, ``Adam``, ``AdamW``, ``Adamax``, ``Adadelta``, ``Adagrad``, ``RAdam`` and ``RMSprop`` are supported.
    Switching in the middle of a run does not change its numbers, except for rounding with ``capturable=True``, where
    torch computes bias corrections in single precision.  ``zero_grad()`` of the new optimizer sets gradients to None,
    as in ``torch.optim``; that of other optimizers of torchopt fills them with zeros.

    A difference remains for a parameter that has no gradient in some steps: the count for bias corrections and
    dampening belongs to the group and counts every ``step()``, whereas ``torch.optim`` counts the gradients of each
    parameter.  Another concerns complex parameters: second moments are those of the absolute value, whereas
    ``torch.optim`` treats real and imaginary parts as two parameters; an optimizer with such a state raises an error.

    The given optimizer does not change and shares no state with the new one.  Its schedulers still refer to it: make
    new schedulers, and copy their state with ``load_state_dict``.

    Args:
        optimizer: The optimizer, at any step.

    Returns:
        An optimizer of the class of :mod:`torchopt.optim` with the same rule, over the same parameters in the same
        groups.

    Raises:
        TypeError: If its class has no counterpart here.
        ValueError: If an option has no counterpart (``amsgrad=True``), or if parameters of one group have taken
            different numbers of steps.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(2, 1)
        >>> theirs = torch.optim.AdamW(net.parameters(), lr=0.1)
        >>> net(torch.ones(2)).sum().backward()
        >>> theirs.step()
        >>> ours = torchopt.interop.from_torch_optimizer(theirs)
        >>> type(ours).__name__, ours.param_groups[0]['lr'], int(ours.state[net.weight]['step'])
        ('AdamW', 0.1, 1)
    """
    kind = _twin(optimizer)
    names = [name for name in inspect.signature(kind).parameters if name != 'params']
    groups = []
    for i, group in enumerate(optimizer.param_groups):
        require_options(group, names, kind, f'Group {i} of the optimizer')
        own = {name: value for name, value in group.items() if name in names}
        groups.append({**own, 'params': list(group['params'])})
    ours = kind(groups, **{name: value for name, value in optimizer.defaults.items() if name in names})
    made = ours.state_dict()
    for saved, group in zip(made['param_groups'], optimizer.param_groups):
        # Entries that others have added to the groups, such as initial_lr by schedulers.
        saved.update({k: v for k, v in group.items() if k not in optimizer.defaults and k != 'params'})
        for index, p in zip(saved['params'], group['params']):
            made['state'][index] = _entries(made['state'][index], optimizer.state.get(p, {}))
    ours.load_state_dict(made)
    return _like_torch(ours)


def _like_torch(optimizer: optim.Optimizer) -> optim.Optimizer:
    optimizer.set_to_none = True
    return optimizer


def _twin(optimizer: Any) -> type[optim.Optimizer]:
    kind = type(optimizer)
    if kind not in _RULES:
        known = ', '.join(cls.__name__ for cls in _RULES)
        raise TypeError(
            f'{kind.__module__}.{kind.__name__} has no counterpart in torchopt; supported classes of torch.optim are '
            f'{known}.'
            f'{_WHY_NOT.get(kind, "")}'
        )
    if kind is torch.optim.Adam:
        decoupled = {bool(group.get('decoupled_weight_decay')) for group in optimizer.param_groups}
        if len(decoupled) > 1:
            raise ValueError(
                'Some groups of the optimizer have decoupled_weight_decay and some do not. Split it into two '
                'optimizers.'
            )
        return optim.AdamW if decoupled.pop() else optim.Adam
    return _RULES[kind]


def _entries(expected: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The state of one parameter in our form; entries that torch has not made yet have their initial values."""
    # Our SGD counts steps for dampening and decaying rates; torch's has no count, only a buffer from the first step on.
    counted = theirs.get('step', int(theirs.get('momentum_buffer') is not None))
    found = {**expected, **{name: x for name, x in theirs.items() if name in expected and x is not None}}
    return {**found, 'count': counted} if 'count' in expected else found
