# SPDX-License-Identifier: Apache-2.0
"""The names of ``optax.losses``, which are those of :mod:`torchopt.losses`."""

from torchopt.losses import *  # noqa: F403
from torchopt.losses import __all__  # noqa: F401
