"""``da3 completion``, and what is completed."""

from __future__ import annotations

import json

import pytest

from tests.toy_export import invoke


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_serves_both_programs(shell: str) -> None:
    said = invoke("completion", shell)
    assert said.exit_code == 0
    assert "_DA3_COMPLETE" in said.stdout
    assert "_DA3_EXPORT_COMPLETE" in said.stdout
    found = json.loads(invoke("completion", shell, "--json").stdout)
    assert found == {"shell": shell, "script": said.stdout.removesuffix("\n")}


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
