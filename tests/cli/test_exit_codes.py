"""Each exit code from a real cause."""

from __future__ import annotations

import json
import shutil
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.toy_export import Run, invoke
from toolchain import bundle
from toolchain.bundle.golden import read_golden


def test_0_and_a_document(run: Run) -> None:
    assert run.said["check as JSON"].exit_code == 0


def test_1_no_backbone_beside_the_bundle(run: Run, tmp_path: Path) -> None:
    alone = shutil.copy(run.bundle, tmp_path)
    result = invoke("check", str(alone))
    assert result.exit_code == 1
    assert "name its folder with --backbone DIR" in result.stderr


def test_0_with_the_backbone_named(run: Run, tmp_path: Path) -> None:
    alone = shutil.copy(run.bundle, tmp_path)
    assert invoke("check", str(alone), "--backbone", str(run.backbone)).exit_code == 0
    assert invoke("check", str(alone), "--backbone", str(run.backbone.parent)).exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ["export"],
        ["frobnicate"],
        ["check"],
        ["check", "x.da3b", "--tolerance", "much"],
        ["train", "--domain", "cars", "--threads", "0"],
        ["recipes", "new", "birds"],
    ],
)
def test_2_usage(words: list[str]) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: da3")
    assert "error: " in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("verb", ["train", "export"])
def test_2_an_unknown_domain_lists_the_nearest_names(verb: str) -> None:
    result = invoke(verb, "--domain", "carz")
    assert result.exit_code == 2
    assert "unknown domain 'carz'" in result.stderr
    assert "did you mean cars" in result.stderr


def test_3_a_tolerance_that_no_rounding_meets(run: Run) -> None:
    result = run.said["check at zero"]
    assert result.exit_code == 3
    assert "parity failed" in result.stderr
    assert "first diverging at" in result.stderr


def test_3_golden_data_that_were_altered_and_packed_again(run: Run, tmp_path: Path) -> None:
    original = bundle.open_bundle(run.bundle)
    payloads = [
        bundle.Payload(e.role, e.name, original.blob(e.name)) for e in original.manifest.files
    ]
    (place,) = (i for i, one in enumerate(payloads) if one.role == "golden")
    golden = read_golden(payloads[place].data, "golden")
    other = replace(golden, logits=golden.logits + np.linspace(0, 1, 3, dtype=np.float32))
    payloads[place] = replace(payloads[place], data=other.to_bytes())
    bundle.pack(tmp_path / "toy.da3b", original.manifest, payloads)
    result = invoke("check", str(tmp_path / "toy.da3b"), "--backbone", str(run.backbone), "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["error"]["type"] == "ParityError"


def test_3_an_export_that_fails_parity_writes_nothing(run: Run, tmp_path: Path) -> None:
    with chdir(run.home):
        result = invoke(
            *("export", "--domain", "toy", "--dist", str(tmp_path / "d"), "--tolerance", "0")
        )
    assert result.exit_code == 3
    assert "compare with the reference" in result.stderr
    begun, ended = result.stderr.splitlines()[6:8]
    assert begun.split()[:2] == ended.split()[:2] == ["compare", "with"]
    assert "failed" in ended
    assert not (tmp_path / "d").exists()


def test_4_a_bit_flipped_in_a_bundle(run: Run, tmp_path: Path) -> None:
    data = bytearray(run.bundle.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "toy.da3b").write_bytes(data)
    for verb in ("check", "inspect"):
        result = invoke(verb, str(tmp_path / "toy.da3b"), "--json")
        assert result.exit_code == 4
        assert json.loads(result.stdout)["error"]["type"] == "BundleError"


def test_4_a_bit_flipped_in_the_backbone(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / run.backbone.name
    shutil.copytree(run.backbone, folder)
    weights = folder / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert invoke("check", str(run.bundle), "--backbone", str(folder)).exit_code == 4
    assert invoke("inspect", str(folder)).exit_code == 4
