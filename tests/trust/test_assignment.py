"""Assignments: only the fleet's key, only newer ones, only for this device."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from tests.support.trusted import NOW, Device, Publisher, passphrase
from toolchain.core import errors
from toolchain.trust import Assignment, ceremonies, read_assignment, sign_assignment
from toolchain.trust.keyring import Keyring

ONE = Assignment(
    schema="da3.assignment/1",
    number=3,
    issued="2026-06-01T12:00:00Z",
    expires="2026-06-08T12:00:00Z",
    audience="group/north",
    units={"domains/cars": 2, "backbones/resnet20": 0},
)


def signed(publisher: Publisher, assignment: Assignment = ONE, role: str = "fleet") -> bytes:
    return sign_assignment(assignment, Keyring(publisher.keys).signers(role, passphrase))


@pytest.fixture
def follow(publisher: Publisher, device: Device) -> partial[Assignment]:
    """Reads an assignment as a device of the group north does, which has followed number 2."""
    return partial(
        read_assignment,
        fleet=device.look(NOW).fleet,
        audiences={"device/7", "group/north"},
        floor=2,
        clock=NOW,
    )


def test_a_device_follows_the_fleets_key(publisher: Publisher, follow: partial[Assignment]) -> None:
    assert follow(signed(publisher)) == ONE


def test_a_replayed_assignment(publisher: Publisher, follow: partial[Assignment]) -> None:
    with pytest.raises(errors.AssignmentError, match=r"above 3, .* an old one was played again"):
        follow(signed(publisher), floor=3)


def test_an_assignment_for_somebody_else(publisher: Publisher, follow: partial[Assignment]) -> None:
    with pytest.raises(errors.AssignmentError, match="got one for device/8"):
        follow(signed(publisher, replace(ONE, audience="device/8")))


def test_an_assignment_of_another_key(publisher: Publisher, follow: partial[Assignment]) -> None:
    """No other key of the repository may say who gets what, not even that of targets."""
    with pytest.raises(errors.UnsignedError, match="the fleet's key"):
        follow(signed(publisher, role="targets"))


def test_an_assignment_that_was_altered(publisher: Publisher, follow: partial[Assignment]) -> None:
    with pytest.raises(errors.UnsignedError):
        follow(signed(publisher).replace(b'"domains/cars":2', b'"domains/cars":1'))


def test_an_assignment_whose_time_is_over(
    publisher: Publisher, follow: partial[Assignment]
) -> None:
    with pytest.raises(errors.ExpiredError, match="ended 2026-06-08"):
        follow(signed(publisher), clock=NOW + timedelta(days=7))


def test_an_assignment_of_a_fleet_key_that_was_rotated_away(
    publisher: Publisher, device: Device, follow: partial[Assignment]
) -> None:
    old = signed(publisher)
    publisher.ceremony(ceremonies.rotate, "fleet")
    publisher.publish()
    fleet = device.look(NOW).fleet
    with pytest.raises(errors.UnsignedError):
        follow(old, fleet=fleet)
    assert follow(signed(publisher), fleet=fleet) == ONE


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[" * 4000, b'{"signatures":{},"signed":{}}', bytes(300_000)]
)
def test_what_is_no_assignment(data: bytes, follow: partial[Assignment]) -> None:
    with pytest.raises(errors.MalformedError):
        follow(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"units": {"cars": 1}},
        {"units": {"domains/cars": -1}},
        {"audience": "everybody"},
        {"expires": "2026-06-01T12:00:00Z"},
        {"issued": "2026-02-31T12:00:00Z"},
    ],
)
def test_an_assignment_that_no_device_would_take_is_not_signed(
    publisher: Publisher, changes: dict[str, object]
) -> None:
    with pytest.raises(errors.MalformedError):
        signed(publisher, replace(ONE, **changes))  # type: ignore[arg-type]
