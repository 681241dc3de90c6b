# SPDX-License-Identifier: Apache-2.0
"""A folder of images in the layout of Omniglot, which is read faster than glyphs are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.image import imsave


def write_omniglot(root: Path, alphabets: int, characters: int = 5, drawings: int = 4) -> None:
    rng = np.random.default_rng(0)
    for a in range(alphabets):
        for c in range(characters):
            folder = root / f'Alphabet_{a}' / f'character{c:02d}'
            folder.mkdir(parents=True)
            for d in range(drawings):
                paper = np.ones((35, 35, 3))
                paper[5 + 3 * c : 9 + 3 * c, 5 + rng.integers(3) : 20 + d] = 0.0
                imsave(folder / f'{c:04d}_{d:02d}.png', paper)
