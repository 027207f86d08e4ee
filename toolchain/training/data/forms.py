"""Which form the data in a place have: folders of classes, a table, idx files, a numpy archive.

Rules of this file: it looks at names, heads and the first rows, and says what a recipe would say.
It decides by what is there and never by chance: where two readings are as good, it refuses and
names both. What it says is checked whole by the loader afterwards.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from toolchain.core.errors import DataError, UsageError, first_few
from toolchain.core.files import exists, is_file, is_folder, names
from toolchain.pictures.survey import Tell
from toolchain.recipe.examined import Examined
from toolchain.recipe.listing import look as look_at_folders
from toolchain.recipe.spec import PLACE, DataSpec
from toolchain.recipe.walk import Walk
from toolchain.training.data import idx, npz
from toolchain.training.data.arrays import Arrays
from toolchain.training.data.labelled import PARTS
from toolchain.training.data.loaders import looked_at
from toolchain.training.data.table import plain_path, text_of
from toolchain.training.data.table_form import TableForm, look, role

SEED = 1
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".dat")
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
_MOST_TABLES = 10
_NEARLY_ALL = 0.9
_DARK = 64
"""No part of pictures up to 255 is as dark as that; levels from 0 to 16 are."""


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
    if spec is None and only is None:
        spec = _of_table_below(root, label)
    if spec is None and label is not None:
        raise UsageError(
            f"expected a table for the column {label!r}, got none in {path}",
            fix="leave it out, or name the table (.csv, .tsv)",
        )
    named = only is not None and only.endswith(".npz")
    spec = spec or (None if named else _of_idx(root)) or _of_npz(root, only)
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


def _of_table(root: Path, only: str | None, label: str | None) -> DataSpec | None:
    """Return the recipe's words for the tables in a folder, or None where none names pictures.

    Raises DataError where they are unclear: labels that stand in a table are not looked for
    elsewhere, and a table that is named like a part is used or refused.
    """
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
    found = {name: look(root, name, pictures, label, only=only is not None) for name in tables}
    looked = [table for table in found.values() if isinstance(table, TableForm)]
    unclear = {name: error for name, error in found.items() if isinstance(error, DataError)}
    if not looked:
        if unclear:
            raise next(iter(unclear.values()))
        if only is not None:
            raise DataError(
                f"{root / only}: expected a column of paths of pictures below {root} and one of "
                "their labels, got none",
                fix="put the table beside the folder of its pictures",
            )
        return None
    if only is None and label is None and len(looked) == 1 and looked[0].repeats_folders:
        return None
    for name, form in found.items():
        if role(name) and not isinstance(form, TableForm):
            text_of(root / name)  # it says what is wrong with a table that cannot be read
            raise unclear.get(name) or DataError(
                f"{root / name}: expected paths of pictures and their labels, as in "
                f"{looked[0].name}, got none",
                fix=f"mend it; or name the table to take instead of its folder, such as "
                f"{root / looked[0].name}",
            )
    return _joined(root, looked, only)


def _of_table_below(root: Path, label: str | None) -> DataSpec | None:
    """Return the recipe's words for a table that lies one folder down, or None for no such table.

    It is used where the folders are no classes, or where it names nearly all pictures: what lies
    in the folder of one class says something of that class alone. Raises DataError for several.
    """
    walk = Walk(root)
    tree = walk.read()
    pictures = [plain_path(path.relative_to(root).as_posix()) for path in tree.pictures]
    tables = _tables_below(walk) if pictures else []
    found = [_look_below(root, name, pictures, label) for name in tables]
    looked = [form for form in found if isinstance(form, TableForm)]
    if label is None:
        looked = [form for form in looked if not form.repeats_folders]
    if not tables or _are_classes(root):
        looked = [form for form in looked if form.pictures >= _NEARLY_ALL * len(pictures)]
    elif unclear := [form for form in found if isinstance(form, DataError)]:
        raise unclear[0]
    if len(looked) > 1:
        listed = first_few([table.name for table in looked], 5)
        raise DataError(
            f"{root}: expected one table, got {listed}",
            fix=f"join them into one table in {root}, with paths such as {pictures[0]}; or name "
            "one of them instead of the folder",
        )
    return _joined(root, looked, None) if looked else None


def _look_below(
    root: Path, name: str, pictures: Sequence[str], label: str | None
) -> TableForm | DataError | None:
    """Return what a table one folder down says of the pictures there, or else of all."""
    own = [path for path in pictures if path.startswith(f"{PurePosixPath(name).parent}/")]
    first: DataError | None = None
    for some in (own, pictures):
        try:
            form = look(root, name, some, label, only=False)
        except DataError as err:
            form = err
        if isinstance(form, TableForm):
            return form
        first = first or form
    return first


def _tables_below(walk: Walk) -> list[str]:
    """Return the tables that lie one folder down.

    A folder of many texts holds notes, as one for each picture, and no table of them.
    """
    below = [PurePosixPath(path) for entry in walk.left_out() for path in entry.paths]
    tables = [
        path
        for path in below
        if len(path.parts) == 2 and path.suffix.lower() in TABLE_SUFFIXES and path.name[0] != "."
    ]
    count = Counter(path.parent for path in tables)
    return sorted(str(path) for path in tables if count[path.parent] <= _MOST_TABLES)


def _are_classes(root: Path) -> bool:
    """Tell whether the folders alone can be trained with."""
    try:
        listing = look_at_folders(root)
    except DataError:
        return False
    return len(listing.classes) > 1 and bool(listing.train and listing.test)


def _joined(root: Path, tables: Sequence[TableForm], only: str | None) -> DataSpec:
    first = tables[0]
    files = [first.name]
    parts = [part for part in PARTS if part in {role(table.name) for table in tables}]
    if len(tables) > 1 or (only is None and parts not in ([], ["train"])):
        by_role = {role(table.name): table.name for table in tables}
        alike = {(table.delimiter, table.path, table.columns) for table in tables}
        # Without a test part the validation part is the test.
        if not len(parts) == len(tables) > 1 or len(alike) > 1 or parts[0] != "train":
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
