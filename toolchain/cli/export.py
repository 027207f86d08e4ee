"""``da3 export``, which is also the program ``da3-export``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolchain.cli import layout
from toolchain.cli import train as training
from toolchain.cli.boundary import BoundedCommand
from toolchain.cli.domains import CHECKPOINTS, FILE, chosen, domain_options, train_command
from toolchain.cli.output import emit, json_option, threads_option
from toolchain.cli.parity import parity_document, parity_lines
from toolchain.cli.steps import Steps
from toolchain.errors import CheckpointError

if TYPE_CHECKING:
    from toolchain.export import ExportReport


@click.command(
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 export --domain cars", "da3-export --domain cars --train --dist dist"
    ),
)
@domain_options
@click.option(
    "--checkpoint",
    type=FILE,
    metavar="DIR",
    help=f"The trained domain.  [default: {CHECKPOINTS}/NAME]",
)
@click.option("--train", is_flag=True, help="Train first if there is no checkpoint.")
@click.option(
    "--dist", type=FILE, default=Path("dist"), show_default=True, metavar="DIR", help="Where to."
)
@click.option(
    "--cache",
    type=FILE,
    default=Path("build/cache"),
    show_default=True,
    metavar="DIR",
    help="Structures of backbones, reused between exports.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@threads_option(None, "Comparisons run at once.  [default: all cores]")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="Largest error allowed, as a share of the logits' range.  [default: 0.0001]",
)
@json_option
def export(
    domain: str | None,
    file: Path | None,
    checkpoint: Path | None,
    train: bool,
    dist: Path,
    cache: Path,
    overwrite: bool,
    threads: int | None,
    tolerance: float | None,
    as_json: bool,
) -> None:
    """Export a trained domain as a checked bundle.

    Splits backbone and domain, links every flavour, compares each with PyTorch, and packs
    DIST/NAME.da3b; the backbone beside it is written once and reused. Nothing is written when a
    flavour does not answer as PyTorch does (exit code 3).
    """
    recipe = chosen(domain, file)
    folder = checkpoint or CHECKPOINTS / recipe.domain
    command = train_command(recipe.domain, file, folder)
    if not folder.is_dir() and not train:
        raise CheckpointError(
            f"expected a trained domain at {folder}, found none", fix=f"{command} (or add --train)"
        )
    from toolchain.check.parity import TOLERANCE
    from toolchain.export import SUFFIX, refuse_existing
    from toolchain.export import export as run

    if not overwrite:
        refuse_existing(dist / f"{recipe.domain}{SUFFIX}")
    trained = not folder.is_dir()
    if trained:
        training.run(recipe, folder, command)
    with Steps(sys.stderr) as steps:
        report = run(
            recipe,
            checkpoint=folder,
            dist=dist,
            cache=cache,
            overwrite=overwrite,
            threads=threads,
            tolerance=TOLERANCE if tolerance is None else tolerance,
            notify=steps,
        )
    emit(_document(report, folder, trained=trained), _lines(report), as_json=as_json)


def _document(report: ExportReport, checkpoint: Path, *, trained: bool) -> dict[str, Any]:
    manifest = report.manifest
    return {
        "domain": report.domain,
        "checkpoint": {"path": checkpoint, "trained_now": trained},
        "bundle": {"path": report.bundle, "bytes": report.bundle_bytes},
        "backbone": {
            "name": manifest.backbone.name,
            "path": report.backbone,
            "bytes": report.backbone_bytes,
            "reused": report.backbone_reused,
            "weights_digest": manifest.backbone.weights_digest,
            "graph_digest": manifest.backbone.graph_digest,
        },
        "structure_cached": report.structure_cached,
        "parity": parity_document(report.parity),
        "gate_rates": _rates(report),
        "executed_share": manifest.gates.executed_share,
        "accuracy": manifest.metrics.get("accuracy"),
        "head_accuracy": manifest.metrics.get("head_accuracy"),
        "golden": {
            "samples": manifest.selftest.samples,
            "searched": report.searched,
            "ambiguous": report.ambiguous,
        },
        "seconds": {name: round(value, 3) for name, value in report.seconds.items()},
    }


def _rates(report: ExportReport) -> dict[str, float | None]:
    return {block.name: block.rate for block in report.manifest.gates.blocks}


def _lines(report: ExportReport) -> list[str]:
    manifest = report.manifest
    kept = "reused" if report.backbone_reused else "written"
    return [
        layout.title(f"{report.domain}: exported and checked"),
        *layout.pairs(
            {
                "bundle": f"{report.bundle}  ({layout.size(report.bundle_bytes)})",
                "backbone": f"{report.backbone}  ({layout.size(report.backbone_bytes)}, {kept})",
                **metrics(manifest.metrics, manifest.gates.executed_share),
                "took": f"{sum(report.seconds.values()):.1f} s",
            }
        ),
        "",
        *parity_lines(report.parity),
        "",
        *layout.gates(_rates(report)),
    ]


def metrics(found: Mapping[str, Any], executed_share: float) -> dict[str, str]:
    """Return what a domain reaches, labelled; ``found`` is a manifest's ``metrics``."""
    alone = found.get("head_accuracy")
    beside = "" if alone is None else f"  (head alone {layout.percent(alone)})"
    return {
        "accuracy": f"{layout.percent(found.get('accuracy'))}{beside}",
        "executed": f"{layout.percent(executed_share)} of the backbone's FLOPs",
    }
