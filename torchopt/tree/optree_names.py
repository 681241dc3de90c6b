# SPDX-License-Identifier: Apache-2.0
"""All public names of optree, whose face is :mod:`torchopt.pytree`.

They are here because no other room imports optree.  In these functions ``None`` is an empty node
unless ``none_is_leaf=True`` is given.
"""

import optree
from optree import *  # noqa: F403
from optree import typing

__all__ = ['typing']
__all__ += optree.__all__
