"""``da3 inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from toolchain.cli.boundary import BoundedCommand
from toolchain.cli.options import FILE, json_option
from toolchain.cli.show import layout
from toolchain.cli.show.output import emit


@click.command(
    cls=BoundedCommand,
    epilog=layout.example("da3 inspect dist/cars.da3b", "da3 inspect build/domains/cars --json"),
)
@click.argument("path", type=FILE)
@click.option("--brief", is_flag=True, help="Of a bundle, only what it reaches and costs.")
@json_option
def inspect(path: Path, brief: bool, as_json: bool) -> None:
    """Show any file or folder that the toolchain writes.

    A recipe, a checkpoint, an ONNX file, a bundle, a backbone, golden data, any safetensors file:
    recognised by its content, and verified as it is read. --json shows everything.
    """
    from toolchain.cli.show.files import view
    from toolchain.inspect import inspect as look

    found = look(path)
    document = {"kind": found.kind, "path": found.path, "facts": found.facts}
    emit(document, view(found, brief=brief), as_json=as_json)
