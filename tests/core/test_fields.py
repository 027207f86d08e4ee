"""Fields: reading a section never raises and never guesses."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from toolchain.core.errors import Fault
from toolchain.core.fields import (
    ListOf,
    Nullable,
    Section,
    SectionOf,
    choice,
    key,
    number,
    printable,
    read_section,
    show,
    whole,
)


@dataclass(frozen=True, slots=True)
class Inner(Section):
    rate: float = key(number(0, 1, above=True))
    kernel: int = key(whole(1, 9, odd=True), default=3)


@dataclass(frozen=True, slots=True)
class Outer(Section):
    name: str = key(printable(8))
    kind: str = key(choice("warm", "cold"))
    marks: tuple[int, ...] = key(ListOf(whole(0, 5), 0, 3))
    note: str | None = key(Nullable(printable(8)))
    inner: Inner = key(SectionOf(Inner))


GOOD = {"name": "a", "kind": "warm", "marks": [1, 2], "note": None, "inner": {"rate": 1}}


def read(value: object) -> tuple[Outer | None, list[Fault]]:
    faults: list[Fault] = []
    return read_section(Outer, "", value, faults), faults


def test_a_good_section_is_built_and_whole_numbers_become_floats() -> None:
    built, faults = read(GOOD)
    assert not faults
    assert built == Outer("a", "warm", (1, 2), None, Inner(1.0, 3))
    assert built is not None
    assert type(built.inner.rate) is float


def test_every_fault_is_reported_with_its_path() -> None:
    value = {"name": "", "kind": "wram", "marks": [1, True, 9], "inner": {"kernel": 4}, "x": 1}
    built, faults = read(value)
    assert built is None
    paths = ["inner.kernel", "inner.rate", "kind", "marks[1]", "marks[2]", "name", "note", "x"]
    assert sorted(fault.path for fault in faults) == paths
    fixes = {fault.path: fault.fix for fault in faults}
    assert fixes["kind"] == "did you mean warm?"
    assert fixes["inner.rate"] == "add rate: ..."


def test_a_key_of_a_nested_section_is_sent_there() -> None:
    _, faults = read(GOOD | {"rate": 0.5})
    assert [(fault.path, fault.fix) for fault in faults] == [("rate", "move it to inner.rate")]


def test_a_million_unknown_keys_are_counted_and_not_compared() -> None:
    _, faults = read(GOOD | dict.fromkeys(map(str, range(100_000))))
    assert len(faults) == 101
    assert str(faults[-1]) == "(top): 99900 more unknown keys"


def test_a_contradiction_carries_the_path_of_its_section() -> None:
    @dataclass(frozen=True, slots=True)
    class Pair(Section):
        low: int = key(whole(0, 9))

        def contradictions(self):  # type: ignore[no-untyped-def]
            yield Fault("low", "too low")

    faults: list[Fault] = []
    assert read_section(Pair, "here", {"low": 1}, faults) is None
    assert [fault.path for fault in faults] == ["here.low"]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "other"]), PLAIN) | PLAIN)
def test_law_a_section_is_built_exactly_when_there_is_no_fault(value: object) -> None:
    """Law: for every plain value, the answer is None if and only if a fault was appended."""
    built, faults = read(value)
    assert (built is None) == bool(faults)


@given(PLAIN)
def test_show_is_short_for_any_value(value: object) -> None:
    assert len(show(value)) <= 90
