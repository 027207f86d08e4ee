"""Text for people: tables, labelled values, bars, sizes.

Rules of this file: functions are pure, and nothing is printed. Text that comes from a file is shown
without its control characters, so that no name can move the cursor. Where a stream takes no colour,
click drops it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from textwrap import wrap

import click

from toolchain.core.errors import first_few

WIDTH = 78
"""As wide as click wraps its help texts."""
BAR_WIDTH = 20
SHOWN_ROWS = 40
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def clean(text: str, *, lines: bool = False) -> str:
    """Return ``text`` with each unprintable character escaped; ``lines`` keeps line breaks."""
    return "".join(
        c if c.isprintable() or (lines and c == "\n") else c.encode("unicode_escape").decode()
        for c in text
    )


def width(text: str) -> int:
    """Return the columns that ``text`` takes on a terminal; UAX 11: wide characters take two."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    # A combining mark stands on the letter before it and takes no column.
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def title(text: str) -> str:
    """Return a heading."""
    return click.style(clean(text), bold=True)


def pairs(values: Mapping[str, object], indent: int = 2) -> list[str]:
    """Return one line for each labelled value; the values stand below each other."""
    columns = max(map(width, map(clean, values)), default=0)
    return [
        f"{' ' * indent}{label}{' ' * (columns - width(label))}  {clean(str(value))}"
        for label, value in ((clean(name), value) for name, value in values.items())
    ]


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Collection[str] = "",
    indent: int = 2,
) -> list[str]:
    """Return a table; ``right`` has the positions, as digits, of the columns that align right."""
    cells = [[clean(str(value)) for value in row] for row in rows]
    wide = [max(map(width, column)) for column in zip(heads, *cells, strict=True)]
    lines = [_row(row, wide, right, indent) for row in [list(heads), *cells]]
    return [click.style(lines[0], dim=True), *lines[1:]]


def _row(row: Sequence[str], wide: Sequence[int], right: Collection[str], indent: int) -> str:
    parts = []
    for place, (text, columns) in enumerate(zip(row, wide, strict=True)):
        space = " " * (columns - width(text))
        parts.append(space + text if str(place) in right else text + space)
    return (" " * indent + "  ".join(parts)).rstrip()


def bar(share: float) -> str:
    """Return a share from 0 to 1 as a bar of twenty places."""
    done = round(BAR_WIDTH * min(1.0, max(0.0, share)))
    return "#" * done + "-" * (BAR_WIDTH - done)


def percent(share: float | None) -> str:
    """Return a share as a percentage with one decimal; None is a dash."""
    return "-" if share is None else f"{share:.1%}"


def size(count: float) -> str:
    """Return a number of bytes with the unit that leaves one to four digits."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def shape(dims: Iterable[object]) -> str:
    """Return a shape as ``[3, 32, 32]``."""
    return f"[{', '.join(map(str, dims))}]"


def some(names: Sequence[str], count: int = 12) -> str:
    """Return the first ``count`` of ``names``, and how many follow."""
    return first_few(names, count)


def listed(values: Mapping[str, object]) -> str:
    """Return names and values on one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def shortened(rows: Sequence[Sequence[object]]) -> list[Sequence[object]]:
    """Return the rows that fit on a screen, and a row that counts the others."""
    if len(rows) <= SHOWN_ROWS:
        return list(rows)
    more = (f"and {len(rows) - SHOWN_ROWS} more: --json", *[""] * (len(rows[0]) - 1))
    return [*rows[:SHOWN_ROWS], more]


def gates(rates: Mapping[str, float | None]) -> list[str]:
    """Return one line for each block: a bar for how often its gate is open."""
    if not rates:
        return ["  no gates"]
    rows = [
        (name, "(no gate)" if rate is None else bar(rate), percent(rate))
        for name, rate in rates.items()
    ]
    return table(("gate", "open in training", ""), rows, right="2")


def paragraph(text: str) -> list[str]:
    """Return ``text`` in lines of at most ``WIDTH`` characters."""
    return wrap(clean(text), WIDTH, initial_indent="  ", subsequent_indent="  ")


def example(*commands: str) -> str:
    """Return the part of a help text that shows ``commands``."""
    # click wraps a paragraph anew, but for one that begins with \b.
    return "\b\nExample:\n" + "\n".join(f"  {command}" for command in commands)
