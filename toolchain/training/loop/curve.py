"""The learning curve as a picture.

Rules of this file: figures in, the text of an SVG out; no library. It takes its text colour from
where it is shown, and asks for nothing from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toolchain.training.adapt.checkpoint import EpochFigures

WIDTH, HEIGHT = 360, 240
_LEFT, _TOP, _RIGHT, _BOTTOM = 48, 34, 12, 34
_TRAIN, _VALIDATION = "#3a86c8", "#c9892b"

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class _Panel:
    """A plot of lines over epochs; values from ``low`` to ``high``."""

    title: str
    lines: tuple[tuple[str, Values], ...]
    low: float
    high: float
    digits: str

    def x(self, place: int, count: int) -> float:
        inner = WIDTH - _LEFT - _RIGHT
        # One epoch alone stands in the middle.
        return _LEFT + (inner * place / (count - 1) if count > 1 else inner / 2)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def curve(epochs: Sequence[EpochFigures], best: int | None) -> str:
    """Return an SVG of loss and accuracy by epoch, of training and of the validation part.

    ``best``: the epoch whose weights are kept so far, from 1; None draws no mark.
    """
    losses = ([e.loss for e in epochs], [e.validation_loss for e in epochs])
    shares = ([e.accuracy for e in epochs], [e.validation_accuracy for e in epochs])
    highest = max(value for values in losses for value in values if value is not None)
    panels = (
        # Room above the highest point; and losses that are all zero have a scale, too.
        _Panel("loss", _named(losses), 0.0, highest * 1.05 or 1.0, ".3g"),
        _Panel("accuracy", _named(shares), 0.0, 1.0, ".0%"),
    )
    body = [line for place, panel in enumerate(panels) for line in _drawn(panel, place, best)]
    size = f'viewBox="0 0 {2 * WIDTH} {HEIGHT}" width="{2 * WIDTH}" height="{HEIGHT}"'
    style = 'font-family="sans-serif" font-size="11" fill="currentColor"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
    return "\n".join([head, *body, "</svg>", ""])


def _named(values: tuple[Values, Values]) -> tuple[tuple[str, Values], ...]:
    return tuple(zip((_TRAIN, _VALIDATION), values, strict=True))


def _drawn(panel: _Panel, place: int, best: int | None) -> Iterator[str]:
    count = len(panel.lines[0][1])
    yield f'<g transform="translate({place * WIDTH} 0)">'
    yield _label(_LEFT, 16, panel.title, "start")
    yield _label(WIDTH - _RIGHT - 66, 16, "training", "end", _TRAIN)
    yield _label(WIDTH - _RIGHT, 16, "validation", "end", _VALIDATION)
    for quarter in range(5):
        value = panel.low + (panel.high - panel.low) * quarter / 4
        y = panel.y(value)
        yield _line(_LEFT, y, WIDTH - _RIGHT, y, "0.2")
        yield _label(_LEFT - 5, y + 4, format(value, panel.digits), "end")
    # A set, as two of the three may be one.
    for epoch in sorted({1, (count + 1) // 2, count}):
        yield _label(panel.x(epoch - 1, count), HEIGHT - _BOTTOM + 16, f"{epoch}", "middle")
    yield _label(WIDTH - _RIGHT, HEIGHT - 4, "epoch", "end")
    if best is not None:
        x = panel.x(best - 1, count)
        yield _line(x, _TOP, x, HEIGHT - _BOTTOM, "0.5")
    for colour, values in panel.lines:
        points = [
            (panel.x(at, count), panel.y(value))
            for at, value in enumerate(values)
            if value is not None
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        # More dots would run into each other, and the line says it alone.
        for x, y in points if count <= 60 else ():
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>'
    yield "</g>"


def _line(x1: float, y1: float, x2: float, y2: float, opacity: str) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="currentColor" stroke-opacity="{opacity}"/>'


def _label(x: float, y: float, text: str, anchor: str, colour: str = "currentColor") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}">{text}</text>'
