# SPDX-License-Identifier: Apache-2.0
"""Code shared by the optimizers: their first stage, the engine switch, and the text on common arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torchopt.base import ChainedGradientTransformation, GradientTransformation, identity
from torchopt.combine import chain
from torchopt.transform import add_decayed_weights, scale, scale_by_learning_rate as scale_by_neg_lr
from torchopt.transform.wrappers.native import with_native

__all__ = ['assemble', 'flip_sign_and_add_weight_decay', 'scale_by_neg_lr', 'shared_prose']

_RATE = (
    'Learning rate, at least 0: a number, a 0-d tensor (learned if it requires grad), or a schedule,\n'
    'which is a function from the number of steps taken to a rate.  For one rate per parameter, pass a\n'
    'tree of numbers and tensors with the structure of the parameters or a prefix of it; all numeric\n'
    'hyper-parameters accept such trees.  For one rate per element, tensors in the tree have the shapes\n'
    'of their parameters; such steps run in plain torch.'
)
_MASK = (
    'Which parameters decay: a tree of booleans with the structure of the parameters or a prefix of it,\n'
    'or a function that makes one from the parameters.  None decays all.'
)
_PROSE = {
    'lr': f'{_RATE}\nAlso spelled ``learning_rate``.',
    'learning_rate': _RATE,
    'betas': 'Decay rates of the first and the second moment, each in [0, 1): numbers, 0-d tensors, or trees of\n'
    'them.  Also spelled ``b1`` and ``b2``.',
    'b1': 'Decay rate :math:`\\beta_1` of the first moment, in [0, 1): a number, a 0-d tensor, or a tree of\nthem.',
    'b2': 'Decay rate :math:`\\beta_2` of the second moment, in [0, 1): a number, a 0-d tensor, or a tree of\nthem.',
    'eps_root': ':math:`\\bar\\epsilon \\ge 0`, inside the root.  A small positive value bounds meta-gradients where\n'
    'gradients are tiny.',
    'mu_dtype': 'Real dtype of the first moment, such as ``torch.bfloat16``; None means the dtype of each\nparameter.',
    'nesterov': 'Use Nesterov momentum.',
    'mask': _MASK,
    'weight_decay_mask': _MASK,
    'weight_decay': 'Weight of the l2 penalty, at least 0, or a schedule of it: this multiple of the parameters is\n'
    'added to the gradients.  If nonzero, ``update`` requires ``params``.',
    'moment_requires_grad': 'Make the first moments leaves that require grad, so that they can be learned.',
    'maximize': 'Maximize the objective; weight decay still shrinks the parameters.',
    'use_accelerated_op': 'None uses the native engine if it can run, False never; True raises if it cannot run.',
}
"""Text on each argument, in lines of at most 98 characters."""

_IDENTITY = identity()
_F = TypeVar('_F', bound='Callable[..., Any]')


def shared_prose(function: _F) -> _F:
    """Replace lines such as ``<lr>`` in a docstring by the text on that argument."""
    lines = []
    for line in (function.__doc__ or '').splitlines():
        name = line.strip().removeprefix('<').removesuffix('>')
        if line.strip() == f'<{name}>':
            indent = line[: len(line) - len(line.lstrip())]
            lines.append(f'{indent}{name}: {_PROSE[name]}'.replace('\n', f'\n{indent}    '))
        else:
            lines.append(line)
    function.__doc__ = '\n'.join(lines)
    return function


def flip_sign_and_add_weight_decay(weight_decay: Any = 0.0, maximize: bool = False) -> GradientTransformation:
    r"""The first stage of an optimizer: :math:`\pm g + \lambda p`.

    Args:
        weight_decay: :math:`\lambda \ge 0`, or a schedule of it.
        maximize: Flip the sign of the gradient.

    Returns:
        The transformation; the identity if there is nothing to do.

    Raises:
        ValueError: If the decay is negative.

    Example:
        >>> import torchopt
        >>> torchopt.alias.stages.flip_sign_and_add_weight_decay()
        identity()
    """
    if not maximize and type(weight_decay) is float and weight_decay == 0.0:
        return _IDENTITY
    decay = add_decayed_weights(weight_decay)
    return chain(scale(-1.0), decay) if maximize else decay


def assemble(
    *rules: GradientTransformation,
    lr: Any,
    weight_decay: Any = 0.0,
    maximize: bool = False,
    use_accelerated_op: bool | None = None,
) -> GradientTransformation:
    """An optimizer: the first stage, the rules, and the learning rate, which may be a schedule.

    ``use_accelerated_op`` is about the first rule: None runs it natively where the engine can run, False never, and
    True raises a RuntimeError if the engine cannot run.
    """
    if use_accelerated_op is not None:
        rules = (with_native(rules[0], bool(use_accelerated_op)), *rules[1:])
    first = flip_sign_and_add_weight_decay(weight_decay, maximize)
    return ChainedGradientTransformation(first, *rules, scale_by_neg_lr(lr))
