"""``da3 check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolchain.cli.boundary import BoundedCommand
from toolchain.cli.options import FILE, json_option, threads_option, tolerance_option
from toolchain.cli.show import layout
from toolchain.cli.show.output import emit
from toolchain.cli.show.parity import parity_document, parity_lines

if TYPE_CHECKING:
    from toolchain.export.check.bundles import BundleCheck


@click.command(
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 check dist/cars.da3b", "da3 check cars.da3b --backbone /srv/backbones"
    ),
)
@click.argument("bundle", type=FILE)
@click.option(
    "--backbone",
    type=FILE,
    metavar="DIR",
    help="The backbone, or the folder that holds it.  [default: beside the bundle]",
)
@threads_option(None, "Comparisons run at once.  [default: all cores]")
@tolerance_option("the bundle's")
@json_option
def check(
    bundle: Path, backbone: Path | None, threads: int | None, tolerance: float | None, as_json: bool
) -> None:
    """Verify a bundle and run it against its golden data.

    This needs onnxruntime, but not PyTorch. Exit code 4: the bundle or its backbone is not what
    its manifest says. Exit code 3: it is, but it does not answer as PyTorch did.
    """
    from toolchain.export.check.bundles import check_bundle

    result = check_bundle(bundle, backbone=backbone, threads=threads, tolerance=tolerance)
    emit(_document(result), _lines(result), as_json=as_json)


def _document(result: BundleCheck) -> dict[str, Any]:
    return {
        "bundle": result.bundle,
        "backbone": result.backbone,
        "domain": result.domain,
        "verified": result.verified,
        "relinked": result.relinked,
        "not_run": result.not_run,
        "parity": parity_document(result.report),
    }


def _lines(result: BundleCheck) -> list[str]:
    lines = [
        layout.title(f"{result.domain}: verified, and it answers as PyTorch did"),
        *layout.pairs({"bundle": result.bundle, "backbone": result.backbone}),
        "",
        *(f"  verified  {layout.clean(name)}" for name in result.verified),
    ]
    if result.relinked:
        lines.append(f"  relinked  byte for byte from the halves: {', '.join(result.relinked)}")
    lines += [f"  not run   {layout.clean(name)}" for name in result.not_run]
    return [*lines, "", *parity_lines(result.report)]
