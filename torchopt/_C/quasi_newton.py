# SPDX-License-Identifier: Apache-2.0
"""The kernels of quasi-Newton methods, for vectors of float32 or float64 on the CPU.

A column is a sequence of the leaves of a vector: contiguous tensors or NumPy arrays of one dtype.  An array has the
vectors of a batch of problems one behind the other; then numbers are arrays with one element for each problem.  Graphs
and transforms must not follow tensors.

Each function returns whether it ran; if not, it has changed nothing.  ``torchopt.quasi_newton`` and the solvers have
the same in plain torch and NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_Column = Sequence[Any]
_kernels: Any = None


def bind_kernels(module: Any) -> None:
    """Set the compiled module; None means that no kernel runs."""
    global _kernels  # noqa: PLW0603  # set when the package is imported
    _kernels = module


def difference(columns: tuple[_Column, ...], size: int, place: Any, from_zero: bool, inner: Any) -> bool:
    r"""Write the differences of a step into rings of pairs.

    Args:
        columns: :math:`x` before and after the step, :math:`g` before and after it, the rings of :math:`s` and
            :math:`y`.
        size: The number of rows of a ring.
        place: The row to write; nothing is written if it is negative.
        from_zero: Whether leaves whose :math:`x` and :math:`g` were zero did not exist, so that their differences are
            zero.
        inner: An array or a tensor of float64 for the sums :math:`\langle y, s \rangle`, :math:`\lVert s \rVert^2`,
            :math:`\lVert y \rVert^2` and :math:`\lVert g \rVert^2`, with :math:`g` before the step, each for all
            problems.
    """
    return _kernels is not None and _kernels.quasi_newton_difference(columns, size, place, from_zero, inner)


def product(columns: tuple[_Column, ...], weights: Any, newest: Any, gamma: Any, guarded: bool) -> bool:
    r"""Multiply vectors by the inverse Hessian of pairs, by the two loops of Nocedal and Wright, algorithm 7.4.

    Args:
        columns: :math:`g`, the rings of :math:`s` and :math:`y`, and the product, which is written.
        weights: :math:`1 / \langle y, s \rangle` of each row, in float64; zero where there is no pair.
        newest: The row of the newest pair.
        gamma: The scale :math:`\gamma`.
        guarded: Whether :math:`g` is scaled so that nothing overflows, and :math:`\gamma g` replaces a product that is
            no direction of ascent, as in :func:`torchopt.quasi_newton.inverse_hessian_product`.
    """
    return _kernels is not None and _kernels.quasi_newton_product(columns, weights, newest, gamma, guarded)


def bfgs(columns: tuple[_Column, ...], scale: Any, rho: Any) -> bool:
    r"""Scale and update dense inverse Hessians, and multiply vectors by them.

    Args:
        columns: The matrices, which are written, :math:`s`, :math:`y`, a vector, and its product, which is written.
        scale: The factor of each matrix before the update.
        rho: :math:`1 / \langle y, s \rangle`; zero for no update.
    """
    return _kernels is not None and _kernels.quasi_newton_bfgs(columns, scale, rho)
