"""What lies in a folder of pictures: its tree, what is no picture, and what cannot be read.

Rules of this file: names and file types only; it decodes nothing, and does not know what a class or
a part is. Everything is in the tree, left out with a reason, or a fault; no fault ends the reading.
Links are followed inside the folder and never out of it. What the tree may hold is limited, and so
is what is noted of the rest. The same files give the same tree on every machine.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolchain.core.errors import DataError, Fault, StorageError
from toolchain.core.files import resolved
from toolchain.pictures.decode import CONVERT, SUFFIXES, UNREAD_SUFFIXES
from toolchain.pictures.service import service_folder

MAX_PICTURES = 10_000_000
MAX_ENTRIES = 20_000_000
MAX_DEPTH = 6  # folders below the root: part, class, and four more
MAX_KINDS = 40
LISTED = 1_000
_SHOWN = 3

_HIDDEN = "hidden: the name begins with a dot"
_SPECIAL = "neither files nor folders"
_NO_PICTURES = "files of other kinds"
_NOWHERE = "the link leads nowhere", "remove it, or copy its target"


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


@dataclass(slots=True, eq=False)
class Folder:
    """A folder: its own pictures, its subfolders by name, and all pictures in it in order."""

    path: Path
    own: list[Path] = field(default_factory=list)
    folders: dict[str, Folder] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)

    def of_classes(self) -> bool:
        """Whether pictures lie in subfolders."""
        return any(folder.pictures for folder in self.folders.values())


@dataclass(slots=True, eq=False)
class _Kind:
    """What is left out for one reason, while it is counted: as :class:`LeftOut`."""

    fix: str
    count: int = 0
    paths: list[str] = field(default_factory=list)


class Walk:
    """One reading of the folder ``root``.

    It notes ``faults``, what is left out, and in ``notes`` what was taken for what. Whoever gives
    the tree a meaning adds to these. Paths in them are below the root.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes: list[str] = []
        self.faults: list[Fault] = []
        self._resolved = resolved(root)
        self._left: dict[str, _Kind] = {}
        self._entries = self._pictures = 0

    def read(self) -> Folder:
        """Return the whole tree.

        Raises DataError for one that is larger than the limits, StorageError where the root itself
        cannot be listed.
        """
        return self._folder(self.root, (str(self._resolved),), 0)

    def fault(self, path: Path, message: str, fix: str) -> None:
        """Note what is wrong with ``path``, and what mends it."""
        self.faults.append(Fault(self.relative(path), message, fix))

    def leave_out(self, reason: str, paths: Sequence[Path], fix: str = "") -> None:
        """Note ``paths`` that are left out for ``reason``, if there are any; ``fix`` may be empty.

        After ``MAX_KINDS`` reasons further ones count as files of other kinds.
        """
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

    def _folder(self, path: Path, chain: tuple[str, ...], depth: int) -> Folder:
        out = Folder(path)
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
        self, out: Folder, entry: os.DirEntry[str], chain: tuple[str, ...], depth: int
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

    def _file(self, out: Folder, place: Path) -> None:
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
