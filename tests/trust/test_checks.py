"""Laws of floors and of the clock."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import Role, Root

from toolchain.core.errors import ClockError, ExpiredError, MalformedError, RollbackError
from toolchain.trust import checks

VERSIONS = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9), max_size=4)
NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)


@settings(max_examples=80)
@given(floors=VERSIONS, seen=VERSIONS)
def test_a_floor_never_falls(floors: dict[str, int], seen: dict[str, int]) -> None:
    """Law: what is lower is refused; all else is the highest of both, and nothing is forgotten."""
    lower = [name for name in seen if seen[name] < floors.get(name, 0)]
    if lower:
        with pytest.raises(RollbackError):
            checks.raised(floors, seen)
        return
    after = checks.raised(floors, seen)
    assert after == {name: max(floors.get(name, 0), seen.get(name, 0)) for name in {*floors, *seen}}
    assert checks.raised(after, seen) == after


@pytest.mark.parametrize("version", [True, 1.5, 2**53, "1"])
def test_a_version_that_is_no_number_is_no_floor(version: object) -> None:
    with pytest.raises(MalformedError):
        checks.raised({}, {"root": version})  # type: ignore[dict-item]


def root_with(ids: list[str]) -> Root:
    root = Root()
    root.roles["timestamp"] = Role(ids, 1)
    root.keys = {one: SSlibKey(one, "ed25519", "ed25519", {"public": one}) for one in ids}
    return root


@settings(max_examples=40)
@given(ids=st.lists(st.sampled_from(["aa", "bb", "cc", "dd"]), min_size=1, unique=True))
def test_a_floor_belongs_to_the_keys_and_not_to_their_order(ids: list[str]) -> None:
    name = checks.floor_name("timestamp", root_with(ids))
    assert name == checks.floor_name("timestamp", root_with(ids[::-1]))
    assert name != checks.floor_name("timestamp", root_with([*ids, "ee"]))
    assert len(name) <= 100


@settings(max_examples=40)
@given(late=st.integers(-400, 4000), behind=st.integers(0, 800))
def test_what_ended_is_refused_whatever_the_clock_shows(late: int, behind: int) -> None:
    """Law: the latest known time decides; the clock of the device can only make it later."""
    root = Root(expires=NOW)
    clock = NOW + timedelta(days=late)
    now = clock - timedelta(days=behind)
    if late < 0:
        checks.require_valid({"root": root}, now, clock)
        assert bool(list(checks.unchecked(now, clock))) is (behind > 0)
        return
    with pytest.raises(ExpiredError) as caught:
        checks.require_valid({"root": root}, now, clock)
    assert isinstance(caught.value, ClockError) is (late - behind > 365)


@pytest.mark.parametrize("time", ["", "2026-02-31T00:00:00Z", "2026-06-01", "now", None, 5])
def test_what_is_no_time(time: object) -> None:
    with pytest.raises(MalformedError):
        checks.moment(time, "clock")  # type: ignore[arg-type]
