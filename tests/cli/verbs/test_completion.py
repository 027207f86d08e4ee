"""``da3 completion``, and what is completed."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.support.toy_export import invoke


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("program", "variable"), [("da3", "_DA3_COMPLETE"), ("da3-export", "_DA3_EXPORT_COMPLETE")]
)
def test_there_is_a_script_for_each_shell_and_program(
    shell: str, program: str, variable: str
) -> None:
    words = ("completion", shell, "--program", program)
    result = invoke(*words)
    assert result.exit_code == 0
    assert variable in result.stdout
    document = json.loads(invoke(*words, "--json").stdout)
    script = result.stdout.removesuffix("\n")
    assert document == {"shell": shell, "program": program, "script": script}


def test_bash_takes_the_script() -> None:
    script = invoke("completion", "bash").stdout
    commands = f"{script}\ncomplete -p da3"
    done = subprocess.run(["bash", "-c", commands], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "da3"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("da3 export --domain ca", "plain,cars"),
        ("da3 recipes show dig", "plain,digits"),
        ("da3 recipes new x --backbone resnet2", "plain,resnet20"),
        ("da3 ins", "plain,inspect"),
    ],
)
def test_names_are_completed(line: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_DA3_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    assert wanted in invoke().stdout.splitlines()
