"""docs/trust.md and docs/threat-model.md say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from toolchain.cli import root
from toolchain.core import errors
from toolchain.trust import checks, client
from toolchain.trust import metadata as tuf

DOCS = Path(__file__).parents[2] / "docs"
TRUST = (DOCS / "trust.md").read_text(encoding="utf-8")
THREATS = (DOCS / "threat-model.md").read_text(encoding="utf-8")
COMMANDS = sorted({*re.findall(r"(?:^|`|= ?|\.\.\. )(da3 (?:keys|sign|publish)[^`#\n]*)", TRUST)})


def rows(heading: str) -> list[list[str]]:
    """The rows of the table of the page whose first head is ``heading``."""
    table = TRUST.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_page_shows_commands() -> None:
    assert len(COMMANDS) > 15


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_exists_with_its_options(line: str) -> None:
    words = line.split()[1:]
    command: click.Command = root
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command = command.commands[words.pop(0)]
    known = {name for option in command.params for name in option.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_every_error_of_a_repository_is_listed() -> None:
    listed = {name for row in rows("error") for name in re.findall(r"`(\w+)`", row[0])}
    tree = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type)
        and issubclass(kind, errors.TrustError | errors.RepositoryError)
        and kind is not errors.TrustError
    }
    assert listed == tree


def test_lifetimes_keys_and_limits_are_those_of_the_code() -> None:
    by_role = {row[0]: row for row in rows("role")}
    for role, days in tuf.DAYS.items():
        assert by_role[role][3] == f"{days} days"
    assert by_role["root"][1] == f"{tuf.ROOT_KEYS}, of which {tuf.ROOT_THRESHOLD} sign"
    assert f"{tuf.RELEASE_DAYS} days" in by_role["`domain-NAME`"][3]
    assert f"at most {checks.LIMIT_UNITS:,} units" in TRUST
    assert (tuf.LIMIT_BYTES, client.LIMIT_TIMESTAMP_BYTES) == (1 << 20, 16 << 10)
    assert client.LIMIT_ALL_BYTES == 32 << 20
    assert "more than 1 MiB, a timestamp 16 KiB, all of one refresh 32 MiB" in TRUST


def test_the_ten_attacks_have_tests() -> None:
    table = THREATS.partition("| attack |")[2].partition("\n\n")[0].splitlines()[2:]
    attacks = [line.strip("|").split("|")[0].strip() for line in table]
    tests = (Path(__file__).parent / "test_attacks.py").read_text(encoding="utf-8")
    assert len(attacks) == 10
    for attack in attacks:
        assert f"def test_{attack.replace(' ', '_')}" in tests, attack
