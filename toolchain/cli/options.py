"""Options that several verbs take, their completion, and the recipe that they name.

Rules of this file: an option is spelt and explained once, here, when a second verb takes it. What
one verb alone takes stands in that verb's file.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from toolchain.cli.show.output import CACHE, STDOUT
from toolchain.core.files import is_folder

if TYPE_CHECKING:
    from toolchain.recipe import Recipe
    from toolchain.trust import Passphrase

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class _FileParameter(click.Path):
    """A path. An empty text, which a variable of a script often is, is no name of the folder here.

    click would call a locked file a wrong use; its reader says what is wrong, with a fix.
    """

    def __init__(self) -> None:
        super().__init__(path_type=Path, readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("expected a path, got an empty text", param, ctx)
        return super().convert(value, param, ctx)


FILE = _FileParameter()


def complete_domain(
    _context: click.Context, _option: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Return the domains whose name starts with ``typed``, each with its title."""
    from toolchain.recipe import available

    return [
        CompletionItem(entry.name, help=entry.recipe.title if entry.recipe else "has faults")
        for entry in available()
        if entry.name.startswith(typed)
    ]


def complete_backbone(
    _context: click.Context, _option: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Return the backbones whose name starts with ``typed``."""
    from toolchain.training.adapt.backbones import available

    return [CompletionItem(name) for name in available() if name.startswith(typed)]


def complete_method(
    _context: click.Context, _option: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Return the methods whose name starts with ``typed``."""
    from toolchain.recipe import METHODS

    return [CompletionItem(name) for name in METHODS if name.startswith(typed)]


def complete_target(
    _context: click.Context, _option: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Return the targets whose name starts with ``typed``, each with its board."""
    from toolchain.device.boards.target import TARGETS

    return [
        CompletionItem(target.name, help=target.board.title)
        for target in TARGETS.values()
        if target.name.startswith(typed)
    ]


input_option = click.option(
    "--input",
    "side",
    type=click.IntRange(8, 1024),
    metavar="PX",
    help="Side of the square input.  [default: the backbone's]",
)
cache_option = click.option(
    "--cache",
    type=FILE,
    default=CACHE,
    show_default=True,
    metavar="DIR",
    help="Structures of backbones, which exports reuse.",
)
runner_backbone_option = click.option(
    "--backbone",
    type=FILE,
    metavar="DIR",
    help="The backbone or an engine, or the folder that holds the backbone.  "
    "[default: beside the bundle]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
json_file_option = click.option(
    "--json", "json_path", type=FILE, metavar="FILE", help="Write it all; - is stdout."
)
passphrase_option = click.option(
    "--passphrase-file",
    type=FILE,
    metavar="FILE",
    help="Its first line opens the keys.  [default: DA3_KEY_PASSPHRASE, or ask]",
)
method_option = click.option(
    "--method",
    metavar="NAME",
    shell_complete=complete_method,
    help="A method of docs/methods.md, in place of the recipe's.",
)
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another value of a recipe's key, such as train.lr=0.003; may be repeated.",
)


def passphrase_from_option(file: Path | None, *, new: bool = False) -> Passphrase:
    """Return what gives the passphrase: ``file``, the environment, or a question on the terminal.

    ``new``: a question is asked twice.
    """
    from toolchain.trust import passphrase_from

    def ask(kind: str) -> str:
        """Ask on the terminal; what is typed is not shown."""
        typed: str = click.prompt(
            f"{kind[0].upper()}{kind[1:]}", hide_input=True, confirmation_prompt=new, err=True
        )
        return typed

    return passphrase_from(file, os.environ, ask)


def current_time() -> datetime:
    """Return what the clock of this machine shows, in UTC."""
    return datetime.now(timezone.utc)


def threads_option(default: int | None, what: str) -> Callable[[CommandT], CommandT]:
    """Return the decorator that adds ``--threads``; ``what`` is its help text."""
    return click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        default=default,
        show_default=default is not None,
        metavar="N",
        help=what,
    )


def tolerance_option(default: str) -> Callable[[CommandT], CommandT]:
    """Return the decorator that adds ``--tolerance``; ``default`` is a word of its help text."""
    return click.option(
        "--tolerance",
        type=click.FloatRange(0, 1),
        metavar="X",
        help=f"Largest error allowed, as a share of the logits' range.  [default: {default}]",
    )


def domain_options(command: CommandT) -> CommandT:
    """Add ``--domain`` and ``--recipe``, passed as ``domain`` and ``file``."""
    file = click.option(
        "--recipe", "file", type=FILE, metavar="FILE", help="The recipe, if it is not among those."
    )
    name = click.option(
        "--domain",
        metavar="NAME",
        shell_complete=complete_domain,
        help="A domain of `da3 recipes ls`.",
    )
    return name(file(command))


def named_recipe(domain: str | None, file: Path | None) -> Recipe:
    """Return the recipe that the options name. Raises click.UsageError, RecipeError, UsageError."""
    from toolchain import recipe

    if file is not None:
        loaded = recipe.load(file)
        if domain is not None and unicodedata.normalize("NFC", domain) != loaded.domain:
            raise click.UsageError(
                f"expected one domain, got --domain {domain} and the recipe of {loaded.domain}"
            )
        return loaded
    if domain is None:
        raise click.UsageError("expected --domain NAME or --recipe FILE, got neither")
    return recipe.load(recipe.find(domain))


def require_folders(*files: Path | None) -> None:
    """Raise click.UsageError for a file that is to be written where no folder is."""
    for file in files:
        if file is not None and file != STDOUT and not is_folder(file.parent):
            raise click.UsageError(f"{file}: expected a folder that exists, got {file.parent}")
