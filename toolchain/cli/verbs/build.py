"""``da3 build``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolchain.bundle.linkage import FLAVOURS
from toolchain.cli.boundary import ENDING, BoundedCommand
from toolchain.cli.options import FILE, json_option
from toolchain.cli.show import layout
from toolchain.cli.show.output import emit, plain
from toolchain.cli.show.progress import Steps
from toolchain.core.files import MIB
from toolchain.core.signals import handled

if TYPE_CHECKING:
    from toolchain.device.build import BuildReport, FlavourReport

STORE = Path("build/engines")


@click.command(
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 build dist/kit-resnet20-32px-b28c81f0c664-orin-nano-jp6.2-fp16",
        "da3 build --check dist/kit-resnet20-32px-b28c81f0c664-orin-nano-jp6.2-fp16",
    ),
)
@click.argument("kit", type=FILE)
@click.option(
    "--engines",
    type=FILE,
    default=STORE,
    show_default=True,
    metavar="DIR",
    help="Where engines and timings are kept.",
)
@click.option("--check", is_flag=True, help="Without a GPU: parse and build, and keep nothing.")
@click.option(
    "--module",
    type=click.Choice(["tensorrt", "tensorrt_rtx"]),
    help="Which TensorRT.  [default: tensorrt, else tensorrt_rtx]",
)
@click.option(
    "--flavour",
    "flavours",
    multiple=True,
    type=click.Choice(FLAVOURS),
    help="Build this flavour of the kit.  [default: all that it holds]",
)
@click.option(
    "--workspace",
    type=click.IntRange(16, 1 << 20),
    metavar="MIB",
    help="Memory for tactics.  [default: from what is free]",
)
@click.option(
    "--level", type=click.IntRange(0, 5), help="Optimisation level.  [default: TensorRT's own]"
)
@click.option("--rebuild", is_flag=True, help="Build also the engines that are there already.")
@json_option
def build(
    kit: Path,
    engines: Path,
    check: bool,
    module: str | None,
    flavours: tuple[str, ...],
    workspace: int | None,
    level: int | None,
    rebuild: bool,
    as_json: bool,
) -> None:
    """Build the engines of a kit on this machine.

    KIT is a folder that da3-export --target wrote. The command takes an engine from DIR only if
    TensorRT, GPU, power mode, options and kit are the same. Otherwise it names what differs and
    builds the engine. At the end it times all gates closed against all gates open. An engine whose
    closed gates do not skip says so from then on.
    """
    from toolchain.device import build as pipeline

    choices = pipeline.BuildRequest(
        module, flavours or None, workspace and workspace * MIB, level, rebuild
    )
    with _ended_at_once(), Steps(sys.stderr) as steps:
        if check:
            report = pipeline.check(kit, choices, notify=steps)
        else:
            report = pipeline.build(kit, engines, choices, notify=steps)
    emit(plain(report), _lines(report), as_json=as_json)


def _ended_at_once() -> AbstractContextManager[None]:
    """Let Ctrl-C and its like end the process inside TensorRT, which may not return for minutes.

    Nothing is left half-written: engines and timings appear whole, and the next build goes on from
    them.
    """
    # A shell's `nohup` and background jobs ignore the signal. That stays so.
    ours = (
        number
        for number in (signal.SIGINT, *ENDING)
        if signal.getsignal(number) is not signal.SIG_IGN
    )
    return handled(ours, signal.SIG_DFL)


def _lines(report: BuildReport) -> Iterator[str]:
    done = "checked without a device" if report.device is None else "built"
    yield layout.title(f"{report.kit.name}: {done}")
    facts = {
        "target": f"{report.target}, {report.precision}",
        "TensorRT": report.tensorrt,
        "device": report.device or "none: parsed and built, but nothing was run or kept",
    }
    yield from layout.pairs(facts)
    for item in report.flavours:
        yield ""
        yield from _flavour(item)
    if any(item.gates == "not skipping" for item in report.flavours):
        yield ""
        yield from _instead(report)


def _flavour(item: FlavourReport) -> Iterator[str]:
    yield layout.title(item.flavour)
    yield from layout.pairs(dict(_facts(item)))
    if item.instead_of is not None and item.instead_of.nearest is not None:
        yield f"  built anew, as {item.instead_of.nearest.name} differs:"
        for difference in item.instead_of.differences:
            yield f"    {layout.clean(str(difference))}"


def _facts(item: FlavourReport) -> Iterator[tuple[str, str]]:
    if item.engine is not None:
        yield "engine", f"{item.engine}{'  (was there)' if item.reused else ''}"
    if item.pieces:
        size = sum(piece.plan_bytes for piece in item.pieces)
        seconds = sum(piece.seconds for piece in item.pieces)
        count = len(item.pieces)
        yield "plans", f"{count}, {layout.size(size)}, {seconds:.1f} s"
        gates = sum(piece.conditionals for piece in item.pieces)
        read = sum(piece.boundaries for piece in item.pieces)
        added = sum(piece.repaired for piece in item.pieces)
        yield "conditionals", f"{gates}, {read} boundaries shown, {added} added here"
        skipped = [tactic for piece in item.pieces for tactic in piece.skipped]
        if skipped:
            most = layout.size(max(tactic.requested_bytes for tactic in skipped))
            yield "skipped", f"{len(skipped)} tactics for lack of memory, the largest of {most}"
            yield "", "they may be faster: close other programs and use --rebuild"
    if item.resumed is not None:
        yield "resumed", f"the last build was killed at {layout.clean(item.resumed)}"
    for note in item.notes:
        yield "note", layout.clean(note)
    yield "gates", _verdict(item)


def _verdict(item: FlavourReport) -> str:
    figures = {name: float(value) for name, value in item.figures.items() if value is not None}
    if "ms" in figures:
        return f"none to force, {figures['ms']:.2f} ms per picture"
    if not figures:
        return item.gates
    opened, closed = figures["open_ms"], figures["closed_ms"]
    return (
        f"{item.gates}: open {opened:.2f} ms, closed {closed:.2f} ms; closing saves "
        f"{layout.percent(1 - closed / opened)}, the gated blocks are "
        f"{layout.percent(figures['share'])} of the FLOPs"
    )


def _instead(report: BuildReport) -> Iterator[str]:
    """Say what to use where conditionals do not skip."""
    built = {item.flavour for item in report.flavours}
    missing = [name for name in ("staged", "static") if name not in built]
    yield "Closed gates do not skip here. The host can read the gates instead (staged), or they"
    yield "can be fixed for one domain (static); what each measured stands above."
    if missing:
        options = " ".join(f"--flavour {name}" for name in ["swap", *missing])
        yield f"  da3-export --domain NAME --target {report.target} {options}"
