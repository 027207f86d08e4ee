"""Cells: stained cells under a microscope, of eight kinds.

Rules of this file: a kind is the cell's outline and what lies inside. Stain, size, place, turn,
neighbours at the rim, debris and focus are random. The shapes follow a blood or tissue smear, much
simplified; they are no medical data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from toolchain.pictures.decode import Pixels
from toolchain.training.data.samples.drawing import (
    Colour,
    Points,
    Pose,
    Rng,
    Sample,
    Sheet,
    clouds,
    ring,
    shade,
)

_CORNERS = 40
_ANGLES = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
# From 2 on: a single wave around the outline would only move the cell.
# How uneven an outline is, as a share of its radius.
_ROUGHNESS = 0.04
_WAVES = np.arange(2, 5)[:, None] * _ANGLES


class _Brush:
    """A sheet, a pose and the two stains; lengths are in cell radii."""

    def __init__(self, sheet: Sheet, pose: Pose, body: Colour, nucleus: Colour) -> None:
        self.sheet, self.pose, self.body, self.nucleus = sheet, pose, body, nucleus

    def shape(self, outline: Points, colour: Colour, at: tuple[float, float] = (0, 0)) -> None:
        """Fill an outline, float64 [N, 2], moved by ``at``."""
        self.sheet.polygon(self.pose.place(outline + np.array(at)), colour)

    def dot(self, at: tuple[float, float], radius: float, colour: Colour) -> None:
        """Fill a disc around ``at``."""
        centre = self.pose.place(np.array([at], dtype=np.float64))[0]
        self.sheet.disc(centre, radius * self.pose.scale, colour)

    def membrane(self, outline: Points) -> None:
        """Draw the cell's body with a darker rim."""
        self.shape(outline * 1.08, shade(self.body, 0.75))
        self.shape(outline, self.body)


def _blob(rng: Rng, long: float = 1.0, wide: float = 1.0) -> Points:
    """Return a smooth closed outline of half axes ``long`` and ``wide``."""
    phase = rng.uniform(0, 2 * np.pi, 3)
    bumps = rng.normal(0.0, _ROUGHNESS, 3) @ np.cos(_WAVES + phase[:, None])
    return np.asarray(ring(1.0 + bumps) * np.array([long, wide]))


def _resting(brush: _Brush, rng: Rng) -> None:
    """Draw one round nucleus, a little off the middle."""
    brush.membrane(_blob(rng))
    off = rng.uniform(-0.25, 0.25, 2)
    brush.shape(_blob(rng) * rng.uniform(0.38, 0.5), brush.nucleus, (off[0], off[1]))


def _disc(brush: _Brush, rng: Rng) -> None:
    """Draw no nucleus but a pale middle, as in a red blood cell."""
    brush.membrane(_blob(rng))
    pale = tuple(min(255, v + 45) for v in brush.body)
    brush.shape(_blob(rng) * rng.uniform(0.4, 0.55), (pale[0], pale[1], pale[2]))


def _spindle(brush: _Brush, rng: Rng) -> None:
    """Draw it long and pointed, its nucleus too."""
    long, wide = rng.uniform(1.35, 1.6), rng.uniform(0.4, 0.55)
    sharp = _blob(rng, long, wide)
    sharp[:, 1] *= np.abs(np.sin(_ANGLES)) ** 0.7
    brush.membrane(sharp)
    brush.shape(_blob(rng, 0.5, wide * 0.5), brush.nucleus)


def _branched(brush: _Brush, rng: Rng) -> None:
    """Draw a star of thin arms."""
    arms = int(rng.integers(5, 8))
    waves = np.maximum(0.0, np.cos(arms * _ANGLES + rng.uniform(0, 6))) ** 2
    brush.membrane(ring(0.55 + rng.uniform(0.65, 0.9) * waves))
    brush.shape(_blob(rng) * 0.32, brush.nucleus)


def _granular(brush: _Brush, rng: Rng) -> None:
    """Fill it with dark grains."""
    brush.membrane(_blob(rng))
    for _ in range(int(rng.integers(16, 26))):
        # The root spreads the grains evenly over the disc; without it they crowd in the middle.
        far, angle = 0.85 * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        at = (far * np.cos(angle), far * np.sin(angle))
        brush.dot(at, rng.uniform(0.07, 0.13), brush.nucleus)


def _lobed(brush: _Brush, rng: Rng) -> None:
    """Draw a nucleus of three or four lobes on a bow."""
    brush.membrane(_blob(rng))
    lobes = int(rng.integers(3, 5))
    start = rng.uniform(0, 2 * np.pi)
    for angle in start + np.linspace(0, rng.uniform(2.6, 4.0), lobes):
        at = (0.48 * np.cos(angle), 0.48 * np.sin(angle))
        brush.dot(at, rng.uniform(0.24, 0.3), brush.nucleus)


def _double(brush: _Brush, rng: Rng) -> None:
    """Draw two round nuclei in one long cell."""
    brush.membrane(_blob(rng, rng.uniform(1.15, 1.3), 0.9))
    far = rng.uniform(0.45, 0.58)
    for side in (-far, far):
        brush.dot((side, rng.uniform(-0.1, 0.1)), rng.uniform(0.3, 0.36), brush.nucleus)


def _dividing(brush: _Brush, rng: Rng) -> None:
    """Pinch it in the middle and draw two plates of chromosomes."""
    waist = 1.0 - rng.uniform(0.5, 0.65) * np.abs(np.sin(_ANGLES)) ** 3
    brush.membrane(ring(waist) * np.array([1.4, 1.15]))
    far = rng.uniform(0.55, 0.7)
    for side in (-far, far):
        brush.shape(_blob(rng, 0.13, 0.5), brush.nucleus, (side, 0))


KINDS: dict[str, Callable[[_Brush, Rng], None]] = {
    "resting": _resting,
    "disc": _disc,
    "spindle": _spindle,
    "branched": _branched,
    "granular": _granular,
    "lobed": _lobed,
    "double": _double,
    "dividing": _dividing,
}


def draw_one(label: int, rng: Rng) -> Pixels:
    """Return a cell of the kind ``label``, uint8 [32, 32, 3]."""
    body, nucleus = _stains(rng)
    light = int(rng.integers(215, 246))
    ground = (light, light - int(rng.integers(0, 14)), light - int(rng.integers(0, 10)))
    sheet = Sheet(clouds(rng, ground, 5.0))
    _neighbours(sheet, rng, body)
    pose = Pose(
        scale=rng.uniform(0.22, 0.3),
        turn_rad=rng.uniform(0, 2 * np.pi),
        move=(rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1)),
        mirror=False,
    )
    tuple(KINDS.values())[label](_Brush(sheet, pose, body, nucleus), rng)
    _debris(sheet, rng, nucleus)
    return sheet.finish(
        rng, noise=rng.uniform(3, 10), light=rng.uniform(0.85, 1.08), blur=rng.uniform(0.2, 0.7)
    )


def _stains(rng: Rng) -> tuple[Colour, Colour]:
    """Return the colours of body and nucleus: pinks, lilacs and blues, as stains are."""
    body = (
        int(rng.integers(165, 225)),
        int(rng.integers(130, 185)),
        int(rng.integers(170, 220)),
    )
    nucleus = (
        int(rng.integers(50, 115)),
        int(rng.integers(25, 80)),
        int(rng.integers(90, 155)),
    )
    return body, nucleus


def _neighbours(sheet: Sheet, rng: Rng, body: Colour) -> None:
    for _ in range(int(rng.integers(0, 4))):
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.55, 0.7)
        centre = (far * float(np.cos(angle)), far * float(np.sin(angle)))
        pose = Pose(rng.uniform(0.14, 0.26), 0.0, centre, False)
        sheet.polygon(pose.place(_blob(rng) * 1.08), shade(body, 0.78))
        sheet.polygon(pose.place(_blob(rng)), shade(body, rng.uniform(0.95, 1.08)))


def _debris(sheet: Sheet, rng: Rng, colour: Colour) -> None:
    for _ in range(int(rng.integers(0, 4))):
        sheet.disc(rng.uniform(-0.5, 0.5, 2), rng.uniform(0.008, 0.02), shade(colour, 1.3))


SAMPLE = Sample(tuple(KINDS), draw_one)
