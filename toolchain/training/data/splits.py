"""A domain's data as training and checking read it: two splits of labelled pictures.

Rules of this file: a split is read-only and gives the same picture for the same index for ever.
A picture in a file is decoded when it is asked for. ``CACHE_BYTES`` bounds what all parts of a
domain keep decoded, however many files there are. Where one picture is damaged, all damaged ones of
the domain are reported.
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from toolchain.core.errors import DataError
from toolchain.pictures.decode import Pixels
from toolchain.pictures.preprocess import Preprocessing, pixels
from toolchain.pictures.survey import survey
from toolchain.recipe.spec import Recipe

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


class Store(ABC):
    """The pictures of a domain that are made when asked for, and the memory for those that were.

    The cache takes pictures until it is full, and then keeps those. So it serves its share of every
    shuffled epoch. A cache that throws out the oldest would serve almost nothing. Threads may ask
    at the same time.
    """

    def __init__(
        self, count: int, preprocess: Preprocessing, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.preprocess = preprocess
        side = preprocess.size
        slots = min(count, cache_bytes // (side * side * 3))
        # The system gives the memory page by page, as the pictures come.
        self._decoded = np.empty((slots, side, side, 3), dtype=np.uint8)
        self._slot_of = np.full(count, -1, dtype=np.int32)
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """The most bytes that pictures, their places and what they are made of take."""
        return self._decoded.nbytes + self._slot_of.nbytes + self._source_bytes()

    def picture(self, row: int) -> Pixels:
        """Return picture ``row`` as uint8 [S, S, 3].

        Raises DataError for a damaged picture, which lists all damaged ones, and StorageError.
        """
        slot = self._slot_of[row]
        if slot >= 0:
            cached: Pixels = self._decoded[slot]
            return cached
        picture = self._made(row)
        with self._lock:
            if self._taken < len(self._decoded) and self._slot_of[row] < 0:
                self._decoded[self._taken] = picture
                self._slot_of[row] = self._taken
                self._taken += 1
        return picture

    @abstractmethod
    def _made(self, row: int) -> Pixels:
        """Return picture ``row`` as the model sees it."""

    @abstractmethod
    def _source_bytes(self) -> int:
        """Return the bytes that stay in memory to make pictures of."""


class Pictures(Store):
    """All picture files of a domain."""

    def __init__(
        self,
        paths: Sequence[str],
        root: Path,
        preprocess: Preprocessing,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        super().__init__(len(paths), preprocess, cache_bytes)
        self.paths = tuple(paths)
        self.root = root

    def _made(self, row: int) -> Pixels:
        try:
            return pixels(self.preprocess, self.paths[row])
        except DataError:
            # Whoever mends one shall not meet the next one in the next run.
            survey(self.paths, self.root).raise_faults(str(self.root))
            raise

    def _source_bytes(self) -> int:
        return sum(map(sys.getsizeof, self.paths)) + sys.getsizeof(self.paths)


class Stacks(Store):
    """The pictures of arrays, uint8 [N, H, W] or [N, H, W, 3], one array after another.

    The arrays stay as they are. Large squares of small pictures never fill the memory.
    """

    def __init__(
        self,
        arrays: Sequence[Pixels],
        preprocess: Preprocessing,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._starts = np.cumsum([0, *map(len, arrays)])
        super().__init__(int(self._starts[-1]), preprocess, cache_bytes)
        self._arrays = tuple(arrays)

    def _made(self, row: int) -> Pixels:
        place = int(np.searchsorted(self._starts, row, side="right")) - 1
        return pixels(self.preprocess, self._arrays[place][row - self._starts[place]])

    def _source_bytes(self) -> int:
        return sum(array.nbytes for array in self._arrays)


@dataclass(frozen=True, slots=True)
class FileSplit:
    """A part of a store of pictures: those from ``start`` on, one for each label."""

    name: str
    store: Store
    start: int
    labels: Labels

    def __post_init__(self) -> None:
        """Close the labels for writing."""
        self.labels.flags.writeable = False

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Indices) -> tuple[Pixels, Labels]:
        """Return uint8 [B, S, S, 3] and int64 [B]. Raises as :meth:`Store.picture`."""
        rows = checked_rows(indices, len(self))
        side = self.store.preprocess.size
        pictures = np.empty((len(rows), side, side, 3), dtype=np.uint8)
        for place, row in enumerate(rows.tolist()):
            pictures[place] = self.store.picture(self.start + row)
        return pictures, self.labels[rows]


@dataclass(frozen=True, slots=True)
class DomainData:
    """A domain's two splits and the names of its classes, in the order of the labels.

    ``validation``: a part that the data themselves set aside, None where they have none. ``tell``
    returns ``notes``.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    tell: Callable[[], tuple[str, ...]] = tuple
    validation: Split | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for people: what was read from where, what is left out, what are copies.

        They are found when they are asked for: copies are looked for in the files themselves.
        """
        return self.tell()

    @property
    def held_bytes(self) -> int:
        """The most bytes that the pictures take in memory at once, beside one being decoded."""
        splits = (self.train, self.test, self.validation)
        stores = {id(s.store): s.store for s in splits if isinstance(s, FileSplit)}
        arrays = sum(s.pictures.nbytes for s in splits if isinstance(s, ArraySplit))
        return arrays + sum(store.held_bytes for store in stores.values())


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


def limits(recipe: Recipe, train: int, test: int) -> list[str]:
    """Return for people how many pictures are used where the recipe limits them."""
    if recipe.data.train is None and recipe.data.test is None:
        return []
    return [f"data.train and data.test limit them: {train} are used to train, {test} to test"]


def require_pictures(name: str, train: int, test: int, classes: int) -> None:
    """Raise DataError unless there is something to train on, to test with and to tell apart."""
    for part, count in (("train", train), ("test", test)):
        if count == 0:
            raise DataError(f"{name}/{part}: expected pictures, got none", fix="add pictures")
    if classes < 2:
        raise DataError(
            f"{name}: expected at least 2 classes, got {classes}", fix="add a class's pictures"
        )
