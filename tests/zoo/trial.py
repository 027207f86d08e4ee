"""Take one model through attach, split, link and parity, and tell what happened.

Rules of this file: the toolchain's own functions, called as an export calls them; what they refuse
becomes the row's text, anything else is a fault and is raised.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load as load_safetensors

from tests.zoo.catalogue import Entry
from tests.zoo.prepare import (
    CLASSES,
    COUNT,
    SEED,
    enliven,
    pictures,
    preprocessing,
    scramble,
    tensor,
)
from toolchain.bundle.golden import FORCE, Golden, shifted
from toolchain.bundle.linkage import LINKAGES, STATIC_ROWS, Linkage
from toolchain.core.errors import Da3Error
from toolchain.export.check import candidates
from toolchain.export.check.parity import Candidate, compare
from toolchain.export.check.reference import choose, join, observe
from toolchain.export.graph import store
from toolchain.export.graph.link import link
from toolchain.export.graph.names import SLOTS_FILE, WEIGHTS_FILE
from toolchain.export.graph.split import PackedHalves, split
from toolchain.training.adapt.attached import AttachedModel, attach, weights_digest
from toolchain.training.data.splits import ArraySplit


@dataclass(slots=True)
class Row:
    """What the table says of one model; ``error`` is relative to the range of the logits.

    ``forced``: cases in which a gate had to be forced into a state that no picture reached.
    ``share``: of the backbone's multiply-adds, those of blocks that can take a gate.
    ``alone``: the largest difference, relative too, between a sample alone and in a batch.
    ``seconds`` by step; ``refused``: the text of the toolchain's error, empty when all passed.
    """

    entry: Entry
    blocks: int = 0
    gateable: int = 0
    share: float = 0.0
    gated: int = 0
    forced: int = 0
    error: float = 0.0
    alone: float = 0.0
    refused: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time one step."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - started

    @property
    def expected(self) -> bool:
        """Whether the model did what its entry says."""
        reason = self.entry.refused
        return reason in self.refused if reason else not self.refused


def run(entry: Entry) -> Row:
    """Run one model; never raises for what the toolchain refuses with a message."""
    row = Row(entry)
    try:
        with row.step("attach"):
            model = _attached(entry, row)
        with row.step("split"):
            halves = split(model)
        with row.step("reference"):
            cases = _cases(model, entry, row)
        with row.step("alone"):
            row.alone = _alone(model, entry)
        with row.step("parity"), tempfile.TemporaryDirectory(prefix="da3-zoo-") as folder:
            _check(halves, cases, model, entry, row, Path(folder))
    except Da3Error as err:
        row.refused = str(err)
    return row


def _attached(entry: Entry, row: Row) -> AttachedModel:
    torch.manual_seed(SEED)
    images = tensor(pictures(entry.size))
    net = enliven(entry.build(), images)
    shape = (3, entry.size, entry.size)
    arguments = {"placement": "all", **entry.options}
    model = attach(net, classes=CLASSES, input_shape=shape, seed=SEED, **arguments)
    before = weights_digest(model)
    scramble(model, images)
    assert weights_digest(model) == before, "the backbone changed"
    row.blocks = len(model.anatomy.sites)
    able = [site for site in model.anatomy.sites if site.gateable]
    row.gateable = len(able)
    row.share = sum(site.flops for site in able) / model.anatomy.flops
    return model


def _cases(model: AttachedModel, entry: Entry, row: Row) -> Golden:
    """Pictures that bring each gate into both states; what they do not reach is forced."""
    labels = np.zeros(COUNT, np.int64)
    split = ArraySplit(entry.name, pictures(entry.size), labels)
    chosen = choose(model, split, preprocessing(entry.size), count=8)
    states = chosen.golden.states()
    assert all(s.open and s.closed for s in states.values()), states
    row.gated = len(states)
    row.forced = int((~chosen.golden.natural).sum())
    return join([chosen.golden, chosen.others])


@torch.no_grad()
def _alone(model: AttachedModel, entry: Entry) -> float:
    """Law: the logits of a sample are the same alone and in a batch."""
    images = tensor(pictures(entry.size, 48)[: entry.batch])
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    return float((together - alone).abs().max() / (together.max() - together.min()))


def _check(
    halves: PackedHalves, cases: Golden, model: AttachedModel, entry: Entry, row: Row, folder: Path
) -> None:
    (folder / WEIGHTS_FILE).write_bytes(halves.weights_data)
    (folder / SLOTS_FILE).write_bytes(halves.slots_data)
    slots = load_safetensors(halves.slots_data)
    subjects = [
        _subject(halves, linkage, {}, folder, slots)
        for linkage in LINKAGES
        if not linkage.is_segmented
    ]
    subjects.append(candidates.staged(halves, folder))
    subjects = [_sized(candidate, entry.batch) for candidate in subjects]
    how = preprocessing(entry.size)
    report = compare(cases, subjects, slots, how)
    row.error = max(c.max_relative for c in report.comparisons)
    report.require()
    row.error = max(row.error, _resolved(halves, model, entry, folder))


def _sized(candidate: Candidate, batch: int) -> Candidate:
    return replace(candidate, batches=tuple(b if b == 1 else batch for b in candidate.batches))


def _subject(
    halves: PackedHalves,
    linkage: Linkage,
    rates: dict[str, float],
    folder: Path,
    slots: dict[str, np.ndarray],
) -> Candidate:
    graph = store.to_bytes(link(halves, linkage, rates=rates))
    path = folder / linkage.file
    path.write_bytes(graph)
    store.check(path)
    twin = candidates.tapped(halves, linkage, rates, folder, slots)
    return candidates.shipped(linkage, graph, folder, slots, tapped=twin)


def _resolved(halves: PackedHalves, model: AttachedModel, entry: Entry, folder: Path) -> float:
    """Static gates that calibration shows constant: every second one open, the others closed."""
    gated = [site for site in model.sites if f"{site}.gate.bias" in halves.slots]
    if not gated:
        return 0.0
    opened = np.arange(len(gated)) % 2 == 0
    shift = np.where(opened, np.float32(FORCE), np.float32(-FORCE))
    how = preprocessing(entry.size)
    cases = observe(model, how, pictures(entry.size)[: entry.batch], shift)
    cases = replace(cases, shifts=np.zeros_like(cases.shifts))  # the shift is in the slots
    rates = dict(zip(gated, opened.astype(float), strict=True))
    slots = shifted(load_safetensors(halves.slots_data), gated, shift)
    candidate = _sized(_subject(halves, STATIC_ROWS, rates, folder, slots), entry.batch)
    report = compare(cases, [candidate], slots, how).require()
    return max(c.max_relative for c in report.comparisons)
