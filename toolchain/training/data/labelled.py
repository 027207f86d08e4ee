"""What tables and arrays share: files that are those meant, classes, and a share that tests.

Rules of this file: labels are text here, also those that are numbers. Classes and parts depend on
what the data say and on the seed, never on the order of the rows.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TypeVar

from toolchain.core.errors import DataError, first_few
from toolchain.core.files import resolved
from toolchain.recipe.listing import MAX_CLASSES
from toolchain.recipe.spec import TEST_SHARE, DataSpec

PARTS = ("train", "test", "validation")
"""In the order in which a recipe names their files and columns."""
T = TypeVar("T")


def paired(values: Sequence[T]) -> dict[str, tuple[T, T]]:
    """Return what belongs to pictures and labels, given in turn, by part."""
    pairs = zip(values[::2], values[1::2], strict=True)
    return dict(zip(PARTS, pairs, strict=False))


def inside(root: Path, name: str) -> Path:
    """Return the file ``name`` of ``root``. Raises DataError where a link leads out of it."""
    path = root / name
    if not resolved(path).is_relative_to(resolved(root)):
        raise DataError(f"{path}: leads out of {root}", fix="copy it there")
    return path


def require_digest(path: Path, got: str, expected: str) -> None:
    """Raise DataError where the recipe names another digest than that of the file."""
    if got != expected:
        raise DataError(
            f"{path}: expected {expected}, got {got}: these are other data",
            fix="take the file that the recipe means, or change data.sha256",
        )


@dataclass(frozen=True, slots=True)
class Classes:
    """Names of classes in the order of their indices, and the index of each label."""

    names: tuple[str, ...]
    index_of: dict[str, int]


def classes_of(spec: DataSpec, labels: Collection[str], where: str) -> Classes:
    """Return the classes of data with these ``labels``; ``where`` names the data.

    Where the recipe names classes, it says their order. Else a label is the name of its class, and
    the order is that of numbers where all are numbers, or of the texts. Raises DataError for more
    than ``MAX_CLASSES``.
    """
    if len(labels) > MAX_CLASSES:
        raise DataError(
            f"{where}: expected at most {MAX_CLASSES} classes, got {len(labels)} different labels",
            fix="check that the labels are those of classes, and not one for each picture",
        )
    stated = spec.labels
    if stated is None and spec.classes is not None:
        stated = tuple(map(str, range(len(spec.classes))))
    rising = stated or ordered(labels)
    names = spec.classes or rising
    place = {name: index for index, name in enumerate(dict.fromkeys(names))}
    index_of = {label: place[name] for label, name in zip(rising, names, strict=True)}
    return Classes(tuple(place), index_of)


def ordered(labels: Collection[str]) -> tuple[str, ...]:
    """Return labels in the order of their numbers, or of their texts where one is no number."""
    try:
        numbers = {label: float(label) for label in labels}
    except ValueError:
        return tuple(sorted(labels))
    if not all(map(isfinite, numbers.values())):
        return tuple(sorted(labels))
    return tuple(sorted(labels, key=lambda label: (numbers[label], label)))


def rows_to_test(spec: DataSpec, labels: Sequence[str], names: Sequence[str]) -> set[int]:
    """Return the rows that test: the share of each label that ``spec`` states.

    The hash of the seed and a row's name decides. So a row that is added to one label moves nothing
    in another, and other names for the classes move nothing at all. A label of one row trains; from
    two on, a label has one at least in each part.
    """
    share = spec.test_share or TEST_SHARE
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows[label].append(row)
    out: set[int] = set()
    for own in rows.values():
        if len(own) > 1:
            own.sort(key=lambda row: _rank(spec.seed, names[row]))
            out.update(own[: min(max(1, round(share * len(own))), len(own) - 1)])
    return out


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()


def share_words(spec: DataSpec) -> str:
    """Return for people how a test part came about that the data do not have."""
    share = spec.test_share or TEST_SHARE
    return f"{share:g} of each class to test, chosen by data.seed {spec.seed}"


def untrained(classes: Classes, trained: Collection[int]) -> str:
    """Return for people which classes have nothing to train on; empty where all have."""
    missing = [repr(name) for index, name in enumerate(classes.names) if index not in trained]
    return first_few(missing, 5)
