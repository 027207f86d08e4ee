"""What an export does for a target: calibrate, emit, measure.

Rules of this file: pictures come as the domain's splits. Answers are compared with the fp32 graph
that the bundle carries. Nothing is written. The ranges of an existing kit are used as they are,
unless the order says otherwise: engines were built from them. Whether a precision will do is a
choice, so it is made on training pictures that no range was calibrated with, never on test
pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolchain.bundle import PrecisionCost
from toolchain.bundle.linkage import SWAP_IF
from toolchain.core.canonical import rounded
from toolchain.core.digest import sha256
from toolchain.core.timing import Notify
from toolchain.export.emit import accuracy, calibrate
from toolchain.export.emit.kits import KitSource
from toolchain.export.emit.models import KitModels, KitOrder, Ranges, emit
from toolchain.export.graph import store
from toolchain.export.graph.halves import Halves
from toolchain.export.graph.link import link
from toolchain.pictures.preprocess import Preprocessing, normalise
from toolchain.training.data import DomainData
from toolchain.training.data import Split as Samples

# Enough that one picture is a quarter of a per cent; at 224 pixels more take long.
CALIBRATION_SAMPLES, CHOICE_SAMPLES = 128, 400
_WIDEN = (
    "the kit's ranges are other domains': --recalibrate widens them by this one's pictures (build "
    "its engines anew)"
)


@dataclass(frozen=True, slots=True)
class KitDomain:
    """A domain as kits are made for it: where they come from, its split, and its pictures.

    ``split`` holds its tensors in memory; ``preprocess`` makes the model's input of a picture.
    """

    source: KitSource
    split: Halves
    data: DomainData
    preprocess: Preprocessing


@dataclass(frozen=True, slots=True)
class PreparedKit:
    """Models for a target, what they cost in accuracy, and sites whose gate no sample opened."""

    source: KitSource
    models: KitModels
    plan: PrecisionCost
    unopened: tuple[str, ...]


def prepare(
    domain: KitDomain,
    order: KitOrder,
    *,
    rates: Mapping[str, float],
    ranges: Ranges,
    bound: float | None = None,
    notify: Notify = lambda _: None,
) -> PreparedKit:
    """Return the models that were ordered, and what their precision costs the domain.

    ``rates``: calibrated open rate per site; ``ranges``: those of the kit that is there, if any;
    ``bound``: the largest error of a logit that the user allows, relative to the logits' range;
    ``notify`` hears what begins.
    For int8 the models are calibrated with the training pictures unless there are ranges, which
    ``order.recalibrate`` widens where the domain needs it. Raises PrecisionError where the
    precision costs more than :data:`toolchain.export.emit.accuracy.ALLOWED`, and as
    :func:`toolchain.export.emit.models.emit`.
    """
    order.target.require(order.precision)
    int8 = order.precision == "int8"
    calibrated = int8 and (order.recalibrate or not ranges)
    unopened: tuple[str, ...] = ()
    others = int8 and not calibrated
    if calibrated:
        notify(f"{order.title}: ranges of int8")
        calibration, _ = parts(len(domain.data.train))
        images, _ = _pictures(domain.data.train, domain.preprocess, calibration)
        own = calibrate.ranges(domain.split, domain.source.slots, images)
        if ranges:
            # Widened and never narrowed: other domains still run with this kit.
            own = calibrate.joined([calibrate.Ranges(ranges, ()), own])
        ranges, unopened = own.amax, own.unopened
    models = emit(domain.split, order, rates=rates, ranges=ranges)
    notify(f"{order.title}: measure its cost")
    return PreparedKit(
        source=domain.source,
        models=models,
        plan=measured(domain, models, others=others, bound=bound),
        unopened=unopened,
    )


def measured(
    domain: KitDomain, models: KitModels, *, others: bool = False, bound: float | None = None
) -> PrecisionCost:
    """Return what the precision costs the domain, as the bundle tells it.

    ``others``: the ranges were those of other domains; ``bound`` as in :func:`prepare`. Raises
    PrecisionError where it costs more than it may.
    """
    _, choice = parts(len(domain.data.train))
    images, labels = _pictures(domain.data.train, domain.preprocess, choice)
    slots, order = domain.source.slots, models.order
    plain = store.to_bytes(link(domain.split, SWAP_IF))
    reference = accuracy.answers(plain, slots, images)
    # fp32 changes nothing: the same bytes give the same answers.
    same = models.emulated == plain
    got = reference if same else accuracy.answers(models.emulated, slots, images)
    cost = accuracy.measure(got, reference, labels)
    what = f"{domain.source.manifest.domain} on {order.target.name}"
    accuracy.require(order.precision, cost, what, bound=bound, fix=_WIDEN if others else "")
    return PrecisionCost(
        target=order.target.name,
        precision=order.precision,
        model=sha256(models.whole),
        samples=cost.cases,
        accuracy=rounded(cost.top1 or 0.0),
        agreement=rounded(1 - cost.classes / cost.cases),
        gate_agreement=rounded(1 - cost.gates / cost.cases),
        max_relative=rounded(cost.worst),
    )


Rows = npt.NDArray[np.int64]


def parts(count: int) -> tuple[Rows, Rows]:
    """Return which of ``count`` training pictures calibrate, and which others decide.

    Both are spread over the split. A single picture does both.
    """
    every = np.arange(count)
    calibration = _spread(every, min(CALIBRATION_SAMPLES, (count + 1) // 2))
    rest = np.setdiff1d(every, calibration)
    return calibration, _spread(rest, CHOICE_SAMPLES) if len(rest) else calibration


def _spread(rows: Rows, count: int) -> Rows:
    places = np.linspace(0, len(rows) - 1, min(count, len(rows)))
    return rows[np.unique(places.round().astype(np.int64))]


def _pictures(
    samples: Samples, preprocess: Preprocessing, rows: Rows
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return pictures of a split, normalised, and their labels."""
    pixels, labels = samples.batch(rows)
    return normalise(preprocess, pixels), labels
