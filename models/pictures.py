"""Drawn pictures on which the shipped ``resnet20`` is trained; nothing is downloaded.

A picture holds one figure in front of a background. The figure is a closed shape or a glyph of an
invented alphabet. Everything is one formula over the pixel grid: it moves the grid into the
figure's frame (pose, shear, a wavy warp), and the distance to the figure's line segments says which
pixels the figure covers. Labels: the figure, its fill and the background. No figure belongs to a
sample domain (no cars, no digits, no sweeps, no cells). Numpy only; the same generator state draws
the same pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from toolchain.core.arrays import Floats

SIZE_PX = 32
SEGMENTS = 16
FILLS = ("plain", "stripes", "checks", "dots", "rings", "gradient", "zigzag", "grain")
BACKGROUNDS = ("plain", "gradient", "glow", "clouds", "grain", "stripes", "horizon", "two-tone")
IGNORED = -1
"""The fill label of a figure drawn with strokes: a stroke is too thin to show a fill."""


def _polygon(corners: int, turn_rad: float = -np.pi / 2, dent: float = 1.0) -> list[list[float]]:
    """Return points on the unit circle, every second one pulled in to radius ``dent``."""
    angles = turn_rad + 2 * np.pi * np.arange(corners) / corners
    radii = np.where(np.arange(corners) % 2, dent, 1.0)
    return [
        [float(r * np.cos(a)), float(r * np.sin(a))] for r, a in zip(radii, angles, strict=True)
    ]


def _arc(start_rad: float, stop_rad: float, radius: float, at: float = 0.0) -> list[list[float]]:
    angles = np.linspace(start_rad, stop_rad, 8)
    return [[float(at + radius * np.cos(a)), float(radius * np.sin(a))] for a in angles]


def _grid(letters: str) -> list[list[float]]:
    """Read points of [-1, 1] x [-1, 1] from a 5 x 5 grid, ``a`` top left to ``y`` bottom right."""
    cells = [ord(letter) - ord("a") for letter in letters]
    return [[cell % 5 / 2 - 1, cell // 5 / 2 - 1] for cell in cells]


SHAPES: dict[str, list[list[float]]] = {
    "triangle": _polygon(3),
    "square": _grid("aeyu"),
    "pentagon": _polygon(5),
    "octagon": _polygon(8, np.pi / 8),
    "star4": _polygon(8, dent=0.4),
    "star5": _polygon(10, dent=0.45),
    "star6": _polygon(12, dent=0.55),
    "gear": _polygon(16, dent=0.75),
    "bar": _grid("fjtp"),
    "pillar": _grid("bdxv"),
    "lozenge": _grid("cnwl"),
    "wedge": _grid("ayu"),
    "trapezium": _grid("bdyu"),
    "slant": _grid("gjsp"),
    "cross": _grid("bdijtsxvqpfg"),
    "arrow": _grid("fhcowrp"),
    "corner": _grid("abqtyu"),
    "tee": _grid("aejixvgf"),
    "trough": _grid("abqsdeyu"),
    "step": _grid("ablnxu"),
    "hourglass": _grid("aeuy"),
    "house": _grid("cjyuf"),
    "half": _arc(-np.pi, 0.0, 1.0),
    "crescent": _arc(-2.2, 2.2, 1.0) + _arc(1.9, -1.9, 0.75, -0.42),
}

GLYPHS = (
    "aqy ck", "ubyo", "axe lm", "kcow", "eagw mo", "uaye", "cw fj pt", "aeumy",
    "buxe", "gqsi cw", "uqcsy", "ackmwy", "abxy kn", "eiqu gs", "kaewo", "cuoky",
    "awe ghij", "fpyo", "uakoe", "amc rw", "xdbf lt", "ekj rw", "vbn po", "axb ydm",
)  # fmt: skip
"""Strokes over the same 5 x 5 grid; a space lifts the pen."""

FIGURES = (*SHAPES, *(f"glyph{index:02d}" for index in range(len(GLYPHS))))
TASKS = {"figure": len(FIGURES), "fill": len(FILLS), "background": len(BACKGROUNDS)}
"""Label columns and their class counts, in the order of the classifier's outputs."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """``pixels`` uint8 [N, 32, 32, 3] RGB; ``labels`` int64 [N, 3], columns as in ``TASKS``."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def figure_segments() -> Floats:
    """Return every figure's line segments, float32 [figures, 16, 4] as (x0, y0, x1, y1).

    Figures with fewer segments repeat their last point, which changes neither distance nor parity.
    """
    closed = [[a + b for a, b in pairwise([*points, points[0]])] for points in SHAPES.values()]
    strokes = [[_grid(part) for part in glyph.split()] for glyph in GLYPHS]
    opened = [[a + b for part in parts for a, b in pairwise(part)] for parts in strokes]
    padded = [row + [row[-1][2:] * 2] * (SEGMENTS - len(row)) for row in closed + opened]
    return np.array(padded, np.float32)


class _Drawer:
    """One batch in the making; random numbers come from ``rng`` in a fixed order."""

    def __init__(self, rng: np.random.Generator, count: int) -> None:
        self.rng = rng
        self.count = count
        axis = np.arange(SIZE_PX, dtype=np.float32) - (SIZE_PX - 1) / 2
        self.x = np.broadcast_to(axis[None, None, :], (count, SIZE_PX, SIZE_PX))
        self.y = np.broadcast_to(axis[None, :, None], (count, SIZE_PX, SIZE_PX))

    def uniform(self, low: float, high: float) -> Floats:
        """Draw one number per picture, shaped [N, 1, 1] to meet the pixel grid."""
        return self.rng.uniform(low, high, (self.count, 1, 1)).astype(np.float32)

    def frame(self) -> tuple[Floats, Floats, Floats]:
        """Return the figure's coordinates (u, v) of each pixel, and its size in pixels per unit."""
        size, turn = self.uniform(6.5, 14.0), self.uniform(-0.45, 0.45)
        aspect, shear = np.exp(self.uniform(-0.25, 0.25)), self.uniform(-0.25, 0.25)
        x, y = self.x - self.uniform(-4, 4), self.y - self.uniform(-4, 4)
        # The aspect stretches one axis as much as it shrinks the other, so the area stays.
        u = (x * np.cos(turn) + y * np.sin(turn)) / (size * aspect)
        v = (y * np.cos(turn) - x * np.sin(turn)) / size * aspect
        u = u + shear * v
        bend, waves, phase = self.uniform(0.0, 0.22), self.uniform(1.0, 3.0), self.uniform(0, 6.3)
        return u + bend * np.sin(waves * v + phase), v + bend * np.cos(waves * u + phase), size

    def pattern(self, kind: npt.NDArray[np.int64], u: Floats, v: Floats) -> Floats:
        """Return the mix of two colours in [0, 1] for each pixel, by each picture's ``kind``."""
        pitch, phase = self.uniform(5.5, 11.0), self.uniform(0, 6.3)
        # A row per fill, in the order of FILLS. A factor above 1 and the clip turn sines into
        # edges.
        a, b = np.sin(pitch * u + phase), np.sin(pitch * v + phase)
        grain = self.rng.random((self.count, SIZE_PX, SIZE_PX), np.float32)
        waves = np.stack(
            [
                np.zeros_like(u),
                a * 3 + 0.5,
                a * b * 4 + 0.5,
                (a + b - 0.9) * 4,
                np.sin(1.3 * pitch * np.hypot(u, v) + phase) * 3 + 0.5,
                0.5 + 0.5 * (u * np.cos(phase) + v * np.sin(phase)),
                np.sin(pitch * (v + 0.35 * np.abs((1.6 * u + phase) % 2 - 1)) * 1.2) * 3 + 0.5,
                grain,
            ]
        )
        mix: Floats = np.clip(waves[kind, np.arange(self.count)], 0, 1)
        return mix

    def background(self, kind: npt.NDArray[np.int64]) -> Floats:
        """Return the background's mix of its two colours in [0, 1]."""
        half = SIZE_PX / 2
        angle, shift = self.uniform(0, 6.3), self.uniform(-0.6, 0.6)
        # A row per background, in the order of BACKGROUNDS.
        along = (self.x * np.cos(angle) + self.y * np.sin(angle)) / half
        radius = np.hypot(self.x / half - shift, self.y / half - self.uniform(-0.6, 0.6))
        coarse = self.rng.random((self.count, 5, 5), np.float32)
        waves = np.stack(
            [
                np.zeros_like(along),
                0.5 + 0.5 * along,
                1.2 - radius,
                _smooth(coarse),
                self.rng.random(along.shape, np.float32),
                0.5 + 0.5 * np.sin(self.uniform(5, 14) * along + shift),
                (self.y / half - shift) * 6 + 0.08 * self.y,
                (along - shift) * 12,
            ]
        )
        mix: Floats = np.clip(waves[kind, np.arange(self.count)], 0, 1)
        return mix


def _smooth(coarse: Floats) -> Floats:
    """Interpolate [N, 5, 5] linearly to [N, 32, 32]."""
    place = np.linspace(0, 4, SIZE_PX)
    weights = np.clip(1 - np.abs(place[:, None] - np.arange(5)), 0, 1).astype(np.float32)
    grid: Floats = np.einsum("yi,nij,xj->nyx", weights, coarse, weights)
    return grid


def _distance(segments: Floats, u: Floats, v: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return each pixel's distance to the nearest segment and whether it lies inside (even-odd)."""
    nearest = np.full(u.shape, np.inf, np.float32)
    inside = np.zeros(u.shape, bool)
    for index in range(SEGMENTS):
        x0, y0, x1, y1 = (segments[:, index, k, None, None] for k in range(4))
        dx, dy = x1 - x0, y1 - y0
        px, py = u - x0, v - y0
        # The 1e-9 is for the repeated last points, which are segments of length zero.
        along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
        nearest = np.minimum(nearest, (px - along * dx) ** 2 + (py - along * dy) ** 2)
        crosses = (y0 > v) != (y1 > v)
        # Even-odd rule: every edge that a ray crosses turns inside into outside.
        inside ^= crosses & ((px * dy < py * dx) == (dy > 0))
    return np.sqrt(nearest), inside


def _colours(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
    """Draw the figure's and the background's colour pairs, float32 [N, 2, 3]; a third are grey.

    First colours differ by at least 0.25 in mean. The figure's second one moves further away.
    """
    pairs = rng.random((count, 4, 3), np.float32)
    grey = rng.random(count) < 0.33
    pairs[grey] = pairs[grey].mean(2, keepdims=True)
    low = rng.uniform(0.0, 0.5, count).astype(np.float32)
    high = low + rng.uniform(0.25, 0.5, count).astype(np.float32)
    darker = rng.random(count) < 0.5
    near, far = np.where(darker, low, high), np.where(darker, high, low)
    # Tints have no brightness of their own: that comes from near and far alone.
    tints = 0.45 * (pairs - pairs.mean(2, keepdims=True))
    front = near[:, None, None] + tints[:, :2]
    back = far[:, None, None] + tints[:, 2:]
    front[:, 1] += np.where(darker, -0.28, 0.28)[:, None]
    back[:, 1] += rng.uniform(-0.2, 0.2, (count, 1)).astype(np.float32)
    return front.astype(np.float32), back.astype(np.float32)


def draw(rng: np.random.Generator, count: int) -> Pictures:
    """Draw ``count`` pictures, every figure, fill and background equally likely."""
    labels = np.stack([rng.integers(0, classes, count) for classes in TASKS.values()], 1)
    drawer = _Drawer(rng, count)
    u, v, size_px = drawer.frame()
    distance, inside = _distance(figure_segments()[labels[:, 0]], u, v)
    stroked = (labels[:, 0] >= len(SHAPES)) | (rng.random(count) < 0.2)
    # At least a pixel or so, or the strokes of small figures would vanish.
    stroke = np.maximum(drawer.uniform(0.1, 0.26), 0.9 / size_px)
    signed = np.where(stroked[:, None, None], distance - stroke, np.where(inside, -1, 1) * distance)
    # From half a pixel inside the edge to half a pixel outside: smooth edges.
    cover = np.clip(0.5 - signed * size_px, 0, 1)[..., None]
    labels[stroked, 1] = IGNORED
    fill = drawer.pattern(np.where(stroked, 0, labels[:, 1]), u, v)
    front, back = (
        colours[:, None, None, 0] * (1 - mix[..., None])
        + colours[:, None, None, 1] * mix[..., None]
        for colours, mix in zip(
            _colours(rng, count), (fill, drawer.background(labels[:, 2])), strict=True
        )
    )
    noise = rng.standard_normal((count, SIZE_PX, SIZE_PX, 3), np.float32)
    mixed = back + cover * (front - back) + drawer.uniform(0.0, 0.08)[..., None] * noise
    return Pictures(np.clip(mixed * 255, 0, 255).round().astype(np.uint8), labels.astype(np.int64))
