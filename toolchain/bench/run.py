"""Run the parts in order and return one document.

Rules of this file: one part runs at a time. A part that cannot be measured here is left out, and
the document says why. A callback hears of progress. This file prints and judges nothing.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toolchain.bench import child, latency, load, memory, overhead, swap
from toolchain.bench.figures import GOALS, figures
from toolchain.bench.machine import machine, versions
from toolchain.bench.materials import Materials, foreign, from_json
from toolchain.core.errors import MissingPackageError, UnknownNameError, UsageError
from toolchain.core.files import make_folder
from toolchain.core.timing import Notify

SCHEMA = "da3.bench/1"
PARTS = ("latency", "swap", "switch", "memory", "load", "overhead")
NEEDS_LINKER = "needs models linked for it: pass --backbone NAME in place of bundles"


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often or how long: rounds of ``latency``, ``switch`` and ``overhead``.

    ``swap``: processes; ``many``: domains in memory at most.
    """

    latency: int = 21
    swap: int = 4
    switch: int = 4
    many: int = 100
    overhead: int = 96
    load: load.LoadSetup = field(default_factory=load.LoadSetup)


QUICK = Rounds(
    latency=3, swap=1, switch=1, many=12, overhead=5, load=load.LoadSetup(20, 4, 2, 0.3, 4)
)


@dataclass(frozen=True, slots=True)
class BenchSetup:
    """What to measure.

    Either ``backbone``, a registered name, with ``side`` in pixels (None: the backbone's own) and
    the number of ``domains``; or ``bundles`` that exist, with ``artefact``, the folder of their
    backbone (None: beside the first). ``work``: keeps what is made for the next run.
    """

    backbone: str | None = None
    side: int | None = None
    domains: int = 10
    classes: int = 196
    bundles: tuple[Path, ...] = ()
    artefact: Path | None = None
    threads: int = 1
    parts: tuple[str, ...] = PARTS
    rounds: Rounds = Rounds()
    work: Path | None = None


def measure(setup: BenchSetup, *, notify: Notify = lambda _: None) -> dict[str, Any]:
    """Measure and return the document: the figures first, then all that they come from.

    Raises UsageError, UnknownNameError for a part, MissingPackageError where domains are to be made
    without torch, RunError for a part that fails, and what reading bundles raises.
    """
    _check(setup)
    before, took, started = machine(), {}, time.monotonic()
    with ExitStack() as stack:
        work = setup.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="da3-")))
        materials = _materials(setup, work, notify)
        took["domains"] = time.monotonic() - started
        parts = {}
        for part in [name for name in PARTS if name in setup.parts]:
            started = time.monotonic()
            parts[part] = _part(part, setup, materials, _prefixed(part, notify))
            took[part] = time.monotonic() - started
        settings = _settings(setup, materials)
    return {
        "schema": SCHEMA,
        **figures(parts),
        "targets": {name: asdict(goal) for name, goal in GOALS.items()},
        "not_measured": _not_measured(setup, materials),
        "settings": settings,
        "machine": before | {"load_after": machine()["load"]},
        "versions": versions(),
        "parts": parts,
        "took_s": took,
    }


def _check(setup: BenchSetup) -> None:
    for part in setup.parts:
        if part not in PARTS:
            raise UnknownNameError("part", part, PARTS)
    if {"memory", "load"} & set(setup.parts):
        # Raises now, and not after minutes, where the system does not tell a process's memory.
        memory.resident_bytes()
    if (setup.backbone is None) == (not setup.bundles):
        raise UsageError(
            "expected a backbone to make domains for, or bundles that exist, got "
            + ("neither" if setup.backbone is None else "both"),
            fix="pass --backbone NAME, or --bundle FILE at least twice",
        )
    if setup.backbone is not None and setup.domains < 2:
        raise UsageError(
            f"expected two domains or more, got {setup.domains}", fix="pass --domains 2"
        )


def _materials(setup: BenchSetup, work: Path, notify: Notify) -> Materials:
    if setup.bundles:
        return foreign(setup.bundles, setup.artefact)
    if find_spec("torch") is None:
        raise MissingPackageError("torch", "making domains to measure", "bench")
    from toolchain.training.adapt import backbones

    backbone = backbones.get(str(setup.backbone))
    make_folder(work, fix="choose another with --work")
    setup_fields = {
        "backbone": backbone.name,
        "side": setup.side or backbone.input_size,
        "domains": setup.domains,
        "classes": setup.classes,
    }
    request = {"work": str(work.resolve()), "setup": setup_fields}
    return from_json(child.run("domains", request, notify=_prefixed("domains", notify)))


def _prefixed(part: str, notify: Notify) -> Notify:
    return lambda text: notify(f"{part}: {text}")


def _part(name: str, setup: BenchSetup, materials: Materials, notify: Notify) -> dict[str, Any]:
    rounds, threads = setup.rounds, setup.threads
    match name:
        case "latency":
            return latency.measure(materials, threads=threads, rounds=rounds.latency, notify=notify)
        case "swap":
            return swap.measure(materials, threads=threads, processes=rounds.swap, notify=notify)
        case "switch":
            return swap.switching(materials, threads=threads, rounds=rounds.switch, notify=notify)
        case "memory":
            count = len(materials.bundles)
            return memory.measure(
                materials, threads=threads, domains=count, many=rounds.many, notify=notify
            )
        case "load":
            return load.measure(materials, threads=threads, setup=rounds.load, notify=notify)
    return overhead.measure(materials, threads=threads, rounds=rounds.overhead, notify=notify)


def _settings(setup: BenchSetup, materials: Materials) -> dict[str, Any]:
    manifest = materials.open().manifest
    return {
        "backbone": manifest.backbone.name,
        "side": manifest.preprocess.size,
        "classes": len(manifest.classes),
        "domains": len(materials.bundles),
        "drawn": bool(materials.made),
        "threads": setup.threads,
        "quick": setup.rounds == QUICK,
        "parts": list(setup.parts),
        "rounds": asdict(setup.rounds),
    }


def _not_measured(setup: BenchSetup, materials: Materials) -> dict[str, str]:
    """Return what is missing from the document and why."""
    reasons = {part: "was not asked for" for part in PARTS if part not in setup.parts}
    lacking = {
        "latency": ("plain, static and the cost of a gate", materials.statics),
        "swap": ("whole models and shared sessions, to compare with", materials.wholes),
    }
    for part, (what, there) in lacking.items():
        if part in setup.parts and not there:
            reasons[f"{part}: {what}"] = NEEDS_LINKER
    return reasons
