"""What an export does for a target: calibrate, emit, measure.

Rules of this file: pictures come as the domain's splits. Answers are compared with the fp32 graph
that the bundle carries. Nothing is written. The ranges of an existing kit are used as they are,
unless the order says otherwise: engines were built from them. Whether a precision will do is a
choice, so it is made on pictures that neither trained the domain nor calibrated a range: on the
validation part. Without one it is made on training pictures that calibrated no range. It is never
made on test pictures.
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
from toolchain.export.emit.agreement import require_agreement
from toolchain.export.emit.kits import KitSource
from toolchain.export.emit.models import KitModels, KitOrder, Ranges, emit
from toolchain.export.graph import store
from toolchain.export.graph.halves import Halves
from toolchain.export.graph.link import link
from toolchain.pictures.preprocess import Preprocessing, normalise
from toolchain.training.data import Split as Samples
from toolchain.training.loop.holdout import Parts, RowsOfSplit

Rows = npt.NDArray[np.int64]
# Enough that one picture is a quarter of a per cent; at 224 pixels more take long.
CALIBRATION_SAMPLES, CHOICE_SAMPLES = 128, 400
_WIDEN = (
    "the kit's ranges are other domains': --recalibrate widens them by this one's pictures (build "
    "its engines anew)"
)


@dataclass(frozen=True, slots=True)
class KitDomain:
    """A domain as kits are made for it: where they come from, its split, and its pictures.

    ``split`` holds its tensors in memory; ``pictures`` are those of its training; ``preprocess``
    makes the model's input of a picture.
    """

    source: KitSource
    split: Halves
    pictures: Parts
    preprocess: Preprocessing


@dataclass(frozen=True, slots=True)
class PreparedKit:
    """Models for a target, what they cost in accuracy, and sites whose gate no sample opened.

    ``judged_by``: which pictures told what they cost, ``validation`` or ``training``.
    """

    source: KitSource
    models: KitModels
    plan: PrecisionCost
    judged_by: str
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
    For int8 the models are calibrated with training pictures unless there are ranges, which
    ``order.recalibrate`` widens where the domain needs it. Raises PrecisionError where the
    precision costs more than :data:`toolchain.export.emit.accuracy.ALLOWED`, where a file does not
    answer as the graph that was measured, and as :func:`toolchain.export.emit.models.emit`.
    """
    order.target.require(order.precision)
    int8 = order.precision == "int8"
    calibrated = int8 and (order.recalibrate or not ranges)
    unopened: tuple[str, ...] = ()
    others = int8 and not calibrated
    if calibrated:
        notify(f"{order.title}: ranges of int8")
        images, _ = prepared(calibration_part(domain.pictures), domain.preprocess)
        own = calibrate.ranges(domain.split, domain.source.slots, images)
        if ranges:
            # Widened and never narrowed: other domains still run with this kit.
            own = calibrate.joined([calibrate.Ranges(ranges, ()), own])
        ranges, unopened = own.amax, own.unopened
    models = emit(domain.split, order, rates=rates, ranges=ranges)
    notify(f"{order.title}: measure its cost")
    images, labels = prepared(choice_part(domain.pictures), domain.preprocess)
    plan = measured(domain, models, images, labels, others=others, bound=bound)
    require_agreement(domain.split, models, domain.source.slots, images)
    return PreparedKit(
        source=domain.source,
        models=models,
        plan=plan,
        judged_by="training" if domain.pictures.validation is None else "validation",
        unopened=unopened,
    )


def measured(
    domain: KitDomain,
    models: KitModels,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    *,
    others: bool = False,
    bound: float | None = None,
) -> PrecisionCost:
    """Return what the precision costs the domain, as the bundle tells it.

    ``images``: normalised, float32 ``[N, C, S, S]``; ``others``: the ranges were those of other
    domains; ``bound`` as in :func:`prepare`. Raises PrecisionError where it costs more than it may.
    """
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


def calibration_part(pictures: Parts) -> Samples:
    """Return pictures to calibrate with, spread over those that trained the domain."""
    return RowsOfSplit(pictures.data.train, _calibrating(pictures), "calibration")


def choice_part(pictures: Parts) -> Samples:
    """Return pictures to decide on a precision with, spread over the validation part.

    Without that part they are training pictures that do not calibrate. A single picture does both.
    """
    if pictures.validation is not None:
        part = pictures.validation
        return RowsOfSplit(part, _spread(np.arange(len(part)), CHOICE_SAMPLES), "choice")
    train = pictures.data.train
    calibrating = _calibrating(pictures)
    rest = np.setdiff1d(np.arange(len(train)), calibrating)
    rows = _spread(rest, CHOICE_SAMPLES) if len(rest) else calibrating
    return RowsOfSplit(train, rows, "choice")


def _calibrating(pictures: Parts) -> Rows:
    count = len(pictures.data.train)
    # Without a validation part the other half has to decide.
    most = count if pictures.validation is not None else (count + 1) // 2
    return _spread(np.arange(count), min(CALIBRATION_SAMPLES, most))


def _spread(rows: Rows, count: int) -> Rows:
    places = np.linspace(0, len(rows) - 1, min(count, len(rows)))
    return rows[np.unique(places.round().astype(np.int64))]


def prepared(
    samples: Samples, preprocess: Preprocessing
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the pictures of a split, normalised, float32 ``[N, C, S, S]``, and their labels."""
    pixels, labels = samples.batch(np.arange(len(samples)))
    return normalise(preprocess, pixels), labels
