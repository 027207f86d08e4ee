"""``da3 memory``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from toolchain.cli.boundary import BoundedCommand
from toolchain.cli.options import (
    FILE,
    complete_backbone,
    input_option,
    json_file_option,
    require_folders,
    threads_option,
)
from toolchain.cli.show import layout
from toolchain.cli.show.output import plain, write
from toolchain.cli.show.progress import telling
from toolchain.core.files import write_atomic


@click.command(
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 memory --backbone resnet50 --input 224 --batch 8 --plot memory.svg",
        "da3 memory --backbone resnet20 --methods da3,bias,finetune --no-time",
        "da3 memory --backbone mobilenet_v2 --budget 64MB",
    ),
)
@click.option(
    "--backbone",
    required=True,
    metavar="NAME",
    shell_complete=complete_backbone,
    help="A backbone of `da3 backbones`.",
)
@input_option
@click.option(
    "--batch",
    type=click.IntRange(1, 65_536),
    default=8,
    show_default=True,
    metavar="N",
    help="Pictures in a step.",
)
@click.option(
    "--methods",
    default="all",
    show_default=True,
    metavar="LIST",
    help="Only these, with commas between; fine-tuning is always measured.",
)
@click.option(
    "--budget",
    metavar="SIZE",
    help="Measure nothing; tell what fits into this much memory beside the weights: 64MB, 64MiB.",
)
@click.option(
    "--steps",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    metavar="N",
    help="Rounds in which each method's step is timed.",
)
@click.option("--no-time", is_flag=True, help="Count memory, and time nothing.")
@click.option(
    "--device",
    type=click.Choice(("auto", "cpu", "cuda")),
    default="auto",
    show_default=True,
    help="Where to train; auto: an NVIDIA GPU if PyTorch finds one.",
)
@threads_option(1, "Threads of PyTorch.")
@json_file_option
@click.option("--plot", "plot_path", type=FILE, metavar="FILE", help="Draw it: .svg or .png.")
def memory(
    backbone: str,
    side: int | None,
    batch: int,
    methods: str,
    budget: str | None,
    steps: int,
    no_time: bool,
    device: str,
    threads: int,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Tell what training keeps in memory, method by method.

    What a method keeps for the backward pass is counted on real allocations, and by rule as well.
    Beside both stands the same method on PyTorch's own layers (stock). The methods are those of
    `da3 train`; da3 comes in each precision of kept inputs.
    """
    require_folders(json_path, plot_path)
    if budget is not None and plot_path is not None:
        raise click.UsageError("expected --budget or --plot, got both")
    with telling() as tell:
        tell("start PyTorch")
        from toolchain.bench import footprint, plots
        from toolchain.training.memory.size import parse_size

    setup = footprint.FootprintSetup(
        backbone=backbone,
        side=side,
        batch=batch,
        methods=tuple(name.strip() for name in methods.split(",") if name.strip()),
        rounds=0 if no_time else steps,
        threads=threads,
        device=footprint.found_device(device),
    )
    if budget is not None:
        with telling() as tell:
            document = plain(footprint.fits(setup, parse_size(budget), tell))
        write(document, _budget_lines(document), json_path)
        return
    if plot_path is not None:
        plots.check_suffix(plot_path)
    with telling() as tell:
        document = plain(footprint.measure(setup, notify=tell))
    write(document, _lines(document, backbone), json_path)
    if plot_path is not None:
        drawn = plots.training(document, backbone, plot_path.suffix)
        write_atomic(plot_path, drawn, overwrite=True)


def _budget_lines(document: Mapping[str, Any]) -> Iterator[str]:
    best = document["choices"][0]
    budget, weights = layout.size(document["budget"]), layout.size(document["weights_bytes"])
    yield layout.title(
        f"{document['backbone']} at {document['input']} px: {budget} beside {weights} of weights"
    )
    verdict = "it fits" if best["batch"] >= document["batch"] else "it fits with a smaller batch"
    yield from layout.pairs({verdict: f"{best['text']}: {layout.size(best['needed'])}"})
    yield ""
    yield from layout.table(
        ("method", "pool", "keep", "largest batch", "kept", "needed"),
        layout.shortened(
            [
                (
                    choice["method"],
                    "-" if choice["pool"] is None else choice["pool"] or "global",
                    choice["keep"],
                    choice["batch"],
                    layout.size(choice["need"]["stored"]),
                    layout.size(choice["needed"]),
                )
                for choice in document["choices"]
            ]
        ),
        right="1345",
    )


def _lines(document: Mapping[str, Any], backbone: str) -> Iterator[str]:
    rows, run = document[backbone], document["conditions"]["runs"][backbone]
    yield layout.title(f"{backbone} at {run['input']} px, batch {run['batch']}")
    timed = bool(run["rounds"])
    heads = ("method", "trained", "kept", "by rule", "stock", "peak", "optimiser", "domain")
    yield from layout.table(
        (*heads, *(("step", "at budget") if timed else ())),
        [
            (
                name,
                row["trainable"],
                *(
                    layout.size(row[key])
                    for key in (
                        *("stored_measured", "stored_analytic", "stored_stock", "peak"),
                        *("optimiser", "domain_bytes"),
                    )
                ),
                *((_ratio(row, ""), _ratio(row, "_budget")) if timed else ()),
            )
            for name, row in rows.items()
        ],
        right="123456789",
    )
    yield ""
    notes = {f"{name}: left out": why for name, why in run["left_out"].items()}
    notes |= {
        f"{name}: by rule {row['agreement']:+.1%}": row["explanation"]
        for name, row in rows.items()
        if row["explanation"]
    }
    notes |= {
        f"{name}: without a lean form": layout.listed(
            {layer: layout.size(count) for layer, count in row["stock_layers"].items()}
        )
        for name, row in rows.items()
        if row["stock_layers"]
    }
    about = {"kept": document["conditions"]["how_kept"], "peak": document["conditions"]["how_peak"]}
    if timed:
        about["step"] = (
            "time against fine-tuning, all gates open; at budget: gates closed at random until "
            f"{layout.percent(run['budget'])} of the multiply-adds are left"
        )
    yield from layout.pairs({**about, **notes})


def _ratio(row: Mapping[str, Any], suffix: str) -> str:
    value = row.get(f"step_ratio{suffix}")
    return "-" if value is None else f"{value:.2f}"
