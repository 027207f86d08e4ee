"""``da3 bench``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from toolchain.cli.boundary import BoundedCommand
from toolchain.cli.options import FILE, complete_backbone, input_option
from toolchain.cli.show import layout
from toolchain.cli.show.output import plain, threads_option, write_json
from toolchain.core.files import write_atomic

STDOUT = Path("-")


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
    help="A backbone of `da3 backbones ls`; domains are drawn for it. With --bundle: its folder.",
)
@input_option
@click.option(
    "--domains",
    type=click.IntRange(2, 1000),
    default=10,
    show_default=True,
    metavar="N",
    help="How many domains to draw.",
)
@click.option(
    "--bundle",
    "bundles",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="Measure bundles that exist, without PyTorch; at least two.",
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
    help="Only these, with commas: latency, swap, switch, memory, load, overhead.",
)
@click.option("--quick", is_flag=True, help="Few rounds: to see that it runs.")
@click.option("--work", type=FILE, metavar="DIR", help="Keep what is made, and reuse it.")
@click.option("--json", "json_path", type=FILE, metavar="FILE", help="Write it all; - is stdout.")
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

    Everything that is compared runs interleaved in one run of some five minutes (ResNet-50, two
    cores). Targets stand beside figures and are never enforced.
    """
    for path in (html_path, json_path):
        if path is not None and path != STDOUT and not path.parent.is_dir():
            raise click.UsageError(f"{path}: expected a folder that exists, got {path.parent}")
    if engine is not None:
        if backbone or parts or html_path or work:
            raise click.UsageError("expected --bundle, --quick and --json alone beside --engine")
        measure_engine(engine, bundles, quick=quick, json_path=json_path)
        return
    from toolchain.bench import report, run

    if html_path is not None:
        report.require_plots()
    found = run.measure(
        run.Setup(
            backbone=None if bundles else backbone,
            side=side,
            domains=domains,
            bundles=bundles,
            artefact=Path(backbone) if bundles and backbone else None,
            threads=threads,
            parts=run.PARTS if parts is None else tuple(parts.split(",")),
            rounds=run.QUICK if quick else run.Rounds(),
            work=work,
        ),
        notify=teller(),
    )
    document = plain(found)
    write(document, _lines(document), json_path)
    if html_path is not None:
        write_atomic(html_path, report.page(document).encode(), overwrite=True)


def write(document: Mapping[str, Any], lines: Iterable[str], json_path: Path | None) -> None:
    """Print the lines, or the document where stdout shall have it, and write it to its file."""
    if json_path == STDOUT:
        write_json(document)
    else:
        click.echo("\n".join(lines))
    if json_path is not None and json_path != STDOUT:
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        write_atomic(json_path, text.encode(), overwrite=True)


def measure_engine(
    engine: Path, bundles: tuple[Path, ...], *, quick: bool, json_path: Path | None
) -> None:
    """Measure an engine and print what was found."""
    from toolchain.bench import engines

    found = engines.measure(engine, bundles, rounds=5 if quick else 40, notify=teller())
    document = plain(found)
    write(document, _engine_lines(document), json_path)


def _engine_lines(found: Mapping[str, Any]) -> Iterator[str]:
    if sys.stderr.isatty():
        click.echo(err=True)
    built = found["built_for"]
    yield layout.title(f"{found['engine']}: {built['precision']} on {built['gpu']}")
    proof = found["skipping"]
    if proof is not None:
        gates = (
            f"{proof['verdict']}: open {proof['open_ms']:.2f} ms, closed "
            f"{proof['closed_ms']:.2f} ms, saved {layout.percent(proof['saved'])} of "
            f"{layout.percent(proof['share'])} that could be"
        )
    memory = found["memory_bytes"]
    yield from layout.pairs(
        {
            "gates": "none that can be forced" if proof is None else gates,
            "plans": "unchanged" if found["unchanged"] else "changed by loading domains",
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
                f"{one['latency']['median_ms']:.2f}",
                f"{1e3 * one['swap_s']:.2f}",
                layout.size(one["slots_bytes"]),
            )
            for name, one in found["domains"].items()
        ],
        right="123",
    )
    if found["switch"] is not None:
        timing = found["switch"]["switching"]
        yield f"  switching between domains costs {timing['difference_ms'] / 4:+.3f} ms a request"


def teller() -> Callable[[str], None]:
    """Return a callback that tells of progress on stderr, on a terminal in one line."""
    start, end = ("\r\x1b[K", "") if sys.stderr.isatty() else ("", "\n")

    def tell(text: str) -> None:
        click.echo(f"{start}{layout.clean(text)}{end}", err=True, nl=False)

    return tell


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    from toolchain.bench.tables import tables

    if sys.stderr.isatty():
        click.echo(err=True)
    settings = found["settings"]
    yield layout.title(
        f"{settings['backbone']} at {settings['side']} px, {settings['domains']} domains, "
        f"{settings['threads']} thread{'s' * (settings['threads'] > 1)}"
        + (", few rounds: the figures mean nothing" if settings["quick"] else "")
    )
    for table in tables(found):
        yield ""
        yield layout.title(table.title)
        right = "" if table.text else "".join(map(str, range(1, len(table.heads))))
        yield from layout.table(table.heads, table.rows, right=right)
    if found["not_measured"]:
        yield ""
        yield layout.title("Not measured")
        yield from layout.pairs(found["not_measured"])
