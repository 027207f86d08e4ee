"""docs/cli.md shows every command's help as it is; --update-goldens writes it there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.support.toy_export import invoke
from toolchain.cli import root

DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"
MARK = "The texts below are those of `--help`.\n"


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*words, name))


EVERY = list(commands(root))


def section(words: tuple[str, ...]) -> str:
    line = " ".join(("da3", *words))
    return f"\n### {line}\n\n```text\n{invoke(*words, '--help').stdout}```\n"


def test_every_help_text_is_shown(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    head, mark, shown = DOCUMENT.read_text(encoding="utf-8").partition(MARK)
    expected = "".join(map(section, EVERY))
    if request.config.getoption("--update-goldens"):
        DOCUMENT.write_text(head + mark + expected, encoding="utf-8")
        return
    assert shown == expected


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_command_has_help_with_an_example(words: tuple[str, ...]) -> None:
    result = invoke(*words, "--help")
    assert result.exit_code == 0
    examples = re.findall(r"^    (da3(?:-export)? .*)$", result.stdout, re.MULTILINE)
    assert examples
    assert any(line.startswith(" ".join(("da3", *words))) for line in examples)


@pytest.mark.parametrize(
    "words", [w for w in EVERY if w not in ((), ("recipes",), ("keys",), ("device",))], ids=" ".join
)
def test_every_verb_takes_json(words: tuple[str, ...]) -> None:
    assert "--json" in invoke(*words, "--help").stdout


def test_the_commands_of_the_document_exist() -> None:
    """Each line of the document that begins with da3 names a verb and options that it has."""
    text = DOCUMENT.read_text(encoding="utf-8")
    lines = re.findall(r"^    (da3(?:-export)? .*?)(?:\s+#.*| >.*)?$", text, re.MULTILINE)
    assert len(lines) > 10
    for line in lines:
        program, *words = line.split()
        command: click.Command = root
        if program == "da3-export":
            words.insert(0, "export")
        while isinstance(command, click.Group):
            if not words and command.invoke_without_command:
                break  # a group that is a verb of its own
            command = command.commands[words.pop(0)]
        known = {
            name for option in command.params for name in (*option.opts, *option.secondary_opts)
        }
        assert {word for word in words if word.startswith("--")} <= known, line
