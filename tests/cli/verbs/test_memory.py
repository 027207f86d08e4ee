"""``da3 memory`` from the command line to its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from toolchain.cli.verbs.memory import memory

SMALL = ("--backbone", "toy", "--batch", "2", "--methods", "da3,head")


pytestmark = pytest.mark.usefixtures("toy_backbone")


def invoke(*words: str) -> Result:
    return CliRunner().invoke(memory, words, prog_name="da3 memory")


def test_one_run_writes_table_document_and_plot(tmp_path: Path) -> None:
    files = ("--json", str(tmp_path / "memory.json"), "--plot", str(tmp_path / "memory.svg"))
    result = invoke(*SMALL, "--steps", "1", *files)
    assert result.exit_code == 0, result.stderr
    document = json.loads((tmp_path / "memory.json").read_text())
    assert list(document["toy"]) == ["finetune", "da3", "head"]
    assert {"stored_measured", "stored_analytic", "peak", "step_ratio"} <= set(
        document["toy"]["da3"]
    )
    for word in ("finetune", "by rule", "at budget", "allocator"):
        assert word in result.stdout
    assert "toy: da3, memory" in result.stderr
    assert "time, round 1 of 1" in result.stderr
    assert b"<svg" in (tmp_path / "memory.svg").read_bytes()


def test_without_time_no_step_is_run_for_it() -> None:
    result = invoke(*SMALL, "--no-time", "--json", "-")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert "step_ratio" not in document["toy"]["da3"]
    assert "time" not in result.stderr


def test_a_budget_is_answered_with_method_batch_and_pool() -> None:
    result = invoke(*SMALL, "--budget", "200kB")
    assert result.exit_code == 0, result.stderr
    assert "it fits  da3 with train.keep: fp32, train.batch" in result.stdout
    assert "da3     global  half" in result.stdout
    assert "largest batch" in result.stdout
    assert result.stderr.splitlines() == ["start PyTorch", "count da3", "count head"]


def test_a_smaller_batch_is_said_to_be_one() -> None:
    result = invoke("--backbone", "toy", "--batch", "64", "--methods", "head", "--budget", "40kB")
    assert result.exit_code == 0, result.stderr
    assert "it fits with a smaller batch" in result.stdout


def test_a_budget_that_nothing_fits_leaves_with_one() -> None:
    result = invoke("--backbone", "toy", "--methods", "head", "--budget", "100B")
    assert result.exit_code == 1
    assert "the smallest found, head with train.batch: 1, needs" in result.stderr
    assert "fix: give it" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--backbone"),
        ((*SMALL, "--budget", "much"), "expected a size"),
        ((*SMALL, "--budget", "3MB", "--plot", "a.svg"), "--budget or --plot"),
        ((*SMALL, "--plot", "a.pdf"), ".svg or .png"),
        ((*SMALL, "--plot", "no/such/folder.svg"), "expected a folder that exists"),
        (("--backbone", "resnet20", "--methods", "da4"), "unknown method 'da4'"),
        (("--backbone", "resnet21"), "unknown backbone"),
    ],
)
def test_requests_that_cannot_be_meant(words: tuple[str, ...], message: str) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert message in result.stderr
