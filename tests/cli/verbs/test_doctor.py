"""``da3 doctor``."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner, Result

from toolchain.cli.options import complete_target
from toolchain.cli.verbs.doctor import doctor
from toolchain.device.boards import table
from toolchain.device.boards.target import TARGETS


def invoke(*words: str) -> Result:
    return CliRunner().invoke(doctor, words, prog_name="da3 doctor")


def test_this_machine() -> None:
    result = invoke()
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "This machine"
    assert any(line.startswith("  yes  run on onnxruntime") for line in lines)
    document = json.loads(invoke("--json").stdout)
    assert set(document) == {
        *("machine", "target", "why_none", "abilities", "differences", "facts"),
    }
    assert document["machine"]["packages"]
    assert next(ability["act"] for ability in document["abilities"]) == "train"


def test_a_named_target() -> None:
    result = invoke("--target", "orin-nano-jp6.2")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "orin-nano-jp6.2"
    for words in (
        *("TensorRT                10.3", "sudo apt install python3-libnvinfer", "MatMul"),
        *("CHANGELOG.md, 10.6.0", "da3-export --domain NAME --target orin-nano-jp6.2"),
    ):
        assert words in result.stdout
    document = json.loads(invoke("--target", "orin-nano-jp6.2", "--json").stdout)
    assert document["machine"] is None
    assert {fact["name"]: fact["value"] for fact in document["facts"]}["SM"] == "8.7"


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_its_page(name: str) -> None:
    result = invoke("--target", name)
    assert result.exit_code == 0
    assert "What it can do" in result.stdout


def test_the_table() -> None:
    result = invoke("--targets")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == list(TARGETS)
    assert invoke("--targets", "--markdown").stdout == table.markdown()
    rows = json.loads(invoke("--targets", "--json").stdout)["targets"]
    assert [row["name"] for row in rows] == list(TARGETS)
    assert rows[0]["release"]["opset"] == 13
    assert rows[0]["board"]["precisions"] == ["fp32", "fp16"]


def test_an_unknown_target() -> None:
    result = invoke("--target", "orin-nano-jp6.3")
    assert result.exit_code == 2
    assert "did you mean orin-nano-jp6.2" in result.stderr
    error = json.loads(invoke("--target", "x\x1b[2J", "--json").stdout)["error"]
    assert (error["type"], error["exit_code"]) == ("UnknownNameError", 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--targets", "--target", "nano-jp4.6"), "expected one of --target and --targets"),
        (("--markdown",), "expected --targets beside --markdown"),
    ],
)
def test_options_that_do_not_fit(words: tuple[str, ...], message: str) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_targets_are_completed() -> None:
    context = click.Context(doctor)
    completions = complete_target(context, doctor.params[0], "orin-nx-jp7")
    assert [item.value for item in completions] == ["orin-nx-jp7.2", "orin-nx-jp7.2.2"]
    assert completions[0].help == "Jetson Orin NX"
