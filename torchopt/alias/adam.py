# SPDX-License-Identifier: Apache-2.0
"""Adam, and Adam with decoupled weight decay."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from torchopt import checks
from torchopt.alias.stages import assemble, shared_prose
from torchopt.base import GradientTransformation
from torchopt.dtypes import DTypeLike
from torchopt.spelling import OptaxAdam, also_spelled
from torchopt.transform import add_decayed_weights, scale_by_adam


@also_spelled(learning_rate='lr', b1='betas.0', b2='betas.1')
@shared_prose
def adam(
    lr: Any = 1e-3,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    *,
    eps_root: Any = 0.0,
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool | None = None,
    **optax: Unpack[OptaxAdam],
) -> GradientTransformation:
    r"""Adam.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \qquad
        p_t = p_{t-1} - \eta \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t) + \bar\epsilon} + \epsilon}

    Args:
        <lr>
        <betas>
        eps: :math:`\epsilon \ge 0`, outside the root.
        <weight_decay>
        <eps_root>
        nesterov: Use Nesterov momentum; this is :func:`nadam`.
        <mu_dtype>
        <moment_requires_grad>
        <maximize>
        <use_accelerated_op>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type, or is given under both of its names.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.adam(lr=0.1)
        >>> params = {'w': torch.tensor([1.0, -1.0])}
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update({'w': torch.tensor([2.0, -3.0])}, state)
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([ 0.9000, -0.9000])}

    References:
        Kingma and Ba, `Adam: a method for stochastic optimization <https://arxiv.org/abs/1412.6980>`_, 2014.
    """
    rule = scale_by_adam(
        *checks.pair('betas', betas), eps, eps_root, moment_requires_grad, nesterov=nesterov, mu_dtype=mu_dtype
    )
    return assemble(rule, lr=lr, weight_decay=weight_decay, maximize=maximize, use_accelerated_op=use_accelerated_op)


@also_spelled(learning_rate='lr', b1='betas.0', b2='betas.1')
@shared_prose
def adamw(
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
) -> GradientTransformation:
    r"""Adam with decoupled weight decay.

    With :math:`u_t` the direction of :func:`adam`, :math:`p_t = p_{t-1} - \eta\,(u_t + \lambda p_{t-1})`.

    Args:
        <lr>
        <betas>
        eps: :math:`\epsilon \ge 0`, outside the root.
        weight_decay: :math:`\lambda \ge 0`, or a schedule of it.  If nonzero, ``update`` requires ``params``.
        <eps_root>
        nesterov: Use Nesterov momentum; this is :func:`nadamw`.
        <mu_dtype>
        <mask>
        <moment_requires_grad>
        <maximize>
        <use_accelerated_op>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type, or is given under both of its names.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.adamw(lr=0.1, weight_decay=0.5, mask={'w': True, 'b': False})
        >>> params = {'w': torch.tensor(2.0), 'b': torch.tensor(2.0)}
        >>> grads = {'w': torch.tensor(1.0), 'b': torch.tensor(1.0)}
        >>> optimizer.update(grads, optimizer.init(params), params)[0]
        {'w': tensor(-0.2000), 'b': tensor(-0.1000)}

    References:
        Loshchilov and Hutter, `Decoupled weight decay regularization <https://arxiv.org/abs/1711.05101>`_, 2017.
    """
    rule = scale_by_adam(
        *checks.pair('betas', betas), eps, eps_root, moment_requires_grad, nesterov=nesterov, mu_dtype=mu_dtype
    )
    return assemble(
        rule, add_decayed_weights(weight_decay, mask), lr=lr, maximize=maximize, use_accelerated_op=use_accelerated_op
    )
