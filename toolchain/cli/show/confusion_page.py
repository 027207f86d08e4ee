"""Scores as one page of HTML: the classes, and the table of confusion for any number of them.

Rules of this file: text of the bundle is escaped, and the page asks for nothing from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from toolchain.cli.show.layout import percent

if TYPE_CHECKING:
    from toolchain.core.confusion import Confusion

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: 0.15rem 0.6rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; } th:first-child { text-align: left; }
thead th { vertical-align: bottom; } thead th.turned { writing-mode: vertical-rl; }
"""


def page(title: str, confusion: Confusion, classes: Sequence[str]) -> str:
    """Return the page. A cell is the darker, the larger its share of its row is."""
    head = (
        f"{percent(confusion.accuracy)} of {confusion.pictures} pictures recognised, "
        f"{percent(confusion.balanced_accuracy)} as the mean of the classes"
    )
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<h1>{escape(title)}</h1>\n<p>{head}</p>",
            *_scores(confusion, classes),
            "<p>The true class by row, the answer by column:</p>",
            *_table(confusion, classes),
            "</body>\n</html>\n",
        ]
    )


def _scores(confusion: Confusion, classes: Sequence[str]) -> Iterator[str]:
    yield "<table>\n<thead><tr><th>class</th><th>pictures</th><th>recognised</th>"
    yield "<th>precision</th></tr></thead>\n<tbody>"
    for score in confusion.scores(classes):
        yield f"<tr><th>{escape(score.name)}</th><td>{score.pictures}</td>"
        yield f"<td>{percent(score.recall)}</td><td>{percent(score.precision)}</td></tr>"
    yield "</tbody>\n</table>"


def _table(confusion: Confusion, classes: Sequence[str]) -> Iterator[str]:
    heads = "".join(f'<th class="turned">{escape(name)}</th>' for name in classes)
    yield f"<table>\n<thead><tr><th></th>{heads}</tr></thead>\n<tbody>"
    for place, (name, row) in enumerate(zip(classes, confusion.table(), strict=True)):
        total = max(1, sum(row))
        cells = "".join(
            _cell(count, count / total, right=place == column) for column, count in enumerate(row)
        )
        yield f"<tr><th>{escape(name)}</th>{cells}</tr>"
    yield "</tbody>\n</table>"


def _cell(count: int, share: float, *, right: bool) -> str:
    if not count:
        return "<td></td>"
    colour = "60, 160, 90" if right else "200, 70, 60"
    return f'<td style="background: rgba({colour}, {0.1 + 0.7 * share:.2f})">{count}</td>'
