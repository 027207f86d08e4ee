"""Which class was taken for which: what accuracy alone does not say.

Rules of this file: counts in, shares out. The share of a class without pictures, or of a class that
no picture was taken for, is None: it is not 0 and not 1. Only counts above zero are kept, so a
domain of thousands of classes needs no table of their square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Cell = tuple[int, int, int]
"""A true class, the class that it was taken for (both by index), and how many pictures."""
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class: how many pictures show it, and how well it was recognised.

    ``recall``: the share of its pictures that were recognised, which is the class's accuracy.
    ``precision``: the share of right ones among the pictures that were taken for it.
    ``mistaken_for``: the class that its pictures were most often taken for by mistake, and how
    often; of equal counts the first.
    """

    name: str
    pictures: int
    recall: float | None
    precision: float | None
    mistaken_for: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often each of ``classes`` classes was taken for each; ``cells`` above zero, sorted."""

    classes: int
    cells: tuple[Cell, ...]

    @classmethod
    def of(
        cls, labels: Sequence[int] | Ints, answers: Sequence[int] | Ints, classes: int
    ) -> Confusion:
        """Return the counts of true ``labels`` and ``answers``, class indices of one length."""
        pairs = np.asarray(labels, np.int64) * classes + np.asarray(answers, np.int64)
        places, counts = np.unique(pairs, return_counts=True)
        rows, columns = np.divmod(places, classes)
        cells = zip(rows.tolist(), columns.tolist(), counts.tolist(), strict=True)
        return cls(classes, tuple(cells))

    @property
    def pictures(self) -> int:
        """How many pictures were answered."""
        return sum(count for _, _, count in self.cells)

    @property
    def accuracy(self) -> float:
        """The share of pictures that were recognised; 0 without pictures."""
        return int(self._right().sum()) / max(1, self.pictures)

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall over the classes that have pictures; 0 without pictures.

        A class of few pictures counts as much as a class of many (Brodersen et al., ICPR 2010).
        """
        pictures = self._sums(0)
        shown = pictures > 0
        return float((self._right()[shown] / pictures[shown]).mean()) if shown.any() else 0.0

    def scores(self, names: Sequence[str]) -> list[ClassScore]:
        """Return one score for each class, in the order of ``names``."""
        right, shown, taken = self._right(), self._sums(0), self._sums(1)
        mistakes: dict[int, tuple[str, int]] = {}
        for true, answer, count in self.cells:
            if true != answer and count > mistakes.get(true, ("", 0))[1]:
                mistakes[true] = names[answer], count
        return [
            ClassScore(
                name=name,
                pictures=int(shown[place]),
                recall=_share(right[place], shown[place]),
                precision=_share(right[place], taken[place]),
                mistaken_for=mistakes.get(place),
            )
            for place, name in enumerate(names)
        ]

    def table(self) -> list[list[int]]:
        """Return all counts, the true class by row: for few classes, as it has their square."""
        rows = [[0] * self.classes for _ in range(self.classes)]
        for true, answer, count in self.cells:
            rows[true][answer] = count
        return rows

    def _sums(self, axis: int) -> Ints:
        """Return the pictures by true class (0), or by the class they were taken for (1)."""
        sums = np.zeros(self.classes, np.int64)
        for cell in self.cells:
            sums[cell[axis]] += cell[2]
        return sums

    def _right(self) -> Ints:
        right = np.zeros(self.classes, np.int64)
        for true, answer, count in self.cells:
            if true == answer:
                right[true] = count
        return right


def _share(part: np.int64, whole: np.int64) -> float | None:
    return int(part) / int(whole) if whole else None
