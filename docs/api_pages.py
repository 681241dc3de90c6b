# SPDX-License-Identifier: Apache-2.0
"""Write one API page per public module, and find the public names that lack a docstring.

A module is public when no part of its dotted name begins with an underscore; its public names are
those in its ``__all__``. A name is described in full at its home, and with its first line and a
link wherever it is exported again, so that every public spelling has an entry of its own. A file
inside a package is layout rather than API, unless the package names it in its ``__all__``: it has no page,
and the package is where its names are documented. Nothing here knows a module by name: a new package gets its page
by existing.

The entry of a name links to the examples, notebooks and guides that use it, which :func:`uses_in` finds in their code.

Standard library only: the tests use it too.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

__all__ = ['PublicName', 'public_modules', 'public_names', 'undocumented', 'uses_in', 'write']

# Where the classes of type aliases live: `list[int].__doc__` is that of list, not of the alias.
TYPING = frozenset({'builtins', 'collections.abc', 'types', 'typing', 'typing_extensions'})


class PublicName(NamedTuple):
    """One entry: ``name`` as exported by ``module``, bound as ``original`` in ``home``."""

    module: str
    name: str
    value: Any
    home: str
    original: str
    doc: str

    @property
    def path(self) -> str:
        return f'{self.module}.{self.name}'

    @property
    def home_path(self) -> str:
        return f'{self.home}.{self.original}'


def public_modules(package: str = 'torchopt') -> list[ModuleType]:
    """Import the package and every public module below it; the list is sorted by name."""
    root = importlib.import_module(package)
    found = {package: root}

    def walk(parent: ModuleType) -> None:
        for info in pkgutil.iter_modules(getattr(parent, '__path__', [])):
            name = f'{parent.__name__}.{info.name}'
            if not info.name.startswith('_') and name not in found:
                found[name] = importlib.import_module(name)
                walk(found[name])

    walk(root)
    return [found[name] for name in sorted(found)]


def _is_own(home: str, package: str) -> bool:
    return home == package or home.startswith(f'{package}.')


@cache
def _source(module: str) -> tuple[ast.Module, tuple[str, ...]]:
    """Parse the source of an imported module; an empty tree when it has none."""
    file = getattr(sys.modules.get(module), '__file__', None)
    if file is None or not file.endswith('.py'):
        return ast.Module(body=[], type_ignores=[]), ()
    text = Path(file).read_text(encoding='utf-8')
    return ast.parse(text), tuple(text.splitlines())


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """List the statements that run at import, looking into `if` and `try`."""
    found: list[ast.stmt] = []
    for node in body:
        found.append(node)
        for field in ('body', 'orelse', 'finalbody'):
            if isinstance(node, (ast.If, ast.Try)):
                found.extend(_statements(getattr(node, field, [])))
        for handler in getattr(node, 'handlers', []):
            found.extend(_statements(handler.body))
    return found


def _targets(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def _origin(module: str, name: str) -> tuple[str, str]:
    """Follow re-exports of ``module.name`` to the module and the name where it is bound."""
    tree, _ = _source(module)
    for node in _statements(tree.body):
        if not isinstance(node, ast.ImportFrom):
            continue
        source = node.module or ''
        if node.level:
            base = getattr(sys.modules[module], '__package__', None) or module
            source = importlib.util.resolve_name('.' * node.level + source, base)
        for alias in node.names:
            if alias.name == '*' and name in sys.modules[source].__all__:
                return _origin(source, name)
            if (alias.asname or alias.name) == name:
                if not _is_own(source, module.partition('.')[0]) or source == module:
                    # A foreign name, or a package's own submodule.
                    return source, alias.name
                return _origin(source, alias.name)
    return module, name


def _comment_on(module: str, name: str) -> str:
    """Return a constant's documentation: `#:` lines above it, or a string below it."""
    tree, lines = _source(module)
    statements = _statements(tree.body)
    for node, after in zip(statements, [*statements[1:], None], strict=True):
        if name not in _targets(node):
            continue
        above, line = [], node.lineno - 2
        while line >= 0 and lines[line].lstrip().startswith('#:'):
            above.append(lines[line].lstrip()[2:].strip())
            line -= 1
        if above:
            return '\n'.join(reversed(above))
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            return inspect.cleandoc(after.value.value)
    return ''


def _docstring(value: Any, home: str, original: str) -> str:
    """Return a value's own documentation, or an empty string when it has none.

    What a class inherits and what NamedTuple and dataclass make up do not count.
    """
    if inspect.ismodule(value) or inspect.isroutine(value):
        return inspect.getdoc(value) or ''
    if inspect.isclass(value):
        text = value.__dict__.get('__doc__') or ''
        return '' if text.startswith(f'{value.__name__}(') else inspect.cleandoc(text)
    text = _comment_on(home, original)
    if not text and callable(value) and type(value).__module__ not in TYPING:
        own = getattr(value, '__dict__', {}).get('__doc__')
        text = own if isinstance(own, str) else ''
    return text


def paged_modules(package: str = 'torchopt') -> list[ModuleType]:
    """List the modules that have a page: packages, and the files in them that they name in their ``__all__``."""

    def is_offered(module: ModuleType) -> bool:
        parent, _, child = module.__name__.rpartition('.')
        if parent in ('', package):
            return True
        above = sys.modules[parent]
        # A package may have a function of the same name, as transform.trace.
        return child in above.__all__ and getattr(above, child) is module

    return [module for module in public_modules(package) if is_offered(module)]


def public_names(package: str = 'torchopt') -> list[PublicName]:
    """List every name in the ``__all__`` of every public module.

    Raises:
        AttributeError: A module lists a name that it does not have.
    """
    modules = public_modules(package)
    exports = {module.__name__: list(getattr(module, '__all__', ())) for module in modules}
    entries = []
    for module in modules:
        for name in exports[module.__name__]:
            value = getattr(module, name)
            home, original = _origin(module.__name__, name)
            made_in = None
            if inspect.isclass(value) or inspect.isroutine(value):
                made_in = getattr(value, '__module__', None)
            if made_in is not None and not _is_own(made_in, package):
                # Somebody else's, however it came here: they document it.
                home, original = made_in, value.__name__
            if home == module.__name__ and made_in in exports and made_in != home:
                # Bound by something other than a from-import, such as `Adagrad = adagrad.AdaGrad`.
                made_as = getattr(value, '__name__', name)
                if made_as in exports[made_in]:
                    home, original = made_in, made_as
            doc = _docstring(value, home, original).strip()
            entries.append(PublicName(module.__name__, name, value, home, original, doc))
    return entries


def undocumented(package: str = 'torchopt') -> list[str]:
    """List the dotted public names without a docstring, modules included."""
    missing = [m.__name__ for m in public_modules(package) if not (m.__doc__ or '').strip()]
    for entry in public_names(package):
        if _is_own(entry.home, package) and not entry.doc:
            missing.append(entry.path)
    return sorted(set(missing))


def _directive(entry: PublicName) -> str:
    if inspect.isclass(entry.value):
        return 'class'
    return 'function' if callable(entry.value) and inspect.isroutine(entry.value) else 'data'


def _python_of(path: Path) -> Iterator[str]:
    """Yield the Python code of a file: all of it, or the blocks and cells of a Markdown page."""
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.py':
        yield text
        return
    for block in re.findall(r'^```(?:python|\{code-cell\})[^\n]*\n(.*?)^```', text, re.MULTILINE | re.DOTALL):
        cell = re.sub(r'\A---\n.*?^---\n', '', block, flags=re.MULTILINE | re.DOTALL)
        yield re.sub(r'^(?::tags:|%).*$', '', cell, flags=re.MULTILINE)


def _dotted_names(code: Iterator[str], package: str) -> set[str]:
    """Return the full dotted names below a package that pieces of code mention, through all of their imports."""
    names: dict[str, str] = {}
    found = set()
    for tree in map(ast.parse, code):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.partition('.')[0]
                    names[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names |= {alias.asname or alias.name: f'{node.module}.{alias.name}' for alias in node.names}
        for node in ast.walk(tree):
            tail: list[str] = []
            while isinstance(node, ast.Attribute):
                tail.insert(0, node.attr)
                node = node.value
            if isinstance(node, ast.Name) and _is_own(names.get(node.id, ''), package):
                found.add('.'.join([names[node.id], *tail]))
    return found


def uses_in(root: Path, package: str = 'torchopt') -> dict[str, list[str]]:
    """Return links, in reST, to the examples and pages below ``root`` that use each dotted name, by that name."""
    docs = root / 'docs'
    links = {path: f':doc:`{path.name} </scripts/{path.stem}>`' for path in sorted(root.glob('examples/*.py'))}
    for pattern in ('gallery/*.md', 'tutorials/*.md', '*.md'):
        pages = sorted(path for path in docs.glob(pattern) if path.name not in ('CHANGELOG.md', 'CONTRIBUTING.md'))
        links |= {path: f':doc:`/{path.relative_to(docs).with_suffix("").as_posix()}`' for path in pages}
    found: dict[str, list[str]] = {}
    for path, link in links.items():
        for name in _dotted_names(_python_of(path), package):
            # `torchopt.tree.norm.__doc__` and a method of a class mention what their beginnings name.
            parts = name.split('.')
            for length in range(2, len(parts) + 1):
                of_name = found.setdefault('.'.join(parts[:length]), [])
                if link not in of_name:
                    of_name.append(link)
    return found


def _by_home(entries: list[PublicName], uses: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return the links of every spelling of a name at its home."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        links = found.setdefault(entry.home_path, [])
        links += [link for link in uses.get(entry.path, ()) if link not in links]
    return found


def _full(entry: PublicName, links: list[str]) -> list[str]:
    """Return the reST that describes an entry from its docstring, and the pages that use it."""
    kind = _directive(entry)
    lines = [f'.. auto{kind}:: {entry.path}']
    if kind == 'class':
        lines += ['   :members:', '   :show-inheritance:']
    if kind == 'data':
        # The value of a constant or the expansion of a type alias says less than its comment.
        lines = [f'.. py:data:: {entry.name}', '']
        lines += [f'   {line}'.rstrip() for line in entry.doc.splitlines()]
    if links:
        lines += ['', f'   **Used in:** {", ".join(links)}']
    return [*lines, '']


def _again(entry: PublicName, package: str) -> list[str]:
    """Return the reST of a name that has its full entry elsewhere."""
    kind = _directive(entry)
    signature = '(...)' if kind == 'function' else ''
    # Inside automodule's py:module, so the bare name gets the module in front.
    lines = [f'.. py:{kind}:: {entry.name}{signature}', '']
    if _is_own(entry.home, package):
        first = entry.doc.partition('\n')[0]
        return [*lines, f'   {first}', '', f'   The same as :py:obj:`{entry.home_path}`.', '']
    return [*lines, f'   ``{entry.home_path}``, exported again.', '']


def _nearest(module: str, paged: set[str]) -> str:
    """Return the innermost package with a page that holds a module; itself if there is none."""
    name = module
    while name and name not in paged:
        name = name.rpartition('.')[0]
    return name or module


def write(folder: Path, package: str = 'torchopt', uses: Mapping[str, list[str]] | None = None) -> list[Path]:
    """Write a page for every public module into ``folder``, and return their paths; ``uses`` are links by name.

    Files whose text would not change are left alone, so that a second build has nothing to do;
    pages of modules that are gone are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    modules = paged_modules(package)
    paged = {module.__name__ for module in modules}
    entries = [
        entry._replace(home=_nearest(entry.home, paged)) for entry in public_names(package) if entry.module in paged
    ]
    exported = {entry.path for entry in entries}
    # A name that its home keeps to itself is documented at the first public place that has it.
    places: dict[str, str] = {}
    for entry in sorted(entries, key=lambda e: (-e.module.count('.'), e.module)):
        if _is_own(entry.home, package) and entry.home_path not in exported:
            places.setdefault(entry.home_path, entry.module)
    entries = [
        entry._replace(home=places[entry.home_path], original=entry.name) if entry.home_path in places else entry
        for entry in entries
    ]

    links = _by_home(entries, uses or {})
    paths = []
    for module in modules:
        name = module.__name__
        title = f'``{name}``'
        page = [title, '=' * len(title), '', f'.. automodule:: {name}', '   :no-members:', '']
        for entry in (e for e in entries if e.module == name):
            if inspect.ismodule(entry.value):
                page += [f'* :py:mod:`{entry.value.__name__}`', '']
            elif entry.path == entry.home_path:
                page += _full(entry, links[entry.home_path])
            else:
                page += _again(entry, package)
        paths.append(folder / f'{name}.rst')
        text = '\n'.join(page)
        if not paths[-1].exists() or paths[-1].read_text(encoding='utf-8') != text:
            paths[-1].write_text(text, encoding='utf-8')
    for stale in set(folder.glob('*.rst')) - set(paths):
        stale.unlink()
    return paths
