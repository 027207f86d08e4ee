"""Read every picture of a set once: their sizes, and all damaged ones at the same time.

Rules of this file: a picture is whole here exactly where `decode.upright_rgb` takes it. Threads
decode side by side, because Pillow's decoders run outside Python's lock; the answer does not depend
on their number. At most ``AHEAD`` pictures are under way, so memory does not grow with the set.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from toolchain.core.errors import DataError, Fault
from toolchain.core.files import shown_below
from toolchain.pictures.decode import Measured, measured

THREADS = 4
AHEAD = 8
FIX = "replace or remove these files"

LISTED = 100
Tell = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Survey:
    """What a set of pictures is: how many are whole, their ranges of sides in pixels, the faults.

    ``width`` and ``height`` are the smallest and largest of the whole pictures, (0, 0) for none.
    ``several`` counts the files with further pictures behind the first, which alone is read;
    ``such_as``: paths of the first :data:`LISTED` of them.
    """

    whole: int
    width: tuple[int, int]
    height: tuple[int, int]
    faults: tuple[Fault, ...]
    several: int
    such_as: tuple[str, ...]

    def raise_faults(self, where: str) -> None:
        """Raise DataError with every picture that cannot be used, if there is one."""
        if self.faults:
            raise DataError.of(where, self.faults, fix=FIX)


def survey(
    paths: Sequence[Path | str], root: Path, tell: Tell = lambda _done, _all: None
) -> Survey:
    """Return what the pictures in ``paths`` are. Every one is decoded.

    A fault's path is shown below ``root`` where it lies there. ``tell`` gets the number of pictures
    that are done, and of all. Raises StorageError where too many files are open.
    """
    whole = several = 0
    faults: list[Fault] = []
    such_as: list[str] = []
    widths, heights = _Range(), _Range()
    for done, (path, picture) in enumerate(_measured(paths), 1):
        if isinstance(picture, DataError):
            faults.append(_fault(path, root, picture))
        else:
            whole += 1
            widths.add(picture.size[0])
            heights.add(picture.size[1])
            several += picture.several
            if picture.several and several <= LISTED:
                such_as.append(shown_below(path, root))
        tell(done, len(paths))
    return Survey(
        whole=whole,
        width=widths.both,
        height=heights.both,
        faults=tuple(faults),
        several=several,
        such_as=tuple(such_as),
    )


class _Range:
    """The smallest and largest of some numbers."""

    def __init__(self) -> None:
        self.both = (0, 0)

    def add(self, value: int) -> None:
        low, high = self.both
        self.both = (min(low or value, value), max(high, value))


def _measured(paths: Sequence[Path | str]) -> Iterator[tuple[Path | str, Measured | DataError]]:
    threads = min(THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, "da3-survey") as pool:
        coming: deque[tuple[Path | str, Future[Measured | DataError]]] = deque()
        try:
            for path in paths:
                coming.append((path, pool.submit(_one, path)))
                if len(coming) >= AHEAD:
                    first, picture = coming.popleft()
                    yield first, picture.result()
            while coming:
                first, picture = coming.popleft()
                yield first, picture.result()
        finally:
            # Whoever stops early does not wait for pictures that nobody wants any more.
            pool.shutdown(wait=False, cancel_futures=True)


def _one(path: Path | str) -> Measured | DataError:
    try:
        return measured(path)
    except DataError as err:
        return err


def _fault(path: Path | str, root: Path, err: DataError) -> Fault:
    return Fault(shown_below(path, root), err.message.removeprefix(f"{path}: "), err.fix)
