"""What a device checks beyond python-tuf: floors, time, and who may speak for whom.

Rules of this file: decisions from values that python-tuf has verified; it opens nothing and asks no
clock. python-tuf forgets what it saw when its cache is lost, takes the system's clock as it is, and
follows any delegation. Floors, a floor for the clock, and one form of delegation close this.

A floor belongs to the keys of its role: where they change, numbering may begin anew. Otherwise
somebody who has stolen a key for a day could sign the highest number and lock every device out for
ever (TUF 1.0.34, section 5.3.11, "fast-forward attack").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from typing import TYPE_CHECKING

from toolchain.core.errors import (
    ClockError,
    DelegationError,
    ExpiredError,
    MalformedError,
    RollbackError,
    TooLargeError,
    UsageError,
)
from toolchain.core.units import Unit
from toolchain.core.words import EXACT, TIME, TIME_FORMAT
from toolchain.trust.metadata import ISSUED, ROOT, TARGETS, trusted_ids
from toolchain.trust.release import ASK_PUBLISHER, SignedRelease

if TYPE_CHECKING:
    from tuf.api.metadata import DelegatedRole, Root, Signed, Targets, Timestamp

EPOCH = "1970-01-01T00:00:00Z"
LIMIT_UNITS = 2048
# A clock that is further ahead than this is no late repository any more.
_IMPLAUSIBLE = timedelta(days=365)
_ANOTHER_MIRROR = "take the repository from its source again; this device keeps what it has"


@dataclass(frozen=True, kw_only=True)
class Floors:
    """The lowest that a device may take; whoever calls keeps it, durably.

    ``metadata``: version by the name of a floor (:func:`floor_name`); ``releases``: counter by
    ``str(unit)``; ``clock``: the latest time that is proven to be past, RFC 3339, UTC.
    """

    metadata: Mapping[str, int]
    releases: Mapping[str, int]
    clock: str


NO_FLOORS = Floors(metadata={}, releases={}, clock=EPOCH)


def floor_name(role: str, delegator: Root | Targets) -> str:
    """Return the name under which the floor of a role is kept: ``timestamp-1f3a9c20``.

    The end stands for the keys that ``delegator`` trusts for the role. Root has no such end,
    because its versions are a chain.
    """
    if role == ROOT:
        return ROOT
    # python-tuf lets ids of any type pass; as one of them signed, the others only count as names.
    ids = ",".join(sorted(map(str, trusted_ids(delegator, role))))
    return f"{role}-{sha256(ids.encode()).hexdigest()[:8]}"


def raised(floors: Mapping[str, int], seen: Mapping[str, int]) -> dict[str, int]:
    """Return ``floors`` with what was ``seen`` now.

    Raises RollbackError for metadata that is older than its floor, MalformedError for a version
    that is no whole number.
    """
    for name, version in seen.items():
        # python-tuf lets fractions and true pass.
        if type(version) is not int or version > EXACT:
            raise MalformedError(
                f"{name}: expected a version within 2**53 - 1, got {version!r:.80}",
                fix=ASK_PUBLISHER,
            )
        if version < floors.get(name, 0):
            raise RollbackError(
                f"{name}: expected version {floors[name]} or newer, which this device has seen, "
                f"got {version}",
                fix=_ANOTHER_MIRROR,
            )
    return {**floors, **seen}


def require_counter(release: SignedRelease, floors: Mapping[str, int]) -> None:
    """Raise RollbackError for a release below the floor of its unit."""
    floor = floors.get(str(release.unit), 0)
    if release.counter < floor:
        raise RollbackError(
            f"{release.unit}: expected release {floor} or newer, which this device has run, got "
            f"{release.counter}",
            fix=_ANOTHER_MIRROR,
        )


def moment(time: str, what: str) -> datetime:
    """Return the time that ``what`` says (RFC 3339, UTC, seconds). Raises MalformedError."""
    try:
        if not TIME.accepts(time):
            raise ValueError(time)
        return datetime.strptime(time, TIME_FORMAT).replace(tzinfo=timezone.utc)
    except ValueError as err:
        raise MalformedError(
            f"{what}: expected a time like {EPOCH}, got {time!r:.80}", fix=ASK_PUBLISHER
        ) from err


def issued(timestamp: Timestamp) -> datetime:
    """Return when the repository was published. Raises MalformedError."""
    return moment(timestamp.unrecognized_fields.get(ISSUED, ""), f"timestamp.{ISSUED}")


def require_valid(roles: Mapping[str, Signed], now: datetime, clock: datetime) -> None:
    """Raise unless every one of ``roles`` is valid at ``clock``, the latest time that is known.

    ``now``: what the device's clock shows, for the message. Raises ExpiredError, ClockError.
    """
    for name, signed in roles.items():
        if signed.is_expired(clock):
            raise expired(name, signed.expires, now, clock)


def expired(name: str, end: datetime, now: datetime, clock: datetime) -> ExpiredError:
    """Return the error for a role that ended at ``end``."""
    shown = f"the clock of this device shows {now:%Y-%m-%d %H:%M} UTC"
    if now - end > _IMPLAUSIBLE:
        return ClockError(
            f"{name}: expected metadata that is still valid, got one that ended {end:%Y-%m-%d}; "
            f"{shown}, years later",
            fix="set the clock of this device; if it is right, publish the repository again",
        )
    late = "" if clock <= now else f", and the last publish was at {clock:%Y-%m-%d %H:%M} UTC"
    return ExpiredError(
        f"{name}: expected metadata that is still valid, got one that ended {end:%Y-%m-%d %H:%M} "
        f"UTC; {shown}{late}",
        fix="publish the repository again (da3 publish), or take it from its source and not from a "
        "mirror that stands still; check the clock",
    )


def unchecked(now: datetime, clock: datetime) -> Iterable[str]:
    """Yield what cannot be checked because the device's clock is behind ``clock``."""
    if now < clock:
        yield (
            f"expiry at the present time: the clock shows {now:%Y-%m-%d %H:%M} UTC, which is past "
            f"already; it was checked at {clock:%Y-%m-%d %H:%M} UTC, when the repository was "
            "published last"
        )


def require_root(root: Root) -> None:
    """Raise DelegationError for a root whose thresholds one key could meet under two names."""
    for name, role in root.roles.items():
        keys = [root.keys[keyid] for keyid in role.keyids if keyid in root.keys]
        publics = [str(key.to_dict()["keyval"]) for key in keys]
        if len({*publics}) < len(publics):
            raise DelegationError(
                f"root: expected different keys for {name}, got one of them twice",
                fix=ASK_PUBLISHER,
            )
    if not root.consistent_snapshot:
        raise DelegationError(
            "root: expected a repository with consistent snapshots, got one without",
            fix=ASK_PUBLISHER,
        )


def delegated_units(targets: Targets) -> tuple[Unit, ...]:
    """Return the units whose roles the top-level ``targets`` delegates to, each exactly once.

    Raises DelegationError for a target of its own, another form of delegation, a role of no unit,
    or paths that are not the unit's; TooLargeError for more than 2,048 units.
    """
    if targets.targets:
        raise DelegationError(
            f"{TARGETS}: expected a role that delegates only, got {len(targets.targets)} targets",
            fix=ASK_PUBLISHER,
        )
    delegations = targets.delegations
    if delegations is None:
        return ()
    if delegations.roles is None:
        raise DelegationError(
            f"{TARGETS}: expected one role for each unit, got hash bins (TAP 15)", fix=ASK_PUBLISHER
        )
    if len(delegations.roles) > LIMIT_UNITS:
        raise TooLargeError(
            f"{TARGETS}: expected at most {LIMIT_UNITS} units, got {len(delegations.roles)}",
            fix=ASK_PUBLISHER,
        )
    return tuple(sorted(_unit_of(role) for role in delegations.roles.values()))


def _unit_of(role: DelegatedRole) -> Unit:
    # python-tuf lets names of any type pass.
    try:
        unit = Unit.of_role(f"{role.name}")
    except UsageError as err:
        raise DelegationError(f"{TARGETS}: {err.message}", fix=ASK_PUBLISHER) from err
    if role.paths != [unit.paths] or role.terminating is not True:
        raise DelegationError(
            f"{role.name}: expected the paths {unit.paths} alone, and a delegation that ends "
            f"there, got {role.paths!r:.120}",
            fix=ASK_PUBLISHER,
        )
    return unit
