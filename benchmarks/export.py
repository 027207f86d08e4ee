"""``python -m benchmarks.export``: every figure of the export side, into JSON, a plot and tables.

Rules of this file: it runs the parts in order, one busy process at a time, and writes what they
return. Progress goes to stderr. It takes about four minutes on two quiet cores once the samples are
trained. Goals stand beside the figures; nobody enforces them.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import plot, results, samples, second, speed
from benchmarks.forms import Case, FormBench
from toolchain.bench import machine
from toolchain.bench.latency import STATES
from toolchain.cli.show.progress import telling
from toolchain.core.files import write_atomic
from toolchain.core.timing import CLOCK
from toolchain.training.adapt.weights import load_backbone

RESNET50 = Case("resnet50", lambda: load_backbone("resnet50", untrained_seed=0), 224, 196)
RESNET20 = Case("resnet20", lambda: load_backbone("resnet20"), 32, 8)
GROUPS = {"one": speed.one, "many": speed.many, "lost": speed.lost}
GOALS = {
    "open_ratio": 1.15,
    "half_ratio": 0.82,
    "closed_ratio": 0.50,
    "second_domain_s": 10.0,
    "bundle_ratio": 0.05,
}


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often each is timed: batch 1, batch 16, the lost forms, resnet20, the second export."""

    one: int = 41
    many: int = 5
    lost: int = 15
    small: int = 61
    second: int = 3


QUICK = Rounds(one=5, many=2, lost=3, small=5, second=1)


def measure_speed(case: Case, rounds: Mapping[str, int], cache: Path) -> dict[str, Any]:
    """Return the timings of one backbone: groups of :mod:`benchmarks.speed` by name."""
    groups = {}
    with FormBench(case, cache=cache) as bench:
        for name, count in rounds.items():
            with telling(f"{case.name} {name}") as tell:
                groups[name] = GROUPS[name](bench, count, tell)
        floors = {state: bench.floor(state) for state in STATES}
    timings = {
        name: {contender: asdict(timing) for contender, timing in group.items()}
        for name, group in groups.items()
    }
    return {"floors": floors, **timings}


def measure(rounds: Rounds, domains: Path, *, training: bool) -> dict[str, Any]:
    """Run everything and return the document that is written; its first keys are the figures."""
    started, before = time.monotonic(), machine.machine()
    with tempfile.TemporaryDirectory(prefix="da3-bench-") as folder:
        cache = Path(folder) / "cache"
        large = {"one": rounds.one, "many": rounds.many, "lost": rounds.lost}
        small = {"one": rounds.small, "many": rounds.small}
        resnet50 = measure_speed(RESNET50, large, cache)
        resnet20 = measure_speed(RESNET20, small, cache)
        setup = second.SecondSetup(runs=rounds.second)
        with telling("second domain") as tell:
            other = second.measure(Path(folder) / "second", setup, notify=tell)
    with telling("samples") as tell:
        reached = samples.read(domains, training=training, notify=tell)
    ratios = {f"{state}_ratio": resnet50["one"][f"if {state}"]["ratio"] for state in STATES}
    return {
        **ratios,
        "second_domain_s": other["second_domain_s"],
        "bundle_ratio": other["bundle_ratio"],
        "samples": reached,
        "targets": GOALS,
        "clock": CLOCK,
        "machine": before | {"load_after": machine.machine()["load"]},
        "versions": machine.versions(),
        "resnet50": resnet50,
        "resnet20": resnet20,
        "second": other,
        "took_s": time.monotonic() - started,
    }


@click.command()
@click.option("--quick", is_flag=True, help="Few rounds, no training: to see that it runs.")
@click.option("--json", "json_path", type=Path, default=Path("build/bench/export.json"))
@click.option("--plot", "plot_path", type=Path, default=Path("build/bench/export.png"))
@click.option("--results", "results_path", type=Path, help="Tables; docs/results.md unless quick.")
@click.option("--runtime", type=Path, default=Path("build/bench/runtime.json"), help="of da3 bench")
@click.option("--engine", type=Path, default=Path("build/bench/engine.json"), help="of bench-gpu")
@click.option("--accuracy", type=Path, default=Path("build/bench/accuracy.json"), help="of methods")
@click.option("--memory", type=Path, default=Path("build/bench/memory.json"), help="of training")
@click.option("--domains", type=Path, default=Path("build/domains"), help="Trained samples.")
@click.option("--train/--no-train", default=True, help="Train samples that are missing.")
@click.option("--redraw", is_flag=True, help="Draw plot and tables again from the JSON file.")
def main(
    quick: bool,
    json_path: Path,
    plot_path: Path,
    results_path: Path | None,
    runtime: Path,
    engine: Path,
    accuracy: Path,
    memory: Path,
    domains: Path,
    train: bool,
    redraw: bool,
) -> None:
    """Measure the export side against its targets."""
    if not redraw:
        document = measure(QUICK if quick else Rounds(), domains, training=train and not quick)
        json_path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(json_path, json.dumps(document, indent=1).encode() + b"\n", overwrite=True)
    document = json.loads(json_path.read_text())
    tables = results_path or (json_path.with_suffix(".md") if quick else Path("docs/results.md"))
    swapping = json.loads(runtime.read_text()) if runtime.is_file() else None
    built = json.loads(engine.read_text()) if engine.is_file() else None
    reached = json.loads(accuracy.read_text()) if accuracy.is_file() else None
    memory_document = json.loads(memory.read_text()) if memory.is_file() else None
    text = results.text(document, swapping, built, reached=reached, trainings=memory_document)
    write_atomic(tables, text.encode(), overwrite=True)
    plot.draw(document, plot_path)
    print(results.summary(document))


if __name__ == "__main__":
    main()
