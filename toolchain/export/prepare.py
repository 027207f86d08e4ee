"""What an export does for a target: calibrate, emit, measure.

Rules of this file: pictures come as the domain's splits, answers are compared with the fp32 graph
that the bundle carries; nothing is written. A kit that is there already is measured as it is, never
made anew in silence: engines were built from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.bundle import Plan
from toolchain.bundle.linkage import SWAP_IF
from toolchain.core.digest import sha256
from toolchain.export.emit import accuracy, calibrate
from toolchain.export.emit.models import Emitted, Wish, emit
from toolchain.export.graph import store
from toolchain.export.graph.link import link
from toolchain.export.graph.split import Split
from toolchain.pictures.preprocess import Preprocessing, normalise
from toolchain.training.data import DomainData
from toolchain.training.data import Split as Samples

# Enough that one picture is a quarter of a per cent; at 224 pixels more take long.
CALIBRATION_SAMPLES, TEST_SAMPLES = 128, 400
_WIDEN = (
    "the kit's ranges are other domains': --recalibrate widens them by this one's pictures (build "
    "its engines anew); or choose fp16"
)
Slots = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as this room needs it: tensors in memory, pictures, and how they are prepared."""

    name: str
    split: Split
    slots: Slots
    data: DomainData
    preprocess: Preprocessing


@dataclass(frozen=True, slots=True)
class Prepared:
    """Models for a target, what they cost in accuracy, and sites whose gate no sample opened."""

    emitted: Emitted
    plan: Plan
    unopened: tuple[str, ...]


def prepare(domain: Domain, wish: Wish, *, recalibrate: bool = False) -> Prepared:
    """Return the models that were wished for, and what their precision costs the domain.

    For int8 they are calibrated with the training pictures, unless ``wish.ranges`` has ranges;
    with ``recalibrate`` these are widened where the domain needs it. Raises PrecisionError where
    the precision costs more than :data:`toolchain.export.emit.accuracy.ALLOWED`, and as
    :func:`toolchain.export.emit.models.emit`.
    """
    unopened: tuple[str, ...] = ()
    given = wish
    wish.target.require(wish.precision)
    if wish.precision == "int8" and (recalibrate or not wish.ranges):
        images, _ = _pictures(domain.data.train, domain.preprocess, CALIBRATION_SAMPLES)
        found = calibrate.ranges(domain.split, domain.slots, images)
        if wish.ranges:
            found = calibrate.joined([calibrate.Ranges(wish.ranges, ()), found])
        wish, unopened = replace(wish, ranges=found.amax), found.unopened
    emitted = emit(domain.split, wish)
    kept = wish.precision == "int8" and not recalibrate and bool(given.ranges)
    plan = measured(domain, wish, emitted.whole, emitted.emulated, kept=kept)
    return Prepared(emitted, plan, unopened)


def measured(
    domain: Domain, wish: Wish, whole: bytes, emulated: bytes, *, kept: bool = False
) -> Plan:
    """Return what the precision costs the domain on its test pictures, as the bundle tells it.

    ``whole``: the kit's ``swap`` model; ``emulated``: what runs in its place, the same bytes where
    the precision stands in the graph; ``kept``: ranges were those of other domains. Raises
    PrecisionError where it costs more than it may.
    """
    images, labels = _pictures(domain.data.test, domain.preprocess, TEST_SAMPLES)
    plain = store.to_bytes(link(domain.split, SWAP_IF))
    wanted = accuracy.answers(plain, domain.slots, images)
    got = wanted if emulated == plain else accuracy.answers(emulated, domain.slots, images)
    found = accuracy.measure(got, wanted, labels)
    what = f"{domain.name} on {wish.target.name}"
    accuracy.require(wish.precision, found, what, fix=_WIDEN if kept else "")
    return Plan(
        target=wish.target.name,
        precision=wish.precision,
        model=sha256(whole),
        samples=found.cases,
        accuracy=_rounded(found.top1 or 0.0),
        agreement=_rounded(1 - found.classes_share),
        gate_agreement=_rounded(1 - found.gates_share),
        max_relative=_rounded(max(found.error, found.flipped_error)),
    )


def _pictures(
    samples: Samples, preprocess: Preprocessing, count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return up to ``count`` pictures spread over a split, normalised, and their labels."""
    places = np.linspace(0, len(samples) - 1, min(count, len(samples)))
    pixels, labels = samples.batch(np.unique(places.round().astype(int)))
    return normalise(preprocess, pixels), labels


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
