# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the documentation: offline, and with warnings as errors (`make docs`)."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from myst_nb.core.read import read_myst_markdown_notebook

import torchopt
from torchopt import version as about

HERE = Path(__file__).resolve().parent
NOTEBOOKS = HERE / '_notebooks'
sys.path.insert(0, str(HERE))

import api_pages  # noqa: E402
import script_pages  # noqa: E402

project = 'torchopt'
author = about.__author__
copyright = author
version = release = about.__version__

extensions = [
    'myst_nb',  # Markdown, and pages with executed cells
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.mathjax',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
    'sphinx_design',
]
exclude_patterns = ['_build', '_notebooks', '**.ipynb_checkpoints', '.jupyter_cache']
source_suffix = {'.rst': 'restructuredtext', '.md': 'myst-nb', '.ipynb': 'myst-nb'}

# A page that links to nothing, or two pages for one name, is worth a failed build; a type in a
# signature that belongs to torch is not, since no inventory of theirs is at hand offline.
nitpicky = False
# A type in a signature whose short name two modules have. (A link in a text says the full name.)
suppress_warnings = ['ref.python']

autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# A NamedTuple's fields are described under "Attributes:"; autodoc lists them too.
napoleon_use_ivar = True

myst_enable_extensions = ['amsmath', 'colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 3
nb_execution_mode = 'force'
nb_execution_raise_on_error = True
nb_execution_timeout = 300
# Cells run in a process of their own, which has to find the torchopt that is being documented, wherever it lies.
_FOUND_IN = str(Path(torchopt.__file__).resolve().parents[1])
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, (_FOUND_IN, os.environ.get('PYTHONPATH'))))

html_theme = 'furo'
html_title = f'torchopt {release}'
# Only the code is copied, without prompts and without what it printed.
copybutton_exclude = '.linenos, .gp, .go'

html_static_path = ['style/site.css', 'style/offline.js']
html_css_files = ['site.css']
html_js_files = ['offline.js']

# Formulas need no network when `make docs` has installed MathJax (third_party/mathjax). Without npm the reader's
# browser loads it from a server, and offline a formula stays readable as TeX.
_MATHJAX = HERE.parent / 'third_party' / 'mathjax' / 'node_modules' / 'mathjax' / 'es5' / 'tex-svg.js'
if _MATHJAX.is_file():
    html_static_path.append(str(_MATHJAX))
    mathjax_path = _MATHJAX.name


# The symbols of a formula that fit beside the navigation of an API page.
LONGEST_ROW = 50


def _check_docstrings(app: Any) -> None:
    """Fail the build when a public name has no docstring, and write the API pages."""
    from sphinx.errors import ExtensionError

    missing = api_pages.undocumented()
    if missing:
        listing = '\n  '.join(missing)
        raise ExtensionError(f'{len(missing)} public names have no docstring:\n  {listing}')
    api_pages.write(HERE / 'api' / 'generated', uses=api_pages.uses_in(HERE.parent))


def _show_scripts(app: Any) -> None:
    """Write a page for each script of the gallery."""
    script_pages.write(HERE / 'scripts', HERE.parent)


def _offer_notebook(app: Any, page: str, source: list[str]) -> None:
    """Write a tutorial as a notebook for Jupyter, and link to it below the title of the page."""
    folder, _, name = page.rpartition('/')
    if folder != 'tutorials' or not name[0].isdigit():
        return
    notebook = read_myst_markdown_notebook(source[0])
    NOTEBOOKS.mkdir(exist_ok=True)
    (NOTEBOOKS / f'{name}.ipynb').write_text(nbformat.writes(notebook), encoding='utf-8')
    link = f'Download {{download}}`this notebook <../{NOTEBOOKS.name}/{name}.ipynb>`, or read on.'
    source[0] = re.sub(r'^(# .+)$', rf'\1\n\n{link}', source[0], count=1, flags=re.MULTILINE)


def _break_formulas(app: Any, doctree: Any) -> None:
    """Write equations that stand in one row, with spaces between them, in as many rows as fit into the page."""
    for block in doctree.findall(nodes.math_block):
        text = block.astext()
        # Sphinx takes a blank line for the end of a formula.
        equations = [' '.join(part.split()) for part in re.split(r'\\qquad\b', text)]
        if len(equations) == 1 or '\\begin' in text or _length(text) <= LONGEST_ROW:
            continue
        rows = equations[:1]
        for equation in equations[1:]:
            longer = f'{rows[-1]}\\qquad {equation}'
            rows = [*rows[:-1], longer] if _length(longer) <= LONGEST_ROW else [*rows, equation]
        block[:] = [nodes.Text('\\begin{gathered}' + '\\\\\n'.join(rows) + '\\end{gathered}')]


def _length(formula: str) -> int:
    """The number of symbols, about."""
    return len(re.findall(r'\\[A-Za-z]+|[^\s{}^_]', formula))


def _leave_out_navigation(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Draw no tree of all pages beside the hundreds of pages of source code, which takes long."""
    if page.startswith('_modules/'):
        context.pop('toctree', None)


def setup(app: Any) -> None:
    """Hook the API pages, the scripts, the notebooks and the formulas into the build."""
    app.connect('builder-inited', _check_docstrings)
    app.connect('builder-inited', _show_scripts)
    app.connect('source-read', _offer_notebook)
    app.connect('doctree-read', _break_formulas)
    app.connect('html-page-context', _leave_out_navigation, priority=400)  # before the theme, at 500
