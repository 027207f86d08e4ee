"""``da3 train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolchain.cli.boundary import BoundedCommand
from toolchain.cli.options import (
    FILE,
    cache_option,
    domain_options,
    json_option,
    method_option,
    named_recipe,
    set_option,
    threads_option,
)
from toolchain.cli.show import domain as domains
from toolchain.cli.show import layout
from toolchain.cli.show.classes import class_document
from toolchain.cli.show.output import complain, emit
from toolchain.cli.training import CHECKPOINTS, planned, train_shown
from toolchain.core.words import to_json

if TYPE_CHECKING:
    from toolchain.training import TrainReport
    from toolchain.training.loop.devices import Arithmetic


@click.command(
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 train --domain cars",
        "da3 train --domain cars --resume",
        "da3 train --domain cars --method lite_residual --budget 64MB",
    ),
)
@domain_options
@click.option(
    "--out",
    type=FILE,
    metavar="DIR",
    help=f"The checkpoint.  [default: {CHECKPOINTS}/NAME, NAME@METHOD with --method]",
)
@method_option
@set_option
@click.option(
    "--budget",
    metavar="SIZE",
    help="Memory that training may take beside weights and pictures, such as 64MB. If that is too "
    "little, the error suggests what fits.",
)
@click.option(
    "--log",
    type=FILE,
    metavar="DIR",
    help="Write each epoch's figures: epochs.csv, curve.svg and TensorBoard's events.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "mixed"]),
    help="mixed computes the layers in bfloat16.  [default: fp32 on cpu, mixed on cuda]",
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted training.")
@click.option("--overwrite", is_flag=True, help="Replace an existing checkpoint.")
@cache_option
@threads_option(None, "Threads of PyTorch.  [default: all cores]")
@json_option
def train(
    domain: str | None,
    file: Path | None,
    out: Path | None,
    method: str | None,
    settings: tuple[str, ...],
    budget: str | None,
    log: Path | None,
    device: str,
    precision: Arithmetic | None,
    resume: bool,
    overwrite: bool,
    cache: Path,
    threads: int | None,
    as_json: bool,
) -> int:
    """Train a domain on its frozen backbone.

    The backbone never changes. A domain is adaptors, gates and head, or what the recipe's method
    has in their place. Before it starts, the command says how much memory the training will take,
    and exports the untrained domain for trial: what cannot be packed is refused before the first
    step. Ctrl-C or SIGTERM stops after the present step and keeps the state. --resume goes on from
    there, and ends with the same weights as a training that was never stopped. A domain that got
    worse than its own head alone is written all the same; the exit code is 6 then.
    """
    report = train_shown(
        planned(named_recipe(domain, file), file, method, settings, out),
        resume=resume,
        overwrite=overwrite,
        threads=threads,
        budget=budget,
        cache=cache,
        log=log,
        device=device,
        precision=precision,
    )
    emit(_document(report), _lines(report, resumed=resume), as_json=as_json)
    if report.fault is None:
        return 0
    # The document is out already, so the fault goes to stderr alone.
    complain(report.fault.message, report.fault.fix)
    return report.fault.exit_code


def _document(report: TrainReport) -> dict[str, Any]:
    info = report.checkpoint.info
    return {
        "domain": info.domain,
        "checkpoint": report.folder,
        "method": info.method,
        "backbone": info.backbone.name,
        "classes": len(info.classes),
        "accuracy": info.metrics.accuracy,
        "balanced_accuracy": info.metrics.balanced_accuracy,
        "head_accuracy": info.metrics.head_accuracy,
        "executed_share": info.metrics.executed_share,
        "gate_rates": info.metrics.gate_rates,
        **class_document(report.evaluation.confusion, info.classes),
        "history": report.history,
        "steps": report.steps,
        "seconds": round(report.seconds, 3),
        "conclusion": report.conclusion,
        "fault": None if report.fault is None else type(report.fault).__name__,
    }


def _lines(report: TrainReport, *, resumed: bool) -> list[str]:
    info = report.checkpoint.info
    metrics = info.metrics
    return [
        layout.title(f"{info.domain}: trained"),
        *layout.pairs(
            {
                "checkpoint": report.folder,
                **domains.metrics(to_json(metrics), metrics.executed_share),
                **domains.epoch(report.history),
                "took": f"{report.seconds:.1f} s, {report.steps} steps"
                + (" since it was resumed" if resumed else ""),
            }
        ),
        *layout.gates(metrics.gate_rates),
        *domains.classes(info),
        "",
        *layout.paragraph(report.conclusion),
    ]
