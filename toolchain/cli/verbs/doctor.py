"""``da3 doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from toolchain.cli.boundary import BoundedCommand
from toolchain.cli.options import complete_target, json_option
from toolchain.cli.show import layout
from toolchain.cli.show.output import emit, plain

if TYPE_CHECKING:
    from toolchain.device.boards.doctor import DoctorReport
    from toolchain.device.boards.machine import Machine


@click.command(
    cls=BoundedCommand,
    epilog=layout.example(
        "da3 doctor",
        "da3 doctor --target orin-nano-jp6.2",
        "da3 doctor --targets --markdown",
    ),
)
@click.option(
    "--target",
    metavar="NAME",
    shell_complete=complete_target,
    help="Say it of this board instead of this machine.",
)
@click.option("--targets", is_flag=True, help="List the table of boards and JetPacks.")
@click.option("--markdown", is_flag=True, help="With --targets: as Markdown, with every source.")
@json_option
def doctor(target: str | None, targets: bool, markdown: bool, as_json: bool) -> None:
    """Say what this machine can do, and what the rest needs.

    It looks at training, export, checks, running on onnxruntime, and building and running TensorRT
    engines. For each it names what is there, or the command or document that gets it.
    """
    if targets and target is not None:
        raise click.UsageError("expected one of --target and --targets, got both")
    if markdown and not targets:
        raise click.UsageError("expected --targets beside --markdown, got it alone")
    if targets:
        _list(markdown, as_json)
        return
    report = _report(target)
    emit(plain(report), _lines(report), as_json=as_json)


def _list(markdown: bool, as_json: bool) -> None:
    from toolchain.device.boards import table
    from toolchain.device.boards.target import TARGETS

    shown = [table.markdown().rstrip()] if markdown else layout.table(*_shown(), indent=0)
    rows = [{"name": target.name, **plain(target)} for target in TARGETS.values()]
    emit({"targets": rows}, shown, as_json=as_json)


def _shown() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the columns that fit on a terminal; docs/targets.md and --json have all of them."""
    from toolchain.device.boards import table

    places = [
        place
        for place, head in enumerate(table.HEADS)
        if head not in ("memory, GiB", "DLA", "JetPack")
    ]
    pick = [tuple(row[place] for place in places) for row in (table.HEADS, *table.rows())]
    return pick[0], pick[1:]


def _report(name: str | None) -> DoctorReport:
    if name is None:
        from toolchain.device.boards.doctor import examine
        from toolchain.device.boards.machine import read_machine

        return examine(read_machine())
    from toolchain.device.boards.doctor import describe
    from toolchain.device.boards.target import find

    return describe(find(name))


def _lines(report: DoctorReport) -> Iterator[str]:
    if report.machine is not None:
        yield layout.title("This machine")
        named = report.target or f"none: {report.why_none}"
        yield from layout.pairs({**dict(_described(report.machine)), "target": named})
    else:
        yield layout.title(report.target or "")
        yield from layout.pairs({fact.name: fact.value for fact in report.facts})
    yield layout.title("What it can do")
    for ability in report.abilities:
        word = "yes" if ability.able else "no"
        yield f"  {word:3}  {ability.act:18}  {layout.clean(ability.detail)}"
        if ability.fix:
            yield f"{'':27}{click.style('fix:', fg='cyan')} {layout.clean(ability.fix)}"
    if report.differences:
        yield layout.title("What is done for it")
        yield from (f"  {line}" for line in report.differences)
    if report.machine is None:
        yield layout.title("Sources")
        yield from _sources(report)


def _sources(report: DoctorReport) -> Iterator[str]:
    """Yield each source once, after the names of its facts."""
    named: dict[str, list[str]] = {}
    for fact in report.facts:
        named.setdefault(fact.source, []).append(fact.name)
    yield from (f"  {', '.join(names)}: {source}" for source, names in named.items())


def _described(machine: Machine) -> Iterator[tuple[str, object]]:
    """Yield each value that the machine has, with its label."""
    yield "system", f"{machine.system} {machine.architecture}, Python {machine.python}"
    for label, value in (
        ("board", machine.board),
        ("Jetson Linux", machine.l4t),
        ("JetPack", machine.jetpack),
        ("power mode", machine.power_mode),
        ("CUDA toolkit", machine.cuda_toolkit),
        ("TensorRT library", machine.tensorrt_library),
        ("trtexec", machine.trtexec),
        ("driver", machine.driver_fault),
    ):
        if value is not None:
            yield label, value
    for place, gpu in enumerate(machine.gpus):
        memory = f"{layout.size(gpu.memory_bytes)}{' shared' if gpu.integrated else ''}"
        unit = f"SM {gpu.sm}, {gpu.multiprocessors} multiprocessors, CUDA {gpu.driver}"
        yield f"GPU {place}", f"{gpu.name}, {unit}, {memory}"
    if not machine.gpus:
        yield "GPU", "no NVIDIA device"
    if machine.memory_bytes is not None and machine.free_memory_bytes is not None:
        free, total = layout.size(machine.free_memory_bytes), layout.size(machine.memory_bytes)
        yield "memory", f"{free} free of {total}"
    if machine.free_disk_bytes is not None:
        yield "disk", f"{layout.size(machine.free_disk_bytes)} free"
    versions = {package.module: package.version or "?" for package in machine.packages}
    yield "packages", layout.listed(versions) or "none"
    if machine.providers:
        yield "providers", ", ".join(machine.providers)
