"""docs/house.svg is what docs/draw_house.py draws from the tables of docs/architecture.md."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

DOCS = Path(__file__).parents[2] / "docs"
TABLES = (DOCS / "architecture.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def house() -> Mapping[str, Any]:
    return runpy.run_path(str(DOCS / "draw_house.py"))


def test_the_picture_is_that_of_the_tables(house: Mapping[str, Any]) -> None:
    picture = (DOCS / "house.svg").read_text(encoding="utf-8")
    assert house["draw"](TABLES) == picture, "run: python docs/draw_house.py"


def test_every_room_and_sub_room_stands_in_the_picture(house: Mapping[str, Any]) -> None:
    picture = ET.fromstring(house["draw"](TABLES))
    words = {"".join(text.itertext()) for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    for heading in ("| room | may import |", "| sub-room | may import |"):
        for name in house["arrows"](TABLES, heading):
            stem = name.rpartition("/")[2]
            assert any(word.startswith(stem) for word in words), name


def test_a_room_stands_above_all_that_it_imports(house: Mapping[str, Any]) -> None:
    rooms = house["arrows"](TABLES, "| room | may import |")
    height = house["floors"](rooms)
    assert all(height[below] < height[room] for room in rooms for below in rooms[room])


def test_an_arrow_that_follows_from_others_is_left_out(house: Mapping[str, Any]) -> None:
    graph = {"a": (), "b": ("a",), "c": ("a", "b"), "d": ("a",)}
    assert house["reduced"](graph) == [("b", "a"), ("c", "b"), ("d", "a")]


def test_a_circle_is_refused(house: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="a circle among a, b"):
        house["floors"]({"a": ("b",), "b": ("a",), "c": ()})


def test_a_page_without_the_tables_is_refused(house: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a table"):
        house["draw"]("# Architecture\n")
