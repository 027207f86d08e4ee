"""Find the range of every activation that is quantised, from samples of a domain.

Rules of this file: it runs the dense graph with onnxruntime on the CPU, in batches whose outputs
take at most ``BUDGET_BYTES``. It runs it twice: once for the largest magnitude and once for the
histogram. It changes no graph. The same halves, slots and pictures give the same ranges. The ranges
go into graphs whose bytes are hashed, so they are rounded to four digits. That is coarser than what
differs between processors.

Inside a gated block only the rows count whose gate is open, because only they run there. If no
sample opens a gate, its block has no rows. Then all rows count, as if the gate were forced open,
and ``Ranges.unopened`` names the site.

Which threshold: the one with the least squared error (:func:`least_error`) unless the caller names
another. ``python -m benchmarks.ranges`` measures it beside the maximum and the 99.99th percentile,
for the ranges of each domain and for those of all together, on pictures of the validation parts;
docs/results.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.core.arrays import Floats
from toolchain.core.canonical import rounded
from toolchain.core.errors import PrecisionError
from toolchain.device.runtime.ort.session import Session
from toolchain.export.emit.int8 import LEVELS, frozen
from toolchain.export.emit.owners import loaded
from toolchain.export.graph import store
from toolchain.export.graph.halves import Halves, recompose
from toolchain.export.graph.names import IMAGE
from toolchain.export.graph.regions import Regions

Counts = npt.NDArray[np.int64]
Threshold = Callable[[Counts, float], float]
"""From the histogram, int64 ``[BINS]``, and the largest magnitude to the end of the range."""

BINS = 2048
BUDGET_BYTES = 256 << 20
LARGEST_BATCH = 32


@dataclass(frozen=True, slots=True)
class Ranges:
    """What calibration found.

    ``amax``: by the activation's name, sorted, the magnitude that becomes the largest int8.
    ``unopened``: sites whose gate no sample opened, whose blocks saw all rows.
    """

    amax: Mapping[str, float]
    unopened: tuple[str, ...]


def least_error(counts: Counts, largest: float) -> float:
    """Return the threshold whose squared error of rounding and clipping together is least.

    Rounding costs a twelfth of the squared step per value; clipping costs the squared distance.
    These are the two terms of Banner, Nahshan and Soudry, "Post training 4-bit quantization of
    convolutional networks for rapid-deployment" (NeurIPS 2019), taken over the histogram instead of
    a fitted density.
    """
    width = largest / BINS
    centres = (np.arange(BINS) + 0.5) * width
    limits = np.arange(1, BINS + 1) * width
    # sum(count * (centre - limit)^2) over the bins beyond each limit, without a loop: expand the
    # square, and take the sums of count * centre^power for powers 0, 1 and 2.
    beyond = [_suffix(counts * centres**power) for power in range(3)]
    clipped = beyond[2] - 2 * limits * beyond[1] + limits**2 * beyond[0]
    rounded = (limits / LEVELS) ** 2 / 12 * (counts.sum() - beyond[0])
    return float(limits[np.argmin(clipped + rounded)])


def ranges(
    halves: Halves,
    slots: Mapping[str, npt.NDArray[Any]],
    images: Floats,
    threshold: Threshold = least_error,
) -> Ranges:
    """Return the ranges of one domain over ``images``, float32 ``[N, C, H, W]``, normalised.

    ``halves`` with their tensors in memory; ``slots``: the domain's tensors by name. Raises
    PrecisionError for no pictures, and for an activation that is not finite or always zero.
    """
    if not len(images):
        raise PrecisionError("expected pictures to calibrate with, got none", fix="give some")
    dense = _Dense(halves, slots)
    largest, opened = dense.largest(images)
    _require(largest)
    counts = dense.histograms(images, largest, opened)
    amax = {name: rounded(threshold(counts[name], largest[name]), 4) for name in sorted(largest)}
    unopened = tuple(gate.partition(".")[2] for gate in sorted(dense.gates - opened))
    return Ranges(amax=amax, unopened=unopened)


def joined(each: Iterable[Ranges]) -> Ranges:
    """Return ranges that hold for several domains of one backbone: the largest range of each value.

    A site is unopened if no domain opens it. Raises PrecisionError for ranges of
    different backbones.
    """
    domains = list(each)
    names = {tuple(sorted(item.amax)) for item in domains}
    if len(names) != 1:
        raise PrecisionError(
            f"expected ranges of one backbone, got {len(names)} sets of activations",
            fix="calibrate every domain on the same backbone",
        )
    amax = {name: max(item.amax[name] for item in domains) for name in names.pop()}
    unopened = set(domains[0].unopened).intersection(*(item.unopened for item in domains))
    return Ranges(amax, tuple(sorted(unopened)))


class _Dense:
    """The dense graph with every activation of a frozen product as an output.

    ``guards``: for each activation the gates whose rows count, None for all rows.
    """

    def __init__(self, halves: Halves, slots: Mapping[str, npt.NDArray[Any]]) -> None:
        self.guards = _guards(halves)
        self.gates = {g for gates in self.guards.values() if gates is not None for g in gates}
        model = loaded(_with_slots(recompose(halves), slots))
        outputs = {value.name for value in model.graph.outputs}
        for value in [v for node in model.graph for v in node.outputs]:
            if value.name in self.guards and value.name not in outputs:
                model.graph.outputs.append(value)
        self._session = Session(store.to_bytes(model), what="dense graph")
        read = self.guards.keys() | self.gates
        self._outputs = [name for name in self._session.outputs if name in read]

    def largest(self, images: Floats) -> tuple[dict[str, float], set[str]]:
        """Return the largest magnitude by activation, and the gates that opened at all."""
        # Whether any picture opens a gate is known only after the last one. So both are collected.
        inside = dict.fromkeys(self.guards, 0.0)
        anywhere = dict.fromkeys(self.guards, 0.0)
        opened: set[str] = set()
        for values in self._batches(images):
            opened |= {gate for gate in self.gates if (values[gate] >= 0).any()}
            for name in self.guards:
                peak = np.abs(values[name]).max(axis=tuple(range(1, values[name].ndim)))
                anywhere[name] = _larger(anywhere[name], peak)
                inside[name] = _larger(inside[name], peak[self._rows(name, values, self.gates)])
        return {
            name: inside[name] if self._counts(name, opened) else anywhere[name] for name in inside
        }, opened

    def histograms(
        self, images: Floats, largest: Mapping[str, float], opened: set[str]
    ) -> dict[str, Counts]:
        """Return counts of the magnitudes above zero, int64 ``[BINS]`` from 0 to the largest.

        Zeros are exact at any scale and do not count.
        """
        counts = {name: np.zeros(BINS, np.int64) for name in self.guards}
        for values in self._batches(images):
            for name, peak in largest.items():
                rows = np.abs(values[name][self._rows(name, values, opened)])
                counts[name] += np.histogram(rows[rows > 0], BINS, (0.0, peak))[0]
        return counts

    def _counts(self, name: str, opened: set[str]) -> bool:
        gates = self.guards[name]
        return gates is None or bool(gates & opened)

    def _rows(
        self, name: str, values: Mapping[str, Floats], opened: set[str]
    ) -> npt.NDArray[np.bool_]:
        """Which rows count: those that some gate before the activation lets in."""
        gates = self.guards[name]
        # All rows where nothing guards the value, or where no gate before it ever opened.
        rows = np.full(len(values[name]), gates is None or not gates & opened)
        for gate in gates or ():
            rows |= values[gate].reshape(-1) >= 0
        return rows

    def _batches(self, images: Floats) -> Iterator[dict[str, Floats]]:
        size, start = 1, 0
        while start < len(images):
            part = images[start : start + size]
            start += size
            outputs = self._session.run({IMAGE: part}, self._outputs)
            yield {**outputs, IMAGE: part}
            # The first batch is one picture. It shows how many bytes the outputs of one take.
            room = BUDGET_BYTES // max(1, sum(v.nbytes for v in outputs.values()) // len(part))
            size = min(LARGEST_BATCH, max(1, room))


def _guards(halves: Halves) -> dict[str, frozenset[str] | None]:
    """By activation of a frozen product: the gates of the blocks that read it, None for others."""
    regions = Regions(halves)
    gate_of: dict[int, str] = {}
    for cut in halves.cuts:
        # Regions hand out each node once. So walk as the linker does, and drop what is not a block:
        # what is left for ``block`` is the block's own.
        regions.glue(cut.input)
        if not regions.is_adapted(cut):
            regions.passage(cut)
            continue
        regions.side(cut)
        _, block = regions.block(cut)
        if regions.is_gated(cut):
            gate_of.update((id(node), cut.gate) for node in block)
    readers: dict[str, set[str | None]] = {}
    for node in halves.backbone.graph:
        operands = frozen(node)
        value = None if operands is None else node.inputs[operands.activation]
        if value is not None and value.name:
            readers.setdefault(value.name, set()).add(gate_of.get(id(node)))
    return {
        # One reader outside of every gated block runs for all rows.
        name: None if None in gates else frozenset(g for g in gates if g)
        for name, gates in sorted(readers.items())
    }


def _with_slots(model: ir.Model, slots: Mapping[str, npt.NDArray[Any]]) -> ir.Model:
    for name, value in model.graph.initializers.items():
        if name in slots:
            value.const_value = ir.Tensor(np.asarray(slots[name]), name=name)
    return model


def _larger(so_far: float, peaks: Floats) -> float:
    """Return the larger one. NaN stays NaN, so that :func:`_require` finds it at the end."""
    return float(np.max(peaks, initial=so_far))


def _require(largest: Mapping[str, float]) -> None:
    for name, value in largest.items():
        if not 0 < value < float("inf"):
            what = "is always zero" if value == 0 else "is not finite"
            raise PrecisionError(
                f"activation {name!r} {what} over the samples, expected a range",
                fix="calibrate with more and other pictures, or build in fp16",
            )


def _suffix(terms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """For each bin the sum over the bins after it."""
    total: npt.NDArray[np.float64] = terms[::-1].cumsum()[::-1] - terms
    return total
