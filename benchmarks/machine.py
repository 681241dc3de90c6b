# SPDX-License-Identifier: Apache-2.0
"""A description of the machine and of the package versions."""

from __future__ import annotations

import os
import platform
from datetime import date
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    return {
        'date': date.today().isoformat(),
        'system': f'{platform.system()} {platform.machine()}',
        'cpu': _cpu(),
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'load before': [round(load, 2) for load in os.getloadavg()] if hasattr(os, 'getloadavg') else None,
    }


def _cpu() -> str:
    listing = Path('/proc/cpuinfo')
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or 'unknown'
