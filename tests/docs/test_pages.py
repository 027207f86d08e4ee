"""The pages of docs: links lead somewhere, pictures are whole, how-to-add names what exists."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
HOW_TO = (DOCS / "how-to-add.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", HOW_TO, re.MULTILINE | re.DOTALL)
# A row: | 1 | [`path`](../path) | what to do | `an`, `example` |
ROW = re.compile(r"^\| \d+ \| \[`([^`]+)`\]\(\.\./([^)]+)\) \| .*? \| (.*) \|$", re.MULTILINE)
# Folders that a page names and that a command makes.
OURS = ("dist", "build", "train", "test", "val", "valid", "validation")
COUNTS = {
    "A method": 2,
    "A method with an option": 2,
    "A method that searches": 6,
    "A form of data": 4,
    "A linked flavour": 5,
    "A board whose TensorRT is known": 1,
    "A board with a new TensorRT": 2,
    "A verb": 2,
    "A manifest field that a request uses": 3,
    "A lean layer": 2,
    "A backbone": 3,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_the_code_that_a_page_names_exists(page: Path) -> None:
    """Pages name files from the checkout's root, or from ``toolchain/``."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:\w+/)+(?:\w+\.(?:py|in))?)`", text):
        if name.partition("/")[0] not in OURS:
            assert any((top / name).exists() for top in (ROOT, ROOT / "toolchain")), name


@pytest.mark.parametrize("picture", sorted(DOCS.glob("*.svg")), ids=lambda picture: picture.name)
def test_every_picture_is_whole_and_shown(picture: Path) -> None:
    assert ET.fromstring(picture.read_text(encoding="utf-8")).tag.endswith("svg")
    assert any(f"({picture.name})" in page.read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize("page", ["runtime", "engines", "memory", "method", "index", "trust"])
def test_pages_that_need_a_picture_have_one(page: str) -> None:
    assert re.search(r"!\[.+\]\(\w+\.svg\)", (DOCS / f"{page}.md").read_text(encoding="utf-8"))


def test_the_figures_of_the_memory_picture_were_measured() -> None:
    shown = re.findall(r">([\d.]+\.\d\d)<", (DOCS / "memory.svg").read_text(encoding="utf-8"))
    results = (DOCS / "results.md").read_text(encoding="utf-8")
    part = results.partition("\n## resnet50, 224 px, batch 8")[2].partition("\n## ")[0]
    assert len(shown) == 4
    assert all(f"| {figure} |" in part for figure in shown)


def test_how_to_add_has_every_part() -> None:
    assert [title for title, _ in SECTIONS] == list(COUNTS)


@pytest.mark.parametrize(("title", "text"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_what_how_to_add_names_exists(title: str, text: str) -> None:
    """Each row names a file, and words that stand in it; there are no more rows than promised."""
    rows = ROW.findall(text)
    assert len(rows) == len(re.findall(r"^\| \d", text, re.MULTILINE))
    assert 0 < len(rows) <= COUNTS[title]
    for shown, target, example in rows:
        assert shown == target
        code = (ROOT / target).read_text(encoding="utf-8")
        words = re.findall(r"`([^`]+)`", example)
        assert words, target
        for word in words:
            assert word in code, f"{target}: {word}"
