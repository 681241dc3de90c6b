# SPDX-License-Identifier: Apache-2.0
"""Write one page for each script in `examples/`: what the gallery says of it, its picture, and its source.

Standard library only: the tests use it too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

__all__ = ['Card', 'cards', 'write']

_CARD = re.compile(
    r'^:::\{grid-item-card\} (?P<title>.+)\n(?P<options>(?::.+\n)*)\n(?P<text>(?:(?!:::).+\n)+)', re.MULTILINE
)


class Card(NamedTuple):
    """What the gallery says of a script: a sentence, a picture and its description (empty without one), and a link."""

    text: str
    picture: str
    alt: str
    link: str


def cards(gallery: str) -> dict[str, Card]:
    """The first card of each script in the source of the gallery, by the name of its file."""
    found: dict[str, Card] = {}
    for card in _CARD.finditer(gallery):
        options = dict(re.findall(r'^:([\w-]+): (.+)$', card['options'], re.MULTILINE))
        for name in re.findall(r'`(\w+\.py)`', card['title']):
            # Literals in Markdown have one backtick, in reST two.
            text = ' '.join(card['text'].replace('`', '``').split())
            found.setdefault(name, Card(text, *(options.get(key, '') for key in ('img-top', 'img-alt', 'link'))))
    return found


def write(folder: Path, root: Path) -> list[str]:
    """Write the pages into ``folder``, and return the names of the scripts; pages of scripts that are gone are removed.

    Args:
        folder: A folder beside the gallery, ``docs/examples.md``.
        root: The folder that contains ``examples`` and ``docs``.
    """
    folder.mkdir(exist_ok=True)
    known = cards((root / 'docs' / 'examples.md').read_text(encoding='utf-8'))
    pages = {}
    for script in sorted((root / 'examples').glob('*.py')):
        card = known.get(script.name, Card('', '', '', ''))
        lines = [script.name, '=' * len(script.name), '', card.text, '']
        if card.picture:
            lines += [f'.. figure:: /{card.picture}', f'   :alt: {card.alt}', '']
        if '__main__' in script.read_text(encoding='utf-8'):
            lines += [f'Run it with ``python examples/{script.name}``; ``--help`` lists the options.', '']
        source = f'../../examples/{script.name}'
        lines += [f':download:`Download <{source}>`', '', f'.. literalinclude:: {source}', '   :language: python', '']
        pages[folder / f'{script.stem}.rst'] = '\n'.join(lines)
    for old in set(folder.glob('*.rst')) - pages.keys():
        old.unlink()
    for page, text in pages.items():
        if not page.exists() or page.read_text(encoding='utf-8') != text:
            page.write_text(text, encoding='utf-8')
    return [page.stem for page in pages]
