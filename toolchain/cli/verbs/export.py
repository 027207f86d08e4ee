"""``da3 export``, which is also the program ``da3-export``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolchain.bundle.linkage import FLAVOURS
from toolchain.cli.boundary import BoundedCommand
from toolchain.cli.options import (
    FILE,
    cache_option,
    complete_target,
    domain_options,
    json_option,
    method_option,
    named_recipe,
    set_option,
    threads_option,
    tolerance_option,
)
from toolchain.cli.show import domain as domains
from toolchain.cli.show import layout
from toolchain.cli.show.output import complain, emit
from toolchain.cli.show.parity import parity_document, parity_lines
from toolchain.cli.show.progress import Steps
from toolchain.cli.training import (
    CHECKPOINTS,
    must_train,
    planned,
    require_own_checkpoint,
    train_to_export,
)
from toolchain.core.errors import UsageError
from toolchain.core.words import PRECISIONS
from toolchain.device.boards.target import find

if TYPE_CHECKING:
    from toolchain.export.emit.models import KitOrder
    from toolchain.export.orders import KitReport
    from toolchain.export.pipeline import ExportReport


@click.command(
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 export --domain cars",
        "da3-export --domain cars --train --dist dist",
        "da3-export --domain cars --target orin-nano-jp6.2 --precision int8",
    ),
)
@domain_options
@method_option
@set_option
@click.option(
    "--checkpoint",
    type=FILE,
    metavar="DIR",
    help=f"The trained domain.  [default: {CHECKPOINTS}/NAME, NAME@METHOD with --method]",
)
@click.option("--train", is_flag=True, help="Train first if there is no checkpoint.")
@click.option(
    "--dist", type=FILE, default=Path("dist"), show_default=True, metavar="DIR", help="Where to."
)
@cache_option
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle, and kits that differ.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_target,
    help="Make the kit for this board too, such as orin-nano-jp6.2 (da3 doctor --targets).",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help="Precision of the backbone in the kit; each makes a kit of its own.  [default: fp16]",
)
@click.option(
    "--flavour",
    "flavours",
    multiple=True,
    type=click.Choice(FLAVOURS),
    help="A flavour that the kit holds; da3 build compares several.  [default: swap]",
)
@click.option(
    "--recalibrate",
    is_flag=True,
    help="Widen the int8 ranges of an existing kit by this domain's pictures.",
)
@threads_option(None, "Comparisons run at once.  [default: all cores]")
@tolerance_option("0.0001")
@json_option
def export(
    domain: str | None,
    file: Path | None,
    method: str | None,
    settings: tuple[str, ...],
    checkpoint: Path | None,
    train: bool,
    dist: Path,
    cache: Path,
    overwrite: bool,
    targets: tuple[str, ...],
    precisions: tuple[str, ...],
    flavours: tuple[str, ...],
    recalibrate: bool,
    threads: int | None,
    tolerance: float | None,
    as_json: bool,
) -> None:
    """Export a trained domain as a checked bundle.

    It splits backbone and domain, links every flavour, compares each with PyTorch, and packs
    DIST/NAME.da3b. The backbone beside it is written once and reused. If a flavour does not answer
    as PyTorch does, nothing is written (exit code 3).

    With --target it writes the kit for that board too. On the board, da3 build makes an engine from
    it. The export measures what the kit's precision costs the domain; the bundle says it. A
    precision that costs too much gets no kit (exit code 1), and the bundle is written all the same.
    Beside a precision below fp32, --tolerance bounds that precision's error.
    """
    orders = _orders(targets, precisions, flavours, recalibrate=recalibrate)
    plan = planned(named_recipe(domain, file), file, method, settings, checkpoint)
    trains = must_train(plan, may=train)
    from toolchain.bundle.archive import BUNDLE_SUFFIX
    from toolchain.export.refusals import refuse_existing

    # Asked before training, which may take long, and before PyTorch starts.
    if not overwrite:
        refuse_existing(dist / f"{plan.name}{BUNDLE_SUFFIX}")
    if trains:
        train_to_export(plan, cache=cache)
    else:
        require_own_checkpoint(plan)
    with Steps(sys.stderr) as steps:
        steps("start")
        from toolchain.export.pipeline import export as run

        report = run(
            plan.recipe,
            checkpoint=plan.folder,
            dist=dist,
            name=plan.name,
            cache=cache,
            overwrite=overwrite,
            threads=threads,
            tolerance=tolerance,
            orders=orders,
            notify=steps,
        )
    emit(_document(report, plan.folder, trained=trains), _lines(report), as_json=as_json)
    for item in report.refused:
        complain(f"no kit for {item.order.title}: {item.reason.message}", item.reason.fix)
    if report.refused:
        # Not all that was asked for could be done; the answer above says what was.
        click.get_current_context().exit(report.refused[0].reason.exit_code)


def _orders(
    targets: Sequence[str],
    precisions: Sequence[str],
    flavours: Sequence[str],
    *,
    recalibrate: bool,
) -> list[KitOrder]:
    if not targets and (precisions or flavours or recalibrate):
        raise UsageError(
            "expected --target beside --precision, --flavour and --recalibrate, got none",
            fix="add --target NAME; da3 doctor --targets lists them",
        )
    if recalibrate and "int8" not in precisions:
        raise UsageError(
            "expected --precision int8 beside --recalibrate, as nothing else is calibrated",
            fix="add --precision int8",
        )
    if not targets:
        return []
    from toolchain.export.emit.models import KitOrder

    # Each once, in the order in which they were named.
    boards = dict.fromkeys(find(name) for name in targets)
    kit_precisions = [name for name in PRECISIONS if name in (precisions or ("fp16",))]
    kit_flavours = tuple(name for name in FLAVOURS if name in (flavours or ("swap",)))
    orders = [
        KitOrder(
            target=target,
            precision=precision,
            flavours=kit_flavours,
            recalibrate=recalibrate and precision == "int8",
        )
        for target in boards
        for precision in kit_precisions
    ]
    for order in orders:
        order.require()
    return orders


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
        "patch": domains.patch_document(manifest),
        "structure_cached": report.structure_cached,
        "parity": parity_document(report.parity),
        "gate_rates": domains.gate_rates(manifest),
        "executed_share": manifest.gates.executed_share,
        "accuracy": manifest.metrics.get("accuracy"),
        "head_accuracy": manifest.metrics.get("head_accuracy"),
        "golden": {
            "pictures": manifest.pictures,
            "samples": manifest.selftest.samples,
            "searched": report.searched,
            "ambiguous": report.ambiguous,
        },
        "kits": [_kit(item) for item in report.kits],
        "refused": [
            {
                "target": item.order.target.name,
                "precision": item.order.precision,
                "message": item.reason.message,
                "fix": item.reason.fix,
            }
            for item in report.refused
        ],
        "seconds": {name: round(value, 3) for name, value in report.seconds.items()},
    }


def _kit(item: KitReport) -> dict[str, Any]:
    manifest = item.kit.manifest
    return {
        "path": item.kit.path,
        "state": item.state,
        "target": manifest.target,
        "precision": manifest.precision,
        "flavours": [entry.flavour for entry in manifest.flavours],
        "bytes": sum(entry.size for entry in manifest.files),
        "unopened": item.unopened,
        "stale": item.stale,
        "measured": item.plan,
        "judged_by": item.judged_by,
    }


def _kit_lines(report: ExportReport) -> list[str]:
    rows = []
    for item in report.kits:
        plan, accuracy = item.plan, layout.percent(item.plan.accuracy)
        flavours = ", ".join(entry.flavour for entry in item.kit.manifest.flavours)
        rows += [
            f"  {item.kit.path}  ({flavours}, {item.state})",
            f"    {plan.precision}: on {plan.samples} {item.judged_by} pictures accuracy "
            f"{accuracy}, same class as fp32 in {layout.percent(plan.agreement)}, same gates in "
            f"{layout.percent(plan.gate_agreement)}, largest error {plan.max_relative:.2g}",
        ]
    notes = {
        f"  {name}: closed gates compute all the same there; --flavour static saves those that "
        "never vary"
        for name in {item.kit.manifest.target for item in report.kits}
        if find(name).release.boundaries == "missing"
    }
    notes |= {
        f"  {item.kit.path.name} was replaced: build its engines anew"
        + (f", and export again: {', '.join(item.stale)}" if item.stale else "")
        for item in report.kits
        if item.state == "replaced"
    }
    title = layout.title("kits: da3 build makes engines from them on the board")
    return ["", title, *rows, *sorted(notes)]


def _lines(report: ExportReport) -> list[str]:
    manifest = report.manifest
    state = "reused" if report.backbone_reused else "written"
    return [
        layout.title(f"{report.domain}: exported and checked"),
        *layout.pairs(
            {
                "bundle": f"{report.bundle}  ({layout.size(report.bundle_bytes)})",
                "backbone": f"{report.backbone}  ({layout.size(report.backbone_bytes)}, {state})",
                **domains.patch_line(manifest),
                **domains.metrics(manifest.metrics, manifest.gates.executed_share),
                **domains.holds(manifest),
                "took": f"{sum(report.seconds.values()):.1f} s",
            }
        ),
        "",
        *parity_lines(report.parity),
        "",
        *layout.gates(domains.gate_rates(manifest)),
        *(_kit_lines(report) if report.kits else []),
    ]
