# SPDX-License-Identifier: Apache-2.0
"""All public names of optree, exported by :mod:`torchopt.pytree`.

They are here because only this package imports optree.  In these functions ``None`` is an empty node unless
``none_is_leaf=True``.
"""

import optree
from optree import *  # noqa: F403
from optree import typing

__all__ = ['typing']
__all__ += optree.__all__

MAX_RECURSION_DEPTH = optree.MAX_RECURSION_DEPTH
"""The maximum depth of a tree."""

NONE_IS_NODE = optree.NONE_IS_NODE
"""The default of ``none_is_leaf``: ``None`` is a node without children."""

NONE_IS_LEAF = optree.NONE_IS_LEAF
"""The other value of ``none_is_leaf``: ``None`` is a leaf."""
