# SPDX-License-Identifier: Apache-2.0
"""The rules for layers and source files, checked on the sources.

Every module or package directly under ``torchopt/`` belongs to a layer and imports only from lower
layers; see CONTRIBUTING.md. A new module or package needs an entry in ``LAYERS``.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

INTERFACE = '__init__'
LAYERS = {
    unit: layer
    for layer, units in {
        0: 'version dtypes kinds module_hooks progress',
        1: 'levels sharding',
        2: 'columns graphs',
        3: 'numerics',
        4: 'rules norms preconditions spelling _old_paths',
        5: '_C tree',
        6: 'checks factories assignment isotonic scalars',
        7: 'autodiff quasi_newton',
        8: 'elementwise loop',
        9: 'base pytree second_order linear_solve linesearch projections prox perturbations microbatching '
        'distributed visual',
        10: 'transform schedule losses implicit_diff update typing combine clip hook linalg',
        11: 'alias contrib objective zero_order_diff',
        12: 'optim nn solver accelerated_op',
        13: 'diff utils polytopes',
        14: 'interop compat',
        15: INTERFACE,
    }.items()
    for unit in units.split()
}

# Packages that only the interface imports.
EDGES = frozenset({'distributed', 'visual', 'interop', 'compat'})

# What only one package may import. A name stands for itself and for everything below it.
KEEPERS = {
    'optree': 'tree',
    'torch.utils._pytree': 'tree',
    'torch.utils._cxx_pytree': 'tree',
    'torch.utils.pytree': 'tree',
    'torchopt._C.kernels': '_C',
}
# What nothing in the package may import: the oracles of the tests, and what would pull them in.
BANNED = frozenset({'jax', 'jaxlib', 'optax', 'jaxopt', 'chex', 'flax', 'absl', 'functorch'})

SPDX = 'SPDX-License-Identifier: Apache-2.0'
LONGEST_FILE, LONGEST_TEST = 500, 600
# Names that do not say what is inside. torchopt.utils is a public module of TorchOpt 0.7.3.
VAGUE_NAMES = frozenset({'utils', 'util', 'misc', 'helpers', 'common', '_src', '_impl', '_flat'})
SOURCE_FOLDERS = ('torchopt', 'tests', 'docs', 'examples', 'benchmarks')


class Import(NamedTuple):
    """One import statement's target; ``own`` is the module of ours that it reaches, if any."""

    line: int
    name: str
    own: str | None
    in_function: bool


class Module(NamedTuple):
    """A source file of the package."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def unit(self) -> str:
        return unit_of(self.name)

    @property
    def is_package(self) -> bool:
        return self.path.name == '__init__.py'


def unit_of(module: str) -> str:
    """Return the part of torchopt that holds a dotted module name; the interface for torchopt itself."""
    parts = module.split('.')
    return parts[1] if len(parts) > 1 else INTERFACE


class Package:
    """The parsed package below ``root``."""

    def __init__(self, root: Path, package: str = 'torchopt') -> None:
        self.root, self.name = root, package
        self.modules: dict[str, Module] = {}
        self.found: dict[str, list[Import]] = {}  # what each module imports
        for path in sorted((root / package).rglob('*.py')):
            parts = path.relative_to(root).with_suffix('').parts
            name = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)
            text = path.read_text(encoding='utf-8')
            self.modules[name] = Module(name, path, text, ast.parse(text, str(path)))

    def where(self, module: Module, line: int = 1) -> str:
        return f'{module.path.relative_to(self.root).as_posix()}:{line}'

    def own(self, name: str) -> str | None:
        """Return the module of ours that a dotted name lies in, or None for a foreign name."""
        parts = name.split('.')
        if parts[0] != self.name:
            return None
        while '.'.join(parts) not in self.modules:
            # A compiled module has no source; it counts as a part of the package that holds it.
            parts.pop()
        return '.'.join(parts)

    def imports(self, module: Module) -> list[Import]:
        """Return what a module imports, anywhere in it, `if TYPE_CHECKING` included."""
        if module.name not in self.found:
            self.found[module.name] = list(self.find_imports(module))
        return self.found[module.name]

    def find_imports(self, module: Module) -> Iterator[Import]:
        inside = {
            id(node)
            for function in ast.walk(module.tree)
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for node in ast.walk(function)
        }
        for node in ast.walk(module.tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ''
                if node.level:
                    here = module.name.split('.')
                    here = here[: len(here) - node.level + module.is_package]
                    base = '.'.join([*here, base] if base else here)
                names = [f'{base}.{alias.name}' for alias in node.names]
            elif isinstance(node, ast.Call) and node.args:
                called = ast.unparse(node.func).rpartition('.')[2]
                first = node.args[0]
                if called in {'import_module', '__import__'} and isinstance(first, ast.Constant):
                    names = [str(first.value)]
            elif isinstance(node, ast.Attribute):
                # `import torch` gives torch.utils._pytree without any import of its name.
                dotted = ast.unparse(node)
                names = [dotted] if dotted in KEEPERS else []
            for name in names:
                yield Import(node.lineno, name, self.own(name), id(node) in inside)


def reaches(name: str, target: str) -> bool:
    """Tell whether a dotted name is a target or lies below it."""
    return name == target or name.startswith(f'{target}.')


def layers(package: Package) -> Iterator[str]:
    """A module or package imports only from layers below its own."""
    for module in package.modules.values():
        if module.unit not in LAYERS:
            yield f'{package.where(module)}: {module.unit} has no layer: add it to LAYERS'
            continue
        for found in package.imports(module):
            if found.own is None or unit_of(found.own) == module.unit:
                continue
            unit = unit_of(found.own)
            if LAYERS.get(unit, -1) >= LAYERS[module.unit]:
                yield (
                    f'{package.where(module, found.line)}: {module.unit} (layer '
                    f'{LAYERS[module.unit]}) imports {unit} (layer {LAYERS[unit]})'
                )


def edges(package: Package) -> Iterator[str]:
    """Only the interface imports the edges and compat."""
    for module in package.modules.values():
        for found in package.imports(module):
            unit = unit_of(found.own) if found.own else None
            if unit in EDGES and module.unit not in {unit, INTERFACE}:
                yield f'{package.where(module, found.line)}: only the interface may import {unit}'


def keepers(package: Package) -> Iterator[str]:
    """What has a keeper is imported by its keeper only; what is banned, by nobody."""
    for module in package.modules.values():
        for found in package.imports(module):
            for target, keeper in KEEPERS.items():
                if reaches(found.name, target) and module.unit != keeper:
                    yield (f'{package.where(module, found.line)}: only {keeper}/ may import {target}')
            if found.name.partition('.')[0] in BANNED:
                yield f'{package.where(module, found.line)}: nothing may import {found.name}'


def own_imports_at_the_top(package: Package) -> Iterator[str]:
    """No import of our own modules inside a function: it would only hide a cycle."""
    for module in package.modules.values():
        for found in package.imports(module):
            if found.in_function and found.own is not None:
                where = package.where(module, found.line)
                yield f'{where}: import of {found.name} inside a function'


def cycles(package: Package) -> Iterator[str]:
    """No module imports itself by way of others."""
    graph = {
        module.name: {
            found.own for found in package.imports(module) if found.own is not None and found.own != module.name
        }
        for module in package.modules.values()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f'{package.name}: import cycle: {" <- ".join(error.args[1])}'


def public_lists(package: Package) -> Iterator[str]:
    """Every package, and every file directly below torchopt, says in ``__all__`` what is public."""
    for module in package.modules.values():
        parts = module.name.split('.')
        if any(part.startswith('_') for part in parts) or (len(parts) > 2 and module.path.name != '__init__.py'):
            continue
        targets = {
            ast.unparse(target)
            for node in module.tree.body
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign))
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        }
        targets |= {alias.name for node in module.tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        if '__all__' not in targets:
            yield f'{package.where(module)}: no __all__'


def names(package: Package) -> Iterator[str]:
    """A file's name says what is inside."""
    for module in package.modules.values():
        parts = module.name.split('.')[1:]
        if parts[:2] == ['interop', 'higher']:  # the names of the modules of the library higher
            continue
        if VAGUE_NAMES.intersection(parts[1:] if parts[:1] == ['utils'] else parts):
            yield f'{package.where(module)}: the name does not say what is inside'


PACKAGE_RULES: list[Callable[[Package], Iterator[str]]] = [
    layers,
    edges,
    keepers,
    own_imports_at_the_top,
    cycles,
    public_lists,
    names,
]


def source_files(root: Path) -> list[Path]:
    """List every Python file of the project, and the native sources."""
    found = list(root.glob('*.py'))
    for folder in SOURCE_FOLDERS:
        for suffix in ('py', 'pyi', 'cpp', 'hpp', 'cu', 'cuh', 'cmake'):
            found.extend((root / folder).rglob(f'*.{suffix}'))
    found.extend((root / 'third_party').rglob('*.cmake'))
    built = [path for path in found if any(x == '_build' or x[0] == '.' for x in path.relative_to(root).parts[:-1])]
    return sorted(set(found) - set(built))


def file_form(root: Path) -> Iterator[str]:
    """A file begins with its licence, has a docstring, and is of readable length."""
    for path in source_files(root):
        where = path.relative_to(root).as_posix()
        text = path.read_text(encoding='utf-8')
        lines = text.splitlines() or ['']
        comment = '//' if path.suffix in {'.cpp', '.hpp', '.cu', '.cuh'} else '#'
        if lines[0] != f'{comment} {SPDX}':
            yield f'{where}:1: the first line is not "{comment} {SPDX}"'
        longest = LONGEST_TEST if where.startswith('tests/') else LONGEST_FILE
        if len(lines) > longest:
            yield f'{where}: {len(lines)} lines, more than {longest}: split it'
        if path.suffix == '.py' and not ast.get_docstring(ast.parse(text)):
            yield f'{where}:1: no module docstring'


def load_api_pages() -> ModuleType:
    """Load the module with which the documentation lists the public names."""
    spec = importlib.util.spec_from_file_location('api_pages', ROOT / 'docs' / 'api_pages.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(problems: Iterator[str]) -> None:
    """Fail with every problem on a line of its own."""
    found = list(problems)
    if found:
        pytest.fail('\n'.join([f'{len(found)} problems', *found]), pytrace=False)


@pytest.fixture(scope='module')
def package() -> Package:
    return Package(ROOT)


@pytest.mark.parametrize('rule', PACKAGE_RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule: Callable[[Package], Iterator[str]], package: Package) -> None:
    """The package keeps every rule."""
    report(rule(package))


def test_the_files_have_the_required_form() -> None:
    """Every source file has licence, docstring and readable length."""
    report(file_form(ROOT))


def test_few_files_ask_torch_whether_code_is_compiled() -> None:
    """All others use ``levels.is_tracing`` and ``levels.runs_directly``."""
    files = (ROOT / 'torchopt').rglob('*.py')
    found = {path.relative_to(ROOT).as_posix() for path in files if 'is_compiling' in path.read_text(encoding='utf-8')}
    assert found <= {f'torchopt/{name}.py' for name in ('_C/dispatch', 'base', 'levels', 'numerics')}


def attributes_of_functions(text: str) -> Iterator[str]:
    """Assignments to attributes of functions that are defined in the same file, except to special ones."""
    tree = ast.parse(text)
    functions = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    for node in ast.walk(tree):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                special = target.attr.startswith('__') and target.attr.endswith('__')
                if target.value.id in functions and not special:
                    yield f'{target.value.id}.{target.attr}'


def test_no_behaviour_is_set_as_an_attribute_of_a_function() -> None:
    """Data about a function belong into a class or a table; ``chain.flat`` is a name of TorchOpt 0.7.3."""
    assert list(attributes_of_functions('def f(): pass\nf.x = 1\nf.__doc__ = ""\ng.x = 1')) == ['f.x']
    files = (ROOT / 'torchopt').rglob('*.py')
    found = [name for path in files for name in attributes_of_functions(path.read_text(encoding='utf-8'))]
    assert found == ['chain.flat']


def test_every_public_name_is_documented() -> None:
    """Every name in the ``__all__`` of every public module exists and has a docstring."""
    report(iter(load_api_pages().undocumented('torchopt')))


def test_import_without_the_compiled_module() -> None:
    """The package imports where the compiled module is absent, and says so."""
    script = (
        'import sys\n'
        'class Absent:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        "        if name == 'torchopt._C.kernels':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        'sys.meta_path.insert(0, Absent())\n'
        'import torchopt\n'
        'from torchopt import _C\n'
        'print(_C.build_info(), _C.is_available())\n'
    )
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'compiled': False} False"


# What takes long to load, or need not be installed.
LAZY = ('torch._dynamo', 'matplotlib', 'graphviz', 'safetensors', 'scipy', 'sympy')


def test_importing_loads_nothing_heavy() -> None:
    script = f'import sys, torchopt; print([name for name in {LAZY} if name in sys.modules])'
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def test_edges_are_imported_when_they_are_named() -> None:
    script = (
        f'import sys, torchopt; names = {sorted(EDGES)}; loaded = [f"torchopt.{{n}}" in sys.modules for n in names]\n'
        'from torchopt import visual\n'
        'print(any(loaded), {*names} <= {*dir(torchopt)}, [getattr(torchopt, n).__name__ for n in names], '
        'hasattr(torchopt, "edges"))'
    )
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f'False True {[f"torchopt.{name}" for name in sorted(EDGES)]} False'


HEAD = f'# {SPDX}\n"""A module."""\n'
GOOD_PACKAGE = {
    '__init__.py': HEAD + 'from torchopt import visual\n__all__ = ["visual"]\n',
    'tree/__init__.py': HEAD + 'from torchopt.tree import ops\n__all__ = []\n',
    'tree/ops.py': HEAD + 'import optree\n__all__ = []\n',
    'base.py': HEAD + 'from torchopt.tree import ops\n__all__ = []\n',
    'visual.py': HEAD + 'def draw():\n    import graphviz\n\n__all__ = []\n',
}


def build(root: Path, files: dict[str, str]) -> Package:
    """Write a package of the given files below ``root``."""
    for name, text in files.items():
        path = root / 'torchopt' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
    return Package(root)


def test_a_good_package_passes(tmp_path: Path) -> None:
    """The rules accept a correct package."""
    good = build(tmp_path, GOOD_PACKAGE)
    assert [problem for rule in PACKAGE_RULES for problem in rule(good)] == []
    assert list(file_form(tmp_path)) == []


ALL = '\n__all__ = []\n'


@pytest.mark.parametrize(
    ('rule', 'file', 'code', 'message'),
    [
        (layers, 'base.py', 'from torchopt.alias import adam', 'layer 9) imports alias (layer 11'),
        (layers, 'base.py', 'from .alias import adam', 'layer 9) imports alias (layer 11'),
        (layers, 'base.py', 'from torchopt import pytree', 'layer 9) imports pytree (layer 9'),
        (layers, 'base.py', 'if TYPE_CHECKING:\n    from torchopt import alias', 'imports alias'),
        (layers, 'base.py', 'from torchopt import adam', 'imports __init__ (layer 15'),
        (layers, 'tree/ops.py', 'from ..base import x', 'tree (layer 5) imports base'),
        (layers, 'cellar.py', '', 'cellar has no layer'),
        (edges, 'alias.py', 'import torchopt.visual', 'only the interface may import visual'),
        (keepers, 'base.py', 'import optree.typing', 'only tree/ may import optree'),
        (keepers, 'base.py', 'from torch.utils import _pytree', 'only tree/ may import torch'),
        (keepers, 'base.py', 'torch.utils._pytree.tree_map', 'only tree/ may import torch'),
        (keepers, 'base.py', 'from torchopt._C import kernels', 'only _C/ may import'),
        (keepers, 'base.py', 'def f():\n    import jax.numpy', 'nothing may import jax.numpy'),
        (keepers, 'base.py', "importlib.import_module('optax')", 'nothing may import optax'),
        (own_imports_at_the_top, 'base.py', 'def f():\n    import torchopt.tree', 'inside a'),
        (own_imports_at_the_top, 'base.py', 'f = lambda: __import__("torchopt")', 'inside a'),
        (cycles, 'tree/ops.py', 'from torchopt.tree import flatten', 'import cycle'),
        (cycles, 'tree/ops.py', 'import torchopt.alias', 'import cycle'),
        (names, 'tree/helpers.py', '', 'does not say what is inside'),
        (names, 'tree/utils.py', '', 'does not say what is inside'),
    ],
)
def test_a_bad_package_fails(
    tmp_path: Path, rule: Callable[[Package], Iterator[str]], file: str, code: str, message: str
) -> None:
    """Each rule finds what it is there to find, and names the file."""
    others = {
        'alias.py': HEAD + 'from torchopt.tree import ops' + ALL,
        'pytree.py': HEAD + ALL,
        '_C/__init__.py': HEAD + ALL,
    }
    bad = build(tmp_path, {**GOOD_PACKAGE, **others, file: HEAD + code + ALL})
    problems = list(rule(bad))
    assert any(message in problem for problem in problems), problems
    assert rule is cycles or all(f'torchopt/{file}' in problem for problem in problems)


def test_a_module_without_a_public_list_fails(tmp_path: Path) -> None:
    """``__all__`` is not optional."""
    bad = build(tmp_path, {**GOOD_PACKAGE, 'base.py': HEAD})
    assert list(public_lists(bad)) == ['torchopt/base.py:1: no __all__']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('"""A module."""\n', 'the first line is not'),
        (f'\n# {SPDX}\n"""A module."""\n', 'the first line is not'),
        (f'# {SPDX}\nx = 1\n', 'no module docstring'),
        (HEAD + 'x = 1\n' * 499, '501 lines, more than 500'),
    ],
)
def test_bad_files_fail(tmp_path: Path, text: str, message: str) -> None:
    """The check of single files can fail."""
    build(tmp_path, {'base.py': text})
    problems = list(file_form(tmp_path))
    assert len(problems) == 1
    assert message in problems[0]


UNDOCUMENTED = '''
from typing import NamedTuple

__all__ = ['bare', 'told', 'Bare', 'Inherits', 'Told', 'State', 'LIMIT', 'SIZE', 'KIND', 'Second']

def bare(): pass

def told():
    """Say."""

class Told:
    """Say."""

class Bare: pass

class Inherits(Told): pass

class State(NamedTuple):
    count: int

LIMIT = 1

#: How big.
SIZE = 2

KIND = 'a'
"""What kind."""

Second = Told
'''


def test_missing_docstrings_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inherited docstrings and the ones that NamedTuple makes up do not count; `#:` does."""
    package = tmp_path / 'undocumented_package'
    package.mkdir()
    (package / '__init__.py').write_text(
        '"""Interface."""\nfrom undocumented_package.unit import bare, told, LIMIT, SIZE\n'
        '__all__ = ["bare", "told", "LIMIT", "SIZE"]\n',
        encoding='utf-8',
    )
    (package / 'unit.py').write_text(f'"""A module."""\n{UNDOCUMENTED}', encoding='utf-8')
    (package / 'silent.py').write_text('__all__ = []\n', encoding='utf-8')
    (package / '_private.py').write_text('', encoding='utf-8')
    monkeypatch.syspath_prepend(tmp_path)
    expected = {'LIMIT', 'bare', 'unit.Bare', 'unit.Inherits', 'unit.LIMIT', 'unit.State'}
    expected |= {'unit.bare', 'silent'}
    found = load_api_pages().undocumented('undocumented_package')
    assert found == sorted(f'undocumented_package.{name}' for name in expected)
    for name in [name for name in sys.modules if name.startswith('undocumented_package')]:
        monkeypatch.delitem(sys.modules, name)
