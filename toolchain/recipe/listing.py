"""What an image folder means: which pictures, of which class, in which part, and what is left out.

Rules of this file: it looks at the tree that :mod:`toolchain.recipe.walk` has read, and at no file.
Nothing is left out or added in silence: ``Listing.left_out`` counts everything that no part uses,
with the reason, and ``Listing.notes`` says what was taken for what. All faults of a folder are
reported at once. The same files give the same listing on every machine. Two layouts::

    ROOT/train/<class>/*.jpg        or        ROOT/<class>/*.jpg
    ROOT/test/<class>/*.jpg                   (a fifth of each class, chosen by the hash of
    ROOT/val/<class>/*.jpg                     its name, is kept for the test)

Parts are known by their names (``part_of``), in capitals or not: train or training, test or
testing, and val, valid, validation, dev or eval. Without a test part the validation part is the
test.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolchain.core.errors import DataError, Fault, first_few
from toolchain.core.files import is_folder
from toolchain.recipe.walk import Folder, LeftOut, Walk

MAX_CLASSES = 20_000
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing")
VALIDATION_NAMES = ("val", "valid", "validation", "dev", "eval", "evaluation")
PART_OF = {
    **dict.fromkeys(TRAIN_NAMES, "train"),
    **dict.fromkeys(TEST_NAMES, "test"),
    **dict.fromkeys(VALIDATION_NAMES, "validation"),
}
"""What a part may be called, and which part that is: in folders, tables and idx files alike."""
TEST_SHARE = 5

LAYOUT = """expected layout:
    {root}/
    ├── train/
    │   ├── <class>/  pictures (.jpg .png .webp .bmp .gif .tif .ppm)
    │   └── <class>/
    └── test/         (or val/; without train/ and test/: the class folders themselves)
        ├── <class>/
        └── <class>/"""

AS_FOLDERS = "as the folders say"
_NO_CLASS = "pictures in no class folder"
_EMPTY = "folders without a picture that is read"
_BESIDE = "folders beside the parts, which are no part"

Pairs = tuple[tuple[Path, int], ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """The pictures of a folder: per part, pairs of path and class index; classes sorted by name.

    ``validation`` is empty unless the folder has such a part beside a test part. ``was_split``:
    the folder has parts, so nothing was chosen here. ``faults``: what keeps it from being trained
    with, empty for what :func:`scan` returns. ``parts``: how the parts came about, for people;
    empty for an image folder.
    """

    root: Path
    classes: tuple[str, ...]
    train: Pairs
    test: Pairs
    was_split: bool
    validation: Pairs = ()
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    parts: str = ""

    def raise_faults(self) -> None:
        """Raise DataError with all faults, if there is one."""
        raise_faults(str(self.root), self.faults)

    @property
    def pictures(self) -> Pairs:
        """The pictures of all parts."""
        return self.train + self.validation + self.test

    def lines(self) -> list[str]:
        """Return for people what is in each part, what was taken for what, and what is left out."""
        parts = self.parts or (AS_FOLDERS if self.was_split else "a fifth of each class to test")
        validation = f"{len(self.validation)} to validate, " if self.validation else ""
        return [
            f"{len(self.train)} to train, {validation}{len(self.test)} to test ({parts}), "
            f"{len(self.classes)} classes",
            *self.notes,
            *(f"left out: {entry}" for entry in self.left_out),
        ]

    def counts(self) -> list[dict[str, int | str]]:
        """Return for each class its name and the number of its pictures per part."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        counters = {name: Counter(label for _, label in part) for name, part in parts.items()}
        return [
            {"name": name} | {part: counter[label] for part, counter in counters.items()}
            for label, name in enumerate(self.classes)
        ]


Classes = dict[str, list[Path]]


def part_of(name: str) -> str | None:
    """Return the part that ``name`` names, such as Train, test_set or seg_train, or None."""
    return PART_OF.get(re.sub(r"^seg[ _-]|[ _-]?(set|data|images)$", "", name.casefold()))


def raise_faults(where: str, faults: Sequence[Fault]) -> None:
    """Raise DataError with all ``faults`` of the folder ``where``, if there is one."""
    if faults:
        fixes = "; ".join(dict.fromkeys(fault.fix for fault in faults if fault.fix))
        raise DataError.of(where, faults, fix=fixes)


def scan(root: Path) -> Listing:
    """Return the pictures below ``root``, what is left out, and what was taken for what.

    Raises DataError for a folder that is missing, has no class, or is larger than the limits, and
    for folders that cannot be entered, links that lead out, classes of the test that nothing trains
    and names that cannot be used: all of them at once, in ``faults``.
    """
    listing = look(root)
    listing.raise_faults()
    return listing


def look(root: Path, *, trains: bool = True) -> Listing:
    """Return what :func:`scan` does, with what is wrong in ``faults``.

    So whoever looks at the pictures too can tell all at once. ``trains``: False where the classes
    need not be those of the part train. Raises DataError where no listing can be made.
    """
    if not is_folder(root):
        raise DataError(f"{root}: no such folder of pictures", fix=LAYOUT.format(root=root))
    walk = Walk(root)
    tree = walk.read()
    try:
        parts = _parts(root, tree)
        listing = _of_parts(walk, tree, parts, trains) if parts else _split_by_hash(walk, tree)
    except DataError:
        # What could not be read may be what is missing.
        raise_faults(str(root), walk.faults)
        raise
    return replace(listing, faults=tuple(walk.faults))


def _parts(root: Path, tree: Folder) -> dict[str, Folder]:
    """Return the folders of the parts by train, test and validation; nothing without parts.

    A folder called train that holds pictures itself, and has no test beside it, is a class.
    Raises DataError where the names can mean both.
    """
    named: dict[str, Folder] = {}
    for role in dict.fromkeys(PART_OF.values()):
        folders = [folder for name, folder in tree.folders.items() if part_of(name) == role]
        if len(folders) > 1:
            both = " and ".join(f"{folder.path.name}/" for folder in folders)
            raise DataError(
                f"{root}: expected one folder for the part {role}, got {both}",
                fix="put the pictures of both into one of them",
            )
        if folders:
            named[role] = folders[0]
    others = [f.path.name for f in tree.folders.values() if f.pictures and f not in named.values()]
    tests = [role for role in ("test", "validation") if role in named]
    if "train" not in named:
        if tests and not others and all(named[role].of_classes() for role in tests):
            raise DataError(
                f"{root}: expected train/ beside {named[tests[0]].path.name}/",
                fix=LAYOUT.format(root=root),
            )
        return {}
    train = named["train"]
    if train.own and not train.of_classes():
        if not tests:
            return {}
        raise DataError(
            f"{train.path}: expected class folders, got {len(train.own)} pictures without a class",
            fix=LAYOUT.format(root=root),
        )
    if not tests:
        hint = f"\n(if {train.path.name!r} is a class, put its pictures right into its folder)"
        raise DataError(
            f"{root}: expected test/ beside {train.path.name}/",
            fix=LAYOUT.format(root=root) + (hint if others else ""),
        )
    return named


def _of_parts(walk: Walk, tree: Folder, parts: Mapping[str, Folder], trains: bool) -> Listing:
    walk.leave_out(_NO_CLASS, tree.own)
    for folder in tree.folders.values():
        if folder not in parts.values():
            walk.leave_out(_BESIDE if folder.pictures else _EMPTY, [folder.path])
    for folder in parts.values():
        walk.leave_out(_NO_CLASS, folder.own)
    files = {role: _class_files(walk, folder) for role, folder in parts.items()}
    # With the classes that nothing trains: their pictures are looked at with the others.
    classes = tuple(sorted({name for part in files.values() for name in part}))
    for role in files if trains else ():
        _note_strange(walk, parts[role].path, parts["train"].path, files[role], files["train"])
    pairs = {role: _pairs(part, classes) for role, part in files.items()}
    notes = [f"{folder.path.name}/ is the part {role}" for role, folder in parts.items()]
    if "test" not in parts:
        notes[-1] = f"{parts['validation'].path.name}/ is the part test"
        pairs["test"] = pairs.pop("validation")
    return Listing(
        root=walk.root,
        classes=classes,
        train=pairs["train"],
        test=pairs["test"],
        validation=pairs.get("validation", ()),
        was_split=True,
        left_out=walk.left_out(),
        notes=(*notes, *walk.notes, *_unbalanced(classes, pairs["test"])),
    )


def _note_strange(
    walk: Walk, part: Path, train: Path, files: Iterable[str], trained: Iterable[str]
) -> None:
    strange = [repr(name) for name in sorted(set(files) - set(trained))]
    if strange:
        walk.fault(
            part,
            f"expected the classes of {train.name}/, got {first_few(strange, 5)} besides",
            f"add pictures of them to {train}, or remove them",
        )


def _split_by_hash(walk: Walk, tree: Folder) -> Listing:
    root = walk.root
    walk.leave_out(_NO_CLASS, tree.own)
    files = _class_files(walk, tree)
    _refuse_too_deep_a_root(tree, files)
    classes = tuple(sorted(files))
    train: Classes = {}
    test: Classes = {}
    for name, paths in files.items():
        ranked = sorted(paths, key=lambda path: _rank(root, path))
        # A class of one picture trains; from two on, each class has at least one to test.
        count = -(-len(ranked) // TEST_SHARE) if len(ranked) > 1 else 0
        train[name], test[name] = sorted(ranked[count:]), sorted(ranked[:count])
    notes = [f"{name!r} is a class" for name in classes if part_of(name)]
    test_pairs = _pairs(test, classes)
    return Listing(
        root=root,
        classes=classes,
        train=_pairs(train, classes),
        test=test_pairs,
        was_split=False,
        left_out=walk.left_out(),
        notes=(*notes, *walk.notes, *_unbalanced(classes, test_pairs)),
    )


def _refuse_too_deep_a_root(tree: Folder, files: Classes) -> None:
    if not files:
        raise DataError(
            f"{tree.path}: expected class folders, got none", fix=LAYOUT.format(root=tree.path)
        )
    # An archive often holds one folder, and that one the class folders.
    only = [folder for folder in tree.folders.values() if folder.pictures]
    if len(only) == 1 and not only[0].own and len(only[0].folders) > 1:
        raise DataError(
            f"{tree.path}: expected at least 2 classes, got 1, whose pictures lie in "
            f"{len(only[0].folders)} folders",
            fix=f"name {only[0].path} as the folder of the pictures",
        )


def _rank(root: Path, path: Path) -> bytes:
    """Return what orders a class's pictures: by chance, and the same on every machine."""
    # Some file systems store names decomposed; NFC makes them the same text.
    name = unicodedata.normalize("NFC", path.relative_to(root).as_posix())
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def _pairs(files: Classes, classes: tuple[str, ...]) -> Pairs:
    return tuple((path, i) for i, name in enumerate(classes) for path in files.get(name, ()))


def _unbalanced(classes: tuple[str, ...], test: Pairs) -> Iterator[str]:
    """Yield a note about classes that no picture tests."""
    tested = {label for _, label in test}
    untested = [name for label, name in enumerate(classes) if label not in tested]
    if untested and test:
        yield f"{len(untested)} of {len(classes)} classes have no picture to test: " + first_few(
            untested, 5
        )


def _class_files(walk: Walk, folder: Folder) -> Classes:
    """Return each class folder's pictures, by its name in Unicode's NFC form."""
    out: Classes = {}
    below = 0
    for of_class in folder.folders.values():
        plain = _class_name(walk, of_class.path)
        if plain is None:
            continue
        if not of_class.pictures:
            walk.leave_out(_EMPTY, [of_class.path])
            continue
        if plain in out:
            walk.fault(of_class.path, f"two folders are called {plain!r}", "merge them")
        out[plain] = of_class.pictures
        below += len(of_class.pictures) - len(of_class.own)
    if len(out) > MAX_CLASSES:
        raise DataError(
            f"{folder.path}: expected at most {MAX_CLASSES} classes, got {len(out)}",
            fix="split the data into several domains",
        )
    if below:
        where = next(f for f in folder.folders.values() if f.of_classes())
        inner = next(f for f in where.folders.values() if f.pictures)
        walk.notes.append(
            f"{below} pictures lie in folders inside their class folder, such as "
            f"{walk.relative(inner.path)}"
        )
    return out


def _class_name(walk: Walk, folder: Path) -> str | None:
    """Return a class folder's name in NFC, or None where it is a fault."""
    name = folder.name
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        walk.fault(folder, "expected a UTF-8 name", "rename the folder")
        return None
    if not name.isprintable() or len(name) > 200:
        what = f"expected a class name of 1 to 200 printable characters, got {name!r:.220}"
        walk.fault(folder, what, "rename the folder")
        return None
    return unicodedata.normalize("NFC", name)
