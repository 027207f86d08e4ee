"""Results on stdout: for people, or one JSON document.

Rules of this file: a command makes both from the same values; scripts rely on the JSON, so its keys
are only ever added.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any, TypeVar

import click

from toolchain.cli.show.layout import clean

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def json_option(command: CommandT) -> CommandT:
    """Add ``--json``, passed as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


def threads_option(default: int | None, what: str) -> Callable[[CommandT], CommandT]:
    """Return the decorator that adds ``--threads``."""
    return click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        default=default,
        show_default=default is not None,
        metavar="N",
        help=what,
    )


def emit(document: Mapping[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """Print ``document``, or ``lines`` for people."""
    if as_json:
        write_json(document)
    else:
        click.echo("\n".join(lines))


def write_json(document: Mapping[str, Any]) -> None:
    """Print ``document`` as JSON in ASCII, so that any terminal and pipe takes it."""
    click.echo(json.dumps(plain(document), indent=2, allow_nan=False))


def complain(message: str, fix: str, *, colour: bool | None = None) -> None:
    """Print a fault and its fix to stderr, each with its label."""
    for text, word, paint in ((message, "error", "red"), (fix, "fix", "cyan")):
        if text:
            label = click.style(f"{word}:", fg=paint, bold=True)
            click.echo(f"{label} {clean(text, lines=True)}", err=True, color=colour)


def plain(value: Any) -> Any:
    """Return ``value`` (dataclasses, paths, mappings, tuples) as JSON's own types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value
