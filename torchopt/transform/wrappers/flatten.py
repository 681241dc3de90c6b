# SPDX-License-Identifier: Apache-2.0
"""Apply a transformation to one vector with all leaves."""

from __future__ import annotations

from typing import Any

from torchopt import elementwise, tree
from torchopt.autodiff.objective import is_plain_step
from torchopt.base import GradientTransformationExtraArgs, TransformationLike, factory, with_extra_args_support
from torchopt.graphs import detach_graph
from torchopt.preconditions import required_by_all


@factory
def flatten(inner: TransformationLike) -> GradientTransformationExtraArgs:
    """Apply a transformation to all leaves as one vector.

    For a transformation without a native kernel, this replaces many small operations by a few large ones.  Norms of
    leaves become norms over all parameters.  The vector has the promoted dtype; updates keep theirs.

    Returns:
        A transformation whose state is that of ``inner`` for one vector.

    Raises:
        ValueError: If an update of a parameter is None, since a part of a vector cannot be omitted.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.flatten(torchopt.adam(0.1))
        >>> params = {'w': torch.ones(2, 2), 'b': torch.ones(3)}
        >>> state = tx.init(params)
        >>> state[0].mu.shape
        torch.Size([7])
        >>> tx.update(params, state)[0]['b']
        tensor([-0.1000, -0.1000, -0.1000])
    """
    wide = with_extra_args_support(inner)

    def init(params: Any) -> Any:
        return wide.init(params if isinstance(params, tree.ParamsPlaceholder) else tree.ravel(params, name='params')[0])

    def update(updates: Any, state: Any, params: Any = None, *, inplace: bool = False, **extra: Any) -> tuple[Any, Any]:
        if params is not None:
            elementwise.check_updates(updates, params)
            for (path, g), p in zip(tree.flatten_with_path(updates), tree.flatten(params)[0]):
                if g is None and p is not None:
                    raise ValueError(
                        f'updates{path} is None, but flatten makes one vector of all updates, which cannot have '
                        f'missing parts. Pass zeros, or put masked around flatten.'
                    )
            params = tree.ravel(tree.map(detach_graph, params) if is_plain_step(updates, params) else params)[0]
        vector, unravel = tree.ravel(updates, name='updates')
        vector, state = wide.update(vector, state, params, inplace=inplace, **extra)
        return unravel(vector), state

    requires = required_by_all(lambda state, params: [(state, params)], wide)
    return GradientTransformationExtraArgs.requiring(init, update, requires)
