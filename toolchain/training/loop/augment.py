"""What is random about the order and the look of training pictures.

Rules of this file: numpy and Pillow only. Every draw is a pure function of (seed, epoch, index), so
a resumed training sees the same pictures as an uninterrupted one without remembering anything.
Pictures stay uint8: it changes what ``preprocess.pixels`` returned. Where a picture moves inwards,
it is reflected at its border: a border that is repeated shows streaks that no real picture has.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from toolchain.pictures.decode import Pixels

SHIFT_PX = 4
"""How far a picture moves each way, as usual for 32 pixels; for larger pictures it is little."""
SHIFT_SHARE = 8
"""Pictures of side S below 32 pixels move by at most S / 8."""
ZOOM = 1.25
TURN_DEGREES = 15.0
BRIGHTNESS = 1.25

# One stream per purpose, so that asking for a flip does not change the order.
_ORDER, _FLIP, _SHIFT = 0, 1, 2
_ZOOM, _TURN, _BRIGHTNESS = 5, 6, 7

Rows = npt.NDArray[np.int64]
Draws = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Epoch:
    """All draws of one epoch over ``count`` pictures: their order, and each one's augmentation.

    ``flip``: bool [count]. ``shift``: float [count, 2] in [-1, 1), down and right. ``zoom``,
    ``turn`` and ``brightness``: float [count] in [-1, 1). Zero changes nothing.
    """

    order: Rows
    flip: npt.NDArray[np.bool_]
    shift: Draws
    zoom: Draws
    turn: Draws
    brightness: Draws


def draw(seed: int, epoch: int, count: int, augment: Collection[str]) -> Epoch:
    """Draw an epoch; ``augment`` holds names of ``recipe.spec.AUGMENTS``."""

    def stream(purpose: int) -> np.random.Generator:
        return np.random.default_rng([seed, epoch, purpose])

    def uniform(name: str, purpose: int, *shape: int) -> Draws:
        if name in augment:
            return stream(purpose).uniform(-1, 1, shape)
        return np.zeros(shape)

    flip = np.zeros(count, dtype=bool)
    if "flip" in augment:
        flip = stream(_FLIP).random(count) < 0.5
    return Epoch(
        order=stream(_ORDER).permutation(count).astype(np.int64),
        flip=flip,
        shift=uniform("shift", _SHIFT, count, 2),
        zoom=uniform("zoom", _ZOOM, count),
        turn=uniform("rotate", _TURN, count),
        brightness=uniform("brightness", _BRIGHTNESS, count),
    )


def augmented(pictures: Pixels, rows: Rows, epoch: Epoch) -> Pixels:
    """Return uint8 [B, S, S, 3], the pictures of ``rows`` changed as drawn."""
    side = pictures.shape[1]
    reach = min(SHIFT_PX, side // SHIFT_SHARE)
    moves = np.rint(epoch.shift[rows] * reach).astype(np.int64)
    if epoch.zoom[rows].any() or epoch.turn[rows].any():
        moved = np.stack(
            [
                _turned(picture, move, ZOOM**zoom, TURN_DEGREES * turn)
                for picture, move, zoom, turn in zip(
                    pictures, moves, epoch.zoom[rows], epoch.turn[rows], strict=True
                )
            ]
        )
        flipped = epoch.flip[rows]
        moved[flipped] = moved[flipped, :, ::-1]
    else:
        moved = _moved(pictures, moves, epoch.flip[rows])
    factors = BRIGHTNESS ** epoch.brightness[rows]
    if (factors != 1).any():
        # A value above white stays white.
        table = np.rint(np.arange(256) * factors[:, None]).clip(0, 255).astype(np.uint8)
        moved = table[np.arange(len(rows))[:, None, None, None], moved]
    return moved


def _moved(pictures: Pixels, moves: Rows, flip: npt.NDArray[np.bool_]) -> Pixels:
    """Return pictures moved by whole pixels, [B, 2] down and right, and mirrored."""
    side = pictures.shape[1]
    places = np.arange(side)
    # The source row and column of every pixel, [B, S] each.
    down = _reflected(places + moves[:, :1], side)
    right = _reflected(places + moves[:, 1:], side)
    right[flip] = right[flip, ::-1]
    batch = np.arange(len(moves))[:, None, None]
    moved: Pixels = pictures[batch, down[:, :, None], right[:, None, :]]
    return moved


def _reflected(places: Rows, side: int) -> Rows:
    """Return places outside of 0..side-1 as those that a mirror at the border shows."""
    inside: Rows = side - 1 - np.abs(side - 1 - np.abs(places))
    return inside


def _turned(picture: Pixels, move: Rows, zoom: float, degrees: float) -> Pixels:
    """Return one picture [S, S, 3], moved, zoomed and turned around its middle, bilinear."""
    side = picture.shape[0]
    # A corner that is turned by 15 degrees and zoomed out lies 0.27 sides outside.
    margin = side // 3 + SHIFT_PX + 1
    padded = np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    angle, middle = np.deg2rad(degrees), side / 2
    along, across = np.cos(angle) / zoom, np.sin(angle) / zoom
    # Source = turned (target - middle) + middle + move + margin, for x and y.
    to_x = middle - along * middle - across * middle + move[1] + margin
    to_y = middle + across * middle - along * middle + move[0] + margin
    image = Image.fromarray(padded).transform(
        (side, side),
        Image.Transform.AFFINE,
        (along, across, to_x, -across, along, to_y),
        resample=Image.Resampling.BILINEAR,
    )
    return np.asarray(image)
