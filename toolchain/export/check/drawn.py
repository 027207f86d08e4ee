"""Draw pictures that nobody owns, to be golden pictures where the data is private.

Rules of this file: numpy only. A picture depends on the seed, its index and the domain's
preprocessing. No picture of the domain's data is looked at.

A domain's own pictures differ in shapes, light and texture, and so do these. Drawings of the
samples take turns with grids of random colours. The domain's preprocessing enlarges a grid: two
cells a side become a gradient, a few become clouds, and as many as the model sees are noise.
"""

from __future__ import annotations

import numpy as np

from toolchain.pictures.decode import Pixels
from toolchain.pictures.preprocess import Preprocessing, pixels
from toolchain.training.data.samples import DRAWN, drawn_sample

MOST = 256
"""More are never drawn: each takes a millisecond or two."""
CELLS = (2, 3, 5, 8, 16, 32)


def draw(p: Preprocessing, count: int, seed: int) -> Pixels:
    """Return ``count`` pictures as the model sees them, uint8 ``[count, size, size, 3]``."""
    return np.stack([pixels(p, _picture(p, seed, index)) for index in range(count)])


def _picture(p: Preprocessing, seed: int, index: int) -> Pixels:
    rng = np.random.default_rng([seed, index])
    turn, kind = divmod(index, len(DRAWN) + len(CELLS) + 1)
    if kind < len(DRAWN):
        sample = drawn_sample(DRAWN[kind])
        return sample.draw_one(turn % len(sample.classes), rng)
    cells = (*CELLS, p.size)[kind - len(DRAWN)]
    # One light and one contrast for the picture: from dark and flat to glaring.
    light, contrast = rng.uniform(20, 235, 3), rng.uniform(5, 90)
    grid = rng.normal(light, contrast, (cells, cells, 3))
    return np.clip(np.rint(grid), 0, 255).astype(np.uint8)
