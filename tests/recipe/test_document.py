"""docs/recipes.md names every key, every option with its default, and every shipped recipe."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from toolchain.core.fields import Section, SectionOf, rules
from toolchain.pictures.preprocess import Preprocessing
from toolchain.recipe import METHOD_OPTIONS, AdaptorOptions, DataSpec, Recipe, TrainSpec
from toolchain.recipe.library import packaged

TEXT = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
ROWS = {line.split("|")[1].strip(): line for line in TEXT.splitlines() if line.startswith("| `")}


def documented() -> set[str]:
    """Return the full path of every key in a row's first cell; ``.std`` follows its row's first."""
    out: set[str] = set()
    for cell in ROWS:
        names = re.findall(r"`([\w.*]+)`", cell)
        room = names[0].split(".")[0]
        out |= {f"{room}{name}" if name.startswith(".") else name for name in names}
    return out


@pytest.mark.parametrize(
    ("prefix", "section"),
    [("", Recipe), ("data.", DataSpec), ("preprocess.", Preprocessing), ("train.", TrainSpec)],
)
def test_every_key_has_its_row(prefix: str, section: type[Section]) -> None:
    nested = {name for name, rule in rules(section).items() if isinstance(rule, SectionOf)}
    expected = {f"{prefix}{name}" for name in rules(section).keys() - nested}
    assert expected <= documented()


def test_every_shipped_recipe_has_its_row() -> None:
    shipped = {path.stem for path in packaged().glob("*.yaml")}
    assert {name for name in shipped if not name.startswith("vd_")} <= documented()


@pytest.mark.parametrize("option", fields(AdaptorOptions), ids=lambda option: option.name)
def test_every_option_states_its_default_and_its_methods(option: object) -> None:
    name, default = option.name, option.default  # type: ignore[attr-defined]
    cells = [cell.strip() for cell in ROWS[f"`{name}`"].split("|")[1:-1]]
    assert cells[1].strip("`") == ("null" if default is None else str(default))
    users = [method for method, names in METHOD_OPTIONS.items() if name in names]
    assert cells[3].split(", ") == users
