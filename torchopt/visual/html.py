# SPDX-License-Identifier: Apache-2.0
"""Graphs as interactive, self-contained HTML pages."""

from __future__ import annotations

from html import escape

from torchopt.visual.model import COLOURS, Model
from torchopt.visual.svg import HEX, svg_text

_LEGEND = {
    'output': 'output',
    'base': 'base of a view',
    'leaf': 'leaf or named tensor',
    'function': 'function',
    'step': 'optimizer step',
    'saved': 'saved tensor',
    'more': 'left out',
}

_STYLE = """\
*{box-sizing:border-box}html,body{margin:0;height:100%;font:13px/1.4 system-ui,sans-serif;color:#222}
body{display:flex;flex-direction:column}header{display:flex;flex-wrap:wrap;gap:4px 14px;align-items:center;
padding:8px 12px;border-bottom:1px solid #ccc;background:#fafafa}h1{font-size:14px;margin:0}
.key{display:inline-block;width:12px;height:12px;border:1px solid #444;border-radius:3px;margin-right:4px;
vertical-align:-2px}button,input{font:inherit;padding:1px 8px}input{width:15em}
main{flex:1;min-height:0;position:relative}#view{position:absolute;inset:0;overflow:hidden;cursor:grab;touch-action:none}
#view.moving{cursor:grabbing}#view svg{display:block;width:100%;height:100%}
#facts{position:absolute;right:10px;top:10px;max-width:34em;max-height:70%;overflow:auto;margin:0;padding:8px 10px;
background:#fffffff2;border:1px solid #bbb;border-radius:6px;font:11px/1.45 monospace;white-space:pre-wrap}
#facts:empty{display:none}.node{cursor:pointer}.dim .node:not(.lit),.dim .edge:not(.lit){opacity:.18}
.node.found rect{stroke:#c00;stroke-width:2.5}"""

# The viewBox of the SVG element is the visible part of the drawing.
_SCRIPT = """\
'use strict';
const view = document.getElementById('view'), svg = view.querySelector('svg'), facts = document.getElementById('facts');
const whole = svg.viewBox.baseVal, size = {width: whole.width, height: whole.height};
let box = {x: 0, y: 0, width: size.width, height: size.height};
svg.removeAttribute('width');
svg.removeAttribute('height');
const show = () => svg.setAttribute('viewBox', [box.x, box.y, box.width, box.height].join(' '));
const scale = () => Math.max(box.width / view.clientWidth, box.height / view.clientHeight);
function zoom(factor, x, y) {
  const area = view.getBoundingClientRect(), matrix = svg.getScreenCTM().inverse();
  const at = new DOMPoint(x ?? area.x + area.width / 2, y ?? area.y + area.height / 2).matrixTransform(matrix);
  factor = Math.min(Math.max(factor, 20 / box.width), 4 * size.width / box.width);
  box = {x: at.x - (at.x - box.x) * factor, y: at.y - (at.y - box.y) * factor,
         width: box.width * factor, height: box.height * factor};
  show();
}
function fit() {
  box = {x: 0, y: 0, width: size.width, height: size.height};
  show();
}
function center(node) {
  const place = node.getBBox(), height = 600 * box.height / Math.max(box.height, 600);
  const width = height * view.clientWidth / view.clientHeight;
  box = {x: place.x + place.width / 2 - width / 2, y: place.y + place.height / 2 - height / 2, width, height};
  show();
}
let start = null, moved = false;
view.addEventListener('pointerdown', event => {
  start = {x: event.clientX, y: event.clientY, box};
  moved = false;
});
addEventListener('pointermove', event => {
  if (!start) return;
  const dx = event.clientX - start.x, dy = event.clientY - start.y;
  moved = moved || Math.abs(dx) + Math.abs(dy) > 3;
  if (!moved) return;
  view.classList.add('moving');
  box = {...start.box, x: start.box.x - dx * scale(), y: start.box.y - dy * scale()};
  show();
});
addEventListener('pointerup', () => { start = null; view.classList.remove('moving'); });
view.addEventListener('wheel', event => {
  event.preventDefault();
  zoom(Math.exp(event.deltaY * 0.0015), event.clientX, event.clientY);
}, {passive: false});
view.addEventListener('click', event => {
  if (moved) return;
  svg.querySelectorAll('.lit').forEach(part => part.classList.remove('lit'));
  const node = event.target.closest('.node');
  svg.classList.toggle('dim', Boolean(node));
  facts.textContent = node ? node.querySelector('title').textContent : '';
  if (!node) return;
  node.classList.add('lit');
  for (const edge of svg.querySelectorAll('.edge')) {
    if (edge.dataset.tail !== node.id && edge.dataset.head !== node.id) continue;
    edge.classList.add('lit');
    svg.getElementById(edge.dataset.tail).classList.add('lit');
    svg.getElementById(edge.dataset.head).classList.add('lit');
  }
});
const search = document.getElementById('search');
let last = '', turn = 0;
search.addEventListener('keydown', event => {
  event.stopPropagation();
  if (event.key !== 'Enter') return;
  const word = search.value.toLowerCase();
  turn = word === last ? turn + 1 : 0;
  last = word;
  const found = [...svg.querySelectorAll('.node')].filter(node => {
    const hit = word && node.textContent.toLowerCase().includes(word);
    node.classList.toggle('found', Boolean(hit));
    return hit;
  });
  document.getElementById('hits').textContent = word ? `${found.length} found` : '';
  if (found.length) center(found[turn % found.length]);
});
document.getElementById('in').onclick = () => zoom(0.8);
document.getElementById('out').onclick = () => zoom(1.25);
document.getElementById('fit').onclick = fit;
addEventListener('keydown', event => {
  if (event.key === '+' || event.key === '=') zoom(0.8);
  else if (event.key === '-') zoom(1.25);
  else if (event.key === '0') fit();
});
show();"""


def page(model: Model, title: str) -> str:
    """The whole page as text."""
    used = {node.kind for node in model.nodes}
    used |= {'leaf'} if used & {'named', 'state'} else set()
    keys = ' '.join(
        f'<span><span class="key" style="background:{HEX[COLOURS[kind]]}"></span>{words}</span>'
        for kind, words in _LEGEND.items()
        if kind in used
    )
    svg = svg_text(model).replace(' xmlns="http://www.w3.org/2000/svg"', '', 1)  # not needed inside HTML
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>
{_STYLE}
</style>
</head>
<body>
<header><h1>{escape(title)}</h1><span>{escape(model.totals)}</span><span>{keys}</span>
<span><button id="in" title="zoom in (+)">+</button> <button id="out" title="zoom out (-)">&minus;</button>
<button id="fit" title="show all (0)">fit</button>
<input id="search" type="search" placeholder="find, Enter for next" aria-label="find"> <span id="hits"></span></span>
</header>
<main><div id="view">
{svg}</div><pre id="facts"></pre></main>
<script>
{_SCRIPT}
</script>
</body>
</html>
"""
