"""The journal: what the store did, in two segments of JSON lines, each bound to the one before.

Rules of this file: the state says where the journal ends (its ``Head``). What stands behind that
end was never promised; the next append cuts it off. An entry is written before the state that
counts it. A full segment becomes ``journal.old``, and the chain goes on in the next one. The chain
shows that lines were changed or lost; it does not stop whoever writes all of it anew.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.core import durable
from toolchain.core.canonical import canonical_json
from toolchain.core.digest import sha256
from toolchain.core.errors import BundleError, StorageError, StoreDamagedError
from toolchain.core.fields import Section, key, matching
from toolchain.core.files import is_file, open_limited, read_limited, refused
from toolchain.core.words import DIGEST, NATURAL, NOTES, TIME, Document, Notes, to_json
from toolchain.device.store.layout import Layout
from toolchain.device.store.state import NO_DIGEST, Head

LIMIT_LINE_BYTES = 64 << 10
_LIMIT_BYTES = 128 << 20
_FIX = "da3 device agent sets it aside when it starts, and the chain goes on; keep it for people"


@dataclass(frozen=True, slots=True)
class Event(Section):
    """What happened, before it has a place in the journal."""

    at: str = key(TIME)
    what: str = key(matching(r"[A-Z][A-Z_]{0,31}"))
    about: Notes = key(NOTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Document):
    """One line; ``before`` is the digest of the line before, of zeros for the first."""

    FILE = "journal entry"
    LIMIT_BYTES = LIMIT_LINE_BYTES

    number: int = key(NATURAL)
    at: str = key(TIME)
    what: str = key(matching(r"[A-Z][A-Z_]{0,31}"))
    about: Notes = key(NOTES)
    before: str = key(DIGEST)


def append(layout: Layout, head: Head, events: Sequence[Event], *, limit_bytes: int) -> Head:
    """Write ``events`` behind ``head``, durably, and return the new end.

    The name of the very first segment is durable when its folder is. Raises StoreDamagedError where
    the journal does not end as ``head`` says, StorageError.
    """
    mend(layout, head)
    lines, entries, digest = _chained(head, events)
    start = head.size
    if start and start + len(lines) > limit_bytes:
        _move(layout.journal, layout.old_journal)
        # The new segment must not take the name before the old one has left it, nor the state
        # count entries of a segment whose name may be lost.
        durable.sync_folder(layout.root)
        durable.append(layout.journal, lines, start=0)
        durable.sync_folder(layout.root)
        return Head(entries, digest, len(lines))
    durable.append(layout.journal, lines, start=start)
    return Head(entries, digest, start + len(lines))


def mend(layout: Layout, head: Head) -> None:
    """Put a segment back that was made the old one for an entry that was never promised.

    Raises StoreDamagedError unless the journal ends as ``head`` says.
    """
    if _ends_with(layout.journal, head):
        return
    if not _ends_with(layout.old_journal, head):
        raise _broken(layout, f"no end with entry {head.entries} ({head.digest})")
    _move(layout.old_journal, layout.journal)


def set_aside(layout: Layout, head: Head) -> Head:
    """Keep a damaged journal for people and return the end behind which the chain goes on."""
    if is_file(layout.journal):
        _move(layout.journal, layout.damaged_journal)
    durable.discard(layout.old_journal)
    return Head(head.entries, head.digest, 0)


def read(layout: Layout, head: Head) -> tuple[Entry, ...]:
    """Return what was promised, oldest first; entries of segments that were dropped are left out.

    Raises StoreDamagedError for a chain that is broken or ends elsewhere, StorageError.
    """
    if _ends_with(layout.journal, head):
        newer, older = _segment(layout.journal)[: head.size], _segment(layout.old_journal)
    elif _ends_with(layout.old_journal, head):
        newer, older = _segment(layout.old_journal)[: head.size], b""
    else:
        raise _broken(layout, f"no end with entry {head.entries} ({head.digest})")
    lines = newer.split(b"\n")[:-1]
    if lines:
        lines = [*_up_to(older, _entry(layout, lines[0]).before), *lines]
    entries = [_entry(layout, line) for line in lines]
    before = (entries[0].number - 1, entries[0].before) if entries else (head.entries, head.digest)
    if before[0] == 0 and before[1] != NO_DIGEST:
        raise _broken(layout, "a first entry that follows another")
    for entry in entries:
        if (entry.number - 1, entry.before) != before:
            raise _broken(layout, f"entry {entry.number}, which does not follow {before[0]}")
        before = (entry.number, sha256(entry.to_json()))
    if before != (head.entries, head.digest):
        raise _broken(layout, f"an end at {before[0]} instead of {head.entries}")
    return tuple(entries)


def _chained(head: Head, events: Sequence[Event]) -> tuple[bytes, int, str]:
    number, digest, lines = head.entries, head.digest, b""
    for event in events:
        number += 1
        line = canonical_json({**to_json(event), "number": number, "before": digest})
        digest = sha256(line)
        lines += line + b"\n"
    return lines, number, digest


def _move(path: Path, to: Path) -> None:
    try:
        path.replace(to)
    except OSError as err:
        raise refused(err, path) from err


def _ends_with(path: Path, head: Head) -> bool:
    """Whether the first ``head.size`` bytes of the segment end with the entry of ``head``."""
    if head.size == 0:
        return True
    start = max(0, head.size - LIMIT_LINE_BYTES - 1)
    try:
        with open_limited(path, limit_bytes=_LIMIT_BYTES, what="journal") as (file, _):
            tail = os.pread(file.fileno(), head.size - start, start)
    except StorageError:
        return False
    if len(tail) < head.size - start or not tail.endswith(b"\n"):
        return False
    return sha256(tail[:-1].rpartition(b"\n")[2]) == head.digest


def _segment(path: Path) -> bytes:
    if not is_file(path):
        return b""
    return read_limited(path, limit_bytes=_LIMIT_BYTES, what="journal")


def _up_to(segment: bytes, digest: str) -> list[bytes]:
    """Return the lines of the older segment up to the one that was promised last."""
    lines = segment.split(b"\n")[:-1]
    ends = [place for place, line in enumerate(lines) if sha256(line) == digest]
    return lines[: ends[-1] + 1] if ends else lines


def _entry(layout: Layout, line: bytes) -> Entry:
    try:
        return Entry.from_json(line)
    except BundleError as err:
        raise _broken(layout, err.message) from err


def _broken(layout: Layout, got: str) -> StoreDamagedError:
    return StoreDamagedError(f"{layout.journal}: expected a chain of entries, got {got}", fix=_FIX)
