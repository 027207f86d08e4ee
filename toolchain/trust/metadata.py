"""The metadata of TUF as this toolchain writes it: root, targets, units, snapshot, timestamp.

Rules of this file: values from values; it opens nothing, asks no clock and holds no key. Who signs
is given as a signer, and when it ends as a time. A version rises by one each time that metadata is
made anew from its predecessor (TUF 1.0.34, section 4.3). All of it is python-tuf's own; only what
two callers would have to agree on stands here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from toolchain.core.errors import MalformedError, SigningError, TooLargeError, UnsignedError
from toolchain.core.units import BackboneId, Unit
from toolchain.core.words import TIME_FORMAT
from toolchain.trust.public import public_key
from toolchain.trust.release import UNIT, SignedFile, custom

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

ROOT, TARGETS, SNAPSHOT, TIMESTAMP, FLEET = "root", "targets", "snapshot", "timestamp", "fleet"
TOP = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
ROOT_KEYS, ROOT_THRESHOLD = 3, 2
# How long each role is valid, in days. Offline roles wait for a person, online ones for a timer.
DAYS = {ROOT: 730, TARGETS: 365, SNAPSHOT: 30, TIMESTAMP: 7}
RELEASE_DAYS = 365
# More than any metadata of ours: a thousand units make targets of half a megabyte.
LIMIT_BYTES = 1 << 20
ISSUED = "issued"

SignedT = TypeVar("SignedT", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True, kw_only=True)
class Delegated:
    """What the role ``targets`` says: the keys of each unit, and the public key of the fleet."""

    units: Mapping[Unit, Sequence[Key]]
    fleet: Sequence[Key]


def ends(now: datetime, days: int) -> datetime:
    """Return when metadata ends that is made ``now`` for so many days, in whole seconds."""
    return now.replace(microsecond=0) + timedelta(days=days)


def make_root(
    version: int, expires: datetime, keys: Mapping[str, Sequence[Key]], threshold: int
) -> Root:
    """Return root metadata (TUF 4.3): ``keys`` by top-level role; ``threshold`` is root's own."""
    roles = {
        role: Role([key.keyid for key in keys[role]], threshold if role == ROOT else 1)
        for role in TOP
    }
    known = {key.keyid: key for role in TOP for key in keys[role]}
    return Root(version, None, expires, known, roles, consistent_snapshot=True)


def make_targets(version: int, expires: datetime, delegated: Delegated) -> Targets:
    """Return targets metadata (TUF 4.5) that lists no target and delegates to each unit's role.

    Each delegation terminates, and covers the paths of its unit alone. The field ``fleet`` holds
    the public keys that assignments are signed with.
    """
    units = sorted(delegated.units)
    roles = {
        unit.role: DelegatedRole(
            unit.role,
            [key.keyid for key in delegated.units[unit]],
            1,
            terminating=True,
            paths=[unit.paths],
        )
        for unit in units
    }
    keys = {key.keyid: key for unit in units for key in delegated.units[unit]}
    fleet = {key.keyid: public_key(key) for key in delegated.fleet}
    return Targets(
        version, None, expires, {}, Delegations(keys, roles), unrecognized_fields={FLEET: fleet}
    )


def make_release(
    unit: Unit,
    version: int,
    expires: datetime,
    files: Sequence[SignedFile],
    backbone: BackboneId | None,
    size: int,
) -> Targets:
    """Return the metadata of a unit's role for one release; ``size`` in bytes of all its files.

    Without files the release withdraws the unit, and ``backbone`` is None.
    """
    targets = {}
    for file in files:
        path = unit.target(file.name)
        extra: dict[str, Any] = {}
        if backbone is not None and file.name == unit.manifest:
            extra["custom"] = custom(backbone, size)
        hashes = {"sha256": file.digest.removeprefix("sha256:")}
        targets[path] = TargetFile(file.size, hashes, path, extra)
    return Targets(version, None, expires, targets, unrecognized_fields={UNIT: str(unit)})


def make_snapshot(
    before: Snapshot | None, expires: datetime, roles: Mapping[str, tuple[int, bytes]]
) -> Snapshot:
    """Return snapshot metadata (TUF 4.4) over ``roles``: the version and bytes of each.

    What ``before`` listed stays listed, as clients refuse a snapshot that lost a role.
    """
    meta = {} if before is None else dict(before.meta)
    meta |= {f"{name}.json": _meta(version, data) for name, (version, data) in roles.items()}
    return Snapshot(1 if before is None else before.version + 1, None, expires, meta)


def make_timestamp(
    before: Timestamp | None, expires: datetime, snapshot: tuple[int, bytes], issued: datetime
) -> Timestamp:
    """Return timestamp metadata (TUF 4.6); its field ``issued`` says when it was published."""
    return Timestamp(
        1 if before is None else before.version + 1,
        None,
        expires,
        _meta(*snapshot),
        unrecognized_fields={ISSUED: issued.strftime(TIME_FORMAT)},
    )


def _meta(version: int, data: bytes) -> MetaFile:
    return MetaFile(version, len(data), {"sha256": sha256(data).hexdigest()})


def sign(payload: SignedT, signers: Sequence[Signer]) -> bytes:
    """Return ``payload`` as a file, signed by each of ``signers``. Raises SigningError."""
    document = Metadata(payload)
    for signer in signers:
        try:
            document.sign(signer, append=True)
        except UnsignedMetadataError as err:
            raise SigningError(
                f"cannot sign {payload.type}: {err}",
                fix="check that the key, its token or its service can be reached",
            ) from err
    data = document.to_bytes()
    if len(data) > LIMIT_BYTES:
        raise TooLargeError(
            f"{payload.type}: expected at most {LIMIT_BYTES} bytes, got {len(data)}",
            fix="use a second repository for some of the units",
        )
    return data


def read(kind: type[SignedT], data: bytes, what: str) -> Metadata[SignedT]:
    """Return the metadata in ``data``; its signatures are not looked at.

    Raises MalformedError for what is no metadata of that ``kind``.
    """
    document = read_any(data, what)
    if not isinstance(document.signed, kind):
        raise MalformedError(
            f"{what}: expected metadata of the kind {kind.type!r}, got {document.signed.type!r}",
            fix="take the file from its source again; edit nothing by hand",
        )
    return cast("Metadata[SignedT]", document)


def read_any(data: bytes, what: str) -> Metadata[Any]:
    """Return metadata of any kind; as :func:`read`."""
    try:
        return Metadata.from_bytes(data)
    except DeserializationError as err:
        raise MalformedError(
            f"{what}: expected metadata of TUF, got something else: {err.__cause__}",
            fix="take the file from its source again; edit nothing by hand",
        ) from err


def require_signed(
    delegator: Root | Targets, role: str, document: Metadata[Any], what: str, *, fix: str
) -> None:
    """Raise UnsignedError unless enough of the keys that ``delegator`` trusts signed ``what``."""
    try:
        delegator.verify_delegate(role, document.signed_bytes, document.signatures)
    except (UnsignedMetadataError, ValueError) as err:
        raise UnsignedError(f"{what}: {err}", fix=fix) from err


def trusted_ids(delegator: Root | Targets, role: str) -> Collection[str]:
    """Return the ids of the keys that ``delegator`` trusts for ``role``, which may be unknown."""
    if isinstance(delegator, Root):
        known: Mapping[str, Role] = delegator.roles
    else:
        known = (delegator.delegations.roles or {}) if delegator.delegations else {}
    return tuple(known[role].keyids) if role in known else ()
