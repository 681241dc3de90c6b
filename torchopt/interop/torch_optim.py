# SPDX-License-Identifier: Apache-2.0
"""To ``torch.optim`` and from it."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from torchopt import optim
from torchopt.base import GradientTransformation

__all__ = ['as_torch_optimizer', 'from_torch_optimizer']

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
    torch.optim.NAdam: ' Its first decay rate grows from step to step; that of torchopt.nadam does not.',
}
# How torch computes, not what.
_INERT = frozenset({'foreach', 'capturable', 'differentiable', 'fused'})


def as_torch_optimizer(transformation: GradientTransformation, params: Any) -> optim.Optimizer:
    """Train parameters by a transformation, as an optimizer of torch.

    Args:
        transformation: Any transformation, such as a :func:`torchopt.chain`.
        params: What :class:`torchopt.Optimizer` takes: tensors, pairs of name and tensor, groups, or a tree.

    Returns:
        A ``torch.optim.Optimizer``: for training loops, schedulers, gradient scalers and checkpoints of torch, and of
        what is built on it.

    Raises:
        TypeError: If ``transformation`` is none, or ``params`` holds something else than tensors.
        ValueError: If there are no parameters.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(2, 1)
        >>> tx = torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam(1e-2))
        >>> optimizer = torchopt.interop.as_torch_optimizer(tx, net.parameters())
        >>> isinstance(optimizer, torch.optim.Optimizer)
        True
    """
    return optim.Optimizer(params, transformation)


def from_torch_optimizer(optimizer: torch.optim.Optimizer) -> optim.Optimizer:
    """Go on with the parameters, options and state of an optimizer of ``torch.optim``.

    ``SGD``, ``Adam``, ``AdamW``, ``Adamax``, ``Adadelta``, ``Adagrad``, ``RAdam`` and ``RMSprop`` have a twin here.  A
    run that switches goes on with the same numbers (with ``capturable=True`` torch forms bias corrections in single
    precision, we form them in double).

    The optimizer that it comes from is left as it is, and shares no state with the new one.  Schedulers are bound to
    it: make new ones, which go on by their own ``load_state_dict``.

    Args:
        optimizer: The optimizer, at any step.

    Returns:
        The class of :mod:`torchopt.optim` of the same rule, over the same parameters in the same groups.

    Raises:
        TypeError: If its class has no twin.
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
        for name, value in group.items():
            inert = name in names or name in _INERT or name not in optimizer.defaults
            if not inert and value and not (name == 'decoupled_weight_decay' and kind is optim.AdamW):
                raise ValueError(
                    f'Group {i} of the optimizer has {name}={value!r}, which torchopt.{kind.__name__} does not know. '
                    f'Go on without that option, or stay with torch.optim.'
                )
        own = {name: value for name, value in group.items() if name in names}
        groups.append({**own, 'params': list(group['params'])})
    ours = kind(groups, **{name: value for name, value in optimizer.defaults.items() if name in names})
    made = ours.state_dict()
    for saved, group in zip(made['param_groups'], optimizer.param_groups):
        # What others put into the groups, such as the initial_lr of schedulers.
        saved.update({k: v for k, v in group.items() if k not in optimizer.defaults and k != 'params'})
        for index, p in zip(saved['params'], group['params']):
            made['state'][index] = _entries(made['state'][index], optimizer.state.get(p, {}))
    ours.load_state_dict(made)
    return ours


def _twin(optimizer: Any) -> type[optim.Optimizer]:
    kind = type(optimizer)
    if kind not in _RULES:
        known = ', '.join(cls.__name__ for cls in _RULES)
        raise TypeError(
            f'{kind.__module__}.{kind.__name__} has no twin here; those of torch.optim that have one are {known}.'
            f'{_WHY_NOT.get(kind, "")}'
        )
    if kind is torch.optim.Adam:
        decoupled = {bool(group.get('decoupled_weight_decay')) for group in optimizer.param_groups}
        if len(decoupled) > 1:
            raise ValueError(
                'Some groups of the optimizer have decoupled_weight_decay and some do not. Make two optimizers of it.'
            )
        return optim.AdamW if decoupled.pop() else optim.Adam
    return _RULES[kind]


def _entries(expected: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The entries of a parameter for ours; what torch has not yet made is as we begin."""
    # Damped momentum and decaying rates count steps here; torch's SGD has no count, only a buffer from the first step.
    counted = theirs.get('step', int(theirs.get('momentum_buffer') is not None))
    found = {**expected, **{name: x for name, x in theirs.items() if name in expected and x is not None}}
    return {**found, 'count': counted} if 'count' in expected else found
