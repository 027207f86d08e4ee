"""Which form the data in a place have: folders of classes, a table, idx files, a numpy archive.

Rules of this file: it looks at names, heads and the first rows, and says what a recipe would say.
It decides by what is there and never by chance: where two readings are as good, it refuses and
names both. What it says is checked whole by the loader afterwards.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from toolchain.core.errors import DataError, StorageError, UsageError, first_few
from toolchain.core.files import exists, is_file, is_folder, names
from toolchain.pictures.decode import SUFFIXES
from toolchain.pictures.survey import Tell
from toolchain.recipe.examined import Examined
from toolchain.recipe.listing import PART_OF
from toolchain.recipe.spec import DELIMITERS, PLACE, DataSpec
from toolchain.recipe.walk import Walk
from toolchain.training.data import idx, npz
from toolchain.training.data.arrays import Arrays
from toolchain.training.data.labelled import PARTS
from toolchain.training.data.loaders import looked_at
from toolchain.training.data.table import plain_path, rows, text_of

SEED = 1
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".dat")
LABEL_NAMES = (
    *("label", "labels", "class", "classes", "class_name", "classname", "label_name"),
    *("category", "target", "species", "breed", "diagnosis", "y"),
)
"""What a column of labels is called, in capitals or not."""
SPLIT_NAMES = ("split", "part", "set", "subset", "partition", "usage")
ARRAY_NAMES = (
    ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val"),
    ("train_images", "train_labels", "test_images", "test_labels", "val_images", "val_labels"),
    ("x", "y"),
    ("images", "labels"),
    ("images", "target"),
    ("data", "labels"),
    ("data", "target"),
)
"""What arrays are called, in capitals or not, in the order of ``data.columns``."""
LISTED_CLASSES = 100
_DARK = 64
"""No part of pictures up to 255 is as dark as that; levels from 0 to 16 are."""
_FIRST_ROWS = 20
_ROWS = 300
_FOLDERS = 50
_MOST = 0.9


def first_look(
    path: Path, label: str | None = None, tell: Tell = lambda _done, _all: None
) -> tuple[DataSpec, Examined | Arrays]:
    """Return what a recipe says of the data in ``path``, and what they are.

    Labels that are numbers stand in the recipe, each with the same name: people put names there.
    Raises as :func:`recognised` and :func:`toolchain.training.data.looked_at`.
    """
    spec = recognised(path, label)
    contents = looked_at(spec, tell=tell)
    classes = tuple(str(count["name"]) for count in contents.counts())
    numbers = all(re.fullmatch(r"[-+]?[0-9][0-9.eE+-]*", name) for name in classes)
    if spec.loader != "folder" and numbers and len(classes) <= LISTED_CLASSES:
        spec = replace(spec, labels=classes, classes=classes)
    return spec, contents


def recognised(path: Path, label: str | None = None) -> DataSpec:
    """Return what a recipe says of the data in ``path``, a folder or one file of the data.

    ``label`` names the column of labels of a table, or its number from 1 on. Raises DataError where
    there is no such place, or what lies there can be read in several ways; UsageError for a
    ``label`` where there is no table.
    """
    if not exists(path):
        raise DataError(f"{path}: no such folder of pictures", fix="check the path")
    root, only = (path, None) if is_folder(path) else (path.parent, path.name)
    spec = _of_table(root, only, label)
    if spec is None and label is not None:
        raise UsageError(
            f"expected a table for the column {label!r}, got none in {path}",
            fix="leave it out, or name the table (.csv, .tsv)",
        )
    spec = spec or _of_idx(root) or _of_npz(root, only)
    if spec is None and only is not None:
        raise DataError(
            f"{path}: expected a folder of pictures, a table (.csv, .tsv), idx files or an archive "
            "(.npz), got another file",
            fix="name the folder that holds the pictures",
        )
    return spec or _spec("folder", root, None)


def _of_idx(root: Path) -> DataSpec | None:
    files = idx.recognised(root)
    if not files:
        return None
    return _spec("idx", root, files)


def _spec(loader: str, root: Path, files: Sequence[str] | None) -> DataSpec:
    return DataSpec(
        loader=loader,
        root=str(root),
        train=None,
        test=None,
        seed=SEED,
        files=None if files is None else tuple(files),
    )


def _of_npz(root: Path, only: str | None) -> DataSpec | None:
    archives = [only] if only else [name for name in names(root) if name.endswith(".npz")]
    if not archives or not archives[0].endswith(".npz"):
        return None
    if only is None and Walk(root).read().pictures:
        return None  # a folder of pictures beside which an archive lies
    if len(archives) > 1:
        raise DataError(
            f"{root}: expected one archive, got {first_few(archives, 5)}",
            fix="name the archive itself instead of its folder",
        )
    headers = npz.headers(root / archives[0])
    columns = _columns_of_npz(root / archives[0], list(headers))
    pictures = [headers[name] for name in columns[::2]]
    spec = replace(_spec("npz", root, archives), columns=columns)
    if any(header.dtype != np.uint8 for header in pictures):
        spec = replace(spec, white=_white(root, spec, pictures))
    return spec


def _columns_of_npz(path: Path, present: Sequence[str]) -> tuple[str, ...]:
    plain = {name.lower(): name for name in present}
    for known in ARRAY_NAMES:
        # Without a test part the validation part is the test.
        for choice in (known, known[:4], (*known[:2], *known[4:]), known[:2]):
            if all(name in plain for name in choice):
                return tuple(plain[name] for name in choice)
    shown = first_few([repr(name)[:60] for name in present], 20) or "none"
    raise DataError(
        f"{path}: expected arrays such as x_train, y_train, x_test, y_test, got {shown}",
        fix="rename them; or write the recipe by hand, with loader npz and data.columns",
    )


def _white(root: Path, spec: DataSpec, headers: Sequence[npz.Header]) -> float:
    """Return which value is white: 1 for pictures from 0 to 1, 255 for those up to 255.

    Raises DataError for other ranges, and where parts differ: nothing says what is white in them.
    """
    ranges = npz.values(spec, root)
    whites: set[float | None] = set()
    for (low, high), header in zip(ranges, headers, strict=True):
        if header.dtype == np.uint8 or (low >= 0 and _DARK < high <= 255):
            whites.add(255.0)
        else:
            whites.add(1.0 if low >= 0 and 0 < high <= 1 else None)
    if len(whites) == 1 and (white := whites.pop()) is not None:
        return white
    shown = ", ".join(f"{low:g} to {high:g}" for low, high in ranges)
    raise DataError(
        f"{root / (spec.files or ('',))[0]}: expected pictures in uint8, or from 0 to 1, or from 0 "
        f"to 255, got parts with values from {shown}",
        fix="store all parts alike, before they are normalised; or write the recipe by hand, with "
        "data.white",
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """What the first rows of a table say, as far as the recipe has keys for it."""

    name: str
    delimiter: str
    path: str
    columns: tuple[str | int, ...]
    repeats_folders: bool


def _of_table(root: Path, only: str | None, label: str | None) -> DataSpec | None:
    """Return the recipe's words for the tables in a folder, or None where none names pictures."""
    tables = [only] if only else names(root)
    tables = [
        name
        for name in tables
        if PurePosixPath(name).suffix.lower() in TABLE_SUFFIXES
        and not name.startswith(".")
        and is_file(root / name)
    ]
    if not tables:
        return None
    tree = Walk(root).read()
    pictures = [plain_path(path.relative_to(root).as_posix()) for path in tree.pictures]
    looked: list[_Table] = []
    unclear: DataError | None = None
    for name in tables:
        try:
            table = _look(root, name, pictures, label, only=only is not None)
        except DataError as err:
            unclear = unclear or err
            continue
        if table is not None:
            looked.append(table)
    classes = [folder for folder in tree.folders.values() if folder.pictures]
    if not looked:
        # Whoever named the table, or has no folders of classes, shall know what is unclear.
        if unclear is not None and (only or label or len(classes) < 2):
            raise unclear
        if only is not None:
            raise DataError(
                f"{root / only}: expected a column of paths of pictures below {root}, got none",
                fix="put the table beside the folder of its pictures",
            )
        return None
    if only is None and label is None and all(table.repeats_folders for table in looked):
        return None
    return _joined(root, looked)


def _joined(root: Path, tables: Sequence[_Table]) -> DataSpec:
    first = tables[0]
    files = [first.name]
    if len(tables) > 1:
        role_of = {table.name: _role(table.name) for table in tables}
        by_role = {role: name for name, role in role_of.items() if role is not None}
        alike = {(table.delimiter, table.path, table.columns) for table in tables}
        parts = [part for part in PARTS if part in by_role]
        if len(by_role) < len(tables) or len(alike) > 1 or parts[:2] != ["train", "test"]:
            listed = first_few([table.name for table in tables], 5)
            raise DataError(
                f"{root}: expected one table, or train and test of the same form, got {listed}",
                fix="name the table itself instead of its folder",
            )
        files = [by_role[part] for part in parts]
    return replace(
        _spec("csv", root, files),
        columns=first.columns,
        delimiter=first.delimiter,
        path=None if first.path == PLACE else first.path,
    )


def _role(name: str) -> str | None:
    words = re.split(r"[^a-z0-9]+", name.lower())
    roles = {PART_OF[word] for word in words if word in PART_OF}
    return roles.pop() if len(roles) == 1 else None


def _look(
    root: Path, name: str, pictures: Sequence[str], label: str | None, *, only: bool
) -> _Table | None:
    """Return what a table says; None where it names no pictures. Raises DataError where unclear."""
    try:
        text = text_of(root / name)
    except (DataError, StorageError):
        # The loader will say what is wrong, if this is the table.
        if only:
            raise
        return None
    delimiter = _delimiter(text)
    if delimiter is None:
        return None
    parsed = _parsed(text, delimiter)
    first = next(parsed, [])
    width = len(first)
    sample = list(islice(parsed, _ROWS))
    where = _paths([row for row in sample if len(row) == width], width, pictures)
    if where is None:
        return None
    column, pattern = where
    named = plain_path(pattern.replace(PLACE, first[column]))
    # A first row that names a picture which is missing is a row all the same.
    is_row = named in set(pictures) or PurePosixPath(first[column]).suffix.lower() in SUFFIXES
    has_names = not is_row
    heads = first if has_names else [str(place + 1) for place in range(width)]
    usable = has_names and all(head and heads.count(head) == 1 for head in heads)
    if has_names and not usable:
        raise DataError(
            f"{root / name}: line 1: expected a name for each column, each once, got "
            f"{first_few([repr(head)[:60] for head in heads], 20)}",
            fix="give each column a name of its own",
        )
    body = [*([] if has_names else [first]), *sample, *parsed]
    body = [row for row in body if len(row) == width]
    split = _split_column(heads, body, column) if has_names else None
    labels = _label_column(root / name, heads, body, column, split, label)
    if labels is None:
        return None
    chosen = [column, labels, *([] if split is None else [split])]
    folders = [
        PurePosixPath(pattern.replace(PLACE, row[column])).parent.name == row[labels]
        for row in body
    ]
    return _Table(
        name=name,
        delimiter=delimiter,
        path=pattern,
        columns=tuple(heads[place] if has_names else place + 1 for place in chosen),
        repeats_folders=all(folders),
    )


def _parsed(text: str, delimiter: str) -> Iterator[list[str]]:
    """Yield the rows of a table up to its first fault, which the loader will tell."""
    try:
        for row in rows(text, delimiter):
            yield [cell.strip() for cell in row.texts]
    except ValueError:
        return


def _delimiter(text: str) -> str | None:
    """Return what gives most of the first rows the same number of columns, and the most columns."""
    best, most = None, 1
    for name in DELIMITERS:
        if name == "space" and best is not None:
            break  # spaces stand inside texts, too
        widths = Counter(len(row) for row in islice(_parsed(text, name), _FIRST_ROWS))
        width, count = max(widths.items(), key=lambda item: item[1], default=(0, 0))
        if width > most and count >= _MOST * widths.total():
            best, most = name, width
    return best


def _paths(
    sample: Sequence[Sequence[str]], width: int, pictures: Sequence[str]
) -> tuple[int, str] | None:
    """Return which column names pictures, and the pattern of their paths; None for no column."""
    known = set(pictures)
    folders = Counter(str(PurePosixPath(picture).parent) for picture in pictures)
    prefixes = ["", *(f"{name}/" for name, _ in folders.most_common(_FOLDERS) if name != ".")]
    endings = ["", *sorted({PurePosixPath(picture).suffix for picture in pictures})]
    for column in range(width):
        texts = [row[column] for row in sample]
        # Paths differ from row to row; labels do not.
        if len(set(texts)) * 2 < len(texts) or not any(texts):
            continue
        for prefix in prefixes:
            for ending in endings:
                if not ending and not any(
                    PurePosixPath(text).suffix.lower() in SUFFIXES for text in texts[:20]
                ):
                    continue
                hits = sum(plain_path(f"{prefix}{text}{ending}") in known for text in texts)
                if hits >= _MOST * len(texts):
                    return column, f"{prefix}{PLACE}{ending}"
    return None


def _split_column(heads: Sequence[str], body: Sequence[Sequence[str]], path: int) -> int | None:
    for place, head in enumerate(heads):
        if place != path and head.casefold() in SPLIT_NAMES:
            parts = {PART_OF.get(row[place].casefold()) for row in body}
            if None not in parts and {"train", "test"} <= parts:
                return place
    return None


def _label_column(
    path: Path,
    heads: Sequence[str],
    body: Sequence[Sequence[str]],
    paths: int,
    split: int | None,
    label: str | None,
) -> int | None:
    """Return the column of labels; None where no column can be one. Raises DataError if unclear."""
    if label is not None:
        if label not in heads:
            raise DataError(
                f"{path}: expected a column {label!r}, got {first_few(list(heads), 20)}",
                fix="name one of these columns",
            )
        return list(heads).index(label)
    values = {
        place: {row[place] for row in body}
        for place in range(len(heads))
        if place not in (paths, split)
    }
    can = {place: texts for place, texts in values.items() if 2 <= len(texts) <= len(body) // 2}
    named = [place for place in can if heads[place].casefold() in LABEL_NAMES]
    if len(named) == 1 or len(can) == 1:
        return (named if len(named) == 1 else list(can))[0]
    if not can:
        return None
    shown = [
        f"{heads[place]} ({len(texts)} values, such as {first_few(sorted(texts), 3)})"
        for place, texts in can.items()
    ]
    raise DataError(
        f"{path}: expected one column of labels, got several: {first_few(shown, 6, '; ')}",
        fix=f"name it: --label {heads[next(iter(can))]}",
    )
