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
    said = invoke()
    assert said.exit_code == 0
    lines = said.stdout.splitlines()
    assert lines[0] == "This machine"
    assert any(line.startswith("  yes  run on onnxruntime") for line in lines)
    found = json.loads(invoke("--json").stdout)
    assert set(found) == {
        *("machine", "target", "why_none", "abilities", "differences", "facts"),
    }
    assert found["machine"]["packages"]
    assert next(ability["act"] for ability in found["abilities"]) == "train"


def test_a_named_target() -> None:
    said = invoke("--target", "orin-nano-jp6.2")
    assert said.exit_code == 0
    assert said.stdout.splitlines()[0] == "orin-nano-jp6.2"
    for words in (
        *("TensorRT                10.3", "sudo apt install python3-libnvinfer", "MatMul"),
        *("CHANGELOG.md, 10.6.0", "da3-export --domain NAME --target orin-nano-jp6.2"),
    ):
        assert words in said.stdout
    found = json.loads(invoke("--target", "orin-nano-jp6.2", "--json").stdout)
    assert found["machine"] is None
    assert {fact["name"]: fact["value"] for fact in found["facts"]}["SM"] == "8.7"


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_its_page(name: str) -> None:
    said = invoke("--target", name)
    assert said.exit_code == 0
    assert "What it can do" in said.stdout


def test_the_table() -> None:
    said = invoke("--targets")
    assert said.exit_code == 0
    assert [line.split()[0] for line in said.stdout.splitlines()[1:]] == list(TARGETS)
    assert invoke("--targets", "--markdown").stdout == table.markdown()
    found = json.loads(invoke("--targets", "--json").stdout)["targets"]
    assert [row["name"] for row in found] == list(TARGETS)
    assert found[0]["release"]["opset"] == 13
    assert found[0]["board"]["precisions"] == ["fp32", "fp16"]


def test_an_unknown_target() -> None:
    said = invoke("--target", "orin-nano-jp6.3")
    assert said.exit_code == 2
    assert "did you mean orin-nano-jp6.2" in said.stderr
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
    said = invoke(*words)
    assert said.exit_code == 2
    assert message in said.stderr


def test_targets_are_completed() -> None:
    context = click.Context(doctor)
    found = complete_target(context, doctor.params[0], "orin-nx-jp7")
    assert [item.value for item in found] == ["orin-nx-jp7.2", "orin-nx-jp7.2.2"]
    assert found[0].help == "Jetson Orin NX"
