"""A domain's data as training and checking read it: two splits of labelled pictures.

Rules of this file: a split is read-only and gives the same picture for the same index for ever.
``CACHE_BYTES`` bounds the memory for pictures in files. A picture is decoded when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from toolchain.core.errors import DataError
from toolchain.pictures.preprocess import Pixels, Preprocessing, pixels

CACHE_BYTES = 512 * 1024 * 1024

Labels = npt.NDArray[np.int64]
Indices = Sequence[int] | npt.NDArray[np.integer]


class Split(Protocol):
    """Labelled pictures, addressed by index."""

    @property
    def name(self) -> str:
        """The domain and the part: ``cars/train``."""

    @property
    def labels(self) -> Labels:
        """All labels, int64 [len], read-only."""

    def __len__(self) -> int: ...

    def batch(self, indices: Indices) -> tuple[Pixels, Labels]:
        """Return uint8 [B, S, S, 3] and int64 [B]; IndexError outside 0..len-1."""


@dataclass(frozen=True, slots=True)
class ArraySplit:
    """A split whose pictures, uint8 [N, S, S, 3], are all in memory."""

    name: str
    pictures: Pixels
    labels: Labels

    def __post_init__(self) -> None:
        """Close both arrays for writing."""
        self.pictures.flags.writeable = False
        self.labels.flags.writeable = False

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Indices) -> tuple[Pixels, Labels]:
        """Return uint8 [B, S, S, 3] and int64 [B]."""
        rows = checked_rows(indices, len(self))
        return self.pictures[rows], self.labels[rows]


@dataclass(frozen=True, slots=True)
class FileSplit:
    """A split whose pictures are decoded when first asked for.

    The cache takes pictures until it is full, and then keeps those. So it serves its share of every
    shuffled epoch. A cache that throws out the oldest would serve almost nothing.
    """

    name: str
    paths: tuple[Path, ...]
    labels: Labels
    preprocess: Preprocessing
    cache_bytes: int = CACHE_BYTES
    _cache: dict[int, Pixels] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Close the labels for writing."""
        self.labels.flags.writeable = False

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Indices) -> tuple[Pixels, Labels]:
        """Return uint8 [B, S, S, 3] and int64 [B]; DataError for a damaged picture."""
        rows = checked_rows(indices, len(self))
        side = self.preprocess.size
        pictures = np.empty((len(rows), side, side, 3), dtype=np.uint8)
        for place, row in enumerate(rows.tolist()):
            pictures[place] = self._picture(row)
        return pictures, self.labels[rows]

    def _picture(self, row: int) -> Pixels:
        picture = self._cache.get(row)
        if picture is None:
            picture = pixels(self.preprocess, self.paths[row])
            # All pictures of a split have one size.
            if (len(self._cache) + 1) * picture.nbytes <= self.cache_bytes:
                self._cache[row] = picture
        return picture


@dataclass(frozen=True, slots=True)
class DomainData:
    """A domain's two splits and the names of its classes, in the order of the labels."""

    train: Split
    test: Split
    classes: tuple[str, ...]


def checked_rows(indices: Indices, count: int) -> npt.NDArray[np.int64]:
    """Return ``indices`` as int64 [B]; IndexError outside 0..count-1 (negative ones too)."""
    rows = np.asarray(indices, dtype=np.int64).reshape(-1)
    if rows.size and (rows.min() < 0 or rows.max() >= count):
        raise IndexError(f"expected indices 0 to {count - 1}, got {rows.min()} to {rows.max()}")
    return rows


def spread(labels: Labels, limit: int | None, seed: int) -> npt.NDArray[np.int64]:
    """Return at most ``limit`` rows, ascending, spread evenly over the classes.

    Every class gives its first picture (in an order drawn from ``seed``) before any class gives its
    second, so a small limit still takes every class.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    # Stable, so that within a class the drawn order stays.
    by_class = order[np.argsort(labels[order], kind="stable")]
    sorted_labels = labels[by_class]
    starts = np.searchsorted(sorted_labels, sorted_labels, side="left")
    # The turn in which a picture comes: its place within its class.
    turn = np.arange(len(labels)) - starts
    return np.sort(by_class[np.argsort(turn, kind="stable")][:limit]).astype(np.int64)


def require_pictures(name: str, train: int, test: int, classes: int) -> None:
    """Raise DataError unless there is something to train on, to test with and to tell apart."""
    for part, count in (("train", train), ("test", test)):
        if count == 0:
            raise DataError(f"{name}/{part}: expected pictures, got none", fix="add pictures")
    if classes < 2:
        raise DataError(
            f"{name}: expected at least 2 classes, got {classes}", fix="add a class's pictures"
        )
