"""The site: a static repository on disk, which any web server, mirror or USB stick serves.

Rules of this file: the only code that writes a site. Each file appears whole (its bytes are checked
and durable before its name), and in an order in which every reader sees one state whole: files of
releases, then metadata under names with versions, then the newest root, and the timestamp last. So
a publish that is cut off changes nothing, and the next one goes on. Nothing that a reader may still
ask for is removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256 as hasher
from pathlib import Path
from typing import TYPE_CHECKING

from tuf.api.metadata import Snapshot, Targets, Timestamp

from toolchain.core.digest import sha256
from toolchain.core.errors import (
    BundleError,
    DataError,
    ExpiredError,
    MalformedError,
    RollbackError,
    UnsignedError,
    UsageError,
)
from toolchain.core.files import (
    beside,
    fsync_folder,
    is_file,
    make_folder,
    read_limited,
    refused,
    write_atomic,
)
from toolchain.core.lock import locked
from toolchain.core.units import BACKBONES, Unit
from toolchain.core.words import TIME_FORMAT
from toolchain.trust import metadata as tuf
from toolchain.trust.content import SUFFIX, find_content, release_path
from toolchain.trust.keyring import Keyring
from toolchain.trust.keys import Passphrase
from toolchain.trust.metadata import ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from toolchain.trust.release import UNIT, SignedRelease, read_release
from toolchain.trust.state import SignedRole, State, metadata_file, read_state
from toolchain.trust.unit import METADATA, blob_place, manifest_place

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

_CHUNK_BYTES = 1 << 20
_SOON = timedelta(days=30)
_WRITABLE = "choose a folder that you may write"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a publish did.

    ``releases``: those that are new on the site; ``same``: units whose release was there already.
    ``missing``: backbones that a published domain needs and the site does not have. ``soon``: what
    a person has to sign again within thirty days, with its day. ``snapshot`` and ``timestamp``:
    versions; ``expires``: until when the site has to be published again.
    """

    site: Path
    releases: tuple[SignedRelease, ...]
    same: tuple[str, ...]
    missing: tuple[str, ...]
    soon: tuple[str, ...]
    snapshot: int
    timestamp: int
    expires: str


def publish(
    site: Path,
    keys: Path,
    releases: Sequence[Path] = (),
    *,
    passphrase: Passphrase,
    now: datetime,
) -> Published:
    """Add signed ``releases`` and their files to ``site``, and sign snapshot and timestamp.

    ``releases``: files that ``da3 sign`` wrote, or the bundles and folders that they lie beside.
    Without any, the site is made to last longer. ``keys`` holds the keys of snapshot and timestamp,
    and the metadata of the ceremonies. Raises RollbackError for a counter that does not rise,
    UnsignedError for a release of a key that targets does not trust, ExpiredError, SigningError,
    DataError where the content of a release is not beside it, StorageError.
    """
    ring = Keyring(keys)
    make_folder(site / METADATA, fix=_WRITABLE)
    with locked(site / ".lock", what=f"the site {site}"):
        state = read_state(site)
        _require_newest(ring, state, now)
        _require_same_roots(ring, site)
        offered = _read_offers(ring, releases, now)
        new = {unit: one for unit, one in offered.items() if _rises(state, one)}
        units = {**state.units, **new}
        _require_trusted(ring, units)
        for one in new.values():
            _add_files(site, one)
        snapshot, timestamp = _add_metadata(site, ring, state, new, passphrase, now)
    return Published(
        site=site,
        releases=tuple(one.release for one in new.values()),
        same=tuple(str(unit) for unit in offered if unit not in new),
        missing=_missing(units),
        soon=tuple(_ending(ring, units, now)),
        snapshot=snapshot.version,
        timestamp=timestamp.version,
        expires=min(timestamp.expires, snapshot.expires).strftime(TIME_FORMAT),
    )


def _read_offers(ring: Keyring, paths: Sequence[Path], now: datetime) -> dict[Unit, SignedRole]:
    """Return the signed releases that ``paths`` name, each verified, each of another unit."""
    offers: dict[Unit, SignedRole] = {}
    for path in paths:
        one = _read_offer(ring, path, now)
        if one.release.unit in offers:
            raise UsageError(
                f"expected each unit once, got two releases of {one.release.unit}",
                fix="publish the newer one",
            )
        offers[one.release.unit] = one
    return offers


def _add_metadata(
    site: Path,
    ring: Keyring,
    state: State,
    new: Mapping[Unit, SignedRole],
    passphrase: Passphrase,
    now: datetime,
) -> tuple[Snapshot, Timestamp]:
    """Sign and write roles, snapshot, roots and, last of all, the timestamp."""
    online = {role: ring.signers(role, passphrase) for role in (SNAPSHOT, TIMESTAMP)}
    snapshot, data = _next_snapshot(site, ring, state, new, online[SNAPSHOT], now)
    ends = tuf.ends(now, tuf.DAYS[TIMESTAMP])
    timestamp = tuf.make_timestamp(state.timestamp, ends, (snapshot.version, data), now)
    stamped = tuf.sign(timestamp, online[TIMESTAMP])
    _add_roots(site, ring)
    _put(site / METADATA / f"{TIMESTAMP}.json", stamped)
    return snapshot, timestamp


def _ending(ring: Keyring, units: Mapping[Unit, SignedRole], now: datetime) -> Iterator[str]:
    """Yield what a person has to sign again within thirty days."""
    signed = {ROOT: ring.root.signed.expires, TARGETS: ring.targets.signed.expires}
    known = ring.units()
    signed |= {str(unit): one.role.expires for unit, one in units.items() if unit in known}
    for name, end in signed.items():
        if end - now < _SOON:
            yield f"{name}: {end:%Y-%m-%d}"


def _require_newest(ring: Keyring, state: State, now: datetime) -> None:
    """Raise unless the keyring's root and targets are valid, and no older than the site's."""
    root, targets = ring.root, ring.targets
    published = 0 if state.targets is None else state.targets.version
    if root.signed.version < state.root or targets.signed.version < published:
        raise RollbackError(
            f"{ring.path}: expected root {state.root} and targets {published} or newer, as the "
            f"site has, got {root.signed.version} and {targets.signed.version}",
            fix="take metadata/ from the keyring that the last ceremony was held in",
        )
    renew = f"da3 keys renew {ring.path}"
    tuf.require_signed(root.signed, ROOT, root, ROOT, fix=renew)
    tuf.require_signed(root.signed, TARGETS, targets, TARGETS, fix=renew)
    for name, signed in ((ROOT, root.signed), (TARGETS, targets.signed)):
        if signed.is_expired(now):
            raise ExpiredError(
                f"{name}: expected metadata that is still valid, got one that ended "
                f"{signed.expires:%Y-%m-%d}",
                fix=renew,
            )


def _read_offer(ring: Keyring, path: Path, now: datetime) -> SignedRole:
    """Return the signed release that ``path`` names, verified against targets."""
    file = path if path.name.endswith(SUFFIX) else release_path(path)
    if not is_file(file):
        raise DataError(
            f"expected a signed release at {file}, got nothing",
            fix=f"sign it first: da3 sign BUNDLE --key {ring.path}/domains/NAME",
        )
    data = read_limited(file, limit_bytes=tuf.LIMIT_BYTES, what="signed release")
    document = tuf.read(Targets, data, str(file))
    said = document.signed.unrecognized_fields.get(UNIT)
    if not isinstance(said, str):
        raise MalformedError(f"{file}: expected a release of a unit, got none", fix="sign it again")
    unit = Unit.parse(said)
    again = f"sign it with the key that targets trusts: da3 sign ... --key {ring.path}/{unit}"
    tuf.require_signed(ring.targets.signed, unit.role, document, str(file), fix=again)
    if document.signed.is_expired(now):
        raise ExpiredError(
            f"{file}: expected a release that is still valid, got one that ended "
            f"{document.signed.expires:%Y-%m-%d}",
            fix=f"sign it again: da3 sign ... --key {ring.path}/{unit}",
        )
    release = read_release(unit, document.signed)
    return SignedRole(data=data, role=document.signed, release=release, source=file)


def _rises(state: State, offer: SignedRole) -> bool:
    """Whether ``offer`` is new; False for what is published already. Raises RollbackError."""
    before = state.units.get(offer.release.unit)
    if before is None or offer.release.counter > before.release.counter:
        return True
    if offer.data == before.data:
        return False
    raise RollbackError(
        f"{offer.release.unit}: expected a counter above {before.release.counter}, which is "
        f"published, got {offer.release.counter}",
        fix="sign it again; to go back, sign the old content under a new number",
    )


def _require_trusted(ring: Keyring, units: Mapping[Unit, SignedRole]) -> None:
    """Raise UnsignedError for a release of the site that the newest targets no longer trusts."""
    known = ring.units()
    for unit, one in units.items():
        if unit in known:
            tuf.require_signed(
                ring.targets.signed,
                unit.role,
                tuf.read(Targets, one.data, str(unit)),
                f"the published release {one.release.counter} of {unit}",
                fix="its key was rotated: sign it again with the new one, and publish both at "
                f"once: da3 sign ... --key {ring.path}/{unit}",
            )
    # A unit without a key stays listed, as snapshots lose nothing, but no device takes it.


def _missing(units: Mapping[Unit, SignedRole]) -> tuple[str, ...]:
    have = {one.release.backbone for unit, one in units.items() if unit.kind == BACKBONES}
    need = {one.release.backbone for one in units.values() if one.release.backbone}
    return tuple(sorted(one.name for one in need - have if one is not None))


def _add_files(site: Path, one: SignedRole) -> None:
    """Write every file that a new release needs, manifests last."""
    assert one.source is not None  # offers come from files
    if one.release.withdrawn:
        return
    content = find_content(one.source, one.release)
    for digest, source in content.blobs.items():
        _put_blob(site / blob_place(digest), digest, source)
    for file in one.release.files:
        place = site / manifest_place(one.release.unit, file.name, file.digest)
        _put(place, content.manifests[file.name])


def _put_blob(path: Path, digest: str, source: bytes | Path) -> None:
    """Write a file under the name of its digest, if it is not there yet.

    Raises BundleError for other bytes.
    """
    if is_file(path):
        return
    if isinstance(source, bytes):
        if sha256(source) != digest:
            raise BundleError(f"expected {digest}, got {sha256(source)}", fix="sign it again")
        _put(path, source)
        return
    make_folder(path.parent, fix=_WRITABLE)
    partial = beside(path)
    try:
        found = _copy(source, partial)
        if found != digest:
            raise BundleError(
                f"{source}: expected {digest}, got {found}", fix="export the backbone again"
            )
        partial.replace(path)
        fsync_folder(path.parent)
    except OSError as err:
        raise refused(err, path) from err
    finally:
        partial.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> str:
    """Copy a file, durably, and return its digest; it may be larger than memory."""
    running = hasher()
    with source.open("rb") as file, target.open("wb") as copy:
        while piece := file.read(_CHUNK_BYTES):
            running.update(piece)
            copy.write(piece)
        copy.flush()
        os.fsync(copy.fileno())
    return f"sha256:{running.hexdigest()}"


def _next_snapshot(
    site: Path,
    ring: Keyring,
    state: State,
    new: Mapping[Unit, SignedRole],
    signers: Sequence[Signer],
    now: datetime,
) -> tuple[Snapshot, bytes]:
    """Write new roles and, if anything changed or half its time is over, a new snapshot."""
    folder = site / METADATA
    targets = ring.targets.signed
    roles = {unit.role: (one.release.counter, one.data) for unit, one in new.items()}
    if state.targets is None or targets.version > state.targets.version:
        roles[TARGETS] = (targets.version, ring.targets_bytes())
    for role, (version, data) in roles.items():
        _put(folder / f"{version}.{role}.json", data)
    before = state.snapshot
    if before is not None and not roles and _lasts(ring, folder, before, now):
        return before, metadata_file(folder / f"{before.version}.{SNAPSHOT}.json")
    snapshot = tuf.make_snapshot(before, tuf.ends(now, tuf.DAYS[SNAPSHOT]), roles)
    data = tuf.sign(snapshot, signers)
    _put(folder / f"{snapshot.version}.{SNAPSHOT}.json", data)
    return snapshot, data


def _lasts(ring: Keyring, folder: Path, snapshot: Snapshot, now: datetime) -> bool:
    """Whether a snapshot is signed by a key that is trusted, and half its time is left."""
    document = tuf.read(
        Snapshot, metadata_file(folder / f"{snapshot.version}.{SNAPSHOT}.json"), SNAPSHOT
    )
    try:
        tuf.require_signed(ring.root.signed, SNAPSHOT, document, SNAPSHOT, fix="")
    except UnsignedError:
        return False
    return snapshot.expires - now > (tuf.ends(now, tuf.DAYS[SNAPSHOT]) - now) / 2


def _require_same_roots(ring: Keyring, site: Path) -> None:
    """Raise UsageError for the site of another keyring."""
    for version, data in ring.roots().items():
        path = site / METADATA / f"{version}.{ROOT}.json"
        if is_file(path) and metadata_file(path) != data:
            raise UsageError(
                f"{site}: expected the root {version} of {ring.path}, got another one",
                fix="publish into the site of this keyring, or into a new folder",
            )


def _add_roots(site: Path, ring: Keyring) -> None:
    for version, data in ring.roots().items():
        path = site / METADATA / f"{version}.{ROOT}.json"
        if not is_file(path):
            _put(path, data)


def _put(path: Path, data: bytes) -> None:
    make_folder(path.parent, fix=_WRITABLE)
    write_atomic(path, data, overwrite=True)
