"""``python -m benchmarks.samples``: what the sample domains reach, from their checkpoints.

Rules of this file: a checkpoint counts only if it was trained with the recipe as it is now. A
missing one is trained first, by the command that a user would call. It measures nothing itself.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from benchmarks import results
from toolchain.core.timing import Notify
from toolchain.recipe import find, load
from toolchain.training.adapt import checkpoint
from toolchain.training.loop.identity import recipe_digest

SAMPLES = ("cars", "digits", "chirps", "cells")


def read(folder: Path, *, training: bool, notify: Notify = lambda _: None) -> dict[str, Any]:
    """Return the figures of the sample domains whose checkpoints lie in ``folder``, by domain.

    Without ``training`` a missing domain is None.
    """
    figures_by_domain: dict[str, Any] = {}
    for domain in SAMPLES:
        if not _current(folder / domain, domain) and training:
            notify(f"training {domain}")
            _train(folder / domain, domain)
        figures_by_domain[domain] = (
            figures(folder / domain) if _current(folder / domain, domain) else None
        )
    return figures_by_domain


def figures(folder: Path) -> dict[str, float | None]:
    """Return what the checkpoint in ``folder`` says of its domain; all are shares in 0..1."""
    metrics = checkpoint.read(folder).info.metrics
    return {
        "accuracy": metrics.accuracy,
        "head_accuracy": metrics.head_accuracy,
        "executed_share": metrics.executed_share,
    }


def _current(folder: Path, domain: str) -> bool:
    if not (folder / checkpoint.INFO_FILE).is_file():
        return False
    return checkpoint.read(folder).info.recipe_digest == recipe_digest(load(find(domain)))


def _train(folder: Path, domain: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    da3 = str(Path(sys.executable).with_name("da3"))
    command = [da3, "train", "--domain", domain, "--out", str(folder), "--overwrite"]
    # Its own answer goes to stderr: stdout belongs to the benchmark.
    subprocess.run(command, check=True, stdout=sys.stderr)


@click.command()
@click.option("--domains", type=Path, default=Path("build/domains"), help="Trained samples.")
@click.option("--results", "tables", type=Path, default=Path("docs/results.md"), show_default=True)
@click.option("--train/--no-train", default=True, help="Train samples that are missing.")
def main(domains: Path, tables: Path, train: bool) -> None:
    """Write the section of the results."""
    samples = read(domains, training=train, notify=lambda text: click.echo(text, err=True))
    results.put(tables, results.samples(samples))


if __name__ == "__main__":
    main()
