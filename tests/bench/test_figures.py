"""The judged figures: where they come from, and their targets."""

from __future__ import annotations

from typing import Any

import pytest

from toolchain.bench.figures import GOALS, figures
from toolchain.bench.run import PARTS
from toolchain.bench.tables import verdict


def test_every_target_is_measured_by_a_whole_run(document: dict[str, Any]) -> None:
    assert set(GOALS) <= set(figures(document["parts"])) <= set(document)


@pytest.mark.parametrize("part", PARTS)
def test_what_was_not_measured_is_left_out(document: dict[str, Any], part: str) -> None:
    """Law: the figures of some parts are those of the whole run that these parts give."""
    parts = document["parts"]
    rest = {name: value for name, value in parts.items() if name != part}
    every = figures(parts)
    assert figures(rest) | figures({part: parts[part]}) == every
    assert not set(figures(rest)) & set(figures({part: parts[part]}))
    assert figures({}) == {}


def test_speedups_are_against_a_whole_session(document: dict[str, Any]) -> None:
    ready = document["parts"]["swap"]["first"]["ready"]
    assert document["swap_cold_speedup"] == pytest.approx(1 / ready["bundle"]["ratio"])
    assert document["swap_installed_speedup"] == pytest.approx(1 / ready["installed"]["ratio"])


@pytest.mark.parametrize(
    ("sense", "value", "word"),
    [
        ("least", 2.0, "met"),
        ("least", 1.9, "missed"),
        ("most", 2.0, "met"),
        ("most", 2.1, "missed"),
    ],
)
def test_verdicts(sense: str, value: float, word: str) -> None:
    standard = {"backbone": "resnet50", "side": 224, "quick": False}
    targets = {"x": {"what": "", "sense": sense, "value": 2.0}}
    document = {"targets": targets, "x": value, "settings": standard}
    assert verdict(document, "x") == word
    assert verdict({"targets": targets, "settings": standard}, "x") == ""


@pytest.mark.parametrize(
    "other", [{"backbone": "resnet20"}, {"side": 192}, {"quick": True}], ids=str
)
def test_another_run_than_the_standard_one_is_not_judged(other: dict[str, Any]) -> None:
    settings = {"backbone": "resnet50", "side": 224, "quick": False, **other}
    targets = {"x": {"what": "", "sense": "least", "value": 2.0}}
    assert verdict({"targets": targets, "x": 9.0, "settings": settings}, "x") == ""
