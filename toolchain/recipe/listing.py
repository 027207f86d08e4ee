"""What an image folder holds: which pictures, of which class, in which part.

Rules of this file: names and file types only; it decodes nothing. Links that lead out of the folder
are refused. The same files give the same listing on every machine. Two layouts::

    ROOT/train/<class>/*.jpg        or        ROOT/<class>/*.jpg
    ROOT/test/<class>/*.jpg                   (a fifth of each class, chosen by the hash of
    (val or valid instead of test)             its name, is kept for the test)
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolchain.core.errors import DataError
from toolchain.pictures.preprocess import SUFFIXES

MAX_CLASSES = 20_000
MAX_PICTURES = 10_000_000
MAX_DEPTH = 4
TEST_NAMES = ("test", "val", "valid", "validation")
TEST_SHARE = 5

LAYOUT = """expected layout:
    {root}/
    ├── train/
    │   ├── <class>/  pictures (.jpg .png .webp .bmp .gif .tif .ppm)
    │   └── <class>/
    └── test/         (or val/; without train/ and test/: the class folders themselves)
        ├── <class>/
        └── <class>/"""


@dataclass(frozen=True, slots=True)
class Listing:
    """The pictures of a folder: per part, pairs of path and class index; classes sorted by name."""

    root: Path
    classes: tuple[str, ...]
    train: tuple[tuple[Path, int], ...]
    test: tuple[tuple[Path, int], ...]
    was_split: bool


def scan(root: Path) -> Listing:
    """Return the pictures below ``root``.

    Raises DataError for a folder that is missing, has no class, or is larger than the limits.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of pictures", fix=LAYOUT.format(root=root))
    train = root / "train"
    if not train.is_dir():
        return _split_by_hash(root)
    test = next((root / name for name in TEST_NAMES if (root / name).is_dir()), None)
    if test is None:
        raise DataError(f"{root}: expected test/ beside train/", fix=LAYOUT.format(root=root))
    train_files, test_files = _class_files(train), _class_files(test)
    classes = tuple(sorted(train_files))
    strange = sorted(set(test_files) - set(train_files))
    if strange:
        raise DataError(
            f"{test}: expected the classes of {train.name}/, got {strange[0]!r} besides",
            fix=f"add its pictures to {train}, or remove it",
        )
    return Listing(root, classes, _pairs(train_files, classes), _pairs(test_files, classes), True)


def _split_by_hash(root: Path) -> Listing:
    files = _class_files(root)
    if not files:
        raise DataError(f"{root}: expected class folders, got none", fix=LAYOUT.format(root=root))
    classes = tuple(sorted(files))
    parts: tuple[dict[str, list[Path]], dict[str, list[Path]]] = ({}, {})
    for name, paths in files.items():
        ranked = sorted(paths, key=lambda path: _rank(root, path))
        # A class of one picture trains; from two on, each class has at least one to test.
        count = -(-len(ranked) // TEST_SHARE) if len(ranked) > 1 else 0
        parts[0][name], parts[1][name] = sorted(ranked[count:]), sorted(ranked[:count])
    return Listing(root, classes, _pairs(parts[0], classes), _pairs(parts[1], classes), False)


def _rank(root: Path, path: Path) -> bytes:
    """Return what orders a class's pictures: by chance, and the same on every machine."""
    # Some file systems store names decomposed; NFC makes them the same text.
    name = unicodedata.normalize("NFC", path.relative_to(root).as_posix())
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def _pairs(files: dict[str, list[Path]], classes: tuple[str, ...]) -> tuple[tuple[Path, int], ...]:
    return tuple((path, i) for i, name in enumerate(classes) for path in files.get(name, ()))


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """Return each class folder's pictures, by its name in Unicode's NFC form."""
    out: dict[str, list[Path]] = {}
    count = 0
    for entry in _entries(folder):
        # Folders such as .git and __MACOSX are no classes.
        if not entry.is_dir() or entry.name.startswith((".", "__")):
            continue
        _refuse_outside(entry, folder.resolve())
        name = _class_name(entry.name, folder)
        if name in out:
            raise DataError(f"{folder}: two folders are called {name!r}", fix="merge them")
        out[name] = list(_picture_files(Path(entry.path), folder.resolve(), MAX_DEPTH))
        count += len(out[name])
        if len(out) > MAX_CLASSES or count > MAX_PICTURES:
            raise DataError(
                f"{folder}: expected at most {MAX_CLASSES} classes and {MAX_PICTURES} pictures",
                fix="split the data into several domains",
            )
    return out


def _class_name(name: str, folder: Path) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as err:
        raise DataError(f"{folder}: expected UTF-8 names, got {name!r}", fix="rename it") from err
    if not name.isprintable() or len(name) > 200:
        raise DataError(
            f"{folder}: expected class names of 1 to 200 printable characters, got {name!r}",
            fix="rename the folder",
        )
    return unicodedata.normalize("NFC", name)


def _picture_files(folder: Path, inside: Path, depth: int) -> Iterator[Path]:
    for entry in _entries(folder):
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        _refuse_outside(entry, inside)
        if entry.is_dir():
            if depth == 0:
                raise DataError(f"{path}: folders nest too deeply", fix="flatten the class folder")
            yield from _picture_files(path, inside, depth - 1)
        elif path.suffix.lower() in SUFFIXES and entry.is_file():
            yield path


def _refuse_outside(entry: os.DirEntry[str], inside: Path) -> None:
    path = Path(entry.path)
    if entry.is_symlink() and not path.resolve().is_relative_to(inside):
        raise DataError(f"{path}: links out of the data folder", fix="copy it instead")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as err:
        raise DataError(f"{folder}: cannot be listed: {err.strerror}", fix="check access") from err
