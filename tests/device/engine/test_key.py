"""The key: every part counts, and what differs is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import small_kits
from toolchain.device.boards.cuda import Gpu
from toolchain.device.engine.key import EngineKey, KeyDifference, key_differences, key_of

ORIN = Gpu("Orin", "8.7", 8, 7 * 1024**3, integrated=True, driver="12.6")
TRT: Any = SimpleNamespace(name="tensorrt", build="10.3.0.30")
# Another value for each part.
OTHER: dict[str, Any] = {
    "module": "tensorrt_rtx", "tensorrt": "10.3.0.31", "gpu": "Thor", "sm": "11.0",
    "multiprocessors": 9, "memory_mib": 8, "cuda": "12.5", "l4t": None, "power": "15W",
    "options": "level 5", "precision": "fp16", "shapes": "classes 1/16/65",
    "kit": "sha256:" + "1" * 64, "weights": "sha256:" + "2" * 64,
    "graph": "sha256:" + "3" * 64, "flavour": "staged",
}  # fmt: skip


def key(tmp_path: Path) -> EngineKey:
    kit = small_kits.write(tmp_path / "kits")
    return key_of(TRT, ORIN, kit, flavour="swap", options="level 3", l4t="R36.4.3", power="MAXN")


def test_key_of_a_kit(tmp_path: Path) -> None:
    kit = small_kits.write(tmp_path)
    made = key_of(TRT, ORIN, kit, flavour="swap", options="level 3", l4t="R36.4.3")
    assert dict(made.parts()) == {
        "module": "tensorrt",
        "tensorrt": "10.3.0.30",
        "gpu": "Orin",
        "sm": "8.7",
        "multiprocessors": 8,
        "memory_mib": 7168,
        "cuda": "12.6",
        "l4t": "R36.4.3",
        "power": None,
        "options": "level 3",
        "precision": "fp32",
        "shapes": "classes 1/16/64",
        "kit": kit.digest,
        "weights": kit.backbone.weights_digest,
        "graph": kit.manifest.graph,
        "flavour": "swap",
    }


@pytest.mark.parametrize("part", OTHER)
def test_every_part_counts(tmp_path: Path, part: str) -> None:
    here = key(tmp_path)
    other = replace(here, **{part: OTHER[part]})
    assert other.digest() != here.digest()
    differences = key_differences(here, other)
    assert differences == (KeyDifference(part, getattr(here, part), OTHER[part]),)
    assert str(differences[0]) == f"{part}: expected {getattr(here, part)}, got {OTHER[part]}"


def test_table_has_every_part(tmp_path: Path) -> None:
    assert list(OTHER) == [name for name, _ in key(tmp_path).parts()]


def test_timings_depend_on_module_and_machine(tmp_path: Path) -> None:
    names = [name for name, _ in key(tmp_path).device()]
    assert names == list(OTHER)[: len(names)]
    assert (names[0], names[-1]) == ("module", "power")


def test_digest_is_of_the_values(tmp_path: Path) -> None:
    here = key(tmp_path)
    assert here.digest() == replace(here).digest()
    assert key_differences(here, replace(here)) == ()
