"""Kits and engines are recognised, verified and shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.kitted import Kitted
from tests.support.simulated.engines import deploy, simulated
from toolchain.cli import root
from toolchain.core.errors import BundleError
from toolchain.device.engine.cache import mark
from toolchain.inspect import EngineFacts, KitFacts, inspect


def said(path: Path, *words: str) -> str:
    result = CliRunner().invoke(root, ["inspect", str(path), *words], prog_name="da3")
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_a_kit_by_its_folder_or_its_manifest(kitted: Kitted) -> None:
    kit = kitted.kits["orin fp16"]
    for path in (kit.path, kit.path / "kit.json"):
        inspection = inspect(path)
        assert (inspection.kind, inspection.path) == ("kit", kit.path)
        assert isinstance(inspection.facts, KitFacts)
        assert inspection.facts.manifest == kit.manifest
        assert inspection.facts.digest == kit.digest
    shown = said(kit.path)
    assert "orin-nano-jp6.2, fp16" in shown
    assert "staged" in shown
    assert json.loads(said(kit.path, "--json"))["kind"] == "kit"


def test_an_engine_tells_its_key_and_its_verdict(kitted: Kitted, tmp_path: Path) -> None:
    path = deploy(kitted.exported, tmp_path, simulated())
    mark(path, "skipping", {"open_ms": 2.0, "closed_ms": 1.0})
    for place in (path, path / "engine.json"):
        inspection = inspect(place)
        assert (inspection.kind, inspection.path) == ("engine", path)
        assert isinstance(inspection.facts, EngineFacts)
    shown = said(path)
    for word in ("skipping", "tensorrt", "10.3.0", "closed_ms", "power"):
        assert word in shown


def test_a_bundle_shows_what_each_precision_costs(kitted: Kitted) -> None:
    shown = said(kitted.report.bundle)
    for target, precision in (("orin-nano-jp6.2", "int8"), ("nano-jp4.6", "fp32")):
        assert any(target in line and precision in line for line in shown.splitlines())


@pytest.mark.parametrize("name", ["swap.onnx", "kit.json", "backbone.json"])
def test_an_altered_kit_is_found(kitted: Kitted, tmp_path: Path, name: str) -> None:
    path = tmp_path / "kit"
    shutil.copytree(kitted.kits["orin fp16"].path, path)
    data = bytearray((path / name).read_bytes())
    (path / name).write_bytes(data[:-1] if name == "kit.json" else data[:-9] + b"x" + data[-8:])
    with pytest.raises(BundleError):
        inspect(path)
