"""``da3 recipes``: ls, show, check, new."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolchain.cli.boundary import BoundedCommand, BoundedGroup, command_in_fix
from toolchain.cli.options import FILE, complete_backbone, complete_domain, json_option
from toolchain.cli.show import layout
from toolchain.cli.show.output import emit
from toolchain.cli.show.progress import counting
from toolchain.core.errors import Da3Error, DataError, Fault, RecipeError, UnknownNameError

if TYPE_CHECKING:
    from toolchain.recipe import Examined, Recipe
    from toolchain.training.adapt.backbones import Backbone
    from toolchain.training.data import Arrays


@click.group(cls=BoundedGroup, epilog=layout.example("da3 recipes ls"))
def recipes() -> None:
    """List, show, check and write recipes."""


@recipes.command("ls", cls=BoundedCommand, epilog=layout.example("da3 recipes ls"))
@json_option
def ls(as_json: bool) -> None:
    """List the domains that can be named.

    The domains of ./recipes come first, then those that are installed with the toolchain.
    """
    from toolchain.recipe import available

    rows = [
        {
            "domain": entry.name,
            "backbone": entry.recipe.backbone if entry.recipe else None,
            "method": entry.recipe.method if entry.recipe else None,
            "data": entry.recipe.data.loader if entry.recipe else None,
            "title": entry.recipe.title if entry.recipe else None,
            "path": entry.path,
            "error": entry.error.message if entry.error else None,
        }
        for entry in available()
    ]
    heads = ("domain", "backbone", "method", "data", "title")
    table = layout.table(
        heads,
        [
            [row["domain"], "-", "-", "-", f"has faults: da3 recipes check {row['path']}"]
            if row["error"]
            else [row[head] for head in heads]
            for row in rows
        ],
        indent=0,
    )
    emit({"recipes": rows}, table, as_json=as_json)


@recipes.command("show", cls=BoundedCommand, epilog=layout.example("da3 recipes show cars"))
@click.argument("name", shell_complete=complete_domain)
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a recipe as it is written. NAME is a domain or a file."""
    from toolchain import recipe

    path = Path(name) if name.endswith((".yaml", ".yml")) else recipe.find(name)
    loaded = recipe.load(path)
    text = path.read_text(encoding="utf-8-sig")
    emit(
        {"path": path, "recipe": loaded},
        [
            click.style(f"# {layout.clean(str(path))}", dim=True),
            layout.clean(text, lines=True).rstrip(),
        ],
        as_json=as_json,
    )


@recipes.command(
    "check", cls=BoundedCommand, epilog=layout.example("da3 recipes check recipes/*.yaml")
)
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE...")
@click.option("--no-pictures", is_flag=True, help="Check the recipes alone.")
@json_option
@click.pass_context
def check(
    context: click.Context, files: tuple[Path, ...], no_pictures: bool, as_json: bool
) -> None:
    """Check recipes: show each fault of each FILE, with its key path and the fix.

    Where a recipe's pictures lie on this machine, it decodes every one and names all that are
    damaged. It lists what each part holds, and what is left out and why.
    """
    rows, lines = [], []
    for path in files:
        row, about = _checked(path, pictures=not no_pictures)
        rows.append(row)
        mark = click.style("ok", fg="green") if row["ok"] else click.style("faults", fg="red")
        lines.append(f"{layout.clean(str(path))}: {mark}")
        lines += [layout.clean(f"  {line}") for line in (*about, *row["faults"])]
    emit({"recipes": rows}, lines, as_json=as_json)
    if not all(row["ok"] for row in rows):
        context.exit(RecipeError.exit_code)


def _checked(path: Path, *, pictures: bool) -> tuple[dict[str, Any], list[str]]:
    """Return the verdict on one file and its pictures, and for people what was looked at.

    A backbone that no package registers is a fault too. Pictures that are not on this machine are
    none: ``unchecked`` says so.
    """
    from toolchain import recipe
    from toolchain.training.adapt import backbones

    faults: Sequence[Fault] = ()
    examined, unchecked, loaded = None, "", None
    try:
        loaded = recipe.load(path)
        backbones.get(loaded.backbone)
        examined, unchecked = _examined(loaded) if pictures else (None, "--no-pictures")
    except (RecipeError, DataError) as err:
        where = "data.root" if loaded else "(file)"
        faults = err.faults or (Fault(where, err.message, err.fix),)
    except Da3Error as err:
        where = "backbone" if isinstance(err, UnknownNameError) else "(file)"
        faults = (Fault(where, err.message, err.fix),)
    about = [f"not checked: {unchecked}"] if unchecked else []
    if examined:
        about = examined.lines()
    verdict = {
        "path": path,
        "domain": loaded.domain if loaded else None,
        "ok": not faults,
        "faults": faults,
        "pictures": examined.document() if examined else None,
        "unchecked": unchecked or None,
    }
    return verdict, [f"pictures: {line}" for line in about]


def _examined(loaded: Recipe) -> tuple[Examined | Arrays | None, str]:
    """Return what the pictures of a recipe are, or why they cannot be looked at here."""
    from toolchain.core.files import exists
    from toolchain.training import data

    if loaded.data.root is None:
        return None, f"{loaded.data.loader} are made here"
    if not exists(loaded.data.root):
        return None, f"there is no folder {loaded.data.root} here"
    with counting("pictures decoded") as tell:
        return data.looked_at(loaded.data, loaded.domain, tell), ""


@recipes.command(
    "new",
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 recipes new birds --data ~/pictures/birds --backbone efficientnet_lite0"
    ),
)
@click.argument("name")
@click.option(
    "--data",
    type=FILE,
    required=True,
    metavar="PATH",
    help="Folder of pictures, one folder per class; or one with a table, idx files or an .npz.",
)
@click.option(
    "--label", metavar="COLUMN", help="Column of the labels in a table: its name, or its number."
)
@click.option(
    "--backbone",
    required=True,
    metavar="NAME",
    shell_complete=complete_backbone,
    help="One of `da3 backbones`.",
)
@click.option(
    "--out", type=FILE, default=Path("recipes"), show_default=True, metavar="DIR", help="Where to."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing recipe.")
@json_option
def new(
    name: str,
    data: Path,
    label: str | None,
    backbone: str,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a complete recipe NAME for your own pictures.

    PATH is a folder of class folders, a table of paths and labels beside its pictures, a folder of
    idx files, or a numpy archive. The command decodes every picture and names all that are damaged.
    It lists what each part holds, and what is left out and why.
    """
    from toolchain import recipe
    from toolchain.training import data as forms
    from toolchain.training.adapt import backbones

    words = ["da3", "recipes", "new", name, "--data", data, "--backbone", backbone, "--out", out]
    words += [] if label is None else ["--label", label]
    with command_in_fix(shlex.join(map(str, words))):
        described = backbones.get(backbone)
        recipe.place(name, out, overwrite=overwrite)
        with counting("pictures decoded") as tell:
            spec, examined = forms.first_look(data, label, tell)
        path = recipe.new(
            name,
            examined,
            spec=spec,
            backbone=backbone,
            input_px=described.input_size,
            mean=described.mean,
            std=described.std,
            interpolation=described.interpolation,
            resize=described.resize,
            folder=out,
            overwrite=overwrite,
        )
    emit(
        {"path": path, "recipe": recipe.load(path), "pictures": examined.document()},
        [
            *(layout.clean(line) for line in examined.lines()),
            f"wrote {layout.clean(str(path))}",
            *_weights_lines(described),
            "look at title, licence and augment, then:",
            f"  {layout.clean(recipe.build_command(path))}",
        ],
        as_json=as_json,
    )


def _weights_lines(described: Backbone) -> list[str]:
    """Return what is to be done before the training, where the backbone has no weights yet."""
    match described.weights:
        case "yours":
            return ["the backbone comes without weights: name a file in weights, weights_sha256"]
        case "to fetch":
            return [f"the backbone's weights are not here yet: {described.how_to_fetch}"]
        case _:
            return []
