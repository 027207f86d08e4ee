"""``python -m benchmarks.accuracy``: what every method reaches on the sample domains.

Rules of this file: it trains through ``toolchain.training.train`` with the recipes as they are, but
for method and seed, and keeps figures only. Each finished run is one file, written whole or not at
all. A run counts as finished if its recipe, torch and toolchain are those of now. So a second call
trains what is missing and what failed. Seeds come one after another, so that a part of the table is
of use. A figure from older code stays, and the table says how many there are; ``--renew`` trains
everything again.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import torch

import toolchain
from benchmarks import closed, results, samples
from toolchain import training
from toolchain.bench import machine
from toolchain.core import digest
from toolchain.core.errors import UnknownNameError
from toolchain.core.files import write_atomic
from toolchain.core.timing import Notify
from toolchain.recipe import METHODS, Recipe, find, load
from toolchain.training import data
from toolchain.training.adapt.attached import AttachedModel
from toolchain.training.data import DomainData
from toolchain.training.loop import identity
from toolchain.training.loop.interruption import interruption
from toolchain.training.memory import fit

ROWS = (*METHODS, *closed.ROWS)
FIRST = ("da3", "finetune", "head")
"""The methods that the first look is for."""
TRAINED_BY = (
    "training/adapt/*.py",
    "training/data/**/*.py",
    "training/lean/*.py",
    "training/loop/*.py",
    "pictures/preprocess.py",
)
"""The files whose change makes a figure one of older code, below the package."""
DECIDES = 0.05
"""A gate decides that is neither open nor closed for all but so small a share of the pictures."""
Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """One training: a sample domain, a method, a seed."""

    domain: str
    method: str
    seed: int

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.domain}-{self.method}-{self.seed}.json"


def plan(methods: Iterable[str], domains: Sequence[str], seeds: int) -> list[Run]:
    """Return every run in the order in which it is trained: by seed, method, domain."""
    ordered = sorted(methods, key=lambda name: (name not in FIRST, ROWS.index(name)))
    return [Run(d, method, seed) for seed in range(seeds) for method in ordered for d in domains]


def changed(recipe: Recipe, method: str, seed: int) -> Recipe:
    """Return the recipe with another method and seed; it keeps the options that the method has."""
    train = dataclasses.replace(recipe.train, seed=seed)
    by = "da3" if method in closed.ROWS else method
    return dataclasses.replace(recipe.by(by), train=train)


def train_one(
    recipe: Recipe, pictures: DomainData, backbone: torch.nn.Module | None = None
) -> Entry:
    """Train ``recipe`` in a temporary folder and return its figures; shares are in 0..1."""
    started = time.monotonic()
    model = training.build(recipe, classes=len(pictures.classes), data=pictures, backbone=backbone)
    return trained(model, recipe, pictures, started)


def train_closed(recipe: Recipe, pictures: DomainData, row: str) -> Entry:
    """Do the same with blocks that are closed for every picture: ``row`` of ``closed.ROWS``."""
    started = time.monotonic()
    model = closed.fixed(recipe, pictures, row)
    with closed.kept():
        return trained(model, recipe, pictures, started)


def trained(model: AttachedModel, recipe: Recipe, pictures: DomainData, started: float) -> Entry:
    """Train ``model`` and return its figures. ``decide``, ``gate_rates``: on the test pictures.

    ``kept_bytes`` and ``needed_bytes`` are of a step, counted by rule, with every gate open.
    """
    need = fit.need(model, recipe.train.batch)
    with tempfile.TemporaryDirectory(prefix="da3-accuracy-") as folder:
        report = training.train(model, pictures, recipe, out=Path(folder) / recipe.domain)
    rates = report.evaluation.gate_rates.values()
    return {
        "accuracy": report.evaluation.accuracy,
        "balanced_accuracy": report.evaluation.balanced_accuracy,
        "head_accuracy": report.checkpoint.info.metrics.head_accuracy,
        "executed_share": report.evaluation.executed_share,
        "gated": bool(rates),
        "decide": sum(DECIDES <= rate <= 1 - DECIDES for rate in rates) / max(1, len(rates)),
        "gate_rates": report.evaluation.gate_rates,
        "trained": sum(p.numel() for p in model.domain.parameters() if p.requires_grad),
        "kept_bytes": need.stored,
        "needed_bytes": need.total,
        "steps": report.steps,
        "seconds": round(time.monotonic() - started, 1),
    }


def stamp(run: Run, recipe: Recipe) -> Entry:
    """Return what a finished run must have in common with the run that is planned."""
    versions = machine.versions()
    return {
        **asdict(run),
        "recipe": identity.recipe_digest(changed(recipe, run.method, run.seed)),
        "torch": versions["torch"],
        "toolchain": versions["da3-toolchain"],
    }


def code_digest() -> str:
    """Return a digest of the code that trains; comments, docstrings and layout are not in it."""
    root = Path(toolchain.__file__).parent
    paths = sorted(path for pattern in TRAINED_BY for path in root.glob(pattern))
    return digest.sha256("\n".join(_bare(path.read_text("utf-8")) for path in paths).encode())


def _bare(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [line for line in node.body if not _is_text(line)]
    return ast.dump(tree)


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def read(folder: Path, runs: Iterable[Run], recipes: Sequence[Path] = ()) -> dict[Run, Entry]:
    """Return the entries of ``runs`` on disk, failures too, but none of another recipe."""
    entries: dict[Run, Entry] = {}
    for run in runs:
        path = folder / run.file
        expected = stamp(run, _recipe(run.domain, tuple(recipes)))
        entry = json.loads(path.read_text()) if path.is_file() else {}
        if expected.items() <= entry.items():
            entries[run] = entry
    return entries


def missing(runs: Iterable[Run], finished: dict[Run, Entry]) -> list[Run]:
    """Return what is still to be trained, failures too, in order."""
    return [run for run in runs if "accuracy" not in finished.get(run, {})]


@cache
def _recipe(domain: str, recipes: tuple[Path, ...]) -> Recipe:
    return load(find(domain, recipes))


@cache
def _pictures(domain: str, recipes: tuple[Path, ...]) -> DomainData:
    return data.load(_recipe(domain, recipes))


def workers(jobs: int) -> ProcessPoolExecutor:
    """Return ``jobs`` processes that train on one thread each."""
    # Threads that wait shall sleep: the processes share the machine with others.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, initializer=_start)


def _start() -> None:
    torch.set_num_threads(1)


def _work(run: Run, recipes: tuple[Path, ...]) -> Entry:
    """Train one run in a worker; a failure is an entry, too."""
    recipe = _recipe(run.domain, recipes)
    try:
        own, pictures = changed(recipe, run.method, run.seed), _pictures(run.domain, recipes)
        if run.method in closed.ROWS:
            figures = train_closed(own, pictures, run.method)
        else:
            figures = train_one(own, pictures)
    except Exception as err:  # whatever it is, it shall not stop the others
        figures = {"error": f"{type(err).__name__}: {err}"}
    return stamp(run, recipe) | figures


def train(
    runs: Sequence[Run],
    folder: Path,
    *,
    jobs: int,
    recipes: Sequence[Path] = (),
    notify: Notify = lambda _: None,
) -> None:
    """Train ``runs`` in ``jobs`` processes of one thread each; each run writes one file.

    Raises KeyboardInterrupt after Ctrl-C or SIGTERM, with every finished run kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = machine.machine()
    about = {"code": code_digest(), "processor": own["processor"], "cores": own["cores"]}
    started = time.monotonic()
    with interruption() as interrupted, workers(jobs) as pool:
        waiting = {pool.submit(_work, run, tuple(recipes)): run for run in runs}
        for done, future in enumerate(as_completed(waiting), start=1):
            # The workers got the signal too: what they return now was stopped half-way.
            if interrupted:
                pool.shutdown(wait=False, cancel_futures=True)
                raise KeyboardInterrupt
            run, entry = waiting[future], future.result() | about
            text = json.dumps(entry, indent=1).encode() + b"\n"
            write_atomic(folder / run.file, text, overwrite=True)
            left = (time.monotonic() - started) / done * (len(runs) - done) / 60
            notify(f"{done}/{len(runs)} {_outcome(run, entry)}; about {left:.0f} min left")


def _outcome(run: Run, entry: Entry) -> str:
    figures = entry.get("error") or f"{entry['accuracy']:.1%} in {entry['seconds']:.0f} s"
    return f"seed {run.seed} {run.method} {run.domain}: {figures}"


def document(entries: dict[Run, Entry], runs: Sequence[Run]) -> dict[str, Any]:
    """Return the document that is written: a row per method, then every run.

    Accuracies are means over the seeds that are there, differences in points.
    """
    domains = list(dict.fromkeys(run.domain for run in runs))
    methods = sorted({run.method for run in runs}, key=ROWS.index)
    good = {run: entry for run, entry in entries.items() if "error" not in entry}
    code = code_digest()
    return {
        "rows": [row for method in methods if (row := _row(method, domains, good))],
        "domains": domains,
        "seeds": 1 + max(run.seed for run in runs),
        "planned": len(runs),
        "finished": len(good),
        "older_code": sum(entry["code"] != code for entry in good.values()),
        "machines": sorted({f"{e['processor']}, {e['cores']} cores" for e in entries.values()}),
        "versions": machine.versions(),
        "failed": {run.file: e["error"] for run, e in entries.items() if "error" in e},
        "runs": [entries[run] for run in runs if run in entries],
    }


def _row(method: str, domains: Sequence[str], good: dict[Run, Entry]) -> Entry | None:
    own = {run: entry for run, entry in good.items() if run.method == method}
    if not own:
        return None
    by_domain = {d: _over_seeds([e for r, e in own.items() if r.domain == d]) for d in domains}
    return {
        "method": method,
        "domains": by_domain,
        "average": _average(None if f is None else f["mean"] for f in by_domain.values()),
        "balanced": _average(None if f is None else f["balanced"] for f in by_domain.values()),
        "against_finetune": _average(_paired(method, domain, good) for domain in domains),
        **{
            name: fmean(e[name] for e in own.values())
            if all(e["gated"] for e in own.values())
            else None
            for name in ("executed_share", "decide")
        },
        "kept_bytes": round(fmean(e["kept_bytes"] for e in own.values())),
        "needed_bytes": round(fmean(e["needed_bytes"] for e in own.values())),
        "trained": round(fmean(e["trained"] for e in own.values())),
        "seconds": fmean(e["seconds"] for e in own.values()),
    }


def _over_seeds(entries: Sequence[Entry]) -> Entry | None:
    if not entries:
        return None
    shares = [entry["accuracy"] for entry in entries]
    return {
        "mean": fmean(shares),
        "spread": max(shares) - min(shares),
        "balanced": fmean(entry["balanced_accuracy"] for entry in entries),
        "seeds": len(shares),
    }


def _average(values: Iterable[float | None]) -> float | None:
    """Return the mean over domains; None as long as one of them is missing."""
    means = list(values)
    present = [value for value in means if value is not None]
    return fmean(present) if len(present) == len(means) else None


def _paired(method: str, domain: str, good: dict[Run, Entry]) -> float | None:
    """Return the mean difference to fine-tuning over the seeds that both have, in points."""
    differences = [
        100 * (entry["accuracy"] - good[same]["accuracy"])
        for run, entry in good.items()
        if (run.domain, run.method) == (domain, method)
        and (same := Run(domain, "finetune", run.seed)) in good
    ]
    return fmean(differences) if differences else None


def names(text: str, known: Sequence[str], kind: str) -> Iterator[str]:
    """Yield the names in ``text``, or all that are known. Raises UnknownNameError."""
    for name in known if text == "all" else text.split(","):
        if name not in known:
            raise UnknownNameError(kind, name, known)
        yield name


def tell(text: str) -> None:
    """Say it to whoever waits."""
    print(text, file=sys.stderr, flush=True)


@click.command()
@click.option("--methods", default="all", help="Comma-separated.", show_default=True)
@click.option("--domains", default="all", help="Comma-separated.", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=2, help="Processes.", show_default=True)
@click.option("--out", type=Path, default=Path("build/bench/accuracy.json"), show_default=True)
@click.option("--results", "tables", type=Path, default=Path("docs/results.md"))
@click.option("--recipes", type=Path, multiple=True, help="A folder of recipes that come first.")
@click.option("--renew", is_flag=True, help="Train again what is there.")
@click.option("--redraw", is_flag=True, help="Train nothing; write the tables of what is there.")
def main(
    methods: str,
    domains: str,
    seeds: int,
    jobs: int,
    out: Path,
    tables: Path,
    recipes: tuple[Path, ...],
    renew: bool,
    redraw: bool,
) -> None:
    """Train every method on every sample domain, and write the table of what they reach."""
    runs = plan(
        names(methods, METHODS, "method"), list(names(domains, samples.SAMPLES, "domain")), seeds
    )
    folder = out.with_suffix("")
    finished = {} if renew else read(folder, runs, recipes)
    to_train = missing(runs, finished)
    if to_train and not redraw:
        train(to_train, folder, jobs=jobs, recipes=recipes, notify=tell)
    measured = document(read(folder, runs, recipes), runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, json.dumps(measured, indent=1).encode() + b"\n", overwrite=True)
    results.put(tables, results.accuracy(measured))
    for name, error in measured["failed"].items():
        tell(f"failed: {name}: {error}")


if __name__ == "__main__":
    main()
