"""``da3 bench`` from the command line to its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.benched import DOMAINS, Benched, invoke

QUICK = ("--backbone", "toy", "--domains", "2", "--quick")


def test_one_run_writes_text_document_and_page(benched: Benched) -> None:
    assert benched.exit_code == 0, benched.stderr
    document = benched.document
    assert document["failed"] == document["mixed"] == 0
    for key in document["targets"]:
        assert key in benched.stdout
        assert key in document
    assert benched.page.startswith("<!doctype html>")
    assert f"domains: domain 1 of {DOMAINS}" in benched.stderr
    assert "load: " in benched.stderr


def test_bundles_are_measured_without_a_linker(benched: Benched) -> None:
    paths = sorted(benched.work.glob("*.da3b"))[:2]
    named = [word for path in paths for word in ("--bundle", str(path))]
    result = invoke(*named, "--quick", "--parts", "overhead,latency", "--json", "-")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert set(document["parts"]) == {"overhead", "latency"}
    assert document["settings"]["drawn"] is False


@pytest.mark.parametrize("drawn", [False, pytest.param(True, marks=pytest.mark.full)])
def test_without_a_folder_nothing_is_left(
    benched: Benched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: bool
) -> None:
    """Drawn domains are exported by a process that has to start first; bundles are there."""
    paths = sorted(benched.work.glob("*.da3b"))[:2]
    named = [word for path in paths for word in ("--bundle", str(path))]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = invoke(*(QUICK if drawn else (*named, "--quick")), "--parts", "overhead")
    assert result.exit_code == 0, result.stderr
    assert "overhead_ms" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 2),
        (("--backbone", "resnet21"), 2),
        (("--backbone", "resnet20", "--parts", "everything"), 2),
        (("--bundle", "missing.da3b"), 2),
        (("--bundle", "missing.da3b", "--bundle", "other.da3b"), 1),
        (("--backbone", "resnet20", "--domains", "1"), 2),
    ],
)
def test_what_cannot_be_meant_is_told(words: tuple[str, ...], code: int) -> None:
    result = invoke(*words)
    assert result.exit_code == code
    assert "error:" in result.stderr
