"""The table of targets: what must hold between its columns, and the document made from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from toolchain.core.errors import PrecisionError, UnknownNameError
from toolchain.device.boards import table
from toolchain.device.boards.target import TARGETS, Target, find

DOCUMENT = Path(__file__).parents[3] / "docs" / "targets.md"
MARK = "<!-- Written by `da3 doctor --targets --markdown`. -->\n\n"
EVERY = list(TARGETS.values())
TENSORRT = [target for target in EVERY if not target.release.name.startswith("rtx")]


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def test_the_table_is_the_one_of_the_issue() -> None:
    """Boards, releases and TensorRT as they were asked for, and Thor's later JetPacks."""
    boards: dict[str, list[str]] = {}
    for target in EVERY:
        row = f"{target.release.name} {target.release.tensorrt} {target.release.boundaries}"
        boards.setdefault(f"{target.board.name} {target.board.sm}", []).append(row)
    orin = [
        *("jp6.0 8.6.2 repaired", "jp6.1 10.3 repaired", "jp6.2 10.3 repaired"),
        *("jp7.2 10.16 made", "jp7.2.2 11.4.1 made"),
    ]
    jetsons = {name: rows for name, rows in boards.items() if not name.startswith("desktop")}
    assert jetsons == {
        "nano 5.3": ["jp4.6 8.2.1 missing"],
        "tx2 6.2": ["jp4.6 8.2.1 missing"],
        "xavier-nx 7.2": ["jp5.1 8.5.2 made"],
        "xavier-agx 7.2": ["jp5.1 8.5.2 made"],
        **{f"orin-{size} 8.7": orin for size in ("nano", "nx", "agx")},
        "thor 11.0": [
            *("jp7.0 10.13 made", "jp7.1 10.13 made"),
            *("jp7.2 10.16 made", "jp7.2.2 11.4.1 made"),
        ],
    }
    assert [name for name in TARGETS if name.startswith("desktop")] == [
        *("desktop-trt10.3", "desktop-trt10.13", "desktop-trt10.16", "desktop-trt11.4"),
        "desktop-rtx1.7",
    ]


@pytest.mark.parametrize("target", EVERY, ids=lambda t: t.name)
def test_every_name_is_one_that_a_kit_may_carry(target: Target) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", target.name)
    assert find(target.name) is target


@pytest.mark.parametrize("target", EVERY, ids=lambda t: t.name)
def test_every_fact_has_a_source(target: Target) -> None:
    assert target.board.source
    assert target.release.source
    sources = dict(target.release.sources)
    assert set(sources) == {
        *("opset", "kit_opset", "boundaries", "typed", "conv_slots", "layer_precisions")
    }
    assert all(sources.values())


@pytest.mark.parametrize("target", TENSORRT, ids=lambda t: t.name)
def test_what_follows_from_the_version(target: Target) -> None:
    """The windows of versions that the facts name, over every row."""
    release, version = target.release, number(target.release.tensorrt)
    assert (release.boundaries == "repaired") == ((8, 6) <= version[:2] < (10, 6))
    assert (release.boundaries == "missing") == (version[:2] < (8, 5))
    assert release.typed == (version >= (10,))
    assert release.conv_slots == (version >= (10, 4))
    assert release.layer_precisions == (version >= (8, 4))
    assert release.scripted == (release.name in ("jp4.6", "jp5.1"))


@pytest.mark.parametrize("field", ["opset", "kit_opset"])
def test_opsets_never_fall(field: str) -> None:
    limits = sorted({(number(t.release.tensorrt), getattr(t.release, field)) for t in TENSORRT})
    assert [opset for _, opset in limits] == sorted(opset for _, opset in limits)
    expected = {13, 17} if field == "opset" else {13, 16, 17}
    assert {o for v, o in limits if v[0] == 8} == expected


def test_a_kit_is_never_above_what_the_documents_name() -> None:
    assert all(t.release.kit_opset <= t.release.opset for t in EVERY)
    opsets = {t.release.tensorrt: t.release.opset for t in EVERY}
    assert opsets == {
        "8.2.1": 13,
        "8.5.2": 17,
        "8.6.2": 17,
        "10.3": 20,
        "10.13": 20,
        "10.16": 24,
        "11.4": 24,
        "11.4.1": 24,
        "1.7": 22,
    }


def test_only_the_oldest_boards_lack_int8() -> None:
    lacking = {t.board.name for t in EVERY if "int8" not in t.board.precisions}
    assert lacking == {"nano", "tx2"}
    with pytest.raises(PrecisionError, match=r"nano-jp4\.6: expected one of fp32, fp16") as e:
        find("nano-jp4.6").require("int8")
    assert e.value.fix == "--precision fp16"
    find("orin-nano-jp6.2").require("int8")


def test_an_unknown_name_gets_the_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean orin-nano-jp6\.2") as caught:
        find("orin-nano-jp6.3")
    assert "da3 doctor --targets" in caught.value.fix


def test_the_document_is_the_table(request: pytest.FixtureRequest) -> None:
    head, mark, shown = DOCUMENT.read_text(encoding="utf-8").partition(MARK)
    assert mark
    if request.config.getoption("--update-goldens"):
        DOCUMENT.write_text(head + mark + table.markdown(), encoding="utf-8")
        return
    assert shown == table.markdown()


def test_every_row_is_as_wide_as_its_heads() -> None:
    assert {len(row) for row in table.rows()} == {len(table.HEADS)}
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(table.HEADS) + 1}
    assert len(lines) == len(TARGETS) + 2
