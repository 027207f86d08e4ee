"""How int8's threshold is compared: on pictures of the choice, with the export's own code."""

from __future__ import annotations

import numpy as np

from benchmarks import ranges, results
from benchmarks.ranges import THRESHOLDS, Trained
from tests.support.cases import made
from toolchain.export.emit.calibrate import BINS, least_error
from toolchain.export.emit.calibrate import ranges as calibrated


def toy() -> Trained:
    case = made("plain")
    images = case.case.images(12, 1).numpy()
    return Trained(
        domain="plain",
        halves=case.loaded(),
        slots=case.slots,
        calibration=images[:6],
        choice=images[6:],
        labels=np.arange(6, dtype=np.int64) % 3,
    )


def test_every_threshold_is_measured_with_own_and_joined_ranges() -> None:
    document = ranges.measure([toy()])
    assert len(document["rows"]) == 1 + 2 * len(THRESHOLDS)
    assert all(row["cases"] == 6 for row in document["rows"])
    # Of a single domain the joined ranges are its own.
    rows = {(row["what"], row["error"]) for row in document["rows"] if row["what"] != "fp16"}
    errors = {name: {e for what, e in rows if what.startswith(name)} for name in THRESHOLDS}
    assert all(len(each) == 1 for each in errors.values())
    text = "\n".join(results.ranges(document))
    assert all(name in text for name in THRESHOLDS)


def test_the_export_takes_the_least_error() -> None:
    domain = toy()
    taken = calibrated(domain.halves, domain.slots, domain.calibration)
    same = calibrated(domain.halves, domain.slots, domain.calibration, least_error)
    wider = calibrated(domain.halves, domain.slots, domain.calibration, ranges.maximum)
    assert taken == same
    assert taken != wider
    assert all(taken.amax[name] <= wider.amax[name] for name in wider.amax)


def test_a_percentile_leaves_its_share_below() -> None:
    counts = np.zeros(BINS, np.int64)
    counts[[9, 99]] = 99_990, 10
    assert ranges.percentile(counts, BINS) == 10
    counts[99] = 11
    assert ranges.percentile(counts, BINS) == 100
