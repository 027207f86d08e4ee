"""What a folder of pictures is, looked at whole: its listing, and every picture decoded once.

Rules of this file: it says everything at once. A folder with one damaged picture is refused with
all that are damaged. Nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toolchain.core.errors import DataError, Fault
from toolchain.pictures.survey import FIX, Survey, Tell, survey
from toolchain.recipe.copies import Copies, find_copies
from toolchain.recipe.listing import AS_FOLDERS, LAYOUT, Listing, raise_faults

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Examined:
    """A folder whose pictures are all whole."""

    listing: Listing
    survey: Survey
    copies: Copies

    def lines(self) -> list[str]:
        """Return for people what lies there, what was taken for what, and what is left out."""
        (narrow, wide), (low, high) = self.survey.width, self.survey.height
        first, *rest = self.listing.lines()
        sizes = f"{narrow} to {wide} px wide, {low} to {high} px high ({self.survey.whole} decoded)"
        return [first, sizes, *self._several(), *self.copies.lines(), *rest]

    def _several(self) -> list[str]:
        survey = self.survey
        if not survey.several:
            return []
        return [
            f"{survey.several} files hold several pictures (an animation, pages), of which the "
            f"first is used, such as {', '.join(survey.such_as[:_SHOWN])}"
        ]

    def counts(self) -> list[dict[str, int | str]]:
        """Return for each class its name and the number of its pictures per part."""
        return self.listing.counts()

    def document(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        listing = self.listing
        return {
            "root": listing.root,
            "parts": _parts(listing),
            "train": len(listing.train),
            "validation": len(listing.validation),
            "test": len(listing.test),
            "classes": listing.counts(),
            "width": self.survey.width,
            "height": self.survey.height,
            "several": {"count": self.survey.several, "paths": self.survey.such_as},
            "copies": {
                "count": self.copies.count,
                "in_test_and_another_part": self.copies.tested,
                "in_several_classes": self.copies.classes,
                "paths": self.copies.pairs,
            },
            "notes": listing.notes,
            "left_out": listing.left_out,
        }


def examine(listing: Listing, tell: Tell = lambda _done, _all: None) -> Examined:
    """Return what the pictures of ``listing`` are; ``tell`` gets how many are done, and of all.

    Raises DataError where there are fewer than two classes or nothing to train on or test with, and
    for the listing's faults and damaged pictures: all of them at once, in ``faults``.
    """
    if len(listing.classes) < 2 or not listing.train or not listing.test:
        listing.raise_faults()
        _, *others = listing.lines()
        counts = f"{len(listing.classes)} classes, {len(listing.train)} and {len(listing.test)}"
        raise DataError(
            f"{listing.root}: expected at least 2 classes with pictures to train and to test, "
            f"got {counts}" + "".join(f"\n  {line}" for line in others),
            fix=_fix(listing),
        )
    pictures = survey([path for path, _ in listing.pictures], listing.root, tell)
    if listing.faults:
        damaged = (Fault(fault.path, fault.message, FIX) for fault in pictures.faults)
        raise_faults(str(listing.root), (*listing.faults, *damaged))
    pictures.raise_faults(str(listing.root))
    return Examined(listing, pictures, find_copies(listing))


def _parts(listing: Listing) -> str:
    if not listing.was_split:
        return "hash"
    return "folders" if listing.parts in ("", AS_FOLDERS) else "table"


def _fix(listing: Listing) -> str:
    """Return what helps a folder that gives too little: the layout may be right already."""
    if len(listing.classes) > 1 and not listing.was_split:
        where = "give each class" if listing.parts else "put"
        into = "" if listing.parts else " into a class folder"
        return f"{where} at least 2 pictures{into}: one to train and one to test"
    if listing.parts:
        return "look at data.columns, data.labels and data.path"
    return LAYOUT.format(root=listing.root)
