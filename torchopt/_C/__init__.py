# SPDX-License-Identifier: Apache-2.0
"""The native engine: one kernel call and one graph node per optimizer step.

Only this package imports the compiled module.  The module is optional: without it ``import torchopt`` still works, and
the package computes everything in plain torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

# First torch, then the compiled module: torch brings the OpenMP runtime, and a module loaded later
# shares it. In the other order the process ends up with two, which slow each other down.
import torch

from torchopt._C import fused, plans, quasi_newton

try:
    import torchopt._C.kernels as _kernels
except ModuleNotFoundError as error:
    # The module may be absent. If it is present but broken (an undefined symbol, a missing library), the
    # ImportError has another name; it is raised, since otherwise the package would be slow without a visible reason.
    if error.name != 'torchopt._C.kernels':
        raise
    _kernels = None  # type: ignore[assignment]

__all__ = ['build_info', 'is_available', 'release_memory', 'require']

SWITCH = 'TORCHOPT_ENGINE'
"""The environment variable that switches the engine off if it is 0, off, false or no."""

_is_on = os.environ.get(SWITCH, '1').strip().lower() not in ('0', 'off', 'false', 'no')

if _kernels is not None and _is_on:
    _kernels.open(torch)
    plans.set_kernels(_kernels.catalogue())
    fused.bind_kernels(_kernels.run)
    quasi_newton.bind_kernels(_kernels)


def is_available(devices: Any = None) -> bool:
    """Whether the native engine can run.

    Args:
        devices: A device, its name or index (of a CUDA device; negative for the CPU, as in ``Tensor.get_device``),
            or an iterable of these.  By default the CPU.

    Returns:
        Whether the engine runs on all of them.  The result is False for a device that does not exist, for a build
        without kernels for it, and with ``TORCHOPT_ENGINE=0`` in the environment.

    Raises:
        TypeError: If an entry of ``devices`` is not a device.

    Example:
        >>> import torchopt
        >>> torchopt.accelerated_op_available('meta')
        False
    """
    if _kernels is None or not _is_on:
        return False
    if devices is None:
        return True
    if isinstance(devices, (str, torch.device)) or not isinstance(devices, Iterable):
        devices = (devices,)
    answers = [_runs_on(device) for device in devices]  # a list, so that every entry is checked
    return all(answers)


def _runs_on(device: Any) -> bool:
    if isinstance(device, bool) or not isinstance(device, (str, int, torch.device)):
        raise TypeError(
            f'{device!r} (type: {type(device).__name__}) is not a device. Pass a torch.device, its name, or an index.'
        )
    if isinstance(device, int):
        device = f'cuda:{device}' if device >= 0 else 'cpu'
    try:
        device = torch.device(device)
    except RuntimeError:
        return False  # no device of this name
    if device.type == 'cuda':
        return (device.index or 0) < _kernels.cuda_devices()
    return device.type == 'cpu'


def build_info() -> dict[str, object]:
    """Return how the compiled module was built.

    Returns:
        A dictionary. ``'compiled'`` says whether the module is present; if not, this is
        the only entry. The others are ``'version'`` of the package at build time, ``'build_type'`` of
        CMake, ``'compiler_id'`` and ``'compiler_version'``, ``'cxx_standard'`` (17 for C++17),
        ``'pybind11_version'``, ``'openmp'`` (whether the module was compiled with it),
        ``'openmp_version'`` (the date in the standard's ``_OPENMP``, or ``None``),
        ``'openmp_max_threads'`` (the number of threads that the runtime would use now; it follows
        :func:`torch.set_num_threads`), ``'instruction_set'`` (of the kernels for this processor),
        ``'cuda'`` (whether there are kernels for CUDA), and ``'enabled'`` (False if the environment
        switches the engine off).

    Example:
        >>> from torchopt import _C
        >>> info = _C.build_info()
        >>> info.get('cxx_standard', 17)
        17
    """
    if _kernels is None:
        return {'compiled': False}
    return {'compiled': True, **_kernels.build_info(), 'enabled': _is_on}


def release_memory() -> int:
    """Return the memory that the engine keeps for the next steps to the system.

    Returns:
        The number of bytes.

    Example:
        >>> from torchopt import _C
        >>> _ = _C.release_memory()
        >>> _C.release_memory()
        0
    """
    if _kernels is None:
        return 0
    kept = _kernels.kept_memory()
    _kernels.release_memory()
    return kept


def require() -> None:
    """Require the native engine, for ``use_accelerated_op=True``.

    Raises:
        RuntimeError: If the engine cannot run.

    Example:
        >>> from torchopt import _C
        >>> _C.require() if _C.is_available() else None
    """
    if _kernels is None:
        raise RuntimeError(
            'use_accelerated_op=True, but torchopt was installed without its compiled module. Build it with '
            '`pip install .` from the sources, or omit the option to run in plain torch.'
        )
    if not _is_on:
        raise RuntimeError(
            f'use_accelerated_op=True, but {SWITCH}={os.environ.get(SWITCH)} switches the native engine off. Unset it, '
            f'or omit the option to run in plain torch.'
        )
