"""The page: one file that asks for nothing else, and shows what the document says."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from toolchain.bench import report
from toolchain.bench.plots import plots
from toolchain.bench.tables import tables

VOID = {"meta", "br", "path", "use", "rect", "circle"}


class Page(HTMLParser):
    """Tags in order, and whether each is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def text(document: dict[str, Any]) -> str:
    return report.page(document)


def test_every_tag_is_closed(text: str) -> None:
    assert Page(text).open == []


def test_nothing_comes_from_elsewhere(text: str) -> None:
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "style"):
                assert "//" not in (value or "")
            assert not name.startswith("on")
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", text))


def test_every_table_and_every_part_with_a_plot_is_there(
    document: dict[str, Any], text: str
) -> None:
    words = "".join(Page(text).text)
    for table in tables(document):
        assert table.title in words
        assert all(len(row) == len(table.heads) for row in table.rows)
    keys = {table.key for table in tables(document)}
    drawn = plots(document)
    assert len(drawn) == text.count("<svg") == 5
    assert {plot.key for plot in drawn} <= keys


def test_plots_take_the_text_colour_of_the_page(document: dict[str, Any]) -> None:
    for plot in plots(document):
        assert "currentColor" in plot.svg
        assert not re.search(r"#0{3}(0{3})?\b", plot.svg)


def test_identifiers_of_two_plots_never_meet(document: dict[str, Any]) -> None:
    identifiers = [
        set(re.findall(r' id="([^"]*[0-9a-f]{8,})"', plot.svg)) for plot in plots(document)
    ]
    assert all(identifiers)
    assert len(set().union(*identifiers)) == sum(map(len, identifiers))


def test_hostile_names_stay_text(document: dict[str, Any]) -> None:
    hostile = copy.deepcopy(document)
    attack = "<script>alert(1)</script>\"'&"
    hostile["machine"]["processor"] = attack
    hostile["settings"]["backbone"] = attack
    hostile["not_measured"] = {attack: attack}
    blocks = hostile["parts"]["latency"]["blocks"]
    blocks[attack] = blocks.pop(next(iter(blocks)))
    page = Page(report.page(hostile))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.open == []
    assert attack in "".join(page.text)


def test_parts_that_were_not_measured_leave_no_hole(document: dict[str, Any]) -> None:
    little = {**document, "parts": {"overhead": document["parts"]["overhead"]}}
    little = {key: value for key, value in little.items() if key != "swap_cold_speedup"}
    page = report.page(little)
    assert "not measured" in page
    assert "<svg" not in page
