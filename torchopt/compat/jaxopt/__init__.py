# SPDX-License-Identifier: Apache-2.0
"""JAXopt 0.8.5 for torch: ``from torchopt.compat import jaxopt`` is the line that changes.

Names, constructor arguments and defaults are those of JAXopt; trees, states and results are those of
:mod:`torchopt.solver`.  ``jit`` compiles nothing; ``implicit_diff`` and ``unroll`` mean what they mean there.

Example:
    >>> import torch
    >>> from torchopt.compat import jaxopt
    >>> solver = jaxopt.Bisection(lambda x, a: x**3 - a, 0.0, 4.0, tol=1e-4)
    >>> solver.run(a=torch.tensor(8.0)).params
    tensor(2.)
"""

from torchopt.compat.jaxopt import (
    base,
    implicit_diff,
    isotonic,
    linear_solve,
    loop,
    loss,
    objective,
    perturbations,
    projection,
    prox,
    tree_util,
)
from torchopt.compat.jaxopt.base import OptStep
from torchopt.compat.jaxopt.solvers import *
from torchopt.compat.jaxopt.solvers import __all__

__version__ = '0.8.5'
"""The version of JAXopt whose names and signatures these are."""

__all__ = [
    *__all__,
    'OptStep',
    'base',
    'implicit_diff',
    'isotonic',
    'linear_solve',
    'loop',
    'loss',
    'objective',
    'perturbations',
    'projection',
    'prox',
    'tree_util',
]
