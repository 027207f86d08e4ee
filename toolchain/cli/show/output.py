"""Results on stdout: lines for people, or one JSON document.

Rules of this file: a verb makes both from the same values. Scripts rely on the JSON, so keys are
only ever added. Results are printed here and nowhere else: the boundary says where they go.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TextIO

import click

from toolchain.cli.show.layout import clean
from toolchain.core.files import write_atomic

STDOUT = Path("-")
CACHE = Path("build/cache")
"""Where the structures of backbones lie that exports reuse, unless the user says otherwise."""


@dataclass(frozen=True, slots=True)
class Results:
    """Where the boundary lets results go; it is click's object of the running command."""

    stream: TextIO


def emit(document: Mapping[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """Print ``document``, or ``lines`` for people."""
    if as_json:
        write_json(document)
    else:
        write_text("\n".join(lines))


def write(document: Mapping[str, Any], lines: Iterable[str], json_path: Path | None) -> None:
    """Print ``lines`` and write ``document`` to ``json_path``.

    Where ``json_path`` is ``STDOUT``, the document is printed in place of the lines.
    """
    if json_path == STDOUT:
        write_json(document)
        return
    write_text("\n".join(lines))
    if json_path is not None:
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        write_atomic(json_path, text.encode(), overwrite=True)


def write_json(document: Mapping[str, Any], results: Results | None = None) -> None:
    """Print ``document`` as JSON in ASCII, so that any terminal and pipe takes it."""
    write_text(json.dumps(plain(document), indent=2, allow_nan=False), results)


def write_text(text: str, results: Results | None = None) -> None:
    """Print ``text`` where results go: to ``results``, by default those of the running command."""
    context = click.get_current_context(silent=True)
    if results is None and context is not None:
        results = context.find_object(Results)
    click.echo(text, file=None if results is None else results.stream)


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
