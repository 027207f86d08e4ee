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

    That is a recipe, a checkpoint, an ONNX file, a bundle, a backbone, a kit, an engine, golden
    data, any safetensors file, a signed release, a site, or a folder of keys. Its content tells
    which. It is verified as it is read, but for signatures: devices check these. --json shows
    everything.
    """
    from toolchain.cli.show.files import view
    from toolchain.inspect import inspect as look

    inspection = look(path)
    document = {"kind": inspection.kind, "path": inspection.path, "facts": inspection.facts}
    emit(document, view(inspection, brief=brief), as_json=as_json)
