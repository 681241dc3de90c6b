# SPDX-License-Identifier: Apache-2.0
"""The Python environment of each peer: the running one, or one that is created under ``benchmarks/.envs``.

A created environment imports missing packages, such as torch, from the running one.  So all peers use the same torch,
and no large package is downloaded.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE / '.envs'

MODULES = {
    'torchopt': 'torchopt_api',
    'torch_optim': 'torch_optim',
    'by_hand': 'by_hand',
    'optax': 'optax_jit',
    'jaxopt': 'jaxopt_jit',
    'higher': 'higher_loop',
    'torchopt_073': 'torchopt_api',
}

# The sources of TorchOpt 0.7.3 are older than the torch that they are compiled against: torch for Linux has only the
# new C++ ABI, and its headers do not work with an old CUDA build script, so it is built for the CPU only. CIBUILDWHEEL
# makes a failed compilation an error; otherwise pure Python would silently replace its native op.
TOOLCHAIN = 'set(CMAKE_DISABLE_FIND_PACKAGE_CUDA TRUE)\n'
BUILD_073 = {
    'CXXFLAGS': '-U_GLIBCXX_USE_CXX11_ABI -D_GLIBCXX_USE_CXX11_ABI=1',
    'CIBUILDWHEEL': '1',
    'CMAKE_BUILD_PARALLEL_LEVEL': '2',
}


class NotToBeHad(Exception):
    """A peer cannot run here; the message contains the reason."""


def python_for(peer: str) -> tuple[Path, dict[str, str]]:
    """The interpreter of a peer and its environment variables; the environment is created on demand.

    Raises:
        NotToBeHad: If the environment cannot be created here.
    """
    variables = dict(os.environ)
    if peer != 'torchopt':
        variables.pop('PYTHONPATH', None)  # it may point to this checkout
    if peer == 'torchopt_073':
        return _environment(peer, _install_073), variables
    if peer in ('optax', 'jaxopt', 'higher') and importlib.util.find_spec(peer) is None:
        packages = ['--no-deps', 'higher'] if peer == 'higher' else ['jax', peer]
        return _environment(peer, lambda python: _pip(python, *packages)), variables
    if peer == 'torchopt' and importlib.util.find_spec('torchopt') is None:
        variables['PYTHONPATH'] = str(HERE.parent)
    return Path(sys.executable), variables


def _environment(name: str, install: Callable[[Path], None]) -> Path:
    folder = FOLDER / name
    python = folder / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
    torch = importlib.util.find_spec('torch')
    stamp, built_for = folder / 'built-for', f'{sys.version}\n{torch.origin}\n{importlib.metadata.version("torch")}\n'
    if stamp.is_file() and stamp.read_text() == built_for:
        return python
    print(f'Making the environment of {name} ...', file=sys.stderr)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / '.gitignore').write_text('*\n')
    venv.create(folder, clear=True, with_pip=True)
    own = Path(sysconfig.get_path('purelib', vars={'base': str(folder), 'platbase': str(folder)}))
    borrowed = Path(torch.origin).parents[1]
    (own / 'zz-borrowed.pth').write_text(f'{borrowed}\n')  # after its own packages on sys.path
    install(python)
    stamp.write_text(built_for)
    return python


def _install_073(python: Path) -> None:
    # The wheels do not load on current torch (undefined symbols), hence from source.
    _pip(python, 'setuptools', 'wheel', 'pybind11', 'cmake', 'graphviz', 'typing-extensions', 'optree')
    toolchain = python.parents[1] / 'cpu-only.cmake'
    toolchain.write_text(TOOLCHAIN)
    search = os.pathsep.join([str(python.parent), str(Path(sys.executable).parent), os.environ.get('PATH', '')])
    variables = {**BUILD_073, 'CMAKE_TOOLCHAIN_FILE': str(toolchain), 'PATH': search}
    options = ('--no-deps', '--no-build-isolation', '--no-cache-dir', '--no-binary', 'torchopt')
    _pip(python, *options, 'torchopt==0.7.3', variables=variables)


def _pip(python: Path, *arguments: str, variables: dict[str, str] | None = None) -> None:
    command = [str(python), '-m', 'pip', 'install', '--disable-pip-version-check', *arguments]
    done = subprocess.run(command, env={**os.environ, **(variables or {})}, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line.strip() for line in (done.stdout + done.stderr).splitlines() if 'error' in line.lower()]
        log = FOLDER / f'{python.parents[1].name}.log'
        log.write_text(done.stdout + done.stderr)
        raise NotToBeHad(f'pip install {arguments[-1]}: {errors[0] if errors else "failed"} (see {log.name})')
