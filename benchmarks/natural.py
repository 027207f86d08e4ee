"""``python -m benchmarks.natural``: what the methods reach on ImageNet weights and real pictures.

Rules of this file: the sets are made of packages that are installed, and none is shipped. Recipes
are those that ``da3 recipes new`` writes, smaller in pixels and pictures alone: nothing is tuned
for a set. Trainings, files of figures and resuming are those of ``benchmarks.accuracy``. The rows
``static`` and ``random`` are no methods (``benchmarks.closed``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import click
from PIL import Image

from benchmarks import accuracy, glyphs, plot, results
from benchmarks.accuracy import Entry
from toolchain import recipe as recipes
from toolchain.core.errors import DataError
from toolchain.core.files import write_atomic
from toolchain.training.adapt import backbones
from toolchain.training.data.forms import first_look
from toolchain.training.data.samples import digits

BACKBONE = "efficientnet_lite0"
SIDE = 96
PICTURES = 2000
TEST_SHARE = 0.2
"""Of the solar cells, which come without a part to test with."""
DEFECTIVE = 0.5
"""Solar cells whose probability of a defect is above this count as defective."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the packages' files lie."""

    cells: Path
    fashion: Path
    fonts: Path


def _cells(sources: Sources, out: Path, name_of: Callable[[float, str], str]) -> Path:
    """Copy the solar cells into class folders by part; the part follows from a file's name."""
    table = sources.cells / "labels.csv"
    for line in table.read_text().splitlines():
        name, probability, kind = line.split()
        part = "test" if glyphs.fraction(name) < TEST_SHARE else "train"
        folder = out / part / name_of(float(probability), kind)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sources.cells / name, folder / Path(name).name)
    return out


def _by_kind(probability: float, kind: str) -> str:
    return f"{'defective' if probability > DEFECTIVE else 'intact'} {kind}"


def _binary(probability: float, _: str) -> str:
    return "defective" if probability > DEFECTIVE else "intact"


def _fashion(sources: Sources, _: Path) -> Path:
    return sources.fashion


def _glyphs(sources: Sources, out: Path) -> Path:
    glyphs.draw(sources.fonts, out)
    return out


def _digits(_: Sources, out: Path) -> Path:
    """Write the sample's digits, whose parts have no writer in common, into class folders."""
    for part, count in digits.COUNTS.items():
        pictures, labels = digits.read(part, count)
        for number, (pixels, label) in enumerate(zip(pictures, labels, strict=True)):
            folder = out / part / digits.CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number:04}.png")
    return out


SETS: Mapping[str, Callable[[Sources, Path], Path]] = {
    "cells4": partial(_cells, name_of=_by_kind),
    "cells2": partial(_cells, name_of=_binary),
    "fashion": _fashion,
    "glyphs": _glyphs,
    "digits": _digits,
}
"""What makes each set: it returns where its pictures lie.

The solar cells have no module's name, so cells of one module may lie in both parts.
"""


def prepare(sources: Sources, names: Sequence[str], folder: Path, pictures: int) -> None:
    """Make the sets and their recipes below ``folder``; what is there stays.

    Raises DataError where a package's files are not there.
    """
    known = backbones.get(BACKBONE)
    for name in names:
        if (folder / "recipes" / f"{name}.yaml").is_file():
            continue
        out = folder / "data" / name
        shutil.rmtree(out, ignore_errors=True)  # of a call that was stopped
        try:
            spec, contents = first_look(SETS[name](sources, out))
        except OSError as err:
            raise DataError(
                f"{name}: {err.filename}: {err.strerror}",
                fix="install the package and name its folder: --cells, --fashion, --fonts",
            ) from err
        recipes.new(
            name,
            contents,
            spec=replace(spec, train=pictures, test=pictures),
            backbone=BACKBONE,
            input_px=SIDE,
            mean=known.mean,
            std=known.std,
            interpolation=known.interpolation,
            resize=SIDE,
            folder=folder / "recipes",
        )


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures that the method is judged by: means over sets and seeds.

    Differences are in points, over the pairs of set and seed that both rows have; None where there
    is no such pair.
    """
    runs = {(r["domain"], r["method"], r["seed"]): r for r in document["runs"] if "accuracy" in r}
    own = [run for run in runs.values() if run["method"] == "da3"]

    def ahead_of(method: str) -> list[float]:
        pairs = ((run, runs.get((run["domain"], method, run["seed"]))) for run in own)
        return [100 * (run["accuracy"] - other["accuracy"]) for run, other in pairs if other]

    return {
        "da3_minus_head": _mean([_over_head(run) for run in own]),
        "da3_minus_head_least": _least(own),
        **{f"da3_minus_{row}": _mean(ahead_of(row)) for row in ("finetune", "static", "random")},
        "dynamic_gates_share": _mean([run["decide"] for run in own]),
        "executed_share": _mean([run["executed_share"] for run in own]),
    }


def _over_head(run: Entry) -> float:
    """Return by how many points a run is above its own head."""
    return float(100 * (run["accuracy"] - run["head_accuracy"]))


def _least(own: Sequence[Entry]) -> float | None:
    """Return by how much da3 is ahead of its head on the set where that is least, in points."""
    by_set: dict[str, list[float]] = {}
    for run in own:
        by_set.setdefault(run["domain"], []).append(_over_head(run))
    return min(map(fmean, by_set.values()), default=None)


def gate_rates(document: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return how often each gate of ``da3`` is open on test: means over seeds, by set and gate."""
    by_set: dict[str, list[dict[str, float]]] = {}
    for run in document["runs"]:
        if run["method"] == "da3" and "accuracy" in run:
            by_set.setdefault(run["domain"], []).append(run["gate_rates"])
    return {
        name: {gate: fmean(rates[gate] for rates in seeds) for gate in seeds[0]}
        for name, seeds in by_set.items()
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


@click.command()
@click.option("--cells", type=Path, help="Folder with labels.csv of the package elpv-dataset.")
@click.option("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
@click.option("--fonts", type=Path, default=Path("/usr/share/fonts"))
@click.option("--sets", default="all", help="Comma-separated.", show_default=True)
@click.option("--methods", default="all", help="Comma-separated.", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--pictures", type=click.IntRange(100), default=PICTURES, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=2, help="Processes.", show_default=True)
@click.option("--work", type=Path, default=Path("build/natural"), show_default=True)
@click.option("--out", type=Path, default=Path("build/bench/natural.json"), show_default=True)
@click.option("--results", "tables", type=Path, default=Path("docs/results.md"))
@click.option("--picture", type=Path, default=Path("docs/gates.svg"), show_default=True)
def main(
    cells: Path | None,
    fashion: Path,
    fonts: Path,
    sets: str,
    methods: str,
    seeds: int,
    pictures: int,
    jobs: int,
    work: Path,
    out: Path,
    tables: Path,
    picture: Path,
) -> None:
    """Train every method on real pictures, and write what they reach."""
    domains = list(accuracy.names(sets, tuple(SETS), "set"))
    sources = Sources(
        cells=cells or _package("elpv_dataset") / "data", fashion=fashion, fonts=fonts
    )
    prepare(sources, domains, work, pictures)
    runs = accuracy.plan(accuracy.names(methods, accuracy.ROWS, "method"), domains, seeds)
    folder, own = out.with_suffix(""), (work / "recipes",)
    missing = accuracy.missing(runs, accuracy.read(folder, runs, own))
    accuracy.train(missing, folder, jobs=jobs, recipes=own, notify=accuracy.tell)
    measured = accuracy.document(accuracy.read(folder, runs, own), runs)
    measured |= {"summary": summary(measured), "backbone": BACKBONE, "side": SIDE}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, json.dumps(measured, indent=1).encode() + b"\n", overwrite=True)
    results.put(tables, results.natural(measured))
    if rates := gate_rates(measured):
        plot.gates(rates, picture)
    for name, error in measured["failed"].items():
        accuracy.tell(f"failed: {name}: {error}")


def _package(name: str) -> Path:
    """Return the folder of an installed package, which is not imported."""
    found = find_spec(name)
    if found is None or found.origin is None:
        raise DataError(
            f"expected the package {name}, got none",
            fix="pip install elpv-dataset==1.0.0.post1, or name its folder with --cells",
        )
    return Path(found.origin).parent


if __name__ == "__main__":
    main()
