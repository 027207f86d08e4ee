"""The sheet on which samples are drawn, and what all of them share.

Rules of this file: pictures are 32 x 32 after supersampling by 4. `Sheet` takes sizes as shares of
the side. Coordinates go from the centre, x to the right, y down (-0.5 to 0.5).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from toolchain.pictures.decode import Pixels

SIDE = 32
SUPER = 4
DRAWN = ("cars", "chirps", "cells")

Colour = tuple[int, int, int]
Points = npt.NDArray[np.float64]
Rng = np.random.Generator
Canvas = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """A drawn domain: ``draw_one(label, rng)`` returns a picture, uint8 [32, 32, 3]."""

    classes: tuple[str, ...]
    draw_one: Callable[[int, Rng], Pixels]

    def draw(self, count: int, seed: Sequence[int]) -> tuple[Pixels, npt.NDArray[np.int64]]:
        """Return ``count`` pictures, uint8 [N, 32, 32, 3], and their labels, int64 [N]."""
        labels = np.arange(count, dtype=np.int64) % len(self.classes)
        pictures = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
        for index, label in enumerate(labels.tolist()):
            # A generator for each picture: its look does not depend on the others.
            pictures[index] = self.draw_one(label, np.random.default_rng([*seed, index]))
        return pictures, labels


def drawn_sample(name: str) -> Sample:
    """Return the drawn domain ``name``, one of `DRAWN`."""
    module = importlib.import_module(f"toolchain.training.data.samples.{name}")
    sample = module.SAMPLE
    assert isinstance(sample, Sample)
    return sample


@dataclass(frozen=True, slots=True)
class Pose:
    """How a drawing's own coordinates get onto the sheet: mirrored, scaled, turned, moved."""

    scale: float
    turn_rad: float
    move: tuple[float, float]
    mirror: bool

    def place(self, points: Points) -> Points:
        """Return ``points``, float64 [N, 2], on the sheet."""
        cos, sin = np.cos(self.turn_rad), np.sin(self.turn_rad)
        # Mirror first: mirrored after the turn, a drawing would be turned the other way.
        flipped = points * np.array([-1.0 if self.mirror else 1.0, 1.0]) * self.scale
        turned = flipped @ np.array([[cos, sin], [-sin, cos]])
        return np.asarray(turned + np.array(self.move))


class Sheet:
    """A supersampled RGB picture to draw on."""

    def __init__(self, background: Canvas) -> None:
        """Start with ``background``, [H, W, 3] of any size, values 0 to 255."""
        # A background of a few cells becomes soft clouds when it is enlarged.
        image = Image.fromarray(np.clip(background, 0, 255).astype(np.uint8))
        size = (SIDE * SUPER, SIDE * SUPER)
        self._image = image.resize(size, Image.Resampling.BICUBIC)
        self._pen = ImageDraw.Draw(self._image)

    def polygon(self, points: Points, colour: Colour) -> None:
        """Fill the polygon ``points``, [N, 2] in sheet coordinates."""
        self._pen.polygon(self._pixels(points).ravel().tolist(), fill=colour)

    def disc(self, centre: Points, radius: float, colour: Colour) -> None:
        """Fill a disc; ``radius`` is a share of the side."""
        x, y = self._pixels(centre[None])[0]
        r = radius * SIDE * SUPER
        self._pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def finish(self, rng: Rng, *, noise: float, light: float, blur: float) -> Pixels:
        """Return uint8 [32, 32, 3]: blurred, lit, with noise.

        ``blur`` is in pixels, ``light`` a factor, ``noise`` a standard deviation of 0 to 255.
        """
        # Light and noise come after the blur, as in a camera: the lens blurs, the sensor is noisy.
        small = self._image.reduce(SUPER).filter(ImageFilter.GaussianBlur(blur))
        grain = rng.normal(0.0, noise, (SIDE, SIDE, 3))
        lit = np.asarray(small, dtype=np.float64) * light + grain
        return np.clip(np.rint(lit), 0, 255).astype(np.uint8)

    @staticmethod
    def _pixels(points: Points) -> Points:
        return (points + 0.5) * (SIDE * SUPER)


def colour_from(rng: Rng, low: int, high: int) -> Colour:
    """Return a colour whose channels are each from ``low`` to ``high``."""
    red, green, blue = (int(v) for v in rng.integers(low, high + 1, 3))
    return red, green, blue


def shade(colour: Colour, factor: float) -> Colour:
    """Return ``colour`` brighter or darker."""
    red, green, blue = (min(255, max(0, int(v * factor))) for v in colour)
    return red, green, blue


def ring(radii: npt.ArrayLike) -> Points:
    """Return the closed outline with these ``radii`` at equal angles, float64 [N, 2]."""
    far = np.asarray(radii, dtype=np.float64)
    angles = np.linspace(0, 2 * np.pi, len(far), endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * far[:, None]


def clouds(rng: Rng, base: Colour, spread: float) -> Canvas:
    """Return a soft random background [4, 4, 3] around ``base`` for a Sheet to enlarge."""
    return np.asarray(base) + rng.normal(0.0, spread, (4, 4, 1)) * np.ones(3)
