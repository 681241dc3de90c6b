# SPDX-License-Identifier: Apache-2.0
"""Open every page of the documentation in a browser, in light and in dark: `python docs/browse.py`, after `make docs`.

It reports errors of the console, files that do not load, links and anchors that lead nowhere, formulas that are not
rendered, and images without a description. It needs playwright (extra `integration`) and the program chromium.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag

from playwright.sync_api import sync_playwright

PAGES = Path(__file__).parent / '_build' / 'html'
FACTS = """() => ({
    links: [...document.querySelectorAll('a[href]')].map(a => new URL(a.getAttribute('href'), location).href),
    anchors: [...document.querySelectorAll('[id], a[name]')].map(e => e.id || e.name),
    formulas: document.querySelectorAll('.math').length,
    rendered: document.querySelectorAll('.math mjx-container').length,
    errors: document.querySelectorAll('[data-mml-node="merror"], mjx-merror').length,
    nameless: [...document.querySelectorAll('main img, article img')].filter(i => !i.alt).map(i => i.src),
})"""


class Visit(NamedTuple):
    """What was found on a page; links lead to a file and an anchor."""

    problems: list[str]
    anchors: set[str]
    links: set[tuple[Path, str]]


def visit(page: Any, file: Path) -> Visit:
    """Open a page."""
    problems: list[str] = []
    page.on('console', lambda message: problems.append(message.text) if message.type == 'error' else None)
    page.on('pageerror', lambda error: problems.append(str(error)))
    page.on('requestfailed', lambda request: problems.append(f'not loaded: {request.url}'))
    page.goto(file.as_uri())
    if page.locator('.math').count():
        page.wait_for_function("document.querySelectorAll('mjx-container').length > 0", timeout=20_000)
        page.wait_for_timeout(200)
    facts = page.evaluate(FACTS)
    if facts['rendered'] < facts['formulas'] or facts['errors']:
        problems.append(f'{facts["rendered"]} of {facts["formulas"]} formulas are rendered, {facts["errors"]} wrong')
    problems += [f'no description: {source}' for source in facts['nameless']]
    own = [urldefrag(link) for link in facts['links'] if link.startswith('file://')]
    links = {(Path(unquote(url.removeprefix('file://'))), unquote(anchor)) for url, anchor in own}
    return Visit(problems, set(facts['anchors']), links)


def dead_links(visits: dict[Path, Visit]) -> Iterator[str]:
    """Links to files and anchors that do not exist."""
    for file, seen in visits.items():
        for target, anchor in sorted(seen.links):
            page = target / 'index.html' if target.is_dir() else target
            if not page.exists():
                yield f'{file.relative_to(PAGES)}: the link to {page} leads nowhere'
            elif anchor and page in visits and anchor not in visits[page].anchors:
                yield f'{file.relative_to(PAGES)}: {page.relative_to(PAGES)} has no anchor {anchor}'


def main() -> int:
    """Visit all pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--sources', action='store_true', help='also the pages of source code')
    parser.add_argument('--pictures', type=Path, help='a folder for screenshots')
    options = parser.parse_args()
    files = [f for f in sorted(PAGES.rglob('*.html')) if options.sources or '_modules' not in f.parts]
    if not files:
        sys.exit('There are no pages. Run `make docs` first.')
    found: list[str] = []
    visits: dict[Path, Visit] = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which('chromium'), args=['--no-sandbox'])
        for scheme in ('light', 'dark'):
            context = browser.new_context(color_scheme=scheme, viewport={'width': 1280, 'height': 900})
            for file in files:
                page = context.new_page()
                visits[file] = visit(page, file)
                found += [f'{file.relative_to(PAGES)} ({scheme}): {problem}' for problem in visits[file].problems]
                if options.pictures:
                    name = '-'.join(file.relative_to(PAGES).with_suffix('').parts)
                    page.screenshot(path=options.pictures / f'{name}-{scheme}.png')
                page.close()
        browser.close()
    found += dead_links(visits)
    print(*found, f'{len(files)} pages in two color schemes: {len(found)} problems', sep='\n')
    return len(found) > 0


if __name__ == '__main__':
    sys.exit(main())
