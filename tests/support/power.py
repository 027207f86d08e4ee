"""A disk that keeps after a power cut what was fsynced, and of the rest whatever it likes.

Rules of this file: a model in memory, fed with the calls that a program made (``Call``). A file's
bytes are kept once the file was fsynced, a name once its folder was. Names that were not fsynced
may each be there or not, in any order; that is what fsync(2) promises, and no more.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where images are laid out: in memory where that can be had, as there are thousands."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call that changes a disk; paths are below its top.

    ``what``: mkdir, create, write, truncate, symlink, link, rename, unlink, rmdir, sync, or damage
    (somebody changes a file behind everybody's back, durably). ``site``: who called, for a sync.
    """

    what: str
    path: str
    to: str = ""
    data: bytes = b""
    at: int = 0
    site: str = ""


@dataclass(eq=False)
class Node:
    """A file, link or folder: as programs see it, and as it is kept."""

    kind: str
    data: bytes = b""
    kept: bytes = b""
    names: dict[str, Node] = field(default_factory=dict)
    kept_names: dict[str, Node] = field(default_factory=dict)
    # Each change of names since the last fsync; None for a name that went.
    pending: list[dict[str, Node | None]] = field(default_factory=list)

    def change(self, names: dict[str, Node | None]) -> None:
        _apply(self.names, names)
        self.pending.append(names)

    def sync(self) -> None:
        self.kept = self.data
        self.kept_names = dict(self.names)
        self.pending = []


def _apply(names: dict[str, Node], change: dict[str, Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Disk:
    """The disk after some calls."""

    def __init__(self, calls: Iterable[Call] = (), start: Image | None = None) -> None:
        self.top = Node("folder")
        for path, kind, data in start.entries if start else ():
            place = PurePosixPath(path)
            folder = self.find(str(place.parent))
            folder.names[place.name] = folder.kept_names[place.name] = Node(kind, data, data)
        for call in calls:
            self.take(call)

    def find(self, path: str) -> Node:
        node = self.top
        for name in PurePosixPath(path).parts:
            node = node.names[name]
        return node

    def take(self, call: Call) -> None:
        """Carry out one call."""
        match call.what:
            case "mkdir" | "create":
                kind = "folder" if call.what == "mkdir" else "file"
                self._enter(call.path, Node(kind))
            case "symlink":
                target = call.to.encode()
                self._enter(call.path, Node("link", target, target))
            case "link":
                self._enter(call.to, self.find(call.path))
            case "unlink" | "rmdir":
                self._enter(call.path, None)
            case "rename":
                self._rename(call.path, call.to)
            case "write":
                file = self.find(call.path)
                before = file.data.ljust(call.at, b"\0")
                file.data = before[: call.at] + call.data + before[call.at + len(call.data) :]
            case "truncate":
                file = self.find(call.path)
                file.data = file.data[: call.at].ljust(call.at, b"\0")
            case "damage":
                file = self.find(call.path)
                file.data = file.kept = call.data
            case "sync":
                self.find(call.path).sync()
            case _:
                raise AssertionError(call)

    def _enter(self, path: str, node: Node | None) -> None:
        place = PurePosixPath(path)
        self.find(str(place.parent)).change({place.name: node})

    def _rename(self, path: str, to: str) -> None:
        node, old, new = self.find(path), PurePosixPath(path), PurePosixPath(to)
        if old.parent == new.parent:
            self.find(str(old.parent)).change({old.name: None, new.name: node})
        else:
            self._enter(path, None)
            self._enter(to, node)

    def cuts(self) -> Iterator[Image]:
        """Yield what may be left if the power is cut now, each different one once."""
        seen: set[tuple[tuple[str, str, bytes], ...]] = set()
        for choice in self._choices():
            image = tuple(_image(self.top, choice, ""))
            if image not in seen:
                seen.add(image)
                yield Image(choice.name, image)

    def _choices(self) -> Iterator[Choice]:
        yield Choice("what was fsynced")
        yield Choice("everything", names=None, data="all")
        yield Choice("every name, bytes that were fsynced", names=None)
        yield Choice("every name, half of the bytes", names=None, data="half")
        for folder in _folders(self.top):
            for place in range(len(folder.pending) if len(folder.pending) > 1 else 0):
                yield Choice(f"change {place} of one folder", {folder: place})


@dataclass(frozen=True)
class Choice:
    """What a cut keeps besides what was fsynced: names (None: all; else one change), and bytes."""

    name: str
    names: dict[Node, int] | None = field(default_factory=dict)
    data: str = "kept"


@dataclass(frozen=True)
class Image:
    """A disk after a cut: path, kind and bytes of everything that is left."""

    name: str
    entries: tuple[tuple[str, str, bytes], ...]

    def lay_out(self, folder: Path) -> None:
        """Write it into the new ``folder``."""
        folder.mkdir()
        for path, kind, data in self.entries:
            if kind == "folder":
                (folder / path).mkdir()
            elif kind == "link":
                (folder / path).symlink_to(data.decode())
            else:
                (folder / path).write_bytes(data)


def _image(node: Node, choice: Choice, path: str) -> Iterator[tuple[str, str, bytes]]:
    if choice.names is None:
        names = node.names
    else:
        names = dict(node.kept_names)
        if node in choice.names:
            _apply(names, node.pending[choice.names[node]])
    for name in sorted(names):
        child, below = names[name], f"{path}{name}"
        yield below, child.kind, b"" if child.kind == "folder" else _bytes(child, choice)
        if child.kind == "folder":
            yield from _image(child, choice, f"{below}/")


def _bytes(node: Node, choice: Choice) -> bytes:
    if choice.data == "kept" or node.data == node.kept:
        return node.kept
    # What was kept stays; of what came after it, half.
    lengths = range(1, min(len(node.data), len(node.kept)) + 1)
    same = bisect_left(lengths, True, key=lambda n: node.data[:n] != node.kept[:n])
    half = same + (len(node.data) - same) // 2
    return node.data if choice.data == "all" else node.data[:half]


def _folders(node: Node) -> Iterator[Node]:
    yield node
    for child in node.names.values():
        if child.kind == "folder":
            yield from _folders(child)


def seen(folder: Path) -> tuple[tuple[str, str, bytes], ...]:
    """What lies in a real folder, in the form of an image."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found.append((name, "link", str(path.readlink()).encode()))
        elif path.is_dir():
            found.append((name, "folder", b""))
        else:
            found.append((name, "file", path.read_bytes()))
    return tuple(sorted(found))


StepT = TypeVar("StepT")
Acknowledged = Sequence[tuple[int, StepT]]
"""How many calls were made when a step returned, and the step."""


def cuts(
    calls: Sequence[Call],
    steps: Acknowledged[StepT],
    first: int = 0,
    start: Image | None = None,
) -> Iterator[tuple[StepT | None, StepT | None, Image]]:
    """Yield each image that a cut can leave: the last step before it, the one under way, and it.

    ``first``: the first call at which the power is cut. ``start``: what was on the disk before.
    """
    disk, seen = Disk(start=start), set()
    for place in range(len(calls) + 1):
        done = sum(at <= place for at, _ in steps)
        old = steps[done - 1][1] if done else None
        new = steps[done][1] if done < len(steps) else None
        for image in disk.cuts() if place >= first else ():
            if (key := (done, image.entries)) not in seen:
                seen.add(key)
                yield old, new, image
        if place < len(calls):
            disk.take(calls[place])


def without(
    calls: Sequence[Call], steps: Acknowledged[StepT], site: str
) -> tuple[list[Call], list[tuple[int, StepT]], int]:
    """What a program makes that lacks one fsync in its text, and the first call that it lacks."""
    gone = [at for at, call in enumerate(calls) if call.what == "sync" and call.site == site]
    left = [call for at, call in enumerate(calls) if at not in set(gone)]
    return left, [(at - sum(one < at for one in gone), step) for at, step in steps], gone[0]
