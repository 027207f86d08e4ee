"""What metadata and sites say of themselves, for people.

Rules of this file: it reads and shows; **it trusts nothing**: signatures are named and not checked,
because only a device's first root says which keys count. ``client`` does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import Root, Signed, Snapshot, Targets, Timestamp

from toolchain.core.errors import MalformedError
from toolchain.core.units import Unit
from toolchain.core.words import TIME_FORMAT
from toolchain.trust import metadata as tuf
from toolchain.trust.metadata import ISSUED
from toolchain.trust.release import UNIT, SignedRelease, read_release
from toolchain.trust.state import metadata_file, read_state


@dataclass(frozen=True, kw_only=True)
class MetadataFacts:
    """One file of metadata, its signatures not checked.

    ``role``: ``root`` or ``domains/cars``, say. ``issued``: when a timestamp was published, else
    "". ``signatures``: ids of the keys. ``keys``: ids that it trusts, by role. ``versions``: of the
    metadata that it lists. ``release``: of a unit's role.
    """

    role: str
    version: int
    expires: str
    issued: str
    signatures: tuple[str, ...]
    keys: Mapping[str, tuple[str, ...]]
    versions: Mapping[str, int]
    release: SignedRelease | None


@dataclass(frozen=True, kw_only=True)
class SiteFacts:
    """A site, its signatures not checked: its state, and the releases in it, sorted."""

    root: int
    snapshot: int
    timestamp: int
    issued: str
    expires: str
    releases: tuple[SignedRelease, ...]


def describe(path: Path) -> MetadataFacts:
    """Return what the file of metadata ``path`` says. Raises MalformedError, StorageError."""
    data = metadata_file(path)
    document = tuf.read_any(data, str(path))
    signed = document.signed
    said = signed.unrecognized_fields.get(UNIT) if isinstance(signed, Targets) else None
    unit = Unit.parse(said) if isinstance(said, str) else None
    return MetadataFacts(
        role=signed.type if unit is None else str(unit),
        version=signed.version,
        expires=signed.expires.strftime(TIME_FORMAT),
        issued=str(signed.unrecognized_fields.get(ISSUED, "")),
        signatures=tuple(document.signatures),
        keys=_keys(signed),
        versions=_versions(signed),
        release=read_release(unit, signed) if unit and isinstance(signed, Targets) else None,
    )


def describe_site(folder: Path) -> SiteFacts:
    """Return what the site in ``folder`` says. Raises MalformedError, StorageError."""
    state = read_state(folder)
    if state.timestamp is None or state.snapshot is None:
        raise MalformedError(
            f"{folder}: expected a published site, got none", fix="da3 publish SITE --keys DIR"
        )
    ends = min(state.timestamp.expires, state.snapshot.expires)
    return SiteFacts(
        root=state.root,
        snapshot=state.snapshot.version,
        timestamp=state.timestamp.version,
        issued=str(state.timestamp.unrecognized_fields.get(ISSUED, "")),
        expires=ends.strftime(TIME_FORMAT),
        releases=tuple(state.units[unit].release for unit in sorted(state.units)),
    )


def _keys(signed: Signed) -> dict[str, tuple[str, ...]]:
    if isinstance(signed, Root):
        return {name: tuple(role.keyids) for name, role in signed.roles.items()}
    delegations = signed.delegations if isinstance(signed, Targets) else None
    roles = (delegations.roles if delegations else None) or {}
    return {name: tuple(role.keyids) for name, role in roles.items()}


def _versions(signed: Signed) -> dict[str, int]:
    if isinstance(signed, Timestamp):
        return {"snapshot": signed.snapshot_meta.version}
    if isinstance(signed, Snapshot):
        return {name.removesuffix(".json"): one.version for name, one in signed.meta.items()}
    return {}
