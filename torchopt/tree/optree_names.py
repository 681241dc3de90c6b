# SPDX-License-Identifier: Apache-2.0
"""All public names of optree, exported by :mod:`torchopt.pytree`.

They are here because only this package imports optree.  In these functions ``None`` is an empty node unless
``none_is_leaf=True``.
"""

import optree
from optree import *  # noqa: F403
from optree import (
    __all__ as __all__,  # noqa: PLC0414 (the form from which mypy learns the names)
    typing,
)

__all__ = list(__all__)
__all__ += ['typing']

MAX_RECURSION_DEPTH = optree.MAX_RECURSION_DEPTH
"""The maximum depth of a tree."""

NONE_IS_NODE = optree.NONE_IS_NODE
"""The default of ``none_is_leaf``: ``None`` is a node without children."""

NONE_IS_LEAF = optree.NONE_IS_LEAF
"""The other value of ``none_is_leaf``: ``None`` is a leaf."""
