"""What form one table has: which column names pictures, which the labels, and which the parts.

Rules of this file: the first rows say where pictures lie, all rows say what is a label or a part.
What can be read in two ways is refused with both; a part that is stated is never dropped.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from toolchain.core.errors import DataError, StorageError, first_few
from toolchain.core.files import read_limited
from toolchain.pictures.decode import SUFFIXES
from toolchain.recipe.listing import part_of
from toolchain.recipe.spec import DELIMITERS, PLACE
from toolchain.training.data.table import MAX_BYTES, Row, plain_path, rows, text_of

LABEL_NAMES = (
    *("label", "labels", "class", "classes", "class_name", "classname", "label_name"),
    *("class_label", "category", "target", "species", "breed", "diagnosis", "y"),
)
"""What a column of labels is called, in capitals or not."""
SPLIT_NAMES = (
    *("split", "splits", "fold", "folds", "partition", "subset", "part", "set", "usage"),
    *("is_train", "is_training", "is_test", "is_val"),
)
"""What a column of parts is called, alone or beside other words."""
_ALSO_OTHERS = ("part", "set", "usage", "subset")
"""Of those, the names that other columns have, too: they need a value that is a part's name."""
_FIRST_ROWS = 20
_ROWS = 300
_MOST = 0.9


@dataclass(frozen=True, slots=True)
class TableForm:
    """What a table says, as far as the recipe has keys for it; ``pictures``: how many it names."""

    name: str
    delimiter: str
    path: str
    columns: tuple[str | int, ...]
    repeats_folders: bool
    pictures: int


def role(name: str) -> str | None:
    """Return the part that the name of a table names, such as own_test.csv, or None."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    roles = {part for word in words if (part := part_of(word)) is not None}
    return roles.pop() if len(roles) == 1 else None


def look(
    root: Path, name: str, pictures: Sequence[str], label: str | None, *, only: bool
) -> TableForm | DataError | None:
    """Return what a table says; what is unclear of its labels; or None for no table of pictures.

    Raises DataError for columns that have no names, for paths or parts that are unclear, and for a
    table of pictures that is no UTF-8.
    """
    path = root / name
    text, unread = _text(path)
    if unread is not None and only:
        raise unread
    found = _found(path, text, pictures)
    if found is None:
        return None
    if unread is not None:
        raise unread
    sheet = _sheet(path, found, pictures)
    label = sheet.column_name(path, label)
    splits = _split_columns(path, sheet.heads, sheet.body, sheet.others(label))
    others = [place for place in sheet.others(label) if place not in splits]
    labels = _label_column(path, sheet.heads, sheet.body, others, label)
    if isinstance(labels, int):
        return sheet.form(name, labels, splits)
    if splits:
        raise labels or DataError(
            f"{path}: expected a column of labels beside the parts in "
            f"{sheet.heads[splits[0]]!r}, got none",
            fix="add it, or take the table out of the folder",
        )
    return labels


@dataclass(frozen=True, slots=True)
class _Found:
    """A table that names pictures: in which column, and where they lie.

    ``rows``: those after the first that have as many columns.
    """

    delimiter: str
    first: Row
    rows: list[Row]
    column: int
    pattern: str


def _found(path: Path, text: str, pictures: Sequence[str]) -> _Found | None:
    """Return how a table names pictures, or None where it names none. Raises as :func:`_paths`.

    Texts hold commas, too, as 0,5 does: the delimiter is one by which a column names pictures.
    """
    readings = (_found_by(path, text, each, pictures) for each in _delimiters(text))
    return next((found for found in readings if found is not None), None)


def _found_by(path: Path, text: str, delimiter: str, pictures: Sequence[str]) -> _Found | None:
    """Return how a table with this ``delimiter`` names pictures. Raises as :func:`_paths`."""
    parsed = _parsed(text, delimiter)
    first = next(parsed, Row(0, []))
    sample = [row for row in islice(parsed, _ROWS) if len(row.texts) == len(first.texts)]
    where = _paths(path, [row.texts for row in sample], pictures)
    if where is None:
        return None
    rest = [row for row in parsed if len(row.texts) == len(first.texts)]
    return _Found(delimiter, first, [*sample, *rest], *where)


@dataclass(frozen=True, slots=True)
class _Sheet:
    """A table of pictures with its line of names, if it has one, told from its rows.

    ``heads``: the names of the columns, or their numbers from 1 on. ``body``: the rows.
    """

    found: _Found
    has_names: bool
    heads: list[str]
    body: list[Row]

    def column_name(self, path: Path, label: str | None) -> str | None:
        """Return the name of the column ``label``, which may be its number from 1 on.

        A name that is a number comes first. Raises DataError for the column of the paths.
        """
        if label is not None and label not in self.heads and re.fullmatch("[1-9][0-9]{0,4}", label):
            label = dict(enumerate(self.heads, 1)).get(int(label), label)
        if label == self.heads[self.found.column]:
            raise DataError(
                f"{path}: expected a column of labels, got {label!r}, which names the pictures",
                fix=f"name another one of {first_few(self.heads, 20)}",
            )
        return label

    def others(self, label: str | None) -> list[int]:
        """Return the columns that are neither that of the paths nor ``label``."""
        column = self.found.column
        return [p for p, head in enumerate(self.heads) if p != column and head != label]

    def form(self, name: str, labels: int, splits: Sequence[int]) -> TableForm:
        """Return what the recipe says, with the columns of ``labels`` and of the parts."""
        found = self.found
        chosen = [found.column, labels, *splits[:1]]
        paths = [
            plain_path(found.pattern.replace(PLACE, row.texts[found.column])) for row in self.body
        ]
        folders = [
            PurePosixPath(path).parent.name == row.texts[labels]
            for path, row in zip(paths, self.body, strict=True)
        ]
        return TableForm(
            name=name,
            delimiter=found.delimiter,
            path=found.pattern,
            columns=tuple(self.heads[place] if self.has_names else place + 1 for place in chosen),
            repeats_folders=all(folders) and not splits,
            pictures=len(set(paths)),
        )


def _sheet(path: Path, found: _Found, pictures: Sequence[str]) -> _Sheet:
    """Return the table with its names. Raises DataError for columns without a name of their own."""
    cell = found.first.texts[found.column]
    named = plain_path(found.pattern.replace(PLACE, cell))
    # A first row that names a picture which is missing is a row all the same.
    has_names = named not in set(pictures) and PurePosixPath(cell).suffix.lower() not in SUFFIXES
    width = len(found.first.texts)
    heads = found.first.texts if has_names else [str(place + 1) for place in range(width)]
    if not all(head and heads.count(head) == 1 for head in heads):
        raise DataError(
            f"{path}: line 1: expected a name for each column, each once, got "
            f"{first_few([repr(head)[:60] for head in heads], 20)}",
            fix="give each column a name of its own",
        )
    return _Sheet(found, has_names, heads, [*([] if has_names else [found.first]), *found.rows])


def _text(path: Path) -> tuple[str, DataError | StorageError | None]:
    """Return the text of a table; with what is wrong, as another writer may have meant it."""
    try:
        return text_of(path), None
    except StorageError as err:
        return "", err
    except DataError as err:
        data = read_limited(path, limit_bytes=MAX_BYTES, what="table")
        marked = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        return data.decode("utf-16" if marked else "latin-1", "replace"), err


def _parsed(text: str, delimiter: str) -> Iterator[Row]:
    """Yield the rows of a table up to its first fault, which the loader will tell."""
    try:
        for row in rows(text, delimiter):
            yield Row(row.line, [cell.strip() for cell in row.texts])
    except ValueError:
        return


def _delimiters(text: str) -> list[str]:
    """Return what can part a table: it gives most of the first rows the same number of columns.

    The most columns come first, and spaces last: they stand inside texts, too.
    """
    columns: dict[str, int] = {}
    for name in DELIMITERS:
        widths = Counter(len(row.texts) for row in islice(_parsed(text, name), _FIRST_ROWS))
        width, count = max(widths.items(), key=lambda item: item[1], default=(0, 0))
        if width > 1 and count >= _MOST * widths.total():
            columns[name] = width
    return sorted(columns, key=lambda name: (name == "space", -columns[name]))


def _paths(
    path: Path, sample: Sequence[Sequence[str]], pictures: Sequence[str]
) -> tuple[int, str] | None:
    """Return which column names pictures, and the pattern of their paths; None for no column.

    Raises DataError where two readings are as good and mean different pictures, and for paths that
    lead to pictures of these names elsewhere.
    """
    known = set(pictures)
    called: defaultdict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        called[PurePosixPath(picture).name].append(picture)
    endings = ["", *sorted({PurePosixPath(picture).suffix for picture in pictures})]
    readings: dict[tuple[bool, bool, int], dict[tuple[str, ...], tuple[int, str]]] = {}
    for column in range(len(sample[0]) if sample else 0):
        texts = [row[column] for row in sample]
        # Paths differ from row to row; labels do not.
        if len(set(texts)) * 2 < len(texts) or not any(texts):
            continue
        for pattern, count in _patterns(list(map(plain_path, texts)), called, endings).items():
            found = (plain_path(pattern.replace(PLACE, text)) for text in texts)
            meant = tuple(picture for picture in found if picture in known)
            # A whole path is better than a name, a name than a number, and more than fewer.
            rank = (pattern == PLACE, pattern.endswith(PLACE), count)
            readings.setdefault(rank, {}).setdefault(meant, (column, pattern))
    best = readings[max(readings)] if readings else {}
    if len(best) > 1:
        both = [f"column {column + 1} as {pattern}" for column, pattern in best.values()]
        raise DataError(
            f"{path}: expected one way to read where its pictures lie, got {first_few(both, 4)}",
            fix="take the other column out of the table, or the other folder to another place",
        )
    if not best:
        _refuse_other_places(path, sample, called)
        _refuse_names_in_parts(path, sample, called, endings)
    return next(iter(best.values()), None)


def _refuse_other_places(
    path: Path, sample: Sequence[Sequence[str]], called: Collection[str]
) -> None:
    """Raise DataError for a column of paths, such as absolute ones, to pictures of known names."""
    for texts in zip(*sample, strict=True):
        places = [text for text in texts if re.split(r"[\\/]", text)[-1] in called]
        if len(places) >= _MOST * len(texts) and re.search(r"[\\/]", places[0]):
            raise DataError(
                f"{path}: expected paths below {path.parent}, with '/', got {places[0]!r:.200}",
                fix="write paths as they are below this folder, such as images/0001.png",
            )


def _refuse_names_in_parts(
    path: Path,
    sample: Sequence[Sequence[str]],
    called: Mapping[str, Sequence[str]],
    endings: Sequence[str],
) -> None:
    """Raise DataError for a column of names of pictures that lie right in folders of parts."""
    for texts in zip(*sample, strict=True):
        names = (text + ending for text in texts for ending in endings)
        meant = [called[name][0] for name in names if len(called.get(name, ())) == 1]
        parts = {part_of(PurePosixPath(picture).parent.name) for picture in meant}
        if len(meant) >= _MOST * len(texts) and len(parts) > 1 and None not in parts:
            raise DataError(
                f"{path}: expected paths with the folders of the parts, such as {meant[0]}, got "
                f"{texts[0]!r:.200}",
                fix="write the folders in front of the names: they are then the parts",
            )


def _patterns(
    texts: Sequence[str], called: Mapping[str, Sequence[str]], endings: Sequence[str]
) -> dict[str, int]:
    """Return the patterns that make pictures of most texts, each with how many it makes.

    It gives up with the first text too many that is no picture: a table may have thousands of
    columns. ``called``: pictures by their names.
    """
    hits: Counter[str] = Counter()
    missed = 0
    for text in texts:
        before = hits.total()
        for below in (text + ending for ending in endings):
            for picture in called.get(below.rpartition("/")[2], ()):
                if picture == below or picture.endswith(f"/{below}"):
                    hits[f"{picture.removesuffix(below)}{PLACE}{below.removeprefix(text)}"] += 1
        missed += hits.total() == before
        if missed > len(texts) - _MOST * len(texts):
            return {}
    return {pattern: count for pattern, count in hits.items() if count >= _MOST * len(texts)}


def _split_columns(
    path: Path, heads: Sequence[str], body: Sequence[Row], places: Sequence[int]
) -> list[int]:
    """Return the columns that say parts, which all say the same.

    Raises DataError for a column that is meant so, by its name or by most of its values, where a
    row names no part; for parts without one to train; and for columns that contradict each other.
    """
    said: dict[int, list[str]] = {}
    broken: dict[int, Row] = {}
    for place in places:
        count = Counter(row.texts[place] for row in body)
        part = {text: part_of(text) for text in count}
        known = sum(count[text] for text in count if part[text])
        plain = _plain(heads[place])
        words = {plain, *plain.split("_")}
        meant = bool(known) or not words & set(_ALSO_OTHERS)
        if known == len(body) and body:
            said[place] = [part[row.texts[place]] or "" for row in body]
        elif plain not in LABEL_NAMES and (
            (words & set(SPLIT_NAMES) and meant) or known * 2 >= len(body) > 0
        ):
            broken[place] = next(row for row in body if not part[row.texts[place]])
    different = {tuple(parts): place for place, parts in said.items()}
    if len(different) > 1:
        both = " and ".join(repr(heads[place]) for place in different.values())
        raise DataError(
            f"{path}: expected one column of parts, got {both}, which say different parts",
            fix="take one of them out of the table",
        )
    for place, parts in said.items():
        stated = set(parts)
        if "train" not in stated and stated != {role(path.name)}:
            raise DataError(
                f"{path}: expected rows to train in the column {heads[place]!r}, got those of the "
                f"part {' and '.join(sorted(stated))}",
                fix="add the rows to train",
            )
        if len(stated) > 1:
            return list(said)
    for place, row in broken.items():
        raise DataError(
            f"{path}: line {row.line}: expected train, test or val in the column {heads[place]!r}, "
            f"got {row.texts[place]!r:.60}",
            fix="write a part into every row, or take the column out of the table; if it holds "
            f"the labels: --label {heads[place]}",
        )
    return []


def _plain(head: str) -> str:
    """Return the name of a column in small letters, its words joined by one ``_``."""
    return re.sub(r"[^a-z0-9]+", "_", head.casefold())


def _label_column(
    path: Path,
    heads: Sequence[str],
    body: Sequence[Row],
    places: Sequence[int],
    label: str | None,
) -> int | DataError | None:
    """Return the column of labels, what is unclear of it, or None where no column can be one."""
    if label is not None:
        if label in heads:
            return list(heads).index(label)
        return DataError(
            f"{path}: expected a column {label!r}, got {first_few(list(heads), 20)}",
            fix="name one of these columns, or its number from 1 on",
        )
    values = {place: {row.texts[place] for row in body} for place in places}
    can = {place: texts for place, texts in values.items() if 2 <= len(texts) <= len(body) // 2}
    # A column that is called so is it, however many classes it has; y may be a coordinate.
    named = [
        place
        for place in values
        if (plain := _plain(heads[place])) in LABEL_NAMES and (plain != "y" or place in can)
    ]
    unclear = named or list(can)
    if len(unclear) == 1:
        return unclear[0]
    if not unclear:
        return None
    shown = [
        f"{heads[place]} ({len(values[place])} values, such as "
        f"{first_few(sorted(values[place]), 3)})"
        for place in unclear
    ]
    return DataError(
        f"{path}: expected one column of labels, got several: {first_few(shown, 6, '; ')}",
        fix=f"name it: --label {heads[unclear[0]]}; or, where folders are the classes, move the "
        "table out of the folder",
    )
