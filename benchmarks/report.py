# SPDX-License-Identifier: Apache-2.0
"""Write results.json, results.md and results.png."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import plot
from workloads import KINDS, SAVED_LIMIT

Results = dict[str, Any]


def write(results: Results, folder: Path) -> str:
    """Write the three files, and return the text of the table."""
    text = '\n'.join(sections(results))
    (folder / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    (folder / 'results.md').write_text(text)
    plot.draw(results, folder / 'results.png')
    return text


def sections(results: Results) -> Iterable[str]:
    yield from _header(results)
    yield from _targets(results['workloads'])
    for kind, title in KINDS.items():
        for threads in sorted({work['threads'] for work in results['workloads']}):
            works = [
                w
                for w in results['workloads']
                if w['name'].startswith(f'{kind}: ') and w['threads'] == threads and w['contestants']
            ]
            if works:
                yield f'## {title}, {_threads(threads)}\n\nMilliseconds, median (minimum).\n'
                yield from _times(works)
    yield from _memory(results['workloads'])
    yield from _imports(results['import'])


def _header(results: Results) -> Iterable[str]:
    machine, settings = results['machine'], results['settings']
    yield (
        f'{machine["cpu"]}, {machine["cores"]} cores, {machine["system"]}, load before '
        f'{machine["load before"]}, {machine["date"]}; {settings["rounds"]} rounds of {settings["seconds"]} s, '
        f'device {settings["device"]}.\n'
    )
    for name, versions in results['peers'].items():
        yield f'- `{name}`: ' + ', '.join(f'{package} {version}' for package, version in versions.items())
    for name, why in results['absent'].items():
        yield f'- `{name}` could not run: {why}'
    yield ''


def _targets(works: list[Results]) -> Iterable[str]:
    rows = []
    for work in works:
        for target in work['targets']:
            row = [work['name'], work['threads'], target['ours'], target['reference']]
            if target['missing']:
                rows.append([*row, '', '', _limit(target['limit']), f'no (right) {", ".join(target["missing"])}'])
            else:
                met = 'yes' if target['met'] else '**no**'
                ratios = [f'{target[key]:.2f}' for key in ('ratio', 'ratio of minima')]
                rows.append([*row, *ratios, _limit(target['limit']), met])
        for name, memory in work['memory'].items():
            if 'leaf sets' in memory and name.startswith('torchopt/') and 'plain' not in name:
                sets = memory['leaf sets']
                met = 'yes' if sets <= SAVED_LIMIT + 1e-6 else '**no**'
                saved = f'{work["name"]}: saved, in leaf sets per step'
                rows.append([saved, work['threads'], name, '', f'{sets:.2f}', '', _limit(SAVED_LIMIT), met])
    if rows:
        yield '## Targets\n\nThe ratio is the median over the rounds; next to it is the ratio of the minima.\n'
        yield from _table(
            ['workload', 'threads', 'contestant', 'in units of', 'ratio', 'at minima', 'target', 'met'], rows
        )


def _times(works: list[Results]) -> Iterable[str]:
    names = _in_order(name for work in works for name in (*work['contestants'], *work['failed']))
    rows = []
    for work in works:
        stats = work['contestants']
        cells = []
        for name in names:
            s = stats.get(name)
            if s:
                cells.append(f'{_ms(s["median"])} ({_ms(s["minimum"])})' + ' †' * (name in work['differs']))
            else:
                cells.append('—' if name in work['failed'] else '')
        spread = max((s['spread'] for s in stats.values()), default=0.0)
        rows.append([work['name'].split(': ', 1)[1], *cells, f'{spread:.0%}'])
    yield from _table(['workload', *names, 'widest quartile range'], rows)
    for work in works:
        for name, why in work['failed'].items():
            yield f'- {work["name"]}: `{name}` is left out: {why}'
        for name, far in work['differs'].items():
            yield f'- † {work["name"]}: the relative error of `{name}` is {far:.2g}.'
    yield ''


def _memory(works: list[Results]) -> Iterable[str]:
    rows = [
        [work['name'], name, *(_mib(memory.get(key)) for key in ('peak', 'allocated', 'saved'))]
        for work in works
        for name, memory in work['memory'].items()
    ]
    if rows:
        yield f'## {KINDS["memory"]}\n\nMiB allocated in one run: peak, total, and'
        yield 'saved for backward by the optimizer alone.\n'
        yield from _table(['workload', 'contestant', 'peak', 'allocated', 'saved'], rows)


def _imports(imports: Results) -> Iterable[str]:
    if imports:
        yield f'## {KINDS["import"]}\n\nMilliseconds in new processes, beyond the import of torch (for Optax: jax).\n'
        keys = ('below', 'whole', 'added', 'added, minima')
        yield from _table(['peer', *keys], [[peer, *(_ms(t[key]) for key in keys)] for peer, t in imports.items()])


def _table(head: list[str], rows: list[list[Any]]) -> Iterable[str]:
    yield '| ' + ' | '.join(head) + ' |'
    yield '|' + '---|' * len(head)
    for row in rows:
        yield '| ' + ' | '.join(str(cell) for cell in row) + ' |'
    yield ''


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _threads(n: int) -> str:
    return '1 thread' if n == 1 else f'{n} threads'


def _ms(seconds: float) -> str:
    ms = 1e3 * seconds
    return f'{ms:.0f}' if ms >= 100 else f'{ms:.3g}'


def _mib(amount: float | None) -> str:
    return '' if amount is None else f'{amount / 2**20:.2f}'


def _limit(limit: float) -> str:
    return f'≤ {limit:.3g}'
