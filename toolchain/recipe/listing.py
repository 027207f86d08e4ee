"""What an image folder holds: which pictures, of which class, in which part, and what is left out.

Rules of this file: names and file types only; it decodes nothing. Nothing is left out or added in
silence: ``Listing.left_out`` counts everything that no part uses, with the reason, and
``Listing.notes`` says what was taken for what. All faults of a folder are reported at once. Links
that lead out of the folder are refused. The same files give the same listing on every machine. Two
layouts::

    ROOT/train/<class>/*.jpg        or        ROOT/<class>/*.jpg
    ROOT/test/<class>/*.jpg                   (a fifth of each class, chosen by the hash of
    ROOT/val/<class>/*.jpg                     its name, is kept for the test)

Parts are known by their names, in capitals or not: train or training, test or testing, and val,
valid or validation. Without a test part the validation part is the test.
"""

from __future__ import annotations

import errno
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from toolchain.core.errors import DataError, Fault, StorageError, first_few
from toolchain.core.files import is_folder, resolved
from toolchain.pictures.decode import CONVERT, SUFFIXES, UNREAD_SUFFIXES
from toolchain.pictures.service import service_folder

MAX_CLASSES = 20_000
MAX_PICTURES = 10_000_000
MAX_ENTRIES = 20_000_000
MAX_DEPTH = 6  # folders below the root: part, class, and four more
MAX_KINDS = 40
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing")
VALIDATION_NAMES = ("val", "valid", "validation")
TEST_SHARE = 5
LISTED = 1_000
_SHOWN = 3

LAYOUT = """expected layout:
    {root}/
    ├── train/
    │   ├── <class>/  pictures (.jpg .png .webp .bmp .gif .tif .ppm)
    │   └── <class>/
    └── test/         (or val/; without train/ and test/: the class folders themselves)
        ├── <class>/
        └── <class>/"""

_HIDDEN = "hidden: the name begins with a dot"
_NO_CLASS = "pictures in no class folder"
_EMPTY = "folders without a picture that is read"
_BESIDE = "folders beside the parts, which are no part"
_SPECIAL = "neither files nor folders"
_NO_PICTURES = "files of other kinds"
_NOWHERE = "the link leads nowhere", "remove it, or copy its target"

Pairs = tuple[tuple[Path, int], ...]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What no part uses for one ``reason``: how many, and the first ``LISTED``, below the root."""

    reason: str
    fix: str
    count: int
    paths: tuple[str, ...]

    def __str__(self) -> str:
        more = self.count - _SHOWN
        shown = ", ".join([*self.paths[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])
        return f"{self.count} {self.reason}: {shown}" + (f" ({self.fix})" if self.fix else "")


@dataclass(frozen=True, slots=True)
class Listing:
    """The pictures of a folder: per part, pairs of path and class index; classes sorted by name.

    ``validation`` is empty unless the folder has such a part beside a test part. ``was_split``:
    the folder has parts, so nothing was chosen here. ``faults``: what keeps it from being trained
    with, empty for what :func:`scan` returns.
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

    def raise_faults(self) -> None:
        """Raise DataError with all faults, if there is one."""
        raise_faults(str(self.root), self.faults)

    @property
    def pictures(self) -> Pairs:
        """The pictures of all parts."""
        return self.train + self.validation + self.test

    def lines(self) -> list[str]:
        """Return for people what is in each part, what was taken for what, and what is left out."""
        parts = "as the folders say" if self.was_split else "a fifth of each class to test"
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


@dataclass(slots=True, eq=False)
class _Folder:
    """A folder: its own pictures, its subfolders by name, and all pictures in it in order."""

    path: Path
    own: list[Path] = field(default_factory=list)
    folders: dict[str, _Folder] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)

    def of_classes(self) -> bool:
        """Whether pictures lie in subfolders."""
        return any(folder.pictures for folder in self.folders.values())


Classes = dict[str, list[Path]]


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
    walk = _Walk(root)
    tree = walk.read()
    try:
        parts = _parts(root, tree)
        listing = _of_parts(walk, tree, parts, trains) if parts else _split_by_hash(walk, tree)
    except DataError:
        # What could not be read may be what is missing.
        raise_faults(str(root), walk.faults)
        raise
    return replace(listing, faults=tuple(walk.faults))


def _parts(root: Path, tree: _Folder) -> dict[str, _Folder]:
    """Return the folders of the parts by train, test and validation; nothing without parts.

    A folder called train that holds pictures itself, and has no test beside it, is a class.
    Raises DataError where the names can mean both.
    """
    named: dict[str, _Folder] = {}
    roles = {"train": TRAIN_NAMES, "test": TEST_NAMES, "validation": VALIDATION_NAMES}
    for role, names in roles.items():
        folders = [folder for name, folder in tree.folders.items() if name.casefold() in names]
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


def _of_parts(walk: _Walk, tree: _Folder, parts: Mapping[str, _Folder], trains: bool) -> Listing:
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
    walk: _Walk, part: Path, train: Path, files: Iterable[str], trained: Iterable[str]
) -> None:
    strange = [repr(name) for name in sorted(set(files) - set(trained))]
    if strange:
        walk.fault(
            part,
            f"expected the classes of {train.name}/, got {first_few(strange, 5)} besides",
            f"add pictures of them to {train}, or remove them",
        )


def _split_by_hash(walk: _Walk, tree: _Folder) -> Listing:
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
    part_names = {*TRAIN_NAMES, *TEST_NAMES, *VALIDATION_NAMES}
    notes = [f"{name!r} is a class" for name in classes if name.casefold() in part_names]
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


def _refuse_too_deep_a_root(tree: _Folder, files: Classes) -> None:
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


def _class_files(walk: _Walk, folder: _Folder) -> Classes:
    """Return each class folder's pictures, by its name in Unicode's NFC form."""
    out: Classes = {}
    below = 0
    for of_class in folder.folders.values():
        plain = walk.class_name(of_class.path)
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


@dataclass(slots=True, eq=False)
class _Kind:
    """What is left out for one reason, while it is counted: as :class:`LeftOut`."""

    fix: str
    count: int = 0
    paths: list[str] = field(default_factory=list)


class _Walk:
    """One reading of a folder: it notes faults, what is left out, and what was read how."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes: list[str] = []
        self._resolved = resolved(root)
        self.faults: list[Fault] = []
        self._left: dict[str, _Kind] = {}
        self._entries = self._pictures = 0

    def read(self) -> _Folder:
        """Return the whole tree. Raises DataError for one that is larger than the limits."""
        return self._folder(self.root, (str(self._resolved),), 0)

    def fault(self, path: Path, message: str, fix: str) -> None:
        """Note a fault, for :attr:`Listing.faults`."""
        self.faults.append(Fault(self.relative(path), message, fix))

    def leave_out(self, reason: str, paths: Sequence[Path], fix: str = "") -> None:
        """Note what no part uses, if there is any."""
        if not paths:
            return
        if reason not in self._left and len(self._left) >= MAX_KINDS:
            reason, fix = _NO_PICTURES, ""
        kind = self._left.setdefault(reason, _Kind(fix))
        kind.count += len(paths)
        kind.paths += map(self.relative, paths[: LISTED - len(kind.paths)])

    def left_out(self) -> tuple[LeftOut, ...]:
        """Return what was left out, by reason."""
        return tuple(
            LeftOut(reason=reason, fix=kind.fix, count=kind.count, paths=tuple(kind.paths))
            for reason, kind in self._left.items()
        )

    def relative(self, path: Path) -> str:
        """Return a path below the root."""
        return path.relative_to(self.root).as_posix()

    def class_name(self, folder: Path) -> str | None:
        """Return a class folder's name in NFC, or None where it is a fault."""
        name = folder.name
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            self.fault(folder, "expected a UTF-8 name", "rename the folder")
            return None
        if not name.isprintable() or len(name) > 200:
            what = f"expected a class name of 1 to 200 printable characters, got {name!r:.220}"
            self.fault(folder, what, "rename the folder")
            return None
        return unicodedata.normalize("NFC", name)

    def _folder(self, path: Path, chain: tuple[str, ...], depth: int) -> _Folder:
        out = _Folder(path)
        for entry in self._listed(path):
            place = Path(entry.path)
            try:
                if entry.name.startswith("."):
                    self.leave_out(_HIDDEN, [place])
                elif entry.is_symlink() and not self._leads_inside(place):
                    continue
                elif entry.is_dir():
                    self._subfolder(out, entry, chain, depth)
                elif entry.is_file():
                    self._file(out, place)
                elif entry.is_symlink():
                    self.fault(place, *_NOWHERE)
                else:
                    self.leave_out(_SPECIAL, [place])
            except OSError as err:
                if err.errno == errno.ELOOP:
                    self.fault(place, *_NOWHERE)
                    continue
                self.fault(place, f"cannot be read: {err.strerror}", "check its permissions")
        return out

    def _subfolder(
        self, out: _Folder, entry: os.DirEntry[str], chain: tuple[str, ...], depth: int
    ) -> None:
        place = Path(entry.path)
        if (what := service_folder(entry.name)) is not None:
            self.leave_out(f"folders that a computer makes, not entered ({what})", [place])
            return
        here = str(resolved(place)) if entry.is_symlink() else f"{chain[-1]}/{entry.name}"
        if here in chain:
            self.fault(place, "folders nest too deeply: the link leads back up", "remove the link")
        elif depth == MAX_DEPTH:
            self.fault(place, "folders nest too deeply", "flatten the class folder")
        else:
            folder = self._folder(place, (*chain, here), depth + 1)
            out.folders[entry.name] = folder
            out.pictures += folder.pictures

    def _file(self, out: _Folder, place: Path) -> None:
        suffix = place.suffix.lower()
        if suffix in SUFFIXES:
            self._pictures += 1
            if self._pictures > MAX_PICTURES:
                raise self._too_large(f"{MAX_PICTURES} pictures")
            out.own.append(place)
            out.pictures.append(place)
        elif suffix in UNREAD_SUFFIXES:
            kind = UNREAD_SUFFIXES[suffix]
            self.leave_out(f"pictures of a format that is not read ({kind})", [place], CONVERT)
        else:
            self.leave_out(f"{_NO_PICTURES} ({suffix[:20] or 'no suffix'})", [place])

    def _leads_inside(self, place: Path) -> bool:
        if resolved(place).is_relative_to(self._resolved):
            return True
        self.fault(place, "links out of the data folder", "copy what it links to instead")
        return False

    def _listed(self, folder: Path) -> list[os.DirEntry[str]]:
        out = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._entries += 1
                    if self._entries > MAX_ENTRIES:
                        raise self._too_large(f"{MAX_ENTRIES} files and folders")
                    out.append(entry)
        except OSError as err:
            if folder == self.root:
                raise StorageError(
                    f"{folder}: cannot be listed: {err.strerror}", fix="check its permissions"
                ) from err
            self.fault(folder, f"cannot be listed: {err.strerror}", "check its permissions")
        return sorted(out, key=lambda entry: entry.name)

    def _too_large(self, limit: str) -> DataError:
        return DataError(
            f"{self.root}: expected at most {limit}", fix="split the data into several domains"
        )
