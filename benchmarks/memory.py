"""``python -m benchmarks.memory``: what each method's training keeps, on three backbones.

Rules of this file: it runs :mod:`toolchain.bench.footprint` and writes build/bench/memory.json with
one plot per backbone, and the section of docs/results.md. A backbone that is measured anew replaces
its own entry alone. If an NVIDIA GPU is at hand, the same is measured there, under ``cuda``. Nobody
types a figure.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import results
from toolchain.bench import footprint, plots
from toolchain.cli.show.output import plain
from toolchain.cli.show.progress import telling
from toolchain.core.files import write_atomic

SIDES = {"resnet50": 224, "mobilenet_v2": 224, "resnet26": 64}
QUICK = {"resnet20": 32}
BATCH = 8
CUDA = "cuda"


def measure(setup: footprint.FootprintSetup) -> dict[str, Any]:
    """Return the document of one backbone, with its ``cuda`` part where there is a GPU."""
    with telling() as tell:
        document = footprint.measure(setup, notify=tell)
        if torch.cuda.is_available():
            document[CUDA] = footprint.measure(replace(setup, device=CUDA), notify=tell)
            document[CUDA]["gpu"] = torch.cuda.get_device_name()
    return document


def joined(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with a backbone measured anew, that of CUDA likewise."""
    if not before:
        return dict(now)
    document = footprint.merged([before, now])
    if CUDA in before:
        there = [before[CUDA], *([now[CUDA]] if CUDA in now else [])]
        document[CUDA] = footprint.merged(there)
    return document


@click.command()
@click.option(
    "--backbone",
    "names",
    type=click.Choice(list(SIDES)),
    multiple=True,
    help="Only these.  [default: all three]",
)
@click.option("--quick", is_flag=True, help="One small net, da3 alone: to see that it runs.")
@click.option("--rounds", type=click.IntRange(0), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("build/bench"), show_default=True
)
@click.option(
    "--results",
    "tables",
    type=click.Path(path_type=Path),
    help="Tables; docs/results.md unless quick.",
)
def main(
    names: tuple[str, ...],
    quick: bool,
    rounds: int,
    threads: int,
    out: Path,
    tables: Path | None,
) -> None:
    """Measure and write OUT/memory.json, the plots, and the section of the results."""
    path = out / "memory.json"
    out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {}
    sides = QUICK if quick else SIDES
    methods = (footprint.OURS,) if quick else ("all",)
    for name in sides if quick else names or sides:
        started = time.monotonic()
        setup = footprint.FootprintSetup(
            name, sides[name], BATCH, methods, rounds=rounds, threads=threads
        )
        gc.collect()  # steps hold their models in cycles, gigabytes of them
        now = measure(setup)
        now["conditions"]["runs"][name]["took_s"] = time.monotonic() - started
        document = plain(joined(json.loads(path.read_text()) if path.is_file() else {}, now))
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        write_atomic(path, text.encode(), overwrite=True)
        plot = plots.training(document, name, ".svg")
        write_atomic(out / f"memory-{name}.svg", plot, overwrite=True)
        _tell(document, name)
    tables = tables or (path.with_suffix(".md") if quick else Path("docs/results.md"))
    results.put(tables, results.memory(document))


def _tell(document: Mapping[str, Any], name: str) -> None:
    rows = document[name]
    whole = rows[footprint.REFERENCE]["stored_measured"]
    for row, target in results.KEPT_TARGETS.items():
        if row in rows:
            saved = whole / rows[row]["stored_measured"]
            verdict = "ok  " if saved >= target else "OVER"
            click.echo(f"{verdict} {name} {row}: 1/{saved:.1f} (at most 1/{target})")


if __name__ == "__main__":
    main()
