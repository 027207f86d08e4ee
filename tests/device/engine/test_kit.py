"""The kit's format: what is written is read, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import small_kits
from toolchain.core.canonical import canonical_json
from toolchain.core.errors import BundleError, DataError, ExistsError, StorageError
from toolchain.device.engine.kit import KIT_NAME, ClassProfile, kit_name, open_kit


def test_what_is_written_is_read(tmp_path: Path) -> None:
    kit = small_kits.write(tmp_path)
    opened = open_kit(kit.path)
    assert opened == kit
    assert kit.path.name == kit_name(small_kits.backbone(), "xavier-nx-jp5.1", "fp32")
    assert {name: opened.read(name) for name in small_kits.FILES} == small_kits.FILES


def test_same_inputs_same_bytes(tmp_path: Path) -> None:
    first, second = small_kits.write(tmp_path / "a"), small_kits.write(tmp_path / "b")
    assert first.digest == second.digest
    assert sorted(p.name for p in first.path.iterdir()) == sorted(
        p.name for p in second.path.iterdir()
    )


def test_scripts_can_be_run(tmp_path: Path) -> None:
    kit = small_kits.write(tmp_path, None, **{"build.sh": b"#!/bin/sh\n"})
    assert (kit.path / "build.sh").stat().st_mode & 0o111


def test_a_kit_that_is_there_is_not_overwritten_unasked(tmp_path: Path) -> None:
    small_kits.write(tmp_path)
    with pytest.raises(ExistsError):
        small_kits.write(tmp_path)


def test_changed_byte(tmp_path: Path) -> None:
    kit = small_kits.write(tmp_path)
    (kit.path / "swap.onnx").write_bytes(b"b model")
    with pytest.raises(BundleError, match="expected sha256:"):
        open_kit(kit.path).read("swap.onnx")


def test_grown_file(tmp_path: Path) -> None:
    kit = small_kits.write(tmp_path)
    (kit.path / "swap.onnx").write_bytes(b"a model and more")
    with pytest.raises((BundleError, StorageError)):
        open_kit(kit.path).read("swap.onnx")


def test_another_backbone_in_the_kit(tmp_path: Path) -> None:
    kit = small_kits.write(tmp_path)
    other = dataclasses.replace(small_kits.backbone(), licence="another")
    (kit.path / "backbone.json").write_bytes(other.to_json())
    with pytest.raises((BundleError, StorageError), match=r"backbone\.json"):
        open_kit(kit.path)


def test_no_kit_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a kit"):
        open_kit(tmp_path)


def _edited(edit: Callable[[dict[str, Any]], None], path: Path) -> None:
    document = json.loads((path / KIT_NAME).read_text())
    edit(document)
    (path / KIT_NAME).write_bytes(canonical_json(document))


ATTACKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "file outside": lambda d: d["files"].append(
        {"name": "../x", "digest": d["files"][0]["digest"], "size": 1}
    ),
    "huge file": lambda d: d["files"][0].update(size=2**40),
    "model without file": lambda d: d["flavours"][0]["models"][0].update(file="none.onnx"),
    "same flavour twice": lambda d: d["flavours"].append(d["flavours"][0]),
    "profile upside down": lambda d: d["classes"].update(low=65),
    "precision unheard of": lambda d: d.update(precision="fp4"),
    "role unheard of": lambda d: d["flavours"][0]["models"][0].update(role="shell"),
    "unknown key": lambda d: d.update(run="rm"),
    "negative boundaries": lambda d: d["flavours"][0]["models"][0].update(boundaries=-1),
    "pinned line break": lambda d: d["flavours"][0]["models"][0].update(pinned=["a\nb"]),
    "slot twice": lambda d: d["slots"].append(d["slots"][0]),
    "no backbone": lambda d: d.update(files=[f for f in d["files"] if "json" not in f["name"]]),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_manifest_that_lies(attack: str, tmp_path: Path) -> None:
    kit = small_kits.write(tmp_path)
    _edited(ATTACKS[attack], kit.path)
    with pytest.raises(BundleError):
        open_kit(kit.path)


def test_a_flavour_that_is_not_there() -> None:
    assert small_kits.manifest().flavour("swap").models[0].boundaries == 2
    with pytest.raises(DataError, match="static"):
        small_kits.manifest().flavour("static")


def test_the_profile_is_ordered() -> None:
    assert not list(ClassProfile(1, 2, 3).contradictions())
    assert list(ClassProfile(3, 2, 1).contradictions())
