"""The client: what a device may take from a repository, decided offline from what it holds.

Rules of this file: python-tuf's Updater runs as it is, over a folder that may be lost at any time,
and over a fetcher that the caller brings. Then :mod:`toolchain.trust.checks` looks at what the
Updater does not. Each attack ends in a class of error of its own. A fault of one unit does not keep
the others from their releases. What has to last (floors) is given back and never written here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Root
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from toolchain.core import errors
from toolchain.core.errors import Da3Error, RevokedError, StorageError, TrustError
from toolchain.core.files import make_folder
from toolchain.trust import checks
from toolchain.trust.checks import Floors
from toolchain.trust.metadata import FLEET, LIMIT_BYTES, ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from toolchain.trust.release import ASK_PUBLISHER, TIME_FORMAT, SignedRelease, read_release
from toolchain.trust.unit import BACKBONES, METADATA, Unit

LIMIT_TIMESTAMP_BYTES = 16 << 10
LIMIT_ALL_BYTES = 32 << 20
_NEWER = "try again later, or from another mirror; this device keeps what it has"


@dataclass(frozen=True, kw_only=True)
class Trusted:
    """What a device may take.

    ``releases``: by ``str(unit)``; a unit without a release yet is not among them. ``floors``: as
    they may be raised now (metadata and clock; counters rise when a release has proved itself).
    ``unchecked``: what could not be checked, a sentence each. ``refused``: units whose metadata
    cannot be trusted, each with its error. ``fleet``: public keys that sign assignments, by id.
    """

    releases: Mapping[str, SignedRelease]
    floors: Floors
    unchecked: tuple[str, ...]
    refused: Mapping[str, TrustError]
    fleet: Mapping[str, Mapping[str, Any]]

    def release(self, unit: Unit) -> SignedRelease | None:
        """Return the release of ``unit``, None before its first. Raises its TrustError."""
        if str(unit) in self.refused:
            raise self.refused[str(unit)]
        return self.releases.get(str(unit))


class _Client(Updater):
    """python-tuf's Updater at a given time; its verified metadata can be read.

    The two attributes that it touches are python-tuf's own; a test holds that they are there.
    """

    def __init__(self, folder: Path, root: bytes, url: str, fetcher: FetcherInterface) -> None:
        config = UpdaterConfig(
            # targets and one role for each unit: nothing below is ever asked for.
            max_delegations=1,
            root_max_length=LIMIT_BYTES,
            timestamp_max_length=LIMIT_TIMESTAMP_BYTES,
            snapshot_max_length=LIMIT_BYTES,
            targets_max_length=LIMIT_BYTES,
        )
        base = f"{url.rstrip('/')}/{METADATA}/"
        super().__init__(str(folder), base, fetcher=fetcher, config=config, bootstrap=root)

    def at(self, time: datetime) -> None:
        """Let every expiry be compared with ``time``, in place of the system's clock."""
        self._trusted_set.reference_time = time

    @property
    def root(self) -> Root:
        """The newest root that was verified."""
        return self._trusted_set.root

    def signed(self, role: str) -> Any:
        """Return verified metadata by its role."""
        return self._trusted_set[role]


class _Limited(FetcherInterface):
    """Another fetcher, cut off at the limits: metadata says itself how long it is."""

    def __init__(self, inner: FetcherInterface) -> None:
        self._inner = inner
        self._left = LIMIT_ALL_BYTES

    def _fetch(self, url: str) -> Iterator[bytes]:
        size = 0
        for piece in self._inner.fetch(url):
            size += len(piece)
            self._left -= len(piece)
            if size > LIMIT_BYTES or self._left < 0:
                raise tuf_errors.DownloadLengthMismatchError(
                    f"{url}: expected at most {LIMIT_BYTES} bytes, and {LIMIT_ALL_BYTES} of all "
                    "metadata, got more"
                )
            yield piece


def refresh(
    folder: Path,
    *,
    root: bytes,
    url: str,
    fetcher: FetcherInterface,
    floors: Floors,
    now: datetime,
    units: Collection[Unit] | None = None,
) -> Trusted:
    """Return what the repository at ``url`` offers, as far as it can be trusted (TUF 5.3 to 5.6).

    ``folder``: python-tuf's cache. ``root``: the root metadata that the device was given first.
    ``now``: what the device's clock shows, in UTC. ``units``: those to look at, and the backbones
    that their releases need; None for all. Raises RepositoryError where the repository cannot be
    reached, StorageError, and a TrustError: one for each attack, where it concerns the repository,
    or where no unit is left that can be trusted. Otherwise a unit's own fault stands in
    ``refused``.
    """
    clock = max(now, checks.moment(floors.clock, "floors.clock"))
    make_folder(folder, fix="choose a folder that you may write")
    _tidy(folder)
    client = _opened(folder, root, url, fetcher)
    client.at(clock)
    with _Telling(client, now, clock):
        client.refresh()
    targets, timestamp = client.signed(TARGETS), client.signed(TIMESTAMP)
    clock = max(clock, checks.issued(timestamp))
    top = {role: client.signed(role) for role in (ROOT, TIMESTAMP, SNAPSHOT, TARGETS)}
    checks.require_valid(top, now, clock)
    checks.require_root(client.root)
    seen = {checks.floor_name(role, client.root): signed.version for role, signed in top.items()}
    metadata = checks.raised(floors.metadata, seen)
    known = checks.delegated_units(targets)
    look = _Look(client, known, replace(floors, metadata=metadata), now, clock)
    look.at_all(known if units is None else units)
    floor = max(checks.moment(floors.clock, "floors.clock"), checks.issued(timestamp))
    return Trusted(
        releases=MappingProxyType(look.releases),
        floors=replace(floors, metadata=look.metadata, clock=floor.strftime(TIME_FORMAT)),
        unchecked=tuple(checks.unchecked(now, clock)),
        refused=MappingProxyType(look.refused),
        fleet=MappingProxyType(dict(targets.unrecognized_fields.get(FLEET, {}))),
    )


class _Look:
    """Reads the releases of units, one after the other, and keeps their faults apart."""

    def __init__(
        self,
        client: _Client,
        known: Collection[Unit],
        floors: Floors,
        now: datetime,
        clock: datetime,
    ) -> None:
        self._client, self._known, self._floors = client, frozenset(known), floors
        self._now, self._clock = now, clock
        self.metadata = dict(floors.metadata)
        self.releases: dict[str, SignedRelease] = {}
        self.refused: dict[str, TrustError] = {}

    def at_all(self, units: Collection[Unit]) -> None:
        """Look at ``units`` and at the backbones that they need. Raises the fault of all."""
        self._at(units)
        needed = {one.backbone.name for one in self.releases.values() if one.backbone is not None}
        backbones = {Unit(kind=BACKBONES, name=name) for name in needed}
        self._at(sorted((backbones & self._known) - {*units}))
        if self.refused and not self.releases:
            raise next(iter(self.refused.values()))

    def _at(self, units: Collection[Unit]) -> None:
        for unit in units:
            try:
                release = self._release(unit)
            except TrustError as err:
                self.refused[str(unit)] = err
                continue
            if release is not None:
                self.releases[str(unit)] = release

    def _release(self, unit: Unit) -> SignedRelease | None:
        if unit not in self._known:
            raise RevokedError(
                f"{unit}: expected a key that is trusted for it, got none: it was revoked, or the "
                "repository never had it",
                fix="da3 keys show DIR lists the units of the repository",
            )
        if f"{unit.role}.json" not in self._client.signed(SNAPSHOT).meta:
            return None  # it has a key, and no release yet
        with _Telling(self._client, self._now, self._clock):
            self._client.get_targetinfo(unit.target(unit.manifest))
        role = self._client.signed(unit.role)
        checks.require_valid({str(unit): role}, self._now, self._clock)
        release = read_release(unit, role)
        floor = checks.floor_name(unit.role, self._client.signed(TARGETS))
        raised = checks.raised(self.metadata, {floor: role.version})
        checks.require_counter(release, self._floors.releases)
        self.metadata = raised
        return release


def _opened(folder: Path, root: bytes, url: str, fetcher: FetcherInterface) -> _Client:
    try:
        return _Client(folder, root, url, _Limited(fetcher))
    except OSError as err:
        raise _cache(folder, err) from err
    # python-tuf lets ValueError, TypeError and others through for hostile metadata.
    except Exception as err:
        raise errors.MalformedError(
            f"expected the root metadata of a repository, got something else: {err}",
            fix="give the device the first root of its repository: keys/metadata/1.root.json",
        ) from err


def _tidy(folder: Path) -> None:
    """Remove what a cut-off refresh left behind, and what is no metadata by its size."""
    for path in [*folder.iterdir(), *(folder / "root_history").glob("*")]:
        is_file = path.is_file() and not path.is_symlink()
        if is_file and (path.name.startswith("tmp") or path.stat().st_size > LIMIT_BYTES):
            path.unlink(missing_ok=True)


class _Telling:
    """Turns what python-tuf raises inside the block into the error of the attack."""

    def __init__(self, client: _Client, now: datetime, clock: datetime) -> None:
        self._client, self._now, self._clock = client, now, clock

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, err: BaseException | None, __: object) -> None:
        if isinstance(err, Exception) and not isinstance(err, Da3Error | MemoryError):
            raise self._told(err) from err

    def _told(self, err: Exception) -> Da3Error:
        match err:
            case tuf_errors.ExpiredMetadataError():
                return self._expired(err)
            case tuf_errors.DownloadLengthMismatchError():
                return errors.TooLargeError(f"metadata is too large: {err}", fix=ASK_PUBLISHER)
            case tuf_errors.SlowRetrievalError():
                return errors.SlowRepositoryError(f"the repository is too slow: {err}", fix=_NEWER)
            case tuf_errors.DownloadError():
                return errors.RepositoryError(
                    f"cannot reach the repository: {err}",
                    fix="check the address and the connection; this device keeps what it has",
                )
            case OSError():
                return _cache(Path(err.filename or "the cache"), err)
        return self._untrusted(err)

    def _untrusted(self, err: Exception) -> TrustError:
        kind: type[TrustError] = errors.MalformedError
        fix = ASK_PUBLISHER
        reason = str(err.__cause__ or err) if isinstance(err, DeserializationError) else str(err)
        match err:
            case tuf_errors.UnsignedMetadataError():
                kind = errors.UnsignedError
            case tuf_errors.BadVersionNumberError():
                kind, fix = errors.RollbackError, _NEWER
            case tuf_errors.LengthOrHashMismatchError():
                kind, fix = errors.MixedError, _NEWER
            case tuf_errors.RepositoryError() if "missing info" in reason:
                kind, fix = errors.RollbackError, _NEWER
        return kind(f"the repository cannot be trusted: {reason}", fix=fix)

    def _expired(self, err: Exception) -> TrustError:
        """Return the error for what has ended: what was loaded says when."""
        for role in (ROOT, TIMESTAMP, SNAPSHOT):
            try:
                signed = self._client.signed(role)
            except KeyError:
                break
            if signed.is_expired(self._clock):
                return checks.expired(role, signed.expires, self._now, self._clock)
        return errors.ExpiredError(
            f"{err}; the clock of this device shows {self._now:%Y-%m-%d %H:%M} UTC",
            fix="sign it again and publish it; check the clock of this device",
        )


def _cache(path: Path, err: OSError) -> StorageError:
    return StorageError(
        f"cannot keep metadata in {path}: {err.strerror or err}",
        fix="make room, or remove the folder: it is a cache",
    )
