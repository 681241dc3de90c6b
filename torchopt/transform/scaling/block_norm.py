# SPDX-License-Identifier: Apache-2.0
"""Scale every leaf by the norm of its parameter, or by the ratio of the norms of parameter and update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchopt import checks, elementwise
from torchopt.base import EmptyState, GradientTransformation, factory, without_state
from torchopt.elementwise import as_constant, leaf_norm, least_norm
from torchopt.norms import root_mean_square
from torchopt.numerics import as_scalar_like, in_single
from torchopt.preconditions import params_for

ScaleByTrustRatioState = EmptyState
"""State of :func:`scale_by_trust_ratio`, which is empty."""


def _scale_leaves(rule: Any, purpose: str) -> GradientTransformation:
    def scaled(u: Tensor, p: Tensor) -> tuple[Tensor]:
        return (rule(u, as_constant(p, u)),)

    def scale(updates: Any, params: Any) -> Any:
        return elementwise.apply_rule(in_single(scaled), updates, reads=(params,), whole=True)[0]

    return without_state(scale, params_for(purpose))


@factory
def scale_by_param_block_norm(min_scale: Any = 1e-3) -> GradientTransformation:
    r"""Scale every leaf by the norm of its parameter: :math:`u \leftarrow u \max(\lVert p \rVert, s)`.

    Args:
        min_scale: The lower bound :math:`s \ge 0`.  If :math:`\lVert p \rVert \le s`, the factor is a constant.

    Raises:
        ValueError: If ``min_scale`` is negative; in ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_param_block_norm()
        >>> params = [torch.tensor([3.0, 4.0])]
        >>> tx.update([torch.tensor([1.0, -1.0])], tx.init(params), params)[0]
        [tensor([ 5., -5.])]
    """
    checks.at_least('min_scale value', min_scale)
    return _scale_leaves(lambda u, p: u * least_norm(leaf_norm(p), min_scale), 'scale_by_param_block_norm')


@factory
def scale_by_param_block_rms(min_scale: Any = 1e-3) -> GradientTransformation:
    r"""Scale every leaf by the root mean square of its parameter: :math:`u \leftarrow u \max(\mathrm{rms}(p), s)`.

    The argument and the errors are those of :func:`scale_by_param_block_norm`.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_param_block_rms()
        >>> params = [torch.tensor([3.0, -3.0])]
        >>> tx.update([torch.tensor([1.0, -1.0])], tx.init(params), params)[0]
        [tensor([ 3., -3.])]

    References:
        Shazeer and Stern, `Adafactor <https://arxiv.org/abs/1804.04235>`_, section 8, 2018.
    """
    checks.at_least('min_scale value', min_scale)
    return _scale_leaves(lambda u, p: u * least_norm(root_mean_square(p), min_scale), 'scale_by_param_block_rms')


@factory
def scale_by_trust_ratio(min_norm: Any = 0.0, trust_coefficient: Any = 1.0, eps: Any = 0.0) -> GradientTransformation:
    r"""Scale every leaf by the trust ratio, the norm of its parameter divided by the norm of its update.

    .. math::
        u \leftarrow u \cdot c\, \frac{\max(\lVert p \rVert, s)}{\max(\lVert u \rVert, s) + \epsilon}

    If one of the two norms is zero, the update does not change.

    Args:
        min_norm: The lower bound :math:`s \ge 0` of the norms.
        trust_coefficient: The factor :math:`c`.
        eps: :math:`\epsilon \ge 0`.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_trust_ratio()
        >>> params = [torch.tensor([3.0, 4.0])]
        >>> tx.update([torch.tensor([0.0, 2.0])], tx.init(params), params)[0]
        [tensor([0., 5.])]

    References:
        You et al., `Large batch optimization for deep learning: training BERT in 76 minutes
        <https://arxiv.org/abs/1904.00962>`_, ICLR 2020.
    """
    checks.at_least('min_norm value', min_norm)
    checks.number('trust_coefficient value', trust_coefficient)
    checks.at_least('epsilon value', eps)

    def turn(u: Tensor, p: Tensor) -> Tensor:
        above, below = (least_norm(leaf_norm(x), min_norm) for x in (p, u))
        zero = (above == 0.0) | (below == 0.0)
        below = torch.where(zero, torch.ones_like(below), below + as_scalar_like(eps, below))
        above = torch.where(zero, torch.ones_like(above), as_scalar_like(trust_coefficient, above) * above)
        return u / below * above

    return _scale_leaves(turn, 'scale_by_trust_ratio')
