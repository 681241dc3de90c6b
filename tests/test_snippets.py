# SPDX-License-Identifier: Apache-2.0
"""Run every Python block of the README and of the documentation.

The blocks of one file share a namespace and run in order, as a reader would type them. A block
that cannot run (it needs two machines, or shows a mistake) is preceded by a line
``<!-- not executed -->`` or ``<!-- not executed: why -->``; it must still be valid Python.
"""

from __future__ import annotations

import ast
import gc
import re
import sys
import traceback
import types
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    *sorted(p for p in (ROOT / 'docs').rglob('*.md') if '_build' not in p.parts),
]

FENCE = re.compile(r'^(?P<indent>\s*)(?P<fence>`{3,}|~{3,})\s*(?P<info>[^`]*)$')
MARK = re.compile(r'^\s*<!--\s*not executed\s*(:.*)?-->\s*$')
# Spellings that a reader's renderer takes for Python and that this file would otherwise pass over.
OTHER_SPELLINGS = ('py', 'python3', 'pycon', 'ipython', 'ipython3')


class Block(NamedTuple):
    """A fenced block; ``line`` is the number of its first line of code."""

    line: int
    code: str
    executed: bool


def blocks(text: str) -> list[Block]:
    """Find the Python blocks of a Markdown text.

    Raises:
        ValueError: A fence is never closed, or names Python in another spelling than ``python``.
    """
    found: list[Block] = []
    lines = text.splitlines()
    number, last = 0, ''  # the last line that was not blank, outside any block
    while number < len(lines):
        line = lines[number]
        number += 1
        opening = FENCE.match(line)
        if opening is None:
            last = line.strip() or last
            continue
        start, indent, fence = number, opening['indent'], opening['fence']
        closing = re.compile(rf'^\s*{fence[0]}{{{len(fence)},}}\s*$')
        while number < len(lines) and not closing.match(lines[number]):
            number += 1
        if number == len(lines):
            raise ValueError(f'line {start}: the block that begins here is never closed')
        words = opening['info'].split()
        language = words[0].lower() if words else ''
        if language in OTHER_SPELLINGS or (language == 'python' and words[0] != 'python'):
            raise ValueError(f'line {start}: write ```python, not ```{words[0]}')
        if language == 'python':
            code = '\n'.join(row.removeprefix(indent) for row in lines[start:number])
            found.append(Block(start + 1, code, MARK.match(last) is None))
        last, number = '', number + 1
    return found


def run(path: Path, name: str) -> int:
    """Run the blocks of a file; return how many were executed.

    Raises:
        AssertionError: A block does not parse or raises; the message names file and line.
    """
    try:
        found = blocks(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise AssertionError(f'{name}: {error}') from error

    # A real module, so that what the blocks define can be pickled and inspected.
    module = types.ModuleType(re.sub(r'\W', '_', name))
    sys.modules[module.__name__] = module
    executed = 0
    try:
        for block in found:
            # Blank lines in front make every line number, in tracebacks too, that of the file.
            padded = '\n' * (block.line - 1) + block.code
            try:
                code = compile(ast.parse(padded, str(path)), str(path), 'exec', dont_inherit=True)
                if block.executed:
                    exec(code, module.__dict__)
                    executed += 1
            except SyntaxError as error:
                raise AssertionError(f'{name}:{error.lineno}: {error.msg}') from error
            except Exception as error:
                frames = traceback.extract_tb(error.__traceback__)
                line = [f.lineno for f in frames if f.filename == str(path)][-1]
                raise AssertionError(
                    f'{name}:{line}: {type(error).__name__}: {error}\n\n'
                    f'in the block that begins at line {block.line}:\n\n{block.code}'
                ) from error
    finally:
        del sys.modules[module.__name__]
    return executed


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_snippets_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """What a page shows runs as printed."""
    name = path.relative_to(ROOT).as_posix()
    assert path.is_file(), f'{name} does not exist'
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MPLBACKEND', 'Agg')
    # A page may count the objects that live; what earlier tests left to die must not show in its counts.
    # What lives on stays frozen, so that the collection before the next page is short.
    gc.collect()
    gc.freeze()
    try:
        run(path, name)
    except AssertionError as error:
        pytest.fail(str(error), pytrace=False)


def test_the_readme_shows_code() -> None:
    """An empty test of the README would pass unseen."""
    path = ROOT / 'README.md'
    assert path.is_file(), 'README.md does not exist'
    assert any(block.executed for block in blocks(path.read_text(encoding='utf-8')))


PAGE = """\
# Title

```python
x = 1
```

Text, and in a list:

- item

  ```python
  y = x + 1
  ```

```bash
this is not Python
```

<!-- not executed: shows an error -->

```python
raise ValueError(y)
```

~~~python
assert (x, y) == (1, 2)
~~~
"""


def test_blocks_share_a_namespace_in_order(tmp_path: Path) -> None:
    """Three of the four Python blocks run, in one namespace."""
    page = tmp_path / 'page.md'
    page.write_text(PAGE, encoding='utf-8')
    assert [block.line for block in blocks(PAGE)] == [4, 12, 22, 26]
    assert run(page, 'page.md') == 3


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('```python\nx = 1\n\n1 / 0\n```\n', r'page\.md:4: ZeroDivisionError: division by zero'),
        ('```python\nx = 1\ndef f(:\n```\n', r'page\.md:3: invalid syntax'),
        ('<!-- not executed -->\n```python\nx = (\n```\n', r'page\.md:3: '),
        ('<!-- not executed -->\nbut text follows\n```python\n1 / 0\n```\n', 'ZeroDivisionError'),
        ('```python\nx = 1\n', r'page\.md: line 1: .* never closed'),
        ('\n```py\nx = 1\n```\n', r'page\.md: line 2: write ```python'),
        ('```Python\nx = 1\n```\n', r'page\.md: line 1: write ```python'),
    ],
)
def test_failures_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    """The checker finds what is wrong, and where."""
    page = tmp_path / 'page.md'
    page.write_text(text, encoding='utf-8')
    with pytest.raises(AssertionError, match=message):
        run(page, 'page.md')
