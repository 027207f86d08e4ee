"""``da3 backbones``."""

from __future__ import annotations

from typing import Any

import click

from toolchain.cli.boundary import BoundedCommand
from toolchain.cli.options import json_option
from toolchain.cli.show import layout
from toolchain.cli.show.output import emit
from toolchain.core.errors import Da3Error


@click.command(cls=BoundedCommand, epilog=layout.example("da3 backbones"))
@json_option
def backbones(as_json: bool) -> None:
    """List the backbones that domains can be trained on."""
    from toolchain.training.adapt.backbones import available

    rows = [_described(name) for name in available()]
    lines = layout.table(
        ("backbone", "input", "weights", "licence", "title"),
        [
            (
                row["name"],
                f"{row['input_size']} px" if row["input_size"] else "-",
                "shipped" if row["weights_shipped"] else "yours",
                row["licence"] or "-",
                row["error"] or row["title"],
            )
            for row in rows
        ],
        indent=0,
    )
    emit({"backbones": rows}, lines, as_json=as_json)


def _described(name: str) -> dict[str, Any]:
    """Return the row of a backbone. If its package cannot be loaded, the row has an ``error``."""
    from toolchain.training.adapt.backbones import get

    keys = ("title", "input_size", "licence", "source", "weights_sha256")
    try:
        backbone = get(name)
    except Da3Error as err:
        return {"name": name, **dict.fromkeys(keys), "weights_shipped": False, "error": err.message}
    values = {key: getattr(backbone, key) for key in keys}
    return {
        "name": name,
        **values,
        "weights_shipped": backbone.weights_file is not None,
        "error": None,
    }
