"""``da3 bench``."""

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
        "da3 bench --backbone resnet50 --input 224 --html bench.html",
        "da3 bench --bundle dist/cars.da3b --bundle dist/digits.da3b --quick",
        "da3 bench --engine build/engines/engine-... --bundle dist/cars.da3b",
    ),
)
@click.option(
    "--backbone",
    metavar="NAME",
    shell_complete=complete_backbone,
    help="A backbone of `da3 backbones`; domains are made for it. With --bundle: its folder.",
)
@input_option
@click.option(
    "--domains",
    type=click.IntRange(2, 1000),
    default=10,
    show_default=True,
    metavar="N",
    help="How many domains to make.",
)
@click.option(
    "--bundle",
    "bundles",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="Measure these bundles, at least two, without PyTorch.",
)
@click.option(
    "--engine",
    type=FILE,
    metavar="DIR",
    help="Measure this TensorRT engine with the bundles, and prove that its gates skip.",
)
@threads_option(1, "Threads of one operator.")
@click.option(
    "--parts",
    metavar="LIST",
    help="Only these, with commas between: latency, swap, switch, memory, load, overhead.",
)
@click.option("--quick", is_flag=True, help="Few rounds, to see that it runs.")
@click.option("--work", type=FILE, metavar="DIR", help="Keep what is made, and reuse it.")
@json_file_option
@click.option("--html", "html_path", type=FILE, metavar="FILE", help="Write one page with plots.")
def bench(
    backbone: str | None,
    side: int | None,
    domains: int,
    bundles: tuple[Path, ...],
    engine: Path | None,
    threads: int,
    parts: str | None,
    quick: bool,
    work: Path | None,
    json_path: Path | None,
    html_path: Path | None,
) -> None:
    """Measure latency, swapping, memory and throughput on this machine.

    Whatever is compared takes turns in one run, so that both sides see the same machine. A run
    takes some five minutes (ResNet-50, two cores). Targets stand beside the figures; nothing
    enforces them.
    """
    require_folders(html_path, json_path)
    if engine is not None:
        if backbone or parts or html_path or work:
            raise click.UsageError("expected --bundle, --quick and --json alone beside --engine")
        _measure_engine(engine, bundles, quick=quick, json_path=json_path)
        return
    from toolchain.bench import report, run

    if html_path is not None:
        report.require_plots()
    setup = run.BenchSetup(
        backbone=None if bundles else backbone,
        side=side,
        domains=domains,
        bundles=bundles,
        artefact=Path(backbone) if bundles and backbone else None,
        threads=threads,
        parts=run.PARTS if parts is None else tuple(parts.split(",")),
        rounds=run.QUICK if quick else run.Rounds(),
        work=work,
    )
    with telling() as tell:
        document = plain(run.measure(setup, notify=tell))
    write(document, _lines(document), json_path)
    if html_path is not None:
        write_atomic(html_path, report.page(document).encode(), overwrite=True)


def _measure_engine(
    engine: Path, bundles: tuple[Path, ...], *, quick: bool, json_path: Path | None
) -> None:
    from toolchain.bench import engines

    with telling() as tell:
        figures = engines.measure(engine, bundles, rounds=5 if quick else 40, notify=tell)
    document = plain(figures)
    write(document, _engine_lines(document), json_path)


def _engine_lines(document: Mapping[str, Any]) -> Iterator[str]:
    built = document["built_for"]
    yield layout.title(f"{document['engine']}: {built['precision']} on {built['gpu']}")
    proof = document["skipping"]
    if proof is not None:
        gates = (
            f"{proof['verdict']}: open {proof['open_ms']:.2f} ms, closed "
            f"{proof['closed_ms']:.2f} ms, saved {layout.percent(proof['saved'])} of "
            f"{layout.percent(proof['share'])} that could be"
        )
    memory = document["memory_bytes"]
    yield from layout.pairs(
        {
            "gates": "none that can be forced" if proof is None else gates,
            "plans": "unchanged" if document["unchanged"] else "changed by loading domains",
            "memory": f"{layout.size(memory['engine'])}, all domains "
            f"{layout.size(memory['domains'])}",
        }
    )
    yield ""
    yield from layout.table(
        ("domain", "latency ms", "swap ms", "slots"),
        [
            (
                name.partition(" ")[2],
                f"{row['latency']['median_ms']:.2f}",
                f"{1e3 * row['swap_s']:.2f}",
                layout.size(row["slots_bytes"]),
            )
            for name, row in document["domains"].items()
        ],
        right="123",
    )
    if document["switch"] is not None:
        timing = document["switch"]["switching"]
        # What is timed is a turn of four requests.
        yield f"  switching between domains costs {timing['difference_ms'] / 4:+.3f} ms a request"


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    from toolchain.bench.tables import tables

    settings = document["settings"]
    yield layout.title(
        f"{settings['backbone']} at {settings['side']} px, {settings['domains']} domains, "
        f"{settings['threads']} thread{'s' * (settings['threads'] > 1)}"
        + (", few rounds: the figures mean nothing" if settings["quick"] else "")
    )
    for table in tables(document):
        yield ""
        yield layout.title(table.title)
        right = "" if table.text else "".join(map(str, range(1, len(table.heads))))
        yield from layout.table(table.heads, table.rows, right=right)
    if document["not_measured"]:
        yield ""
        yield layout.title("Not measured")
        yield from layout.pairs(document["not_measured"])
