"""The client: what a device may take from a repository, decided offline from what it holds.

Rules of this file: python-tuf's Updater runs as it is, over a folder that may be lost at any time,
and over a fetcher that the caller brings. Then :mod:`toolchain.trust.checks` looks at what the
Updater does not. Each attack ends in a class of error of its own. A fault of one unit does not keep
the others from their releases. What has to last (floors) is given back and never written here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Root
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from toolchain.core.errors import ExpiredError, MalformedError, RevokedError, TrustError
from toolchain.core.files import make_folder
from toolchain.core.units import BACKBONES, Unit
from toolchain.core.words import TIME_FORMAT
from toolchain.trust import checks, faults
from toolchain.trust.assignment import fleet_of
from toolchain.trust.checks import Floors
from toolchain.trust.metadata import LIMIT_BYTES, ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from toolchain.trust.public import PublicKey
from toolchain.trust.release import SignedRelease, read_release
from toolchain.trust.unit import METADATA

if TYPE_CHECKING:
    from securesystemslib.signer import Key

LIMIT_TIMESTAMP_BYTES = 16 << 10
LIMIT_ALL_BYTES = 32 << 20


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
    fleet: Mapping[str, PublicKey]

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

    def keys(self) -> list[Key]:
        """Return every key that root and targets name."""
        delegated = getattr(self._trusted_set.get(TARGETS), "delegations", None)
        return [*self.root.keys.values(), *(delegated.keys.values() if delegated else ())]

    def expired(self, now: datetime, clock: datetime, err: Exception) -> TrustError:
        """Return the error for what has ended: what was loaded says when."""
        for role in (ROOT, TIMESTAMP, SNAPSHOT):
            if role not in self._trusted_set:
                break
            signed = self.signed(role)
            if signed.is_expired(clock):
                return checks.expired(role, signed.expires, now, clock)
        return ExpiredError(
            f"{err}; the clock of this device shows {now:%Y-%m-%d %H:%M} UTC",
            fix="sign it again and publish it; check the clock of this device",
        )

    @contextmanager
    def telling(self, now: datetime, clock: datetime) -> Iterator[None]:
        """Let what the Updater raises inside the block be an error of ours."""
        with faults.told(partial(self.expired, now, clock), self.keys):
            yield

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
        try:
            for piece in self._inner.fetch(url):
                size += len(piece)
                self._left -= len(piece)
                if size > LIMIT_BYTES or self._left < 0:
                    raise tuf_errors.DownloadLengthMismatchError(
                        f"{url}: expected at most {LIMIT_BYTES} bytes, and {LIMIT_ALL_BYTES} of "
                        "all metadata, got more"
                    )
                yield piece
        # Here it is the connection's; outside it would be the cache's.
        except OSError as err:
            raise tuf_errors.DownloadError(f"{url}: {err}") from err


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
    floor = checks.moment(floors.clock, "floors.clock")
    client = _opened(folder, root, url, fetcher)
    client.at(max(now, floor))
    with client.telling(now, max(now, floor)):
        client.refresh()
    floor = max(floor, checks.issued(client.signed(TIMESTAMP)))
    clock = max(now, floor)
    metadata = _checked(client, floors, now, clock)
    look = _Look(client, replace(floors, metadata=metadata), now, clock)
    look.at_all(look.known if units is None else units)
    return Trusted(
        releases=MappingProxyType(look.releases),
        floors=replace(floors, metadata=look.metadata, clock=floor.strftime(TIME_FORMAT)),
        unchecked=tuple(checks.unchecked(now, clock)),
        refused=MappingProxyType(look.refused),
        fleet=fleet_of(client.signed(TARGETS)),
    )


def _checked(client: _Client, floors: Floors, now: datetime, clock: datetime) -> dict[str, int]:
    """Check the four roles beyond python-tuf; return the floors of metadata as they are now."""
    roles = {role: client.signed(role) for role in (ROOT, TIMESTAMP, SNAPSHOT, TARGETS)}
    checks.require_valid(roles, now, clock)
    checks.require_root(client.root)
    seen = {checks.floor_name(role, client.root): one.version for role, one in roles.items()}
    return checks.raised(floors.metadata, seen)


class _Look:
    """Reads the releases of units, one after the other, and keeps their faults apart."""

    def __init__(self, client: _Client, floors: Floors, now: datetime, clock: datetime) -> None:
        self._client, self._floors, self._now, self._clock = client, floors, now, clock
        self.known = checks.delegated_units(client.signed(TARGETS))
        self._trusted = frozenset(self.known)
        self.metadata = dict(floors.metadata)
        self.releases: dict[str, SignedRelease] = {}
        self.refused: dict[str, TrustError] = {}

    def at_all(self, units: Collection[Unit]) -> None:
        """Look at ``units`` and at the backbones that they need. Raises the fault of all."""
        self._at(units)
        needed = {one.backbone.name for one in self.releases.values() if one.backbone is not None}
        backbones = {Unit(kind=BACKBONES, name=name) for name in needed}
        self._at(sorted((backbones & self._trusted) - {*units}))
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
        if unit not in self._trusted:
            raise RevokedError(
                f"{unit}: expected a key that is trusted for it, got none: it was revoked, or the "
                "repository never had it",
                fix="da3 keys show DIR lists the units of the repository",
            )
        if f"{unit.role}.json" not in self._client.signed(SNAPSHOT).meta:
            return None  # it has a key, and no release yet
        with self._client.telling(self._now, self._clock):
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
    """Return the client over ``folder``, tidied. Raises MalformedError, StorageError."""
    make_folder(folder, fix="choose a folder that you may write")
    try:
        _tidy(folder)
        return _Client(folder, root, url, _Limited(fetcher))
    except OSError as err:
        raise faults.no_cache(folder, err) from err
    # python-tuf lets ValueError, TypeError and others through for hostile metadata.
    except Exception as err:
        raise MalformedError(
            f"expected the root metadata of a repository, got something else: {err!s:.300}",
            fix="give the device the first root of its repository: keys/metadata/1.root.json",
        ) from err


def _tidy(folder: Path) -> None:
    """Remove what a cut-off refresh left behind, and what is no metadata by its size."""
    for path in [*folder.iterdir(), *(folder / "root_history").glob("*")]:
        is_file = path.is_file() and not path.is_symlink()
        if is_file and (path.name.startswith("tmp") or path.stat().st_size > LIMIT_BYTES):
            path.unlink(missing_ok=True)
