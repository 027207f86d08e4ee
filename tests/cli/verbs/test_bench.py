"""``da3 bench`` from the command line to its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from toolchain.cli.verbs.bench import bench

QUICK = ("--backbone", "resnet20", "--domains", "2", "--quick")


def invoke(*words: str) -> Result:
    return CliRunner().invoke(bench, words, prog_name="da3 bench")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "work"


@pytest.fixture(scope="module")
def said(work: Path) -> Result:
    files = ("--json", str(work.parent / "bench.json"), "--html", str(work.parent / "bench.html"))
    return invoke(*QUICK, "--work", str(work), *files)


def test_one_run_writes_text_document_and_page(said: Result, work: Path) -> None:
    assert said.exit_code == 0, said.stderr
    document = json.loads((work.parent / "bench.json").read_text())
    assert document["failed"] == document["mixed"] == 0
    for key in document["targets"]:
        assert key in said.stdout
        assert key in document
    assert (work.parent / "bench.html").read_text().startswith("<!doctype html>")
    assert "domains: domain 1 of 2" in said.stderr
    assert "load: " in said.stderr


def test_bundles_are_measured_without_a_linker(said: Result, work: Path) -> None:
    named = [word for path in sorted(work.glob("*.da3b")) for word in ("--bundle", str(path))]
    found = invoke(*named, "--quick", "--parts", "overhead,latency", "--json", "-")
    assert found.exit_code == 0, found.stderr
    document = json.loads(found.stdout)
    assert set(document["parts"]) == {"overhead", "latency"}
    assert document["settings"]["drawn"] is False


def test_without_a_folder_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = invoke(*QUICK, "--parts", "overhead")
    assert found.exit_code == 0, found.stderr
    assert "overhead_ms" in found.stdout
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
    found = invoke(*words)
    assert found.exit_code == code
    assert "error:" in found.stderr
