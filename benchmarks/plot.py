# SPDX-License-Identifier: Apache-2.0
"""A figure of all targets: bars for torchopt, dots for its peers, a mark for each target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use('Agg')
import matplotlib.pyplot as plt

MET, MISSED, TARGET = '#7fb8a4', '#e0a3a0', '#222222'
COLOURS = {
    'torch_optim': '#1f5fa8',
    'by_hand': '#555555',
    'optax': '#d1791b',
    'jaxopt': '#a8a13a',
    'higher': '#7a4ea3',
    'torchopt_073': '#b3304f',
}
MARKERS = 'osD^vP'


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the times relative to the target's peer, with a panel for each number of threads."""
    works = [w for w in results['workloads'] if any(not t['missing'] for t in w['targets'])]
    if not works:
        return
    counts = sorted({w['threads'] for w in works})
    rows = max(sum(len(w['targets']) for w in works if w['threads'] == n) for n in counts)
    size = (4 + 5 * len(counts), 2.4 + 0.24 * rows)
    figure, axes = plt.subplots(1, len(counts), figsize=size, sharex=True, sharey=True, squeeze=False)
    figure.set_layout_engine('constrained')
    figure.suptitle(
        "Time in units of the target's peer (left is faster): bars are torchopt's, the black mark is the target",
        fontsize=9,
    )
    styles: dict[str, dict[str, Any]] = {}
    for axis, threads in zip(axes[0], counts):
        axis.set_title('1 thread' if threads == 1 else f'{threads} threads', fontsize=9)
        _panel(axis, [w for w in works if w['threads'] == threads], styles)
    handles = [mpl.lines.Line2D([], [], linestyle='', label=name, **style) for name, style in styles.items()]
    if handles:
        figure.legend(handles=handles, loc='outside lower center', ncols=2 + len(counts), fontsize=6, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axis: Any, works: list[dict[str, Any]], styles: dict[str, dict[str, Any]]) -> None:
    labels: list[str] = []
    for work in works:
        for target in work['targets']:
            y = len(labels)
            face = f', {target["ours"].split("/")[1]}' if len(work['targets']) > 1 else ''
            labels.append(work['name'] + face)
            if target['missing']:
                continue
            colour = MET if target['met'] else MISSED
            axis.barh(y, target['ratio'] - 1, left=1, height=0.6, color=colour, zorder=2)
            axis.plot([target['limit']] * 2, [y - 0.42, y + 0.42], color=TARGET, linewidth=2, zorder=4)
            if target['base'] is None:
                _dots(axis, y, work['contestants'], target['reference'], styles)
    axis.set_xscale('log')
    axis.xaxis.set_major_formatter(lambda x, _: f'{x:g}')
    axis.set_yticks(range(len(labels)), labels, fontsize=7)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(axis='x', which='both', linewidth=0.4, alpha=0.5, zorder=0)
    axis.spines[['top', 'right']].set_visible(False)


def _dots(axis: Any, y: int, contestants: dict[str, Any], reference: str, styles: dict[str, dict[str, Any]]) -> None:
    """Draw the other peers in the same unit."""
    for name, stats in contestants.items():
        peer = name.split('/')[0]
        if peer in COLOURS and name != reference:
            seen = sum(other.startswith(f'{peer}/') for other in styles)
            style = {'color': COLOURS[peer], 'marker': MARKERS[seen % len(MARKERS)], 'markersize': 3.5}
            ratio = stats['median'] / contestants[reference]['median']
            axis.plot(ratio, y, linestyle='', zorder=3, **styles.setdefault(name, style))
