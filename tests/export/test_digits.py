"""The whole path on real input: train, export and check handwritten digits, as the README says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from toolchain import bundle
from toolchain.cli import root

# The digits were written down with 8 pixels; the recipe's 32 are for the backbone.
SMALL = ("preprocess.size=16", "preprocess.resize=16", "train.epochs=8")
SET = tuple(word for key in SMALL for word in ("--set", key))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digits")


def call(*arguments: str | Path) -> dict[str, Any]:
    result = CliRunner().invoke(root, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_digits_from_recipe_to_checked_bundle(folder: Path) -> None:
    trained = call("train", "--domain", "digits", *SET, "--out", folder / "digits")
    assert trained["accuracy"] >= 0.9
    assert trained["executed_share"] <= 0.7
    dist = folder / "dist"
    call(
        "export",
        "--domain",
        "digits",
        *SET,
        "--checkpoint",
        folder / "digits",
        "--dist",
        dist,
    )
    call("check", dist / "digits.da3b")
    manifest = bundle.open_bundle(dist / "digits.da3b").manifest
    assert manifest.classes == tuple("0123456789")
    for states in manifest.selftest.gate_states.values():
        assert states.open
        assert states.closed
