"""Pictures that stand in arrays: from what `idx` and `npz` read to a domain's splits.

Rules of this file: it knows no file format. It checks shapes, turns labels into classes, and says
for people what there is. Pictures are uint8 [N, H, W] or [N, H, W, 3] from here on; other numbers
become that only where the recipe says which value is white.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core.arrays import Array
from toolchain.core.errors import DataError
from toolchain.core.files import MIB
from toolchain.pictures.decode import MAX_PIXELS, Pixels
from toolchain.recipe.copies import Copies
from toolchain.recipe.spec import DataSpec, Recipe
from toolchain.training.data.labelled import (
    PARTS,
    classes_of,
    rows_to_test,
    share_words,
    untrained,
)
from toolchain.training.data.splits import (
    DomainData,
    FileSplit,
    Labels,
    Stacks,
    limits,
    require_pictures,
    spread,
)

MAX_BYTES = 4 << 30
"""Of all arrays of a domain, unpacked: they stay in memory."""
_CHUNK = 256  # pictures
_WHITE = {
    "npz": "state it: data.white: 1.0 for values from 0 to 1",
    "idx": "write the pictures as unsigned bytes (type 0x08); or write them with the labels into "
    "an archive, and name that: numpy.savez('own.npz', x_train=..., y_train=..., x_test=..., "
    "y_test=...)",
}
"""By loader, what to do about pictures that are not uint8."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some pictures of one array: ``rows`` says which, in order; ``labels`` are theirs."""

    pictures: Pixels
    rows: Labels
    labels: Labels


# Without slots, as what is found once is kept beside the fields.
@dataclass(frozen=True)
class Arrays:
    """All pictures of data in arrays, by part, with the names of the classes.

    ``how``: for people, how the parts came about. ``notes``: what was taken for what.
    """

    root: Path
    spec: DataSpec
    classes: tuple[str, ...]
    parts: Mapping[str, Part]
    how: str
    notes: tuple[str, ...]

    @cached_property
    def copies(self) -> Copies:
        """The pictures that stand several times. Every picture is read to find them."""
        return _copies(self.parts)

    def lines(self) -> list[str]:
        """Return for people what there is, what was taken for what, and what stands twice."""
        counts = {name: len(part.labels) for name, part in self.parts.items()}
        validation = f"{counts['validation']} to validate, " if "validation" in counts else ""
        sizes = {part.pictures.shape[1:] for part in self.parts.values()}
        shown = " and ".join(
            f"{shape[1]} x {shape[0]} px, {'colour' if len(shape) > 2 else 'grey'}"
            for shape in sorted(sizes, key=str)
        )
        return [
            f"{counts['train']} to train, {validation}{counts['test']} to test ({self.how}), "
            f"{len(self.classes)} classes",
            shown,
            *self.notes,
            *self.copies.lines(),
        ]

    def counts(self) -> list[dict[str, int | str]]:
        """Return for each class its name and the number of its pictures per part."""
        counters = {name: Counter(part.labels.tolist()) for name, part in self.parts.items()}
        return [
            {"name": name}
            | {part: counters[part][index] if part in counters else 0 for part in PARTS}
            for index, name in enumerate(self.classes)
        ]

    def document(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {
            "root": self.root,
            "parts": "files" if self.spec.has_test else "hash",
            **{n: len(self.parts[n].labels) if n in self.parts else 0 for n in PARTS},
            "classes": self.counts(),
            "copies": {
                "count": self.copies.count,
                "in_test_and_another_part": self.copies.tested,
                "in_several_classes": self.copies.classes,
            },
            "notes": self.notes,
        }


def arranged(
    spec: DataSpec, root: Path, arrays: Mapping[str, tuple[Array, Array]], notes: tuple[str, ...]
) -> Arrays:
    """Return what ``arrays`` hold: by part, pictures and labels as they were read.

    Raises DataError for shapes and numbers that are no pictures or labels, and where a class has
    nothing to train on.
    """
    where = f"{root}: {', '.join(spec.files or ())}"
    for part, (own, labels) in arrays.items():
        # First of all: as text, labels take many times their own bytes.
        if own.shape[:1] != labels.shape[:1]:
            raise DataError(
                f"{where}: {part}: expected a label for each picture, got pictures "
                f"{list(own.shape)} and labels {list(labels.shape)}",
                fix="check that these labels belong to these pictures",
            )
    pictures = {part: _pictures(spec, f"{where}: {part}", own) for part, (own, _) in arrays.items()}
    texts = {part: _texts(f"{where}: {part}", own) for part, (_, own) in arrays.items()}
    present = {label for part in texts.values() for label in np.unique(part).tolist()}
    classes = classes_of(spec, present, where)
    if strange := sorted(present - classes.index_of.keys())[:5]:
        raise DataError(
            f"{where}: expected the labels {', '.join([*classes.index_of][:20])}, got "
            f"{', '.join(strange)} besides",
            fix="name every label in data.labels and its class in data.classes",
        )
    parts = {
        part: Part(
            own, np.arange(len(own), dtype=np.int64), _indices(texts[part], classes.index_of)
        )
        for part, own in pictures.items()
    }
    if "test" not in parts:
        parts |= _split(spec, parts["train"], texts["train"])
    if missing := untrained(classes, set(np.unique(parts["train"].labels).tolist())):
        raise DataError(
            f"{where}: expected pictures to train for every class, got none for {missing}",
            fix="remove these from data.labels and data.classes, or add pictures",
        )
    require_pictures(
        where, len(parts["train"].labels), len(parts["test"].labels), len(classes.names)
    )
    how = "as the data say" if spec.has_test else share_words(spec)
    return Arrays(root, spec, classes.names, parts, how, notes)


def of_arrays(recipe: Recipe, arrays: Arrays) -> DomainData:
    """Return the pictures of ``arrays`` for ``recipe``.

    ``data.train`` and ``data.test`` limit how many are used, spread over the classes by
    ``data.seed``. A picture becomes the square of the recipe when it is asked for.
    """
    at_most = {"train": recipe.data.train, "test": recipe.data.test}
    stacks, labels = [], {}
    for name, part in arrays.parts.items():
        rows = spread(part.labels, at_most.get(name), recipe.data.seed)
        labels[name] = part.labels[rows]
        own = part.rows[rows]
        # All of them in their order need no copy.
        whole = len(own) == len(part.pictures) and bool((np.diff(own) == 1).all())
        stacks.append(part.pictures if whole else part.pictures[own])
    store = Stacks(stacks, recipe.preprocess)
    splits, start = {}, 0
    for name, own in labels.items():
        splits[name] = FileSplit(f"{recipe.domain}/{name}", store, start, own)
        start += len(own)
    used = len(labels["train"]), len(labels["test"])
    return DomainData(
        splits["train"],
        splits["test"],
        arrays.classes,
        tell=lambda: (
            *arrays.lines(),
            *limits(recipe, *used),
            f"at most {store.held_bytes / MIB:.1f} MiB of them are kept in memory",
        ),
        validation=splits.get("validation"),
    )


def require_room(where: str, bytes_needed: int) -> None:
    """Raise DataError where arrays of ``bytes_needed`` in all would be more than the limit."""
    if bytes_needed > MAX_BYTES:
        raise DataError(
            f"{where}: expected at most {MAX_BYTES} bytes of arrays, got {bytes_needed}",
            fix="write the pictures as files, one folder per class: those are read one by one",
        )


def require_sides(where: str, shape: Sequence[int], item_bytes: int) -> None:
    """Raise DataError for sides that no array has; a side of 0 hides them from the sum of bytes."""
    if 0 in shape and prod(filter(None, shape)) * item_bytes > MAX_BYTES:
        raise DataError(
            f"{where}: expected at most {MAX_BYTES} bytes beside sides of 0, got the shape "
            f"{list(shape)!s:.120}",
            fix="write it again with the pictures in it",
        )


def _pictures(spec: DataSpec, where: str, array: Array) -> Pixels:
    shape = array.shape
    if len(shape) == 4 and shape[3] == 1:
        array, shape = array[..., 0], shape[:3]
    if not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)) or 0 in shape[1:]:
        first = len(shape) == 4 and shape[1] in (1, 3)
        raise DataError(
            f"{where}: expected pictures [N, H, W] or [N, H, W, C] with 1 or 3 channels, got "
            f"{list(shape)}",
            fix="move the channels behind: np.transpose(x, (0, 2, 3, 1))"
            if first
            else "reshape it, and drop further channels",
        )
    if shape[1] * shape[2] > MAX_PIXELS:
        raise DataError(
            f"{where}: expected at most {MAX_PIXELS} pixels, got {shape[2]} x {shape[1]}",
            fix="shrink the pictures",
        )
    if spec.white is None:
        if array.dtype != np.uint8:
            raise DataError(
                f"{where}: expected uint8, got {array.dtype}: nothing says which value is white",
                fix=_WHITE.get(spec.loader, "store the pictures as uint8"),
            )
        return array
    if array.dtype.kind not in "buif":
        raise DataError(
            f"{where}: expected numbers, got {array.dtype}", fix="store the pictures as uint8"
        )
    return _scaled(where, array, spec.white)


def _scaled(where: str, array: Array, white: float) -> Pixels:
    """Return ``value / white * 255``, rounded; a few pictures at a time, for memory's sake."""
    out = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), _CHUNK):
        chunk = array[start : start + _CHUNK].astype(np.float64)
        # Written so that NaN is outside.
        outside = ~((chunk >= 0) & (chunk <= white))
        if outside.any():
            row = int(np.flatnonzero(outside.reshape(len(chunk), -1).any(axis=1))[0])
            got = chunk[row]
            raise DataError(
                f"{where}: expected values from 0 to data.white {white:g}, got {got.min():g} to "
                f"{got.max():g} in picture {start + row}",
                fix="set data.white, and store pictures before they are normalised",
            )
        out[start : start + _CHUNK] = np.rint(chunk * (255.0 / white))
    return out


def _texts(where: str, labels: Array) -> Array:
    """Return labels as text, [N]."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "buiU":
        raise DataError(
            f"{where}: expected labels [N] of whole numbers or text, got {labels.dtype} "
            f"{list(labels.shape)}",
            fix="store one label for each picture: np.argmax(y, axis=1) undoes one-hot labels, "
            "y.astype(int) floats, y.astype(str) bytes",
        )
    if labels.dtype.kind == "b":
        labels = labels.astype(np.uint8)
    texts = labels.astype(str)
    bad = next((t for t in np.unique(texts).tolist() if not t.isprintable() or not t.strip()), None)
    if bad is not None or texts.dtype.itemsize > 4 * 200:
        raise DataError(
            f"{where}: expected labels of 1 to 200 printable characters, got {bad!r:.60}",
            fix="rename these labels",
        )
    return texts


def _indices(texts: Array, index_of: Mapping[str, int]) -> Labels:
    names, inverse = np.unique(texts, return_inverse=True)
    table = np.array([index_of[name] for name in names.tolist()], dtype=np.int64)
    indices: Labels = table[inverse]
    return indices


def _split(spec: DataSpec, whole: Part, texts: Array) -> dict[str, Part]:
    """Return the parts train and test of data that have one part."""
    test = np.zeros(len(whole.labels), dtype=bool)
    names = [str(row) for row in range(len(whole.labels))]
    test[list(rows_to_test(spec, texts.tolist(), names))] = True
    return {
        part: Part(whole.pictures, whole.rows[mask], whole.labels[mask])
        for part, mask in (("train", ~test), ("test", test))
    }


def _copies(parts: Mapping[str, Part]) -> Copies:
    places: defaultdict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for name, part in parts.items():
        for row, label in zip(part.rows.tolist(), part.labels.tolist(), strict=True):
            digest = hashlib.sha256(part.pictures[row].tobytes()).digest()
            places[digest].append((name, label))
    count = again = in_classes = 0
    for own in places.values():
        tests = sum(part == "test" for part, _ in own)
        count += len(own) - 1
        again += tests if tests < len(own) else 0
        in_classes += len(own) if len({label for _, label in own}) > 1 else 0
    return Copies(count, again, in_classes, ())
