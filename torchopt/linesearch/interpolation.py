# SPDX-License-Identifier: Apache-2.0
"""Minima of interpolating polynomials; NaN if a minimum does not exist."""

from __future__ import annotations

import math
from typing import Any

from torchopt.scalars import negated, root, where


def _finite(*values: Any) -> Any:
    """Whether all of some numbers are finite."""
    found: Any = True
    for x in values:
        found = found & (abs(x) < math.inf)
    return found


def quadratic_minimum(a: Any, value_a: Any, slope_a: Any, b: Any, value_b: Any) -> Any:
    r"""The stationary point of the parabola through :math:`(a, f_a)` with slope :math:`s_a`, and :math:`(b, f_b)`.

    With :math:`d = b - a` it is :math:`f_a + s_a x + q x^2` at :math:`a + x`, where
    :math:`q = (f_b - f_a - s_a d) / d^2`; its slope is zero at :math:`x = -s_a / 2 q`.

    Example:
        >>> from torchopt.linesearch import quadratic_minimum
        >>> quadratic_minimum(0.0, 4.0, -4.0, 1.0, 1.0)  # (x - 2)^2
        2.0
    """
    d = b - a
    ok = (d * d != 0.0) & _finite(value_a, slope_a, value_b)
    # If there is no result, replace the numbers so that derivatives are not NaN.
    d, slope, rise = (where(ok, x, 1.0) for x in (d, slope_a, value_b - value_a))
    q = (rise - slope * d) / (d * d)
    bent = q != 0.0
    return where(ok & bent, a - slope / (2.0 * where(bent, q, 1.0)), math.nan)


def cubic_minimum(a: Any, value_a: Any, slope_a: Any, b: Any, value_b: Any, c: Any, value_c: Any) -> Any:
    r"""The minimum of the cubic through :math:`(a, f_a)` with slope :math:`s_a`, :math:`(b, f_b)` and :math:`(c, f_c)`.

    It is :math:`f_a + s_a x + q x^2 + k x^3` at :math:`a + x`.  With
    :math:`r_b = (f_b - f_a - s_a d_b) / d_b^2 = q + k d_b`, :math:`d_b = b - a`, and the same for :math:`c`,

    .. math::
        k = \frac{r_b - r_c}{d_b - d_c}, \qquad q = r_b - k d_b.

    Its slope :math:`s_a + 2 q x + 3 k x^2` is zero at :math:`x = (-q \pm \sqrt{q^2 - 3 k s_a}) / 3 k`; the upper sign
    is the minimum.  To avoid cancellation for :math:`q > 0`, it is computed as
    :math:`x = -s_a / (q + \sqrt{q^2 - 3 k s_a})`, which is also correct for :math:`k = 0`.

    Example:
        >>> from torchopt.linesearch import cubic_minimum
        >>> cubic_minimum(0.0, 0.0, -3.0, 2.0, 2.0, 3.0, 18.0)  # x^3 - 3 x
        1.0
    """
    to_b, to_c = b - a, c - a
    apart = (to_b * to_b != 0.0) & (to_c * to_c != 0.0) & (to_b != to_c)
    ok = apart & _finite(value_a, slope_a, value_b, value_c)
    to_b, slope, rise_b, rise_c = (where(ok, x, 1.0) for x in (to_b, slope_a, value_b - value_a, value_c - value_a))
    to_c = where(ok, to_c, 2.0)
    beyond_b = (rise_b - slope * to_b) / (to_b * to_b)
    beyond_c = (rise_c - slope * to_c) / (to_c * to_c)
    k = (beyond_b - beyond_c) / (to_b - to_c)
    q = beyond_b - k * to_b
    below = q * q - 3.0 * k * slope
    r = where(below > 0.0, root(where(below > 0.0, below, 1.0)), 0.0)
    rising = q > 0.0
    ok = ok & (below >= 0.0) & (rising | (k != 0.0))
    by_slope = -slope / where(ok & rising, q + r, 1.0)
    by_root = (r - q) / where(ok & negated(rising), 3.0 * k, 1.0)
    return where(ok, a + where(rising, by_slope, by_root), math.nan)
