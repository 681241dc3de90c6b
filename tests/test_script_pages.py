# SPDX-License-Identifier: Apache-2.0
"""The documentation has a page for each script in `examples/`, and the gallery a card that leads to it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tests.test_house import ROOT

_SPEC = importlib.util.spec_from_file_location('script_pages', ROOT / 'docs' / 'script_pages.py')
assert _SPEC is not None and _SPEC.loader is not None
script_pages = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(script_pages)

SCRIPTS = {path.name for path in (ROOT / 'examples').glob('*.py')}
# A page of the documentation describes them, to which their cards lead.
IN_GUIDES = {'distributed_maml.py', 'distributed_maml_rpc.py', 'visualize.py'}


def test_every_script_has_a_card() -> None:
    cards = script_pages.cards((ROOT / 'docs' / 'examples.md').read_text(encoding='utf-8'))
    assert set(cards) == SCRIPTS - {'glyphs.py'}
    for name, card in cards.items():
        assert card.text and ':::' not in card.text
        assert (ROOT / 'docs' / card.picture).exists()
        if name not in IN_GUIDES:
            assert card.link == f'scripts/{Path(name).stem}'
            assert card.alt and card.picture


def test_pages(tmp_path: Path) -> None:
    (tmp_path / 'examples').mkdir()
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'examples' / 'one.py').write_text('if __name__ == "__main__":\n    pass\n')
    (tmp_path / 'examples' / 'data.py').write_text('x = 1\n')
    (tmp_path / 'docs' / 'examples.md').write_text(
        ':::{grid-item-card} `one.py`\n:img-top: _static/one.png\n:img-alt: A curve\n:link: scripts/one\n\n'
        'Uses\n`vmap`.\n:::\n'
    )
    pages = tmp_path / 'docs' / 'scripts'
    assert script_pages.write(pages, tmp_path) == ['data', 'one']
    one = (pages / 'one.rst').read_text()
    assert one.startswith('one.py\n======\n\nUses ``vmap``.\n\n.. figure:: /_static/one.png\n   :alt: A curve\n')
    assert 'Run it with ``python examples/one.py``' in one
    assert '.. literalinclude:: ../../examples/one.py' in one
    assert 'Run it' not in (pages / 'data.rst').read_text()
    written = (pages / 'one.rst').stat().st_mtime_ns
    (tmp_path / 'examples' / 'data.py').unlink()
    assert script_pages.write(pages, tmp_path) == ['one']
    assert [page.name for page in pages.iterdir()] == ['one.rst']
    assert (pages / 'one.rst').stat().st_mtime_ns == written
