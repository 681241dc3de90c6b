# SPDX-License-Identifier: Apache-2.0
"""Few-shot tasks of written characters, for the meta-learning examples.

Two functions return a list of training alphabets and a list of test alphabets:

* :func:`hershey_alphabets` draws the stroke fonts of the PyPI package ``Hershey-Fonts``. The *shapes*
  are real, digitised by A. V. Hershey in 1967; the *variation* between drawings of one character is
  synthetic, a random affine map per drawing. The training alphabets are Latin letters in many fonts; the
  test alphabets are other scripts, without glyphs that look like a training glyph.
* :func:`omniglot_alphabets` reads a folder of images, ``alphabet/character/*.png``, the layout of
  Omniglot (Lake et al. 2015), where each character was drawn by twenty people.

:func:`sample_task` then draws one classification task within one alphabet.
"""

from __future__ import annotations

import itertools
import string
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from HersheyFonts import HersheyFonts
from matplotlib.image import imread
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Alphabet(NamedTuple):
    """Characters of one script, each drawn several times.

    Attributes:
        name: Name of the font or folder.
        drawings: One tensor of shape ``(drawings, 1, size, size)`` per character, 0 is paper and 1 is ink.
    """

    name: str
    drawings: list[Tensor]


class Task(NamedTuple):
    """A few examples to learn from (the support) and others for testing (the query).

    Attributes:
        support: Images of shape ``(ways * shots, 1, size, size)``.
        support_labels: Labels of shape ``(ways * shots,)``, in ``[0, ways)``.
        query: Images of shape ``(ways * queries, 1, size, size)``.
        query_labels: Labels of shape ``(ways * queries,)``.
        alphabet: Name of the alphabet that the characters come from.
    """

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor
    alphabet: str


def sample_task(
    alphabets: list[Alphabet], ways: int, shots: int, queries: int, generator: torch.Generator, *, turn: bool = False
) -> Task:
    """Draw a task: ``ways`` characters of one alphabet, ``shots`` + ``queries`` drawings of each.

    Args:
        alphabets: The alphabets; the probability of each is proportional to its number of characters.
        ways: Number of classes.
        shots: Drawings of each class in the support.
        queries: Drawings of each class in the query, different from those in the support.
        generator: The random generator.
        turn: Whether to rotate the whole task by a random multiple of 90 degrees, which gives four
            times as many training characters.

    Raises:
        ValueError: If no alphabet has ``ways`` characters with ``shots`` + ``queries`` drawings.
    """
    drawn = shots + queries
    usable = [
        (alphabet.name, characters)
        for alphabet in alphabets
        if len(characters := [c for c in alphabet.drawings if len(c) >= drawn]) >= ways
    ]
    if not usable:
        raise ValueError(
            f'no alphabet has {ways} characters with {drawn} drawings each; use fewer ways, shots or queries'
        )
    sizes = torch.tensor([float(len(characters)) for _, characters in usable])
    name, characters = usable[int(sizes.multinomial(1, generator=generator))]
    images = []
    for character in torch.randperm(len(characters), generator=generator)[:ways].tolist():
        order = torch.randperm(len(characters[character]), generator=generator)[:drawn]
        images.append(characters[character][order])
    stack = torch.stack(images)
    if turn:
        stack = stack.rot90(int(torch.randint(4, (), generator=generator)), dims=(-2, -1))
    labels = torch.arange(ways)
    return Task(
        stack[:, :shots].flatten(0, 1).contiguous(),
        labels.repeat_interleave(shots),
        stack[:, shots:].flatten(0, 1).contiguous(),
        labels.repeat_interleave(queries),
        name,
    )


# --- Hershey fonts ------------------------------------------------------------------------------

LATIN_FONTS = [
    'futural',
    'futuram',
    'rowmans',
    'rowmand',
    'rowmant',
    'timesr',
    'timesrb',
    'timesi',
    'timesib',
    'cursive',
    'scripts',
    'scriptc',
    'gothgbt',
    'gothgrt',
    'gothitt',
]
TEST_FONTS = {
    'greek': ['greekc', 'greek'],
    'cyrillic': ['cyrilc_1', 'cyrillic'],
    'japanese': ['japanese'],
    'symbols': ['astrology', 'music', 'symbolic', 'meteorology', 'mathlow'],
}
LOOKS_ALIKE = 0.92  # cosine between two blurred clean drawings; Latin H and Cyrillic H have 1.00


def hershey_alphabets(size: int = 20, drawings: int = 20, seed: int = 0) -> tuple[list[Alphabet], list[Alphabet]]:
    """Draw the Hershey fonts: Latin fonts for training, other scripts for testing.

    A font of another script also contains Latin letters, digits and marks, and a Greek capital alpha
    looks like the Latin A. So every test glyph that looks like a glyph of a Latin font is left out, and
    within each alphabet every glyph that looks like an earlier one.

    Args:
        size: Side length of the square drawings in pixels.
        drawings: Number of drawings of each character, each with its own random affine map.
        seed: Seed of these maps.

    Returns:
        The training and the test alphabets.
    """
    generator = torch.Generator().manual_seed(seed)
    fonts = HersheyFonts()

    def alphabet(name: str, glyphs: list[Tensor]) -> Alphabet:
        points = pad_sequence(glyphs, batch_first=True)
        return Alphabet(name, list(draw(points, size, affine_maps(len(glyphs), drawings, generator))))

    latin = {font: font_glyphs(fonts, font) for font in LATIN_FONTS}
    train = []
    for font, glyphs in latin.items():
        letters = [points for code, points in glyphs.items() if code in string.ascii_letters]
        train.append(alphabet(f'latin {font}', distinct(letters)))

    latin_looks = looks([points for glyphs in latin.values() for points in glyphs.values()])
    test = []
    for script, names in TEST_FONTS.items():
        candidates = [points for name in names for points in font_glyphs(fonts, name).values()]
        test.append(alphabet(script, distinct(candidates, latin_looks)))
    return train, test


def font_glyphs(fonts: HersheyFonts, font: str) -> dict[str, Tensor]:
    """Return each glyph of a font as ink along its strokes.

    Returns:
        For each character code a tensor of shape ``(points, 3)``: x and y in ``[-1, 1]``, the larger
        extent filling it, and the length of stroke that the point stands for.
    """
    fonts.load_default_font(font)
    glyphs = {}
    for code, glyph in fonts.all_glyphs.items():
        lines = [(*a, *b) for stroke in glyph.strokes for a, b in itertools.pairwise(stroke)]
        start, end = torch.tensor(lines, dtype=torch.float32).reshape(-1, 4).split(2, dim=1)
        length = (end - start).norm(dim=1)
        pieces = (2 * length).ceil().clamp(min=1).long()
        line = torch.arange(len(lines)).repeat_interleave(pieces)
        piece = torch.arange(len(line)) - (pieces.cumsum(0) - pieces)[line]
        along = ((piece + 0.5) / pieces[line])[:, None]
        place = start[line].lerp(end[line], along)
        if len(place) == 0:
            continue
        low, high = place.amin(0), place.amax(0)
        extent = (high - low).amax() / 2
        if extent >= 3:  # a smaller mark is a dot or a comma
            ink = (length / pieces)[line, None]
            glyphs[code] = torch.cat([place - (low + high) / 2, ink], dim=1) / extent
    return glyphs


def distinct(glyphs: list[Tensor], taken: Tensor | None = None) -> list[Tensor]:
    """Keep the glyphs that look neither like an earlier glyph nor like one in ``taken``."""
    own = looks(glyphs)
    alike = own @ own.T > LOOKS_ALIKE
    free = torch.ones(len(glyphs), dtype=torch.bool)
    if taken is not None:
        free = (own @ taken.T).amax(1) <= LOOKS_ALIKE
    kept: list[int] = []
    for i in range(len(glyphs)):
        if free[i] and not alike[i, kept].any():
            kept.append(i)
    return [glyphs[i] for i in kept]


def looks(glyphs: list[Tensor]) -> Tensor:
    """Return one unit vector per glyph, whose product with another's says how alike they look.

    It is the upright drawing, slightly blurred so that close strokes meet, less its mean.
    """
    upright = torch.eye(2, 3).expand(len(glyphs), 1, 2, 3)
    clean = draw(pad_sequence(glyphs, batch_first=True), 20, upright).flatten(0, 1)
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    vectors = F.conv2d(clean, row.outer(row)[None, None], padding=2).flatten(1)
    return F.normalize(vectors - vectors.mean(1, keepdim=True))


def affine_maps(glyphs: int, drawings: int, generator: torch.Generator) -> Tensor:
    """Return random affine maps, shape ``(glyphs, drawings, 2, 3)``: the synthetic handwriting.

    Turned by up to 29 degrees, slanted by up to 0.3, each side scaled by up to 15% and shifted by up
    to a sixth of itself.
    """
    random = 2 * torch.rand(6, glyphs, drawings, generator=generator) - 1
    angle, slant, width, height, right, down = random
    cos, sin = (0.5 * angle).cos(), (0.5 * angle).sin()
    width, height, slant = 1 + 0.15 * width, 1 + 0.15 * height, 0.3 * slant
    # The product of a rotation, a shear and a scaling, and next to it the shift.
    entries = [
        cos * width,
        (cos * slant - sin) * height,
        0.35 * right,
        sin * width,
        (sin * slant + cos) * height,
        0.35 * down,
    ]
    return torch.stack(entries, dim=-1).unflatten(-1, (2, 3))


def draw(points: Tensor, size: int, maps: Tensor) -> Tensor:
    """Draw glyphs with a pen 1.6 pixels wide, once for every map.

    Args:
        points: Ink along the strokes, as :func:`font_glyphs` returns it, padded with zeros to shape
            ``(glyphs, points, 3)``.
        size: Side of the square drawings in pixels.
        maps: Affine maps of shape ``(glyphs, drawings, 2, 3)``.

    Returns:
        Tensor of shape ``(glyphs, drawings, 1, size, size)`` in ``[0, 1]``.
    """
    unit = 0.34 * size  # a glyph that is not moved fills two thirds of the square
    place = points[:, None, :, :2] @ maps[..., :2].mT + maps[..., None, :, 2]
    place = unit * place + (size - 1) / 2
    ink = 1.6 * unit * points[:, None, :, 2]
    # Each point's ink is shared by the four pixels around it, which makes the lines smooth.
    image = torch.zeros(*maps.shape[:2], size * size)
    for corner in torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]):
        pixel = place.floor() + corner
        inside = ((pixel >= 0) & (pixel < size)).all(-1)
        share = ink * inside * (1 - (place - pixel).abs()).prod(-1)
        column, row = pixel.clamp(0, size - 1).long().unbind(-1)
        image.scatter_add_(-1, row * size + column, share)
    return image.clamp(max=1).unflatten(-1, (1, size, size))


# --- Omniglot -----------------------------------------------------------------------------------


def omniglot_alphabets(folder: str | Path, size: int = 20, seed: int = 0) -> tuple[list[Alphabet], list[Alphabet]]:
    """Read a folder of images, ``alphabet/character/*.png``, dark ink on light paper.

    If the folder holds Omniglot's own ``images_background`` and ``images_evaluation``, these are the
    training and the test alphabets; otherwise a random fifth of the alphabets, at least one, is
    kept for the test.

    Args:
        folder: The folder.
        size: Side to which the images are shrunk, in pixels.
        seed: Seed of the choice of test alphabets.

    Raises:
        ValueError: If the folder does not hold two alphabets.
    """
    root = Path(folder)
    background, evaluation = root / 'images_background', root / 'images_evaluation'
    if background.is_dir() and evaluation.is_dir():
        return read_alphabets(background, size), read_alphabets(evaluation, size)
    alphabets = read_alphabets(root, size)
    if len(alphabets) < 2:
        raise ValueError(
            f'{root} contains {len(alphabets)} alphabets; at least one to train on and one to test on are '
            'required, with images at alphabet/character/*.png'
        )
    order = torch.randperm(len(alphabets), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = max(1, len(alphabets) // 5)
    return ([alphabets[i] for i in sorted(order[held_out:])], [alphabets[i] for i in sorted(order[:held_out])])


def read_alphabets(root: Path, size: int) -> list[Alphabet]:
    """Read every ``alphabet/character/*.png`` below a folder, in the order of their names."""
    alphabets = []
    for alphabet in sorted(path for path in root.iterdir() if path.is_dir()):
        drawings = [
            torch.stack([read_image(path, size) for path in paths])
            for character in sorted(alphabet.iterdir())
            if (paths := sorted(character.glob('*.png')))
        ]
        if drawings:
            alphabets.append(Alphabet(alphabet.name, drawings))
    return alphabets


def read_image(path: Path, size: int) -> Tensor:
    """Read one image as ink on paper, shape ``(1, size, size)``."""
    paper = torch.tensor(imread(path), dtype=torch.float32)
    if paper.ndim == 3:
        paper = paper[..., :3].mean(-1)
    return F.interpolate(1 - paper[None, None], (size, size), mode='area')[0]
