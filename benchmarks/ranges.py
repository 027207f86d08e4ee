"""``python -m benchmarks.ranges``: which threshold the ranges of int8 should have.

Rules of this file: it measures through the export's own code and sees no test picture. Pictures
that trained a domain calibrate it, and pictures of its validation part judge the ranges
(:mod:`toolchain.export.prepare`). Nobody types a figure: the table goes into docs/results.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_safetensors

from benchmarks import results
from benchmarks.samples import SAMPLES
from toolchain.bundle.linkage import SWAP_IF
from toolchain.bundle.slots import Slots
from toolchain.core.arrays import Floats
from toolchain.core.timing import Notify
from toolchain.core.words import Precision
from toolchain.device.boards.target import find as find_target
from toolchain.export.emit import accuracy, calibrate
from toolchain.export.emit.accuracy import Accuracy
from toolchain.export.emit.calibrate import BINS, Counts, Threshold, joined, least_error
from toolchain.export.emit.models import KitOrder, emit
from toolchain.export.graph import store
from toolchain.export.graph.halves import Halves
from toolchain.export.graph.link import link
from toolchain.export.graph.split import in_memory, split
from toolchain.export.prepare import CALIBRATION_SAMPLES, calibration_part, choice_part, prepared
from toolchain.recipe import Recipe, find, load
from toolchain.training import data
from toolchain.training.adapt.restore import restore
from toolchain.training.loop.holdout import parted

TARGET = "orin-nano-jp6.2"
SHARE = 0.9999


def maximum(_: Counts, largest: float) -> float:
    """Return the largest magnitude: nothing is clipped."""
    return largest


def percentile(counts: Counts, largest: float) -> float:
    """Return where :data:`SHARE` of the magnitudes lie below."""
    share = counts.cumsum() / max(1, counts.sum())
    return float((np.searchsorted(share, SHARE) + 1) * largest / BINS)


THRESHOLDS: Mapping[str, Threshold] = MappingProxyType(
    {"maximum": maximum, "99.99th percentile": percentile, "least squared error": least_error}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained domain and its pictures, float32 ``[N, C, S, S]``; ``labels`` of the choice."""

    domain: str
    halves: Halves
    slots: Slots
    calibration: Floats
    choice: Floats
    labels: npt.NDArray[np.int64]


def read(folder: Path, recipe: Recipe) -> Trained:
    """Read the checkpoint in ``folder``, and the pictures of its recipe that may be looked at."""
    model, _ = restore(folder, weights=recipe.weights_path)
    packed = split(model)
    pictures = parted(data.load(recipe), recipe)
    calibration, _ = prepared(calibration_part(pictures), recipe.preprocess)
    choice, labels = prepared(choice_part(pictures), recipe.preprocess)
    return Trained(
        domain=recipe.domain,
        halves=in_memory(packed),
        slots=load_safetensors(packed.slots_data),
        calibration=calibration,
        choice=choice,
        labels=labels,
    )


def cost(trained: Trained, precision: Precision, ranges: Mapping[str, float]) -> Accuracy:
    """Return what ``precision`` with these ranges changes on the pictures of the choice."""
    order = KitOrder(find_target(TARGET), precision, ("swap",))
    models = emit(trained.halves, order, rates={}, ranges=ranges)
    plain = store.to_bytes(link(trained.halves, SWAP_IF))
    reference = accuracy.answers(plain, trained.slots, trained.choice)
    got = accuracy.answers(models.emulated, trained.slots, trained.choice)
    return accuracy.measure(got, reference, trained.labels)


def rows(domains: Sequence[Trained], notify: Notify) -> Iterator[dict[str, Any]]:
    """Yield a row for fp16, and for each threshold with the domain's own and the joined ranges."""
    for domain in domains:
        yield _row("fp16", domain, cost(domain, "fp16", {}))
    for name, threshold in THRESHOLDS.items():
        notify(name)
        own = [calibrate.ranges(d.halves, d.slots, d.calibration, threshold) for d in domains]
        every = [joined(own)] * len(own)
        for kind, ranges in (("own", own), ("joined", every)):
            for domain, one in zip(domains, ranges, strict=True):
                yield _row(f"{name}, {kind}", domain, cost(domain, "int8", one.amax))


def _row(what: str, domain: Trained, got: Accuracy) -> dict[str, Any]:
    return {
        "what": what,
        "domain": domain.domain,
        "cases": got.cases,
        "class": got.classes / got.cases,
        "gates": got.gates / got.cases,
        "error": got.error,
    }


def measure(domains: Iterable[Trained], notify: Notify = lambda _: None) -> dict[str, Any]:
    """Return the document that the section of the results is made from."""
    return {"calibration": CALIBRATION_SAMPLES, "rows": [*rows(tuple(domains), notify)]}


@click.command()
@click.option("--domains", type=Path, default=Path("build/domains"), help="Trained samples.")
@click.option("--results", "tables", type=Path, default=Path("docs/results.md"), show_default=True)
def main(domains: Path, tables: Path) -> None:
    """Write the section of the results."""

    def notify(text: str) -> None:
        click.echo(text, err=True)

    trained = [read(domains / name, load(find(name))) for name in SAMPLES]
    results.put(tables, results.ranges(measure(trained, notify)))


if __name__ == "__main__":
    main()
