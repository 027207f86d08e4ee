"""What is random about the order and the look of training pictures.

Rules of this file: numpy only. Every draw is a pure function of (seed, epoch, index), so a resumed
training sees the same pictures as an uninterrupted one without remembering anything. Pictures stay
uint8: it shifts and mirrors what ``preprocess.pixels`` returned.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolchain.pictures.decode import Pixels

SHIFT_SHARE = 8
"""A picture of side S moves by at most S / 8 pixels each way: four of 32."""

# One stream per purpose, so that asking for a flip does not change the order.
_ORDER, _FLIP, _SHIFT = 0, 1, 2

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Epoch:
    """All draws of one epoch over ``count`` pictures: their order, and each one's augmentation.

    ``flip``: bool [count]. ``shift``: float [count, 2] in [-1, 1), down and right.
    """

    order: Rows
    flip: npt.NDArray[np.bool_]
    shift: npt.NDArray[np.float64]


def draw(seed: int, epoch: int, count: int, augment: Collection[str]) -> Epoch:
    """Draw an epoch; ``augment`` may hold ``flip`` and ``shift``."""

    def stream(purpose: int) -> np.random.Generator:
        return np.random.default_rng([seed, epoch, purpose])

    flip = np.zeros(count, dtype=bool)
    shift = np.zeros((count, 2))
    if "flip" in augment:
        flip = stream(_FLIP).random(count) < 0.5
    if "shift" in augment:
        shift = stream(_SHIFT).uniform(-1, 1, (count, 2))
    return Epoch(stream(_ORDER).permutation(count).astype(np.int64), flip, shift)


def augmented(pictures: Pixels, rows: Rows, epoch: Epoch) -> Pixels:
    """Return uint8 [B, S, S, 3], the pictures of ``rows`` mirrored and moved as drawn.

    Where a picture moved away from the border, the border's pixel repeats.
    """
    side = pictures.shape[1]
    reach = side // SHIFT_SHARE
    moves = np.rint(epoch.shift[rows] * reach).astype(np.int64)
    places = np.arange(side)
    # The source row and column of every pixel, [B, S] each.
    down = np.clip(places + moves[:, :1], 0, side - 1)
    right = np.clip(places + moves[:, 1:], 0, side - 1)
    right[epoch.flip[rows]] = right[epoch.flip[rows], ::-1]
    batch = np.arange(len(rows))[:, None, None]
    moved: Pixels = pictures[batch, down[:, :, None], right[:, None, :]]
    return moved
