"""How well a loaded domain answers labelled pictures.

Rules of this file: it asks a runner, picture by picture, and counts. A picture that cannot be used
is named and left out of every figure, and the others are answered. It finds no pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.core.confusion import Confusion
from toolchain.core.errors import DataError, TimeLimitError
from toolchain.device.runtime.stream import Answerer

Labelled = tuple[Path, str]
"""A picture and the name of the class that it shows."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a domain answered: ``classes`` in the order of the counts, the bundle's.

    ``gate_rates``: by gated block, the share of pictures for which its gate was open. ``ms``: mean
    time of the model for a picture. ``unusable``: pictures without an answer, and why.
    """

    classes: tuple[str, ...]
    confusion: Confusion
    gate_rates: dict[str, float]
    ms: float
    unusable: tuple[tuple[Path, DataError | TimeLimitError], ...]


def score(
    runner: Answerer,
    pictures: Iterable[Labelled],
    classes: Sequence[str],
    *,
    time_limit_s: float | None = None,
) -> Scores:
    """Return how the one loaded domain of ``runner``, of these ``classes``, answers ``pictures``.

    Raises DataError for a class that the domain does not know, and if no picture can be used.
    """
    places = {name: place for place, name in enumerate(classes)}
    labels: list[int] = []
    answers: list[int] = []
    opened: dict[str, int] = {}
    unusable: list[tuple[Path, DataError | TimeLimitError]] = []
    total_ms = 0.0
    for path, name in pictures:
        if name not in places:
            raise _unknown(path, name, classes)
        try:
            answer = runner.run(path, time_limit_s=time_limit_s)
        except (DataError, TimeLimitError) as err:
            unusable.append((path, err))
            continue
        labels.append(places[name])
        answers.append(answer.index)
        total_ms += answer.ms
        for gate, is_open in answer.gates.items():
            opened[gate] = opened.get(gate, 0) + is_open
    if not labels:
        raise DataError(
            f"expected pictures that can be answered, got none of {len(unusable)}",
            fix=unusable[0][1].message if unusable else "name a folder with pictures",
        )
    return Scores(
        classes=tuple(classes),
        confusion=Confusion.of(labels, answers, len(classes)),
        gate_rates={gate: count / len(labels) for gate, count in opened.items()},
        ms=total_ms / len(labels),
        unusable=tuple(unusable),
    )


def _unknown(path: Path, name: str, classes: Sequence[str]) -> DataError:
    shown = ", ".join(classes[:8]) + ", ..." * (len(classes) > 8)
    return DataError(
        f"{path}: expected one of the domain's {len(classes)} classes, got {name!r}",
        fix=f"name the class folders as the domain's classes are: {shown}",
    )
