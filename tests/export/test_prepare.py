"""Kits are made and judged on pictures that may be looked at: never on test pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from dataclasses import replace as changed

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import samples, stripes
from tests.support.cases import made
from toolchain.device.boards.target import find
from toolchain.export.emit.kits import KitSource
from toolchain.export.emit.models import KitOrder
from toolchain.export.prepare import (
    CALIBRATION_SAMPLES,
    CHOICE_SAMPLES,
    KitDomain,
    calibration_part,
    choice_part,
    prepare,
)
from toolchain.training.data import DomainData
from toolchain.training.data.splits import ArraySplit, Indices
from toolchain.training.loop.holdout import Parts, parted


@dataclass(frozen=True)
class Watched:
    """A split that notes which rows were looked at."""

    name: str
    labels: npt.NDArray[np.int64]
    rows: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Indices) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        rows = np.asarray(indices, np.int64)
        self.rows.update(rows.tolist())
        drawn = np.random.default_rng(0).integers(0, 256, (len(self), 12, 12, 3), dtype=np.uint8)
        return drawn[rows], self.labels[rows]


def watched(name: str, count: int) -> Watched:
    return Watched(name, np.arange(count, dtype=np.int64) % 3)


@pytest.mark.parametrize("validation", [0.0, 0.25])
def test_neither_calibration_nor_choice_looks_at_a_test_picture(validation: float) -> None:
    """int8, from ranges to its cost: what training held out decides, and nothing else does."""
    train, test = watched("train", 60), watched("test", 30)
    recipe = stripes.recipe(validation=validation)
    parts = parted(DomainData(train, test, stripes.CLASSES), recipe)
    toy = made("plain")
    domain = KitDomain(
        source=KitSource(
            manifest=samples.MANIFEST, backbone=samples.BACKBONE, slots=toy.slots, graph=""
        ),
        split=toy.loaded(),
        pictures=parts,
        preprocess=recipe.preprocess,
    )
    order = KitOrder(find("orin-nano-jp6.2"), "int8", ("swap",))
    result = prepare(domain, order, rates={}, ranges={}, bound=None)
    assert not test.rows
    held_out = parts.validation
    assert result.judged_by == ("training" if held_out is None else "validation")
    assert result.plan.samples == (30 if held_out is None else len(held_out))
    assert train.rows == set(range(60))


@given(count=st.integers(1, 1200), share=st.sampled_from([0, 0, 0.1, 0.5]))
def test_what_calibrates_decides_nothing(count: int, share: float) -> None:
    """Law: the parts lie apart, but for a single picture; the choice is the validation part's."""
    whole = watched("train", count)
    rows = np.arange(int(count * share))
    validation = changed(whole, name="validation", labels=whole.labels[rows]) if len(rows) else None
    parts = Parts(DomainData(whole, whole, ("a", "b", "c")), validation)
    calibrating, choosing = calibration_part(parts), choice_part(parts)
    used = [{*part.rows.tolist()} for part in (calibrating, choosing)]  # type: ignore[attr-defined]
    assert 1 <= len(calibrating) <= CALIBRATION_SAMPLES
    assert 1 <= len(choosing) <= CHOICE_SAMPLES
    if validation is None:
        assert count == 1 or not used[0] & used[1]
    else:
        assert choosing.whole is validation  # type: ignore[attr-defined]


def test_a_part_that_the_data_set_aside_decides() -> None:
    data = changed(stripes.data(), validation=stripes.split("val", 12, 7))
    parts = parted(data, stripes.recipe())
    pixels, labels = choice_part(parts).batch(range(12))
    want, names = stripes.split("val", 12, 7).batch(range(12))
    assert np.array_equal(pixels, want)
    assert np.array_equal(labels, names)
    assert isinstance(data.train, ArraySplit)
    assert len(calibration_part(parts)) == len(data.train)
