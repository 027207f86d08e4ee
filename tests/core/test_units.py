"""A unit: its text, its role in TUF, and the files that a release of it may have."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.core.errors import UsageError
from toolchain.core.units import Unit, is_unit

NAMES = st.text(string.ascii_letters + string.digits + "äß é_-.", min_size=1, max_size=20)
CARS = Unit("domains", "cars")


def unit_or_none(kind: str, name: str) -> Unit | None:
    try:
        return Unit(kind, name)
    except UsageError:
        return None


@pytest.mark.parametrize("words", ["domains/Käfer am Bach", "domains/昆虫", "backbones/resnet20"])
def test_a_text_is_a_unit_and_back(words: str) -> None:
    assert str(Unit.parse(words)) == words


@pytest.mark.parametrize(
    "words",
    [
        *("", "cars", "/", "domains/", "domains/a/b", "domains/..", "domains/a ", "models/x"),
        *("domains/*", "other/cars", "/cars", "domains/../x"),
        *("domains/Ka\u0308fer", "backbones/Käfer", "backbones/a b", "domains/a\0", "/domains/a"),
    ],
)
def test_what_is_no_unit_is_refused(words: str) -> None:
    assert not is_unit(words)
    with pytest.raises(UsageError):
        Unit.parse(words)


@given(st.text(max_size=20))
def test_a_unit_is_a_path_of_two_parts(words: str) -> None:
    """Law: whatever is accepted leads nowhere else."""
    if is_unit(f"domains/{words}"):
        assert "/" not in words
        assert words not in (".", "..")
        assert Unit.parse(f"domains/{words}").name == words


@settings(max_examples=60)
@given(kind=st.sampled_from(["domains", "backbones"]), name=NAMES)
def test_a_unit_is_found_again_from_its_name_and_from_its_role(kind: str, name: str) -> None:
    unit = unit_or_none(kind, name)
    if unit is not None:
        assert Unit.parse(str(unit)) == unit
        assert Unit.of_role(unit.role) == unit
        assert unit.paths == f"{unit}/*"
        assert unit.target(unit.manifest).startswith(f"{unit}/")


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["domains", "backbones"]), NAMES), max_size=8))
def test_no_two_units_share_a_role(pairs: list[tuple[str, str]]) -> None:
    units = {unit for kind, name in pairs if (unit := unit_or_none(kind, name)) is not None}
    assert len({unit.role for unit in units}) == len(units)


def test_a_name_that_is_too_long_for_a_file_of_its_quoted_role() -> None:
    assert Unit("domains", "字" * 21)
    with pytest.raises(UsageError, match="at most 200 bytes once it is quoted"):
        Unit("domains", "字" * 22)


@pytest.mark.parametrize(
    ("unit", "name", "allowed"),
    [
        (CARS, "bundle.json", True),
        (CARS, "backbone.json", False),
        (CARS, "kit-orin.json", False),
        (Unit("backbones", "r"), "backbone.json", True),
        (Unit("backbones", "r"), "kit-orin-nano-jp6.2.json", True),
        (Unit("backbones", "r"), "kit-.json", False),
        (Unit("backbones", "r"), "kit-../x.json", False),
        (Unit("backbones", "r"), "other.json", False),
    ],
)
def test_which_files_a_release_may_have(unit: Unit, name: str, allowed: bool) -> None:
    assert unit.may_have(name) is allowed
