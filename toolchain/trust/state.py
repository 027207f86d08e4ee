"""What a site says now: the newest state of all roles, read for whoever publishes.

Rules of this file: it reads a site of ours and changes nothing. It trusts the site as far as the
publisher's own disk; what goes out is checked where it is added. A device reads by ``client``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import Snapshot, Targets, Timestamp

from toolchain.core.files import is_file, names, read_limited
from toolchain.core.units import Unit
from toolchain.trust import metadata as tuf
from toolchain.trust.metadata import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from toolchain.trust.release import SignedRelease, read_release
from toolchain.trust.unit import METADATA


@dataclass(frozen=True, kw_only=True)
class SignedRole:
    """A role's metadata as it lies in a file."""

    data: bytes
    role: Targets
    release: SignedRelease
    source: Path | None = None


@dataclass(frozen=True, kw_only=True)
class State:
    """What a site says now: nothing before the first publish."""

    root: int
    snapshot: Snapshot | None
    timestamp: Timestamp | None
    targets: Targets | None
    units: Mapping[Unit, SignedRole]


def read_state(site: Path) -> State:
    """Return what the site says, its own timestamp first. Raises MalformedError, StorageError."""
    folder = site / METADATA
    roots = versions(folder, ROOT)
    if not is_file(folder / f"{TIMESTAMP}.json"):
        return State(
            root=max(roots, default=0), snapshot=None, timestamp=None, targets=None, units={}
        )
    timestamp = tuf.read(Timestamp, metadata_file(folder / f"{TIMESTAMP}.json"), TIMESTAMP).signed
    meta = timestamp.snapshot_meta
    snapshot = tuf.read(
        Snapshot, metadata_file(folder / f"{meta.version}.{SNAPSHOT}.json"), SNAPSHOT
    ).signed
    targets: Targets | None = None
    units: dict[Unit, SignedRole] = {}
    for name, about in snapshot.meta.items():
        role = name.removesuffix(".json")
        data = metadata_file(folder / f"{about.version}.{name}")
        signed = tuf.read(Targets, data, role).signed
        if role == TARGETS:
            targets = signed
        else:
            unit = Unit.of_role(role)
            units[unit] = SignedRole(data=data, role=signed, release=read_release(unit, signed))
    newest = max(roots, default=0)
    return State(root=newest, snapshot=snapshot, timestamp=timestamp, targets=targets, units=units)


def versions(folder: Path, role: str) -> list[int]:
    """Return which versions of a role lie in ``folder``, rising. Raises StorageError."""
    ends = f".{role}.json"
    numbers = [name.removesuffix(ends) for name in names(folder) if name.endswith(ends)]
    return sorted(int(number) for number in numbers if number.isdecimal())


def metadata_file(path: Path) -> bytes:
    """Return the bytes of a file of metadata, within its limit. Raises StorageError."""
    return read_limited(path, limit_bytes=tuf.LIMIT_BYTES, what="metadata")
