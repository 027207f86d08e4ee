"""An assignment: the fleet's key says which device or group runs which release.

Rules of this file: the small signed document and its checks; values from values. It is the second
signature, as Uptane has it: a unit's offline key says that a release is good, the fleet's online
key says who gets it. So an assignment can choose among good releases, delay them, and nothing else.
Its number rises, so that an old one cannot be played again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

from toolchain.core.canonical import canonical_json
from toolchain.core.errors import (
    AssignmentError,
    Da3Error,
    ExpiredError,
    Fault,
    MalformedError,
    UnsignedError,
    UsageError,
)
from toolchain.core.fields import Section, SectionOf, TableOf, choice, key, matching, text
from toolchain.core.units import Unit
from toolchain.core.words import NATURAL, TIME, Document, read_record, to_json
from toolchain.trust.checks import LIMIT_UNITS, moment
from toolchain.trust.metadata import FLEET
from toolchain.trust.public import KEY_ID, SIGNATURE, PublicKey
from toolchain.trust.release import ASK_PUBLISHER

if TYPE_CHECKING:
    from securesystemslib.signer import Signer
    from tuf.api.metadata import Targets

LIMIT_BYTES = 256 << 10
_AUDIENCE = matching(r"(device|group)/[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "device/ID or group/NAME")


def _is_unit(value: str) -> bool:
    try:
        Unit.parse(value)
    except UsageError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Assignment(Section):
    """Which release a device or a group runs.

    ``number`` rises with each assignment of the fleet; ``audience``: ``device/ID`` or
    ``group/NAME``; ``units``: counter by ``str(unit)``, 0 for the newest.
    """

    schema: str = key(choice("da3.assignment/1"))
    number: int = key(NATURAL)
    issued: str = key(TIME)
    expires: str = key(TIME)
    audience: str = key(_AUDIENCE)
    units: Mapping[str, int] = key(
        TableOf(text("domains/NAME or backbones/NAME", _is_unit), NATURAL, 0, LIMIT_UNITS)
    )

    def contradictions(self) -> Iterator[Fault]:
        """Yield a fault for times that do not exist or follow."""
        try:
            if moment(self.issued, "issued") >= moment(self.expires, "expires"):
                yield Fault("expires", "expected a time after `issued`")
        except MalformedError as err:
            yield Fault("expires", err.message)


@dataclass(frozen=True, kw_only=True)
class _SignedAssignment(Document):
    """An assignment with its signatures, by the id of the key."""

    FILE = "assignment"
    LIMIT_BYTES = LIMIT_BYTES

    signed: Assignment = key(SectionOf(Assignment))
    signatures: Mapping[str, str] = key(TableOf(KEY_ID, SIGNATURE, 1, 8))


@dataclass(frozen=True, kw_only=True)
class _FleetKeys(Section):
    keys: Mapping[str, PublicKey] = key(TableOf(KEY_ID, SectionOf(PublicKey), 0, 8))


def fleet_of(targets: Targets) -> Mapping[str, PublicKey]:
    """Return the keys that may sign assignments, by id, as verified ``targets`` names them.

    Raises MalformedError.
    """
    about = targets.unrecognized_fields.get(FLEET, {})
    found = read_record(
        _FleetKeys, {"keys": about}, f"targets.{FLEET}", error=MalformedError, fix=ASK_PUBLISHER
    )
    return MappingProxyType(dict(found.keys))


def sign_assignment(assignment: Assignment, signers: Collection[Signer]) -> bytes:
    """Return the document of ``assignment``, signed by each of ``signers``: the fleet's keys.

    Raises MalformedError for one that no device would take.
    """
    plain = to_json(assignment)
    record = read_record(Assignment, plain, "assignment", error=MalformedError, fix="correct it")
    data = canonical_json(plain)
    signatures = {one.public_key.keyid: one.sign(data).signature for one in signers}
    return _SignedAssignment(signed=record, signatures=signatures).to_json()


def read_assignment(
    data: bytes,
    *,
    fleet: Mapping[str, PublicKey],
    audiences: Collection[str],
    floor: int,
    clock: datetime,
) -> Assignment:
    """Return the assignment in ``data``, if this device has to follow it.

    ``fleet``: :attr:`Trusted.fleet`; ``audiences``: what this device is, such as ``device/7`` and
    ``group/north``; ``floor``: number of the last one that was followed; ``clock``: the latest time
    that is known. Raises MalformedError, UnsignedError, ExpiredError, and AssignmentError for one
    that is not newer or not for this device.
    """
    one = _verified(data, fleet)
    if one.number <= floor:
        raise AssignmentError(
            f"assignment: expected a number above {floor}, which this device has followed, got "
            f"{one.number}: an old one was played again",
            fix="fetch the newest one; this device stays as it is",
        )
    if one.audience not in audiences:
        raise AssignmentError(
            f"assignment: expected one for {', '.join(sorted(audiences)) or 'nobody'}, got one for "
            f"{one.audience}",
            fix="fetch the one for this device; it stays as it is",
        )
    if clock >= moment(one.expires, "assignment.expires"):
        raise ExpiredError(
            f"assignment: expected one that is still valid, got one that ended {one.expires}",
            fix="fetch the newest one; check the clock of this device",
        )
    return one


def _verified(data: bytes, fleet: Mapping[str, PublicKey]) -> Assignment:
    try:
        document = _SignedAssignment.from_json(data)
    except Da3Error as err:
        raise MalformedError(err.message, fix=ASK_PUBLISHER) from err
    payload = canonical_json(to_json(document.signed))
    for keyid, signature in document.signatures.items():
        if keyid in fleet and fleet[keyid].signed(keyid, signature, payload):
            return document.signed
    raise UnsignedError(
        "assignment: expected a signature of the fleet's key, got none that holds",
        fix=ASK_PUBLISHER,
    )
