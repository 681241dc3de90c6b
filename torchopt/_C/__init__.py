# SPDX-License-Identifier: Apache-2.0
"""The door to the compiled module, and its only importer.

The module is optional: where it was not built, ``import torchopt`` works all the same, and what the
package computes is computed in plain torch.
"""

from __future__ import annotations

# First torch, then the compiled module: torch brings the OpenMP runtime, and a module loaded later
# shares it. In the other order the process ends up with two, which slow each other down.
import torch  # noqa: F401

try:
    import torchopt._C.kernels as _kernels
except ModuleNotFoundError as error:
    # Absent is fine. Present but broken (an undefined symbol, a missing library) is an ImportError
    # of another kind, and hiding it would only make the package slow for no visible reason.
    if error.name != 'torchopt._C.kernels':
        raise
    _kernels = None  # type: ignore[assignment]

__all__ = ['build_info', 'is_available', 'require']


def is_available(devices: object = None) -> bool:
    """Tell whether compiled optimizer kernels can be used.

    This release has none: the compiled module reports only how it was built, so the answer is
    ``False`` whether or not the module is present. Every optimizer runs in plain torch.

    Args:
        devices: A device, its name or index, or an iterable of these; all that there are by default.

    Returns:
        ``False``.

    Example:
        >>> from torchopt import _C
        >>> _C.is_available()
        False
    """
    return False


def build_info() -> dict[str, object]:
    """Tell how the compiled module was built.

    Returns:
        A dictionary. ``'compiled'`` says whether the module is present; where it is not, this is
        the only entry. The others: ``'version'`` of the package at build time, ``'build_type'`` of
        CMake, ``'compiler_id'`` and ``'compiler_version'``, ``'cxx_standard'`` (17 for C++17),
        ``'pybind11_version'``, ``'openmp'`` (whether the module was compiled with it),
        ``'openmp_version'`` (the date in the standard's ``_OPENMP``, or ``None``), and
        ``'openmp_max_threads'`` (what the runtime would use now; it follows
        :func:`torch.set_num_threads`).

    Example:
        >>> from torchopt import _C
        >>> info = _C.build_info()
        >>> info.get('cxx_standard', 17)
        17
    """
    if _kernels is None:
        return {'compiled': False}
    return {'compiled': True, **_kernels.build_info()}


def require() -> None:
    """Insist on the compiled kernels, for those who ask for ``use_accelerated_op=True``.

    Raises:
        RuntimeError: If they cannot run here.

    Example:
        >>> from torchopt import _C
        >>> _C.require()
        Traceback (most recent call last):
            ...
        RuntimeError: use_accelerated_op=True, but ... Leave it out to run in plain torch.
    """
    if not is_available():
        raise RuntimeError(
            'use_accelerated_op=True, but this release has no compiled kernels. Leave it out to run in plain torch.'
        )
