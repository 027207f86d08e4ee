"""Naming a domain on the command line: ``--domain NAME`` or ``--recipe FILE``."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from toolchain.recipe import Recipe

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
CHECKPOINTS = Path("build/domains")
FILE = click.Path(path_type=Path)


def complete(_context: click.Context, _option: click.Parameter, typed: str) -> list[CompletionItem]:
    """Return the domains whose name starts with what was typed, each with its title."""
    from toolchain.recipe import available

    return [
        CompletionItem(entry.name, help=entry.recipe.title if entry.recipe else "has faults")
        for entry in available()
        if entry.name.startswith(typed)
    ]


def complete_backbone(
    _context: click.Context, _option: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Return the backbones whose name starts with what was typed."""
    from toolchain.training.adapt.backbones import available

    return [CompletionItem(name) for name in available() if name.startswith(typed)]


input_option = click.option(
    "--input",
    "side",
    type=click.IntRange(8, 1024),
    metavar="PX",
    help="Side of the square input.  [default: the backbone's]",
)


def domain_options(command: CommandT) -> CommandT:
    """Add ``--domain`` and ``--recipe``, passed as ``domain`` and ``file``."""
    file = click.option(
        "--recipe", "file", type=FILE, metavar="FILE", help="The recipe, if it is not among those."
    )
    name = click.option(
        "--domain",
        metavar="NAME",
        shell_complete=complete,
        help="A domain of `da3 recipes ls`.",
    )
    return name(file(command))


def complete_method(
    _context: click.Context, _option: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Return the methods whose name starts with what was typed."""
    from toolchain.recipe import METHODS

    return [CompletionItem(name) for name in METHODS if name.startswith(typed)]


method_option = click.option(
    "--method",
    metavar="NAME",
    shell_complete=complete_method,
    help="A method of docs/methods.md, in place of the recipe's.",
)


def chosen(domain: str | None, file: Path | None, method: str | None = None) -> Recipe:
    """Return the recipe that was named, by another ``method`` if one is given.

    Raises click.UsageError, RecipeError, UnknownNameError.
    """
    found = _found(domain, file)
    return found if method is None else found.by(method)


def _found(domain: str | None, file: Path | None) -> Recipe:
    from toolchain import recipe

    if file is not None:
        found = recipe.load(file)
        if domain is not None and unicodedata.normalize("NFC", domain) != found.domain:
            raise click.UsageError(
                f"expected one domain, got --domain {domain} and the recipe of {found.domain}"
            )
        return found
    if domain is None:
        raise click.UsageError("expected --domain NAME or --recipe FILE, got neither")
    return recipe.load(recipe.find(domain))


def train_command(domain: str, file: Path | None, out: Path, *, method: str | None = None) -> str:
    """Return the command that trains ``domain`` into ``out``, by another method if one is named."""
    named = f"--domain {shlex.quote(domain)}"
    if file is not None:
        named = f"--recipe {shlex.quote(str(file))}"
    place = "" if out == CHECKPOINTS / domain else f" --out {shlex.quote(str(out))}"
    other = "" if method is None else f" --method {method}"
    return f"da3 train {named}{other}{place}"
