"""``python -m benchmarks.ablations``: what each part of ``da3`` is worth, on pictures held out.

Rules of this file: it sees training pictures only, of the sets that ``benchmarks.natural`` has
prepared; it holds some of them out and reports those. A row takes one part away, or puts another
in its place. So the test pictures of no table have chosen anything. Every run is a file, and a
second call runs what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import click
from torch import Tensor
from torch.nn import functional as F

from benchmarks import accuracy, results
from benchmarks.accuracy import Entry
from benchmarks.closed import unlearnt, unscheduled
from benchmarks.rates import held_out
from toolchain.core.canonical import canonical_json
from toolchain.core.digest import sha256
from toolchain.core.files import write_atomic
from toolchain.recipe import Recipe, find, load
from toolchain.training import data
from toolchain.training.adapt import adaptors, loss, methods
from toolchain.training.loop import run

PICTURES = 2500
SETS = ("fashion", "glyphs")


@dataclass(frozen=True, slots=True)
class Part:
    """What a row changes: fields of the recipe's sections, and patches by name."""

    adaptor: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    patched: str = ""


@contextmanager
def _fitted_head() -> Iterator[None]:
    own = replace(methods.REGISTRY["da3"], fitted_head=True)
    with patch.object(run, "REGISTRY", {**methods.REGISTRY, "da3": own}):
        yield


@contextmanager
def _bounded() -> Iterator[None]:
    with patch.object(adaptors, "BOUND", 1.5):
        yield


@contextmanager
def _smoothed() -> Iterator[None]:
    def smoothed(logits: Tensor, labels: Tensor, _: Tensor | None) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=0.1)

    with patch.object(loss, "class_loss", smoothed):
        yield


PATCHES: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "": nullcontext,
    "head": _fitted_head,
    "gates": unlearnt,
    "schedule": unscheduled,
    "bound": _bounded,
    "labels": _smoothed,
}
PARTS: Mapping[str, Part] = {
    "as it is": Part(),
    "all gates open": Part(train={"budget": 1.0}),
    "the head fitted first": Part(patched="head"),
    "gates not normalised": Part(patched="gates"),
    "gates open for 7 to 93 % at most": Part(patched="bound"),
    "the budget from the first step": Part(patched="schedule"),
    "a budget's weight of 10": Part(train={"budget_weight": 10.0}),
    "adaptors on gateable blocks alone": Part(adaptor={"placement": "gateable"}),
    "pooled four times": Part(adaptor={"pool": 4}),
    "a kernel of 3": Part(adaptor={"kernel": 3}),
    "rank 16": Part(adaptor={"rank": 16}),
    "a rate of 0.003": Part(train={"lr": 0.003}),
    "labels smoothed by 0.1": Part(patched="labels"),
    "10 epochs": Part(train={"epochs": 10}),
}


@dataclass(frozen=True, slots=True)
class Try:
    """One training: a part, a set's recipe, a seed."""

    part: str
    recipe: Recipe
    seed: int

    @property
    def file(self) -> str:
        """The name of its file: of another recipe, another one."""
        what = canonical_json({"part": self.part, "seed": self.seed, "recipe": repr(self.recipe)})
        return f"{self.recipe.domain}-{sha256(what)[7:19]}.json"

    def run(self) -> Entry:
        """Train it and return its figures on the pictures held out."""
        part, own = PARTS[self.part], self.recipe
        changed = replace(
            own,
            adaptor=replace(own.adaptor, **part.adaptor),
            train=replace(own.train, seed=self.seed, **part.train),
        )
        pictures = held_out(data.load(own).train, PICTURES)
        with PATCHES[part.patched]():
            return accuracy.train_one(changed, pictures)


def tries(folder: Path, sets: Sequence[str], seeds: int) -> list[Try]:
    """Return every training, seed by seed."""
    loaded = [load(find(name, (folder,))) for name in sets]
    return [Try(p, r, s) for s, p, r in product(range(seeds), PARTS, loaded)]


def _work(one: Try, folder: Path) -> tuple[Try, Entry]:
    path = folder / one.file
    if not path.is_file():
        write_atomic(path, json.dumps(one.run(), indent=1).encode() + b"\n", overwrite=True)
    return one, json.loads(path.read_text())


@click.command()
@click.option("--recipes", type=Path, default=Path("build/natural/recipes"), show_default=True)
@click.option("--sets", default=",".join(SETS), show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=2, help="Processes.", show_default=True)
@click.option("--out", type=Path, default=Path("build/bench/ablations"), show_default=True)
@click.option("--results", "tables", type=Path, default=Path("docs/results.md"))
def main(recipes: Path, sets: str, seeds: int, jobs: int, out: Path, tables: Path) -> None:
    """Train da3 without each of its parts, and write what is left on pictures held out."""
    out.mkdir(parents=True, exist_ok=True)
    planned = tries(recipes, sets.split(","), seeds)
    done: dict[tuple[str, str], list[Entry]] = {}
    with accuracy.workers(jobs) as pool:
        for one, entry in pool.map(_work, planned, [out] * len(planned)):
            done.setdefault((one.part, one.recipe.domain), []).append(entry)
            what = f"{one.part}, {one.recipe.domain}, seed {one.seed}"
            accuracy.tell(f"{what}: {entry['accuracy']:.1%} at {entry['executed_share']:.2f}")
    results.put(tables, results.ablations(_rows(done, sets.split(",")), seeds))


def _rows(
    done: Mapping[tuple[str, str], Sequence[Entry]], sets: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return means over seeds by part and set: accuracy, executed share, gates that decide."""
    return {
        part: {
            name: {key: fmean(e[key] for e in done[part, name]) for key in results.ABLATED}
            for name in sets
        }
        for part in PARTS
    }


if __name__ == "__main__":
    main()
