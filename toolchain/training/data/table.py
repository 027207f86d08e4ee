"""A table and a folder of pictures: one row for each picture, with its path and its label.

Rules of this file: a table is RFC 4180's text with another delimiter where the recipe says so, in
UTF-8. It is treated as hostile: bytes, rows, columns and the length of a row are limited before
they are parsed, and no path leaves the folder. Every fault of a table is told at once, with its
line. A picture that no row names is left out and counted. The order of the rows changes nothing.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from toolchain.core.digest import sha256
from toolchain.core.errors import DataError, Fault, first_few
from toolchain.core.files import is_folder, read_limited, stays_below
from toolchain.pictures.decode import CONVERT, SUFFIXES, UNREAD_SUFFIXES
from toolchain.recipe.listing import AS_FOLDERS, Listing, Pairs, part_of
from toolchain.recipe.spec import DELIMITERS, PLACE, DataSpec
from toolchain.recipe.walk import LeftOut, Walk
from toolchain.training.data.labelled import (
    PARTS,
    Classes,
    classes_of,
    inside,
    require_digest,
    rows_to_test,
    share_words,
    untrained,
)

MAX_BYTES = 128 * 1024 * 1024
MAX_ROWS = 5_000_000
MAX_ROW = 1 << 16  # characters
MAX_COLUMNS = 10_000

_UNNAMED = "pictures that no row names"
_TWICE = "rows that name a picture once more"
_MEND = "mend these lines of the table, or remove them"


@dataclass(frozen=True, slots=True)
class Row:
    """One row: the number of the line on which it ends, from 1 on, and its texts."""

    line: int
    texts: list[str]


def rows(text: str, delimiter: str) -> Iterator[Row]:
    """Yield the rows of the table ``text``; empty lines are none.

    ``delimiter`` is one of ``DELIMITERS``; ``space`` stands for any run of spaces and tabs, without
    quotes. Raises ValueError, which names the line, for more than the limits, quotes that are not
    closed and quotes inside a text.
    """
    lines = _Lines(text)
    if delimiter == "space":
        parsed: Iterator[list[str]] = (line.split() for line in lines)
    else:
        parsed = csv.reader(lines, delimiter=DELIMITERS[delimiter], strict=True)
    count = 0
    while True:
        lines.begin()
        try:
            texts = next(parsed)
        except StopIteration:
            return
        except csv.Error as err:
            raise ValueError(f"line {lines.first}: {err}: is a quote missing?") from err
        if not any(texts):
            continue
        count += 1
        if count > MAX_ROWS:
            raise ValueError(f"line {lines.number}: expected at most {MAX_ROWS} rows")
        if len(texts) > MAX_COLUMNS:
            raise ValueError(
                f"line {lines.number}: expected at most {MAX_COLUMNS} columns, got {len(texts)}"
            )
        yield Row(lines.number, texts)


class _Lines(Iterator[str]):
    """The lines of a text; a row that takes more than ``MAX_ROW`` characters is refused."""

    def __init__(self, text: str) -> None:
        # Not splitlines(): it parts at other characters, too.
        self._lines = io.StringIO(text, newline="")
        self.number = 0
        self.begin()

    def begin(self) -> None:
        """Note that a row begins with the next line."""
        self.first = self.number + 1
        self._taken = 0

    def __next__(self) -> str:
        # One more than allowed: the rest of an endless line is never read.
        line = self._lines.readline(MAX_ROW + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._taken += len(line)
        if self._taken > MAX_ROW:
            raise ValueError(
                f"line {self.first}: expected rows of at most {MAX_ROW} characters: is a quote "
                "missing, or is this no table?"
            )
        return line


def text_of(path: Path, digest: str | None = None) -> str:
    """Return the text of a table. Raises DataError for what is no UTF-8 and for another digest."""
    data = read_limited(path, limit_bytes=MAX_BYTES, what="table")
    if digest is not None:
        require_digest(path, sha256(data), digest)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        raise DataError(
            f"{path}: line {line}: expected UTF-8 text, got byte {data[err.start]:#04x}",
            fix="save the table as UTF-8 (in a spreadsheet: CSV UTF-8)",
        ) from err


def listed(spec: DataSpec, root: Path) -> Listing:
    """Return the pictures that the tables ``spec.files`` below ``root`` name, with all faults.

    Raises DataError where no listing can be made.
    """
    if not is_folder(root):
        raise DataError(f"{root}: no such folder of pictures", fix="name it in data.root")
    reading = _Reading(spec, root)
    for number, name in enumerate(spec.files or ()):
        reading.read(name, number)
    return reading.listing()


@dataclass(frozen=True, slots=True)
class _Picture:
    """What a row says: where it stands, the picture's path below the root, label and part."""

    place: str
    label: str
    part: str


class _Reading:
    """The tables of a folder, while they are read."""

    def __init__(self, spec: DataSpec, root: Path) -> None:
        self.spec = spec
        self.walk = Walk(root)
        tree = self.walk.read()
        # Some file systems store names decomposed; a table seldom does.
        self._files = {plain_path(self.walk.relative(path)): path for path in tree.pictures}
        self._alike: dict[str, str] | None = None
        self._pictures: dict[str, _Picture] = {}
        self._repeated: list[Path] = []
        self._full = False
        self._labels = frozenset(spec.labels or ())

    def read(self, name: str, number: int) -> None:
        """Read the table ``name``, which is number ``number`` of the recipe's files."""
        path = inside(self.walk.root, name)
        digests = self.spec.sha256
        text = text_of(path, digests[number] if digests else None)
        part = PARTS[number] if len(self.spec.files or ()) > 1 else ""
        try:
            self._read(name, rows(text, self.spec.delimiter or "comma"), part)
        except ValueError as err:
            line, _, message = str(err).partition(": ")
            self._fault(f"{name} {line}", message)

    def _read(self, name: str, table: Iterator[Row], part: str) -> None:
        first = next(table, None)
        if first is None:
            self._fault(name, "expected rows, got an empty table")
            return
        columns = self._columns(name, first)
        if columns is None:
            return
        if isinstance((self.spec.columns or ())[0], int):
            self._row(name, first, columns, part)
        for row in table:
            if self._full:
                return
            if len(row.texts) != len(first.texts):
                self._fault(
                    f"{name} line {row.line}",
                    f"expected {len(first.texts)} columns as in line {first.line}, got "
                    f"{len(row.texts)}: is a quote missing, or another delimiter meant?",
                )
                continue
            self._row(name, row, columns, part)

    def _columns(self, name: str, first: Row) -> list[int] | None:
        """Return the places of the columns, or None with faults."""
        places = []
        names = [text.strip() for text in first.texts]
        for column in self.spec.columns or ():
            if isinstance(column, int):
                present = column <= len(names)
                place, got = column - 1, f"{len(names)} columns"
            else:
                present = names.count(column) == 1
                place = names.index(column) if present else 0
                got = first_few([repr(one[:40]) for one in names], 20)
            places.append(place)
            if not present:
                once = " once" if isinstance(column, str) else ""
                where = f"{name} line {first.line}"
                self._fault(where, f"expected column {column!r}{once}, got {got}")
                self._full = True
        return None if self._full else places

    def _row(self, name: str, row: Row, columns: Sequence[int], part: str) -> None:
        where = f"{name} line {row.line}"
        path, label, *parts = (row.texts[place].strip() for place in columns)
        label = unicodedata.normalize("NFC", label)
        problems = []
        if not label or not label.isprintable() or len(label) > 200:
            problems.append(f"expected a label of 1 to 200 printable characters, got {label!r:.60}")
        elif self._labels and label not in self._labels:
            problems.append(f"expected one of data.labels, got {label!r:.60}")
        if parts:
            part = part_of(parts[0]) or ""
            if not part:
                problems.append(f"expected train, test or val, got {parts[0]!r:.60}")
        below = plain_path((self.spec.path or PLACE).replace(PLACE, path))
        if (problem := self._path_problem(below, path)) is not None:
            problems.append(problem)
        for problem in problems:
            self._fault(where, problem)
        if not problems:
            self._add(below, _Picture(where, label, part))

    def _add(self, below: str, picture: _Picture) -> None:
        before = self._pictures.setdefault(below, picture)
        if before is picture:
            return
        for what in ("label", "part"):
            now, then = getattr(picture, what), getattr(before, what)
            if now != then:
                self._fault(
                    picture.place,
                    f"expected the {what} {then!r} of {before.place} for {below}, got {now!r}",
                )
                return
        self._repeated.append(self._files[below])

    def _path_problem(self, below: str, path: str) -> str | None:
        """Return why no picture can be where a row says, or None."""
        if not path or not path.isprintable() or len(below) > 1000:
            return f"expected a path of 1 to 1000 printable characters, got {path!r:.60}"
        if not (stays_below(path) and stays_below(below)):
            return f"expected a path below {self.walk.root}, with '/', got {path!r:.200}"
        if below in self._files:
            return None
        suffix = PurePosixPath(below).suffix.lower()
        if suffix in UNREAD_SUFFIXES:
            return f"{below}: {UNREAD_SUFFIXES[suffix]} is not read ({CONVERT})"
        if suffix not in SUFFIXES:
            return f"{below}: expected a picture's suffix, such as .png (data.path can add one)"
        if self._alike is None:
            self._alike = {name.casefold(): name for name in self._files}
        near = self._alike.get(below.casefold())
        hint = f"; {near} is there" if near else ""
        return f"{below}: no such picture is read below {self.walk.root}{hint}"

    def _fault(self, where: str, message: str) -> None:
        faults = self.walk.faults
        if len(faults) < DataError.LISTED:
            faults.append(Fault(where, message, _MEND))
        elif not self._full:
            faults.append(Fault(where, "too many faults: nothing from here on was read", _MEND))
            self._full = True

    def listing(self) -> Listing:
        """Return what the tables say."""
        walk, spec = self.walk, self.spec
        walk.leave_out(_TWICE, self._repeated)
        unnamed = [path for name, path in self._files.items() if name not in self._pictures]
        walk.leave_out(_UNNAMED, unnamed)
        labels = {picture.label for picture in self._pictures.values()}
        classes = classes_of(spec, labels, str(walk.root))
        stated = self._stated_parts()
        parts = self._parts(classes, stated)
        trained = {label for _, label in parts["train"]}
        if self._pictures and (missing := untrained(classes, trained)):
            tables = ", ".join(spec.files or ())
            self._fault(
                tables, f"expected pictures to train for every class, got none for {missing}"
            )
        how = AS_FOLDERS if stated else share_words(spec)
        if spec.has_test:
            how = f"as {' and '.join(spec.files or ())} say"
        return Listing(
            root=walk.root,
            classes=classes.names,
            train=parts["train"],
            test=parts["test"],
            validation=parts["validation"],
            was_split=spec.has_test or bool(stated),
            left_out=_without(walk.left_out(), spec.files or ()),
            notes=(f"paths and labels are those of {', '.join(spec.files or ())}", *walk.notes),
            faults=tuple(walk.faults),
            parts=how,
        )

    def _stated_parts(self) -> dict[str, str]:
        """Return the part of each picture as the tables say, or else its folders; or nothing."""
        if self.spec.has_test:
            return {name: picture.part for name, picture in self._pictures.items()}
        return {} if self.spec.test_share else _parts_of_folders(self._pictures)

    def _parts(self, classes: Classes, stated: Mapping[str, str]) -> dict[str, Pairs]:
        """Return the pictures of each part, by class and then by path."""
        rising = sorted(
            (classes.index_of[picture.label], name) for name, picture in self._pictures.items()
        )
        taken = dict(stated)
        if not stated:
            names = [name for _, name in rising]
            labels = [self._pictures[name].label for name in names]
            test = rows_to_test(self.spec, labels, names)
            taken = {name: "test" if row in test else "train" for row, name in enumerate(names)}
        elif "test" not in taken.values():
            # As in folders: without a test part the validation part is the test.
            taken = {name: "train" if part == "train" else "test" for name, part in taken.items()}
        return {
            part: tuple((self._files[name], label) for label, name in rising if taken[name] == part)
            for part in PARTS
        }


def _parts_of_folders(paths: Collection[str]) -> dict[str, str]:
    """Return the part that a folder of each path names, all at one depth, or nothing.

    So a folder called train beside others, such as bus, is no part.
    """
    folders = {path: PurePosixPath(path).parent.parts for path in paths}
    for depth in range(min(map(len, folders.values()), default=0)):
        parts = {path: part_of(own[depth]) or "" for path, own in folders.items()}
        stated = set(parts.values())
        if "" not in stated and "train" in stated and len(stated) > 1:
            return parts
    return {}


def _without(left_out: Sequence[LeftOut], tables: Sequence[str]) -> tuple[LeftOut, ...]:
    """Return what is left out but for the tables: they are no pictures, but they are used."""
    out = []
    for entry in left_out:
        paths = tuple(path for path in entry.paths if path not in tables)
        count = entry.count - len(entry.paths) + len(paths)
        if count:
            out.append(replace(entry, count=count, paths=paths))
    return tuple(out)


def plain_path(path: str) -> str:
    """Return a path as the tree names it: composed, without '.' and doubled slashes."""
    return unicodedata.normalize("NFC", path if "\0" in path else str(PurePosixPath(path)))
