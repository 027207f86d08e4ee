"""Cars: side views of eight body styles, drawn.

Rules of this file: a style is its outline and windows, in hundredths of a car's length, x from the
bumper and y up from the road. Everything else (pose, proportions, colours, road, clutter, noise) is
random and says nothing about the style.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    colour_from,
    shade,
)

XY = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Style:
    """One body style: outline, windows, wheels' places and radius."""

    name: str
    outline: tuple[XY, ...]
    windows: tuple[tuple[XY, ...], ...]
    axles: tuple[float, float]
    wheel: float


def _row(
    low: float, high: float, bottom: float, top: float, count: int
) -> tuple[tuple[XY, ...], ...]:
    """Return ``count`` equal windows side by side."""
    edges = np.linspace(low, high, count + 1)
    return tuple(
        ((a + 1, bottom), (a + 1, top), (b - 1, top), (b - 1, bottom))
        for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    )


STYLES = (
    Style(
        "hatchback",
        ((0, 9), (0, 20), (5, 24), (22, 26), (35, 40), (68, 40), (82, 26), (83, 9)),
        (((26, 27), (36, 37), (50, 37), (50, 27)), ((53, 27), (53, 37), (66, 37), (74, 27))),
        (17, 66),
        9,
    ),
    Style(
        "sedan",
        ((0, 8), (0, 19), (5, 22), (28, 24), (40, 36), (64, 36), (78, 25), (99, 23), (100, 8)),
        (((31, 25), (41, 34), (51, 34), (51, 25)), ((53, 25), (53, 34), (62, 34), (73, 25))),
        (19, 80),
        8.5,
    ),
    Style(
        "estate",
        ((0, 8), (0, 19), (5, 22), (28, 24), (40, 37), (93, 37), (101, 24), (102, 8)),
        (
            ((31, 25), (41, 35), (51, 35), (51, 25)),
            ((53, 25), (53, 35), (71, 35), (71, 25)),
            ((74, 25), (74, 35), (91, 35), (96, 25)),
        ),
        (19, 80),
        8.5,
    ),
    Style(
        "suv",
        ((0, 13), (0, 29), (4, 32), (25, 34), (33, 50), (88, 50), (95, 34), (95, 13)),
        (((29, 36), (35, 47), (54, 47), (54, 36)), ((57, 36), (57, 47), (85, 47), (90, 36))),
        (19, 76),
        12,
    ),
    Style(
        "pickup",
        ((0, 12), (0, 27), (4, 29), (25, 31), (34, 44), (56, 44), (60, 30), (105, 30), (105, 12)),
        (((29, 32), (36, 42), (54, 42), (56, 32)),),
        (19, 84),
        11,
    ),
    Style(
        "van",
        ((0, 9), (0, 25), (3, 29), (14, 33), (28, 54), (97, 54), (99, 50), (99, 9)),
        (((19, 34), (29, 50), (44, 50), (44, 34)),),
        (18, 79),
        9,
    ),
    Style(
        "coupe",
        ((0, 7), (0, 14), (6, 18), (33, 21), (48, 31), (60, 31), (88, 22), (99, 20), (100, 7)),
        (((37, 22), (49, 29), (59, 29), (77, 22)),),
        (19, 79),
        9,
    ),
    Style(
        "bus",
        ((0, 8), (0, 48), (3, 52), (117, 52), (120, 48), (120, 8)),
        _row(4, 117, 27, 45, 6),
        (22, 94),
        8,
    ),
)


def draw_one(label: int, rng: Rng) -> Pixels:
    """Return a car of the style ``label``, uint8 [32, 32, 3]."""
    style = STYLES[label]
    sheet = Sheet(clouds(rng, colour_from(rng, 70, 230), 16.0))
    pose = _pose(style, rng)
    _surroundings(sheet, rng)
    paint = colour_from(rng, 20, 235)
    _car(sheet, style, pose, paint, rng)
    _foreground(sheet, rng)
    return sheet.finish(
        rng, noise=rng.uniform(2, 9), light=rng.uniform(0.75, 1.2), blur=rng.uniform(0.0, 0.3)
    )


def _pose(style: Style, rng: Rng) -> Pose:
    length = max(x for x, _ in style.outline)
    return Pose(
        # A bus is longer than a hatchback, but not by as much as in the street.
        scale=rng.uniform(0.78, 0.9) / (100 * length) ** 0.5,
        turn_rad=float(np.deg2rad(rng.uniform(-8, 8))),
        move=(rng.uniform(-0.06, 0.06), rng.uniform(-0.1, 0.1)),
        mirror=bool(rng.random() < 0.5),
    )


def _surroundings(sheet: Sheet, rng: Rng) -> None:
    """Draw a road and a few blocks that stand about."""
    for _ in range(int(rng.integers(0, 3))):
        left, top = rng.uniform(-0.6, 0.5), rng.uniform(-0.6, 0.1)
        wide, high = rng.uniform(0.05, 0.3), rng.uniform(0.1, 0.6)
        sheet.polygon(_box(left, top, wide, high), colour_from(rng, 60, 220))
    if rng.random() < 0.7:
        sheet.polygon(_box(-0.6, rng.uniform(0.1, 0.3), 1.2, 1.0), colour_from(rng, 60, 150))


def _car(sheet: Sheet, style: Style, pose: Pose, paint: Colour, rng: Rng) -> None:
    stretch = np.array([rng.uniform(0.95, 1.05), rng.uniform(0.9, 1.1)])
    jitter = rng.normal(0.0, 0.5, (len(style.outline), 2))
    half = max(x for x, _ in style.outline) / 2

    def place(points: Sequence[XY] | Points, shake: Points | float = 0.0) -> Points:
        # A car turns and mirrors about its middle.
        local = (np.asarray(points, dtype=np.float64) + shake - (half, 22.0)) * stretch
        # Heights count up from the road, rows of a picture count down.
        return pose.place(local * (1.0, -1.0))

    glass = shade(paint, 0.35) if rng.random() < 0.5 else colour_from(rng, 20, 90)
    if rng.random() < 0.2:
        glass = colour_from(rng, 190, 250)
    sheet.polygon(place(style.outline, jitter), paint)
    for window in style.windows:
        sheet.polygon(place(window), glass)
    tyre, rim = colour_from(rng, 5, 45), colour_from(rng, 90, 220)
    for axle in style.axles:
        centre = place([(axle + rng.normal(0, 1.5), style.wheel)])[0]
        sheet.disc(centre, style.wheel * pose.scale, tyre)
        sheet.disc(centre, style.wheel * pose.scale * 0.5, rim)
    sheet.disc(place([(2, 17)])[0], 2.0 * pose.scale, (250, 240, 190))


def _foreground(sheet: Sheet, rng: Rng) -> None:
    """Draw, now and then, a post in front of the car."""
    if rng.random() < 0.2:
        wide = rng.uniform(0.02, 0.06)
        sheet.polygon(_box(rng.uniform(-0.45, 0.4), -0.6, wide, 1.2), colour_from(rng, 30, 200))


def _box(left: float, top: float, wide: float, high: float) -> Points:
    right, bottom = left + wide, top + high
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


SAMPLE = Sample(tuple(style.name for style in STYLES), draw_one)
