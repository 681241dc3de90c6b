# SPDX-License-Identifier: Apache-2.0
"""The API pages link to the examples and pages that use a name, under whatever spelling."""

from __future__ import annotations

import re

import pytest

from tests.test_house import ROOT, load_api_pages


@pytest.fixture(scope='module')
def api_pages():
    return load_api_pages()


def test_names_are_found_through_imports(api_pages, tmp_path):
    """Modules, names and their second names; blocks of a page share the imports; other packages do not count."""
    (tmp_path / 'examples').mkdir()
    (tmp_path / 'docs' / 'gallery').mkdir(parents=True)
    (tmp_path / 'examples' / 'one.py').write_text(
        'import torch\nimport torchopt\nimport torchopt.distributed as dist\nfrom torchopt.tree import norm as n\n'
        'torchopt.optim.Adam.step, dist.map_tasks, n(torch.adam), other.sgd\n'
    )
    (tmp_path / 'docs' / 'gallery' / 'two.md').write_text(
        '```{code-cell}\n:tags: [hide-input]\n\n%matplotlib inline\nfrom torchopt import prox\n```\n\n'
        '```{code-cell}\n---\nmystnb:\n  image:\n    alt: a: b\n---\nprox.prox_lasso\n```\n\n'
        '```text\nprox.prox_ridge\n```\n'
    )
    uses = api_pages.uses_in(tmp_path)
    one, two = [':doc:`one.py </scripts/one>`'], [':doc:`/gallery/two`']
    expected = dict.fromkeys(
        ['torchopt.optim', 'torchopt.optim.Adam', 'torchopt.optim.Adam.step', 'torchopt.distributed']
        + ['torchopt.distributed.map_tasks', 'torchopt.tree', 'torchopt.tree.norm'],
        one,
    )
    assert uses == expected | {'torchopt.prox': two, 'torchopt.prox.prox_lasso': two}


def test_every_link_leads_to_a_page(api_pages):
    uses = api_pages.uses_in(ROOT)
    targets = {re.search(r'/[\w./-]+', link)[0] for links in uses.values() for link in links}
    sources = [target[1:].replace('scripts/', '../examples/') for target in targets]
    assert all((ROOT / 'docs' / f'{source}.{"py" if "examples/" in source else "md"}').is_file() for source in sources)
    assert ':doc:`/which_solver`' in uses['torchopt.LBFGS'] and len(uses) > 100


def test_a_page_has_the_links_of_all_spellings(api_pages, tmp_path):
    """`torchopt.adam` is described in `torchopt.alias`; the uses of both names are there."""
    api_pages.write(tmp_path, uses={'torchopt.adam': [':doc:`/a`'], 'torchopt.alias.adam': [':doc:`/b`', ':doc:`/a`']})
    page = (tmp_path / 'torchopt.alias.rst').read_text(encoding='utf-8')
    found = re.findall(r'autofunction:: torchopt\.alias\.adam\n\n   \*\*Used in:\*\* (.+)\n', page)
    assert len(found) == 1 and sorted(found[0].split(', ')) == [':doc:`/a`', ':doc:`/b`']
    assert sum('Used in' in path.read_text(encoding='utf-8') for path in tmp_path.iterdir()) == 1
