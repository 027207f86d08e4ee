"""How well each class is recognised; shared by ``train``, ``inspect`` and ``eval``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from toolchain.cli.show import layout

if TYPE_CHECKING:
    from toolchain.core.confusion import ClassScore, Confusion

SHOWN = 20
TABLED = 15
"""A table of confusion with more classes is wider than a screen."""


def class_document(confusion: Confusion, names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of each class, and the confusion as cells above zero."""
    return {
        "per_class": [
            {
                "name": score.name,
                "pictures": score.pictures,
                "accuracy": score.recall,
                "precision": score.precision,
            }
            for score in confusion.scores(names)
        ],
        "confusion": [
            {"class": names[true], "taken_for": names[answer], "pictures": count}
            for true, answer, count in confusion.cells
        ],
    }


def class_lines(confusion: Confusion, names: Sequence[str]) -> list[str]:
    """Return one line for each class; of many, those that are recognised worst."""
    scores = [score for score in confusion.scores(names) if score.pictures]
    heads = ("class", "pictures", "recognised", "precision", "most often taken for")
    lines: list[str] = []
    if len(scores) > SHOWN:
        # Stable: of equal ones the first class comes first.
        scores = sorted(scores, key=lambda score: score.recall or 0.0)
        lines = [f"  the {SHOWN} of {len(scores)} classes that are recognised worst:"]
    return [*lines, *layout.table(heads, map(_row, scores[:SHOWN]), right="123")]


def _row(score: ClassScore) -> tuple[object, ...]:
    mistake = score.mistaken_for
    return (
        score.name,
        score.pictures,
        layout.percent(score.recall),
        layout.percent(score.precision),
        "" if mistake is None else f"{mistake[0]} ({mistake[1]})",
    )


def confusion_lines(confusion: Confusion, names: Sequence[str]) -> list[str]:
    """Return the table of confusion, a row for each true class; nothing for many classes."""
    if confusion.classes > TABLED:
        return []
    heads = ("", *(f"{place}" for place in range(len(names))))
    rows = [
        (f"{place} {name}", *(count or "." for count in row))
        for place, (name, row) in enumerate(zip(names, confusion.table(), strict=True))
    ]
    columns = [f"{place}" for place in range(1, len(heads))]
    return ["  class by row, answer by column:", *layout.table(heads, rows, right=columns)]
