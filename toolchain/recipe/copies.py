"""Pictures of a folder that are copies of others: files with the same bytes, links included.

Rules of this file: it reads files and decodes none. Whoever tests on a picture that was trained
with gets a figure that is too good, and a picture in two classes is wrong in one of them. So both
are counted and told; nothing is left out for it. Sizes come first: most pictures have one that no
other has, and are never opened.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from toolchain.core.files import shown_below
from toolchain.core.sealed import file_digest
from toolchain.recipe.listing import Listing

LISTED = 100
_TAIL_BYTES = 4096
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Copies:
    """``count``: pictures that are copies of one before them, the first ``LISTED`` in ``pairs``.

    A pair is the path of a copy and that of its original, below the root; pictures that are no
    files give none. ``tested``: pictures of
    the test whose bytes stand in another part too. ``classes``: pictures whose bytes stand in
    another class too.
    """

    count: int
    tested: int
    classes: int
    pairs: tuple[tuple[str, str], ...]

    def lines(self) -> list[str]:
        """Return for people what there is, or nothing."""
        if not self.count:
            return []
        pairs = ", ".join(f"{copy} of {first}" for copy, first in self.pairs[:_SHOWN])
        such_as = f", such as {pairs}" if pairs else ""
        lines = [f"{self.count} pictures are copies of others, byte for byte{such_as}"]
        if self.tested:
            lines.append(
                f"{self.tested} pictures of the test are in another part as well: what was trained "
                "with is tested, and the accuracy will be too good"
            )
        if self.classes:
            lines.append(
                f"{self.classes} pictures are in several classes: at most one of them is right"
            )
        return lines


@dataclass(frozen=True, slots=True)
class _Picture:
    """Where one picture stands."""

    path: Path
    label: int
    is_test: bool


def find_copies(listing: Listing) -> Copies:
    """Return the copies among the pictures of ``listing``; a file that cannot be read is none."""
    pictures = [
        *(_Picture(path, label, False) for path, label in listing.train + listing.validation),
        *(_Picture(path, label, True) for path, label in listing.test),
    ]
    groups: Iterable[Sequence[_Picture]] = [pictures]
    for tell in (_size, _tail, file_digest):
        groups = list(chain.from_iterable(_alike(group, tell) for group in groups))
    count = tested = classes = 0
    pairs: list[tuple[str, str]] = []
    for group in groups:
        count += len(group) - 1
        tests = sum(picture.is_test for picture in group)
        tested += tests if tests < len(group) else 0
        classes += len(group) if len({picture.label for picture in group}) > 1 else 0
        paths = [shown_below(picture.path, listing.root) for picture in group]
        pairs += [(copy, paths[0]) for copy in paths[1:]]
    return Copies(count, tested, classes, tuple(sorted(pairs)[:LISTED]))


def _alike(
    pictures: Sequence[_Picture], tell: Callable[[Path], Hashable]
) -> Iterator[list[_Picture]]:
    """Yield those groups of two or more of which ``tell`` says the same."""
    groups: defaultdict[Hashable, list[_Picture]] = defaultdict(list)
    for picture in pictures:
        try:
            groups[tell(picture.path)].append(picture)
        except OSError:
            continue  # whoever decodes it says what is wrong
    return (group for group in groups.values() if len(group) > 1)


def _size(path: Path) -> int:
    return path.stat().st_size


def _tail(path: Path) -> bytes:
    """Return the end: the beginning of pictures from one camera is often the same."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        return file.read(_TAIL_BYTES)
