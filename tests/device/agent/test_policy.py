"""Policies: what people write, told whole where it is wrong, and the hours of maintenance."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.core.errors import PolicyError, StorageError
from toolchain.device.agent.policy import (
    Health,
    Policy,
    Window,
    checked_policy,
    opens_in,
    read_policy,
    write_policy,
)

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
TIMES = st.times().map(lambda one: f"{one:%H:%M}")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    policy = Policy(
        repository="https://example.org/site",
        domains=("cars", "solar cells"),
        window=Window(start="22:00", end="04:00", zone="Europe/Berlin"),
        health=Health(seconds=60, command=("/bin/true",)),
    )
    write_policy(tmp_path, policy)
    assert read_policy(tmp_path) == policy


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(
        '{"repository": "ftp://x", "poll_s": 0, "polls": 1, '
        '"window": {"start": "25:00", "end": "x"}}'
    )
    with pytest.raises(PolicyError) as caught:
        read_policy(tmp_path)
    for word in ("repository", "poll_s", "window.start", "window.end", "polls", "file://"):
        assert word in caught.value.message
    assert "policy.json" in caught.value.fix


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1, "a": 2}', "[" * 100_000, "\\xff"])
def test_what_is_no_policy_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(PolicyError):
        read_policy(tmp_path)


def test_a_policy_that_is_not_there_or_endless(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        read_policy(tmp_path)
    (tmp_path / "policy.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(StorageError, match="at most"):
        read_policy(tmp_path)


def test_fields_of_the_command_line_are_checked_as_those_of_the_file() -> None:
    assert checked_policy(domains=("cars",)).domains == ("cars",)
    with pytest.raises(PolicyError, match="domains"):
        checked_policy(domains=("../cars",))


@given(start=TIMES, end=TIMES, now=st.datetimes(timezones=st.just(timezone.utc)))
def test_a_window_opens_when_it_says(start: str, end: str, now: datetime) -> None:
    """Law: after the wait the window is open, and a minute before it would have been closed."""
    window = Window(start=start, end=end, zone="UTC")
    left = opens_in(window, now)
    assert timedelta() <= left < timedelta(days=1)
    assert opens_in(window, now + left) == timedelta()
    if left > timedelta(minutes=1):
        assert opens_in(window, now + left - timedelta(minutes=1)) > timedelta()


def test_a_window_is_in_its_own_zone_and_over_midnight() -> None:
    berlin = Window(start="23:00", end="03:00", zone="Europe/Berlin")
    # In summer Berlin is two hours ahead.
    assert opens_in(berlin, NOON) == timedelta(hours=9)
    assert opens_in(berlin, NOON + timedelta(hours=12)) == timedelta()
    assert opens_in(berlin, NOON + timedelta(hours=13)) == timedelta(hours=20)
    assert opens_in(None, NOON) == timedelta()
    assert opens_in(replace(berlin, zone=None), NOON) < timedelta(days=1)
