"""A device and its store, for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from toolchain.cli.show import layout
from toolchain.core.digest import short

if TYPE_CHECKING:
    from toolchain.device.agent.agent import Round
    from toolchain.device.agent.protocol import Facts
    from toolchain.device.store.journal import Entry
    from toolchain.device.store.recovery import Recovery
    from toolchain.device.store.space import GcReport
    from toolchain.device.store.verify import VerifyReport


def status_lines(facts: Facts) -> list[str]:
    """Return what is installed, what runs and what failed."""
    rows = [
        (
            unit.unit,
            unit.counter if unit.signed else "-",
            short(unit.digest),
            unit.state,
            "runs" if unit.runs else "",
            "" if unit.signed else "NOT SIGNED",
        )
        for unit in facts.units
    ]
    heads = ("unit", "release", "digest", "state", "", "")
    units = layout.table(heads, rows, right={"release"}) if rows else ["  nothing is installed"]
    about = {
        "generation": facts.generation or "none yet",
        "on trial": ", ".join(facts.trial) or "nothing",
        "repository": facts.repository or "none: files by hand",
        "unsigned files": "TAKEN by hand" if facts.unsigned else "refused",
        "reports": f"{facts.reports} not confirmed yet",
        "clock floor": facts.clock_floor,
        "board": facts.board or facts.architecture,
        "free disk": layout.size(facts.free_disk_bytes) if facts.free_disk_bytes else "unknown",
    }
    failed = [layout.clean(f"  {unit}: {why}") for unit, why in facts.failed.items()]
    return [
        layout.title("Installed"),
        *units,
        layout.title("Device"),
        *layout.pairs(about),
        *([layout.title("Went back"), *failed] if failed else []),
    ]


def history_lines(entries: Sequence[Entry]) -> list[str]:
    """Return a line for each entry of the journal."""
    return [
        layout.clean(f"{entry.at}  {entry.what:<12}  {_about(dict(entry.about).items())}".rstrip())
        for entry in entries
    ]


def _about(notes: Iterable[tuple[str, object]]) -> str:
    words = []
    for name, value in notes:
        text = str(value)
        words.append(f"{name} {short(text) if text.startswith('sha256:') else text}")
    return ", ".join(words)


def verify_lines(report: VerifyReport) -> list[str]:
    """Return what holds, what is wrong, and what could not be checked."""
    return [
        *(layout.clean(f"ok         {line}") for line in report.checked),
        *(layout.clean(f"WRONG      {line}") for line in report.faults),
        *(layout.clean(f"unchecked  {line}") for line in report.unchecked),
    ]


def gc_lines(report: GcReport) -> list[str]:
    """Return what was removed."""
    lines = [layout.clean(f"removed {path}") for path in report.removed]
    return [*lines, f"{layout.size(report.freed_bytes)} freed"]


def recovery_lines(recovery: Recovery) -> list[str]:
    """Return what a start found and put right."""
    lines = [f"generation {recovery.current} runs" if recovery.current else "nothing runs"]
    lines += [f"{event.what}: {_about(dict(event.about).items())}" for event in recovery.events]
    lines += [f"put right: {line}" for line in recovery.mended]
    lines += [f"removed what was half-made: {path}" for path in recovery.removed]
    return [layout.clean(line) for line in lines]


def round_lines(done: Round) -> list[str]:
    """Return what a round of the agent did."""
    lines = [f"{unit}: changed" for unit in done.changed]
    lines += [f"{one.unit}: FAILED: {one.reason}" for one in done.failed]
    lines += [f"{one.unit}: stays: {one.reason}" for one in done.waiting]
    lines += [f"unchecked: {line}" for line in done.unchecked]
    if done.postponed_s:
        lines.append(f"nothing may be changed for {done.postponed_s:.0f} s")
    return [layout.clean(line) for line in lines or ["everything is as it should be"]]
