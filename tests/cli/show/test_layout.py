"""Text for people."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from toolchain.cli.show import layout

NAMES = st.text(max_size=12)


@given(NAMES)
def test_law_nothing_unprintable_is_left(text: str) -> None:
    """``clean`` leaves printable text alone and nothing else through."""
    cleaned = layout.clean(text)
    assert cleaned.isprintable()
    assert layout.clean(cleaned) == cleaned
    assert (cleaned == text) == text.isprintable()


@given(st.lists(st.tuples(NAMES, NAMES, NAMES), max_size=4))
def test_law_columns_begin_below_each_other(rows: list[tuple[str, str, str]]) -> None:
    """In a table the last column begins at the same place in every line."""
    lines = layout.table(("a", "b", "c"), [(a, b, f"|{c}") for a, b, c in rows])
    starts = {layout.width(line.rpartition("|")[0]) for line in lines[1:] if line.count("|") == 1}
    assert len(starts) <= 1


@given(st.floats(0, 1))
def test_law_a_bar_has_twenty_places(share: float) -> None:
    """A bar's length does not depend on the share, its filled part grows with it."""
    drawn = layout.bar(share)
    assert len(drawn) == layout.BAR_WIDTH
    assert drawn.count("#") == round(share * layout.BAR_WIDTH)


def test_sizes_and_shares() -> None:
    assert [layout.size(n) for n in (0, 1023, 1024, 5 << 20, 3 << 40, 5 << 50)] == [
        *("0 B", "1023 B", "1.0 KiB", "5.0 MiB", "3.0 TiB", "5120.0 TiB")
    ]
    assert layout.percent(None) == "-"
    assert layout.percent(0.1234) == "12.3%"
    assert layout.width("漢a\u0301") == 3


def test_long_lists_say_how_many_follow() -> None:
    assert layout.some([str(n) for n in range(5)], 3) == "0, 1, 2, and 2 more"
    rows = layout.shortened([(n, n) for n in range(100)])
    assert len(rows) == layout.SHOWN_ROWS + 1
    assert rows[-1] == ("and 60 more: --json", "")
    assert layout.shortened([(1, 2)]) == [(1, 2)]


def test_gates_as_bars() -> None:
    lines = layout.gates({"block00": 0.5, "block01": None})
    assert "##########----------" in lines[1]
    assert "(no gate)" in lines[2]
    assert layout.gates({}) == ["  no gates"]
