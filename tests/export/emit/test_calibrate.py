"""Ranges: what counts, which threshold is chosen, and that they are the same every time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from tests.support.cases import CASES, made
from tests.support.small_models import linked
from toolchain.bundle.linkage import SWAP_IF
from toolchain.core.canonical import rounded
from toolchain.core.errors import PrecisionError
from toolchain.device.runtime.ort.session import Session
from toolchain.export.emit import calibrate
from toolchain.export.emit.calibrate import BINS, Ranges, joined, ranges
from toolchain.export.emit.int8 import LEVELS, frozen
from toolchain.export.emit.owners import walk
from toolchain.export.graph import store
from toolchain.export.graph.halves import Halves, recompose
from toolchain.export.graph.link import link


def pictures(name: str, count: int = 24, seed: int = 1) -> np.ndarray[Any, Any]:
    images: np.ndarray[Any, Any] = made(name).case.images(count, seed).numpy()
    return images


@cache
def found(name: str) -> Ranges:
    return ranges(made(name).loaded(), made(name).slots, pictures(name))


def largest(halves: Halves, slots: Mapping[str, Any], images: np.ndarray[Any, Any]) -> Ranges:
    """The largest magnitudes, before a threshold is chosen."""
    dense = calibrate._Dense(halves, slots)
    peaks, opened = dense.largest(images)
    unopened = tuple(gate.partition(".")[2] for gate in sorted(dense.gates - opened))
    return Ranges({name: rounded(peaks[name], 4) for name in sorted(peaks)}, unopened)


def forced(name: str, site: str, shift: float) -> dict[str, np.ndarray[Any, Any]]:
    """The domain's tensors with one gate forced."""
    slots = dict(made(name).slots)
    key = f"{site}.gate.bias"
    return {**slots, key: slots[key] + np.float32(shift)}


@pytest.mark.parametrize("name", CASES)
def test_every_activation_of_a_frozen_product_has_a_range(name: str) -> None:
    read = {n.inputs[f.activation] for _, n in walk(linked(made(name))) if (f := frozen(n))}
    amax = found(name).amax
    assert list(amax) == sorted({v.name or "" for v in read if v is not None})
    assert all(0 < value < np.inf for value in amax.values())


def test_only_rows_whose_gate_is_open_count_inside_a_block() -> None:
    halves, slots, images = made("plain").loaded(), made("plain").slots, pictures("plain")
    guards = calibrate._guards(halves)
    inside = {n for n, gates in guards.items() if gates == frozenset({"gate.block02"})}
    assert inside
    logits = Session(store.to_bytes(recompose(halves))).run({"image": images})["gate.block02"]
    opened = logits.reshape(-1) >= 0
    assert 0 < opened.sum() < len(images)
    everything = largest(halves, slots, images)
    only = largest(halves, slots, images[opened])
    assert {n: everything.amax[n] for n in inside} == {n: only.amax[n] for n in inside}
    shut = largest(halves, slots, images[~opened])
    assert "block02" in shut.unopened
    assert "block02" not in everything.unopened
    assert any(shut.amax[n] != only.amax[n] for n in inside)


def test_a_block_that_no_sample_opens_sees_all_rows_and_is_named() -> None:
    halves, images = made("plain").loaded(), pictures("plain")
    shut = largest(halves, forced("plain", "block02", -1e4), images)
    opened = largest(halves, forced("plain", "block02", 1e4), images)
    assert "block02" in shut.unopened
    assert "block02" not in opened.unopened
    inside = [n for n, g in calibrate._guards(halves).items() if g == frozenset({"gate.block02"})]
    assert {n: shut.amax[n] for n in inside} == {n: opened.amax[n] for n in inside}


def test_a_range_is_the_largest_magnitude_that_was_seen() -> None:
    """Against a session of its own, on values that no gate guards."""
    halves, images = made("plain").loaded(), pictures("plain")
    amax = largest(halves, made("plain").slots, images).amax
    assert amax["image"] == pytest.approx(np.abs(images).max(), rel=1e-3)
    guards = calibrate._guards(halves)
    session = Session(store.to_bytes(link(halves, SWAP_IF, taps=True)))
    runs = [
        session.run({"image": images[i : i + 1], **made("plain").slots}) for i in range(len(images))
    ]
    checked = 0
    for name in session.outputs:
        if name in amax and guards[name] is None:
            peak = max(np.abs(run[name]).max() for run in runs)
            assert amax[name] == pytest.approx(peak, rel=1e-3)
            checked += 1
    assert checked


def test_the_same_again_and_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    first = found("plain")
    monkeypatch.setattr(calibrate, "BUDGET_BYTES", 1)
    one_by_one = ranges(made("plain").loaded(), made("plain").slots, pictures("plain"))
    assert one_by_one == first
    assert list(first.amax) == sorted(first.amax)


def test_a_threshold_never_goes_beyond_the_maximum() -> None:
    peaks = largest(made("plain").loaded(), made("plain").slots, pictures("plain")).amax
    amax = found("plain").amax
    assert all(amax[name] <= peaks[name] * 1.0001 for name in peaks)
    assert amax != peaks


def test_tensors_of_another_domain_give_other_ranges() -> None:
    slots = {k: v * 3 if k.endswith("expand.weight") else v for k, v in made("plain").slots.items()}
    other = ranges(made("plain").loaded(), slots, pictures("plain"))
    assert other.amax != found("plain").amax
    assert other.amax["image"] == found("plain").amax["image"]


def _brute(counts: np.ndarray[Any, Any], largest: float) -> float:
    """The threshold of least error, by trying every one with a loop."""
    width = largest / BINS
    centres = (np.arange(BINS) + 0.5) * width
    costs = []
    for k in range(1, BINS + 1):
        limit, mask = k * width, np.arange(BINS) < k
        costs.append(
            counts[mask].sum() * (limit / LEVELS) ** 2 / 12
            + (counts[~mask] * (centres[~mask] - limit) ** 2).sum()
        )
    return float((int(np.argmin(costs)) + 1) * width)


@drawn(st.lists(st.integers(0, 1000), min_size=8, max_size=8), st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_the_threshold_has_the_least_error(steps: list[int], largest: float) -> None:
    counts = np.repeat(np.array([*steps[:-1], steps[-1] + 1]), BINS // 8)
    got, want = calibrate.least_error(counts, largest), _brute(counts, largest)
    assert got == pytest.approx(want, rel=2 / BINS)
    assert 0 < got <= largest * (1 + 1e-9)


def test_an_outlier_is_clipped_and_an_even_spread_is_not() -> None:
    even = np.full(BINS, 100)
    assert calibrate.least_error(even, 8.0) == pytest.approx(8.0, rel=0.02)
    outlier = np.zeros(BINS, np.int64)
    outlier[:64], outlier[-1] = 10_000_000, 1
    assert calibrate.least_error(outlier, 8.0) < 4.0


NAMES = st.sampled_from(["a", "b", "c"])


@drawn(
    st.lists(
        st.tuples(st.fixed_dictionaries({n: st.floats(0.1, 9) for n in "ab"}), st.sets(NAMES)),
        min_size=1,
        max_size=4,
    )
)
def test_joined_ranges_hold_for_each(given: list[tuple[dict[str, float], set[str]]]) -> None:
    each = [Ranges(amax, tuple(sorted(sites))) for amax, sites in given]
    both = joined(each)
    assert both == joined(reversed(each)) == joined([both, *each])
    assert all(both.amax[n] == max(item.amax[n] for item in each) for n in "ab")
    assert all(set(both.unopened) <= set(item.unopened) for item in each)


def test_ranges_of_different_backbones_are_not_joined() -> None:
    with pytest.raises(PrecisionError, match="one backbone, got 2"):
        joined([Ranges({"a": 1.0}, ()), Ranges({"b": 1.0}, ())])
    with pytest.raises(PrecisionError, match="got 0"):
        joined([])


def test_hostile_no_pictures() -> None:
    with pytest.raises(PrecisionError, match="expected pictures"):
        ranges(made("plain").loaded(), made("plain").slots, pictures("plain")[:0])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_hostile_pictures_that_are_not_finite(poison: float) -> None:
    images = pictures("plain").copy()
    images[3, 0, 0, 0] = poison
    with pytest.raises(PrecisionError, match=r"'image' is not finite"):
        ranges(made("plain").loaded(), made("plain").slots, images)


def test_hostile_pictures_of_nothing() -> None:
    with pytest.raises(PrecisionError, match=r"'image' is always zero.*\n.*more and other"):
        ranges(made("plain").loaded(), made("plain").slots, pictures("plain") * 0)


def test_halves_that_only_refer_to_their_tensors_are_refused() -> None:
    with pytest.raises(PrecisionError, match="got a reference"):
        ranges(made("plain").halves, made("plain").slots, pictures("plain"))
