"""``python -m tests.support.peak_of_training METHOD [trial|search]...``: peaks in real memory.

A process of its own, since a peak of resident memory is the process's. It writes, in bytes, what
the training was said to take at most, and by how much each phase exceeded what was there before.
Further words name what comes before the training: the export for trial, and sparse's search for
what is to be updated. Their figures come first.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.support import stripes, toys
from toolchain.core.allocator import HEAP_BYTES, bound_memory
from toolchain.recipe import Recipe
from toolchain.training.adapt.attached import AttachedModel, attach
from toolchain.training.adapt.blocks import examine
from toolchain.training.adapt.sparse import candidates
from toolchain.training.data import ArraySplit, DomainData
from toolchain.training.lean import Lean
from toolchain.training.loop import contribution
from toolchain.training.loop.progress import Quiet
from toolchain.training.loop.training import train
from toolchain.training.memory.fit import need

SIDE, BATCH = 160, 16


def resident(what: str) -> int:
    """Return ``VmRSS`` (now) or ``VmHWM`` (the peak since the last reset), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{what}:"))
    return int(line.split()[1]) * 1024


class Peaks(Quiet):
    """Notes the peak of each phase."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.at = "before"
        self.next("before")

    def next(self, phase: str) -> None:
        """Begin a phase: from here on the peak counts anew."""
        self.peaks[self.at] = max(self.peaks.get(self.at, 0), resident("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")
        self.at = phase

    def phase(self, phase: str, done: int, total: int) -> None:
        if phase != self.at:
            self.next(phase)


def split(count: int, seed: int) -> ArraySplit:
    drawn = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return ArraySplit("drawn", drawn, np.arange(count, dtype=np.int64) % 3)


def data() -> DomainData:
    return DomainData(split(32, 0), split(64, 1), ("a", "b", "c"))


def attached(recipe: Recipe) -> AttachedModel:
    return attach(
        toys.backbone("plain"),
        method=recipe.method,
        classes=3,
        input_shape=(3, SIDE, SIDE),
        options=recipe.adaptor,
        lean="int8",
    )


def warmed(model: AttachedModel) -> None:
    """Run a step: libraries load a part of themselves at their first use, whatever the batch."""
    model.train()
    model(torch.zeros(2, *model.anatomy.input_shape)).sum().backward()


def training(recipe: Recipe) -> Iterator[tuple[str, int]]:
    model = attached(recipe)
    pictures = torch.zeros(BATCH, *model.anatomy.input_shape)
    # Beside the weights, one batch of pictures, and small blocks that were freed.
    yield "told_training", need(model, BATCH).total + pictures.nbytes + HEAP_BYTES
    del pictures
    warmed(model)
    peaks, before = Peaks(), resident("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        train(model, data(), recipe, out=Path(folder) / "out", progress=peaks)
    peaks.next("after")
    for phase in ("head", "steps", "test"):
        yield phase, peaks.peaks[phase] - before


def trial(recipe: Recipe) -> Iterator[tuple[str, int]]:
    model = attached(recipe)
    warmed(model)
    peaks, before = Peaks(), resident("VmRSS")
    peaks.next("trial")
    from toolchain.export import rehearsal

    yield "told_trial", rehearsal.need(model) + HEAP_BYTES
    rehearsal.rehearse(model, data(), recipe)
    peaks.next("after")
    yield "trial", peaks.peaks["trial"] - before


def search(recipe: Recipe) -> Iterator[tuple[str, int]]:
    backbone = toys.backbone("plain")
    anatomy = examine(backbone, (3, SIDE, SIDE))
    warmed(attached(replace(recipe, method="head")))
    kernels = candidates(backbone, anatomy)
    plain = AttachedModel(backbone, anatomy, "head", 3, recipe.adaptor, lean=Lean())
    yield "told_search", contribution.need(plain, kernels, contribution.BATCH) + HEAP_BYTES
    peaks, before = Peaks(), resident("VmRSS")
    peaks.next("search")
    contribution.search(backbone, anatomy, data(), recipe)
    peaks.next("after")
    yield "search", peaks.peaks["search"] - before


def measured(method: str, *before: str) -> Iterator[tuple[str, int]]:
    torch.set_num_threads(1)
    bound_memory()
    recipe = stripes.recipe(
        method=method,
        epochs=1,
        batch=BATCH,
        preprocess=replace(stripes.RECIPE.preprocess, size=SIDE, resize=SIDE),
    )
    for part in before:
        yield from {"trial": trial, "search": search}[part](recipe)
    yield from training(recipe)


if __name__ == "__main__":
    for name, size in measured(*sys.argv[1:]):
        sys.stdout.write(f"{name} {size}\n")
