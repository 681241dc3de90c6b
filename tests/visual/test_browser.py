# SPDX-License-Identifier: Apache-2.0
"""The HTML page in a real browser, headless: it moves, zooms, searches, and tells about a box.

It needs the package playwright, and a browser: playwright's own, or Debian's chromium.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.visual.graphs import inner_loop
from torchopt.visual import GradientGraph, trace_graph

playwright = pytest.importorskip('playwright.sync_api')


@pytest.fixture(scope='module')
def graph() -> GradientGraph:
    loss, meta, *_, states = inner_loop(2)
    return trace_graph(loss, [*states, {'meta': meta}])


@pytest.fixture(scope='module')
def browser() -> Iterator[Any]:
    program = shutil.which('chromium') or shutil.which('google-chrome')
    with playwright.sync_playwright() as driver:
        if program is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip('there is no browser: apt install chromium, or playwright install chromium')
        browser = driver.chromium.launch(executable_path=program, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, graph: GradientGraph, tmp_path: Path) -> Iterator[Any]:
    page = browser.new_page(viewport={'width': 1000, 'height': 700})
    page.requests, page.complaints = [], []
    page.on('request', lambda request: page.requests.append(request.url))
    page.on('pageerror', lambda error: page.complaints.append(str(error)))
    page.on('console', lambda message: page.complaints.append(message.text))
    page.goto(graph.save(tmp_path / 'graph.html').as_uri())
    yield page
    assert page.complaints == []
    assert len(page.requests) == 1, page.requests  # the page itself
    page.close()


def view(page: Any) -> list[float]:
    return [float(x) for x in page.get_attribute('svg', 'viewBox').split()]


def test_all_is_in_view_at_first(page: Any, graph: GradientGraph) -> None:
    assert page.locator('.node').count() == len(graph.nodes)
    assert page.locator('.edge').count() == len(graph.edges)
    area = page.locator('#view').bounding_box()
    for i in range(len(graph.nodes)):
        box = page.locator(f'#n{i}').bounding_box()
        assert area['x'] <= box['x'] <= box['x'] + box['width'] <= area['x'] + area['width']
        assert area['y'] <= box['y'] <= box['y'] + box['height'] <= area['y'] + area['height']


def test_the_text_fits_its_box(page: Any, graph: GradientGraph) -> None:
    """The layout guesses the width of letters; the browser knows it."""
    wide = page.evaluate(
        """() => [...document.querySelectorAll('.node')].filter(node => {
             const box = node.querySelector('rect').getBBox();
             return [...node.querySelectorAll('text')].some(text => text.getBBox().width > box.width);
           }).map(node => node.id)"""
    )
    assert wide == []


def test_the_wheel_zooms_where_the_pointer_is(page: Any) -> None:
    before = view(page)
    node = page.locator('#n0')
    old = node.bounding_box()
    middle = (old['x'] + old['width'] / 2, old['y'] + old['height'] / 2)
    page.mouse.move(*middle)
    page.mouse.wheel(0, -400)
    page.wait_for_function(f"document.querySelector('svg').viewBox.baseVal.width < {before[2] * 0.9}")
    new = node.bounding_box()
    assert new['width'] > 1.2 * old['width']
    assert new['x'] + new['width'] / 2 == pytest.approx(middle[0], abs=1.0)
    assert new['y'] + new['height'] / 2 == pytest.approx(middle[1], abs=1.0)
    page.click('#fit')
    assert view(page) == before


def test_dragging_moves_by_as_much(page: Any) -> None:
    node = page.locator('#n3')
    old = node.bounding_box()
    page.mouse.move(100, 300)
    page.mouse.down()
    page.mouse.move(160, 340)
    page.mouse.up()
    new = node.bounding_box()
    assert new['x'] - old['x'] == pytest.approx(60, abs=1.0)
    assert new['y'] - old['y'] == pytest.approx(40, abs=1.0)
    page.mouse.move(300, 300)
    assert node.bounding_box() == new


def test_buttons_and_keys_zoom(page: Any) -> None:
    whole = view(page)[2]
    page.click('#in')
    assert view(page)[2] == pytest.approx(0.8 * whole)
    page.click('#out')
    assert view(page)[2] == pytest.approx(whole)
    page.keyboard.press('+')
    assert view(page)[2] == pytest.approx(0.8 * whole)
    page.keyboard.press('-')
    page.keyboard.press('-')
    assert view(page)[2] == pytest.approx(1.25 * whole)
    page.keyboard.press('0')
    assert view(page)[2] == whole


def test_a_click_tells_about_a_box_and_shows_its_neighbours(page: Any, graph: GradientGraph) -> None:
    node = next(node for node in graph.nodes if node.kind in ('step', 'leaf'))
    neighbours = {e.tail for e in graph.edges if e.head == node.id} | {e.head for e in graph.edges if e.tail == node.id}
    page.click(f'#{node.id}')
    assert page.text_content('#facts') == node.tooltip
    lit = page.evaluate("[...document.querySelectorAll('.node.lit')].map(n => n.id)")
    assert {*lit} == neighbours | {node.id}
    page.mouse.click(20, 650)
    assert page.text_content('#facts') == ''
    assert page.locator('.lit').count() == 0


def test_search(page: Any, graph: GradientGraph) -> None:
    hits = [node for node in graph.nodes if 'mse' in (node.label + node.tooltip).lower()]
    page.fill('#search', 'MSE')
    page.press('#search', 'Enter')
    assert page.text_content('#hits') == f'{len(hits)} found'
    assert page.locator('.node.found').count() == len(hits)
    box, area = page.locator(f'#{hits[0].id}').bounding_box(), page.locator('#view').bounding_box()
    assert box['x'] + box['width'] / 2 == pytest.approx(area['x'] + area['width'] / 2, abs=2.0)
    page.press('#search', 'Enter')
    box = page.locator(f'#{hits[1].id}').bounding_box()
    assert box['x'] + box['width'] / 2 == pytest.approx(area['x'] + area['width'] / 2, abs=2.0)
