# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the documentation: offline, and with warnings as errors (`make docs`)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torchopt
from torchopt import version as about

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import api_pages  # noqa: E402

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
]
exclude_patterns = ['_build', '**.ipynb_checkpoints', '.jupyter_cache']
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
nb_execution_timeout = 120
# Cells run in a process of their own, which has to find the torchopt that is being documented, wherever it lies.
_FOUND_IN = str(Path(torchopt.__file__).resolve().parents[1])
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, (_FOUND_IN, os.environ.get('PYTHONPATH'))))

html_theme = 'furo'
html_title = f'torchopt {release}'

# No file is fetched while building. The reader's browser loads MathJax when a page has a formula;
# without a network the formula stays readable as TeX.


def _check_docstrings(app: Any) -> None:
    """Fail the build when a public name has no docstring, and write the API pages."""
    from sphinx.errors import ExtensionError

    missing = api_pages.undocumented()
    if missing:
        listing = '\n  '.join(missing)
        raise ExtensionError(f'{len(missing)} public names have no docstring:\n  {listing}')
    api_pages.write(HERE / 'api' / 'generated')


def setup(app: Any) -> None:
    """Hook the API pages into the build."""
    app.connect('builder-inited', _check_docstrings)
