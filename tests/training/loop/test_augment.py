"""Augmentation: a function of (seed, epoch, index), and only what was asked for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.training.loop.augment import augmented, draw

BOTH = ("flip", "shift")


def pictures(count: int, side: int = 16, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@settings(deadline=None)
@given(
    seed=st.integers(0, 99),
    epoch=st.integers(0, 99),
    rows=st.lists(st.integers(0, 19), min_size=1, max_size=6),
)
def test_a_picture_is_changed_by_its_index_not_by_its_batch(
    seed: int, epoch: int, rows: list[int]
) -> None:
    """Law: the same (seed, epoch, index) gives the same picture in any batch."""
    all_pictures, drawn = pictures(20), draw(seed, epoch, 20, BOTH)
    whole = augmented(all_pictures, np.arange(20), drawn)
    some = np.array(rows)
    assert np.array_equal(augmented(all_pictures[some], some, drawn), whole[some])


@given(seed=st.integers(0, 999), count=st.integers(1, 50))
def test_an_epoch_visits_every_picture_once(seed: int, count: int) -> None:
    """Law: the order is a permutation, the same for the same (seed, epoch)."""
    order = draw(seed, 3, count, ()).order
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, draw(seed, 3, count, BOTH).order)


def test_epochs_and_seeds_differ() -> None:
    orders = {draw(s, e, 50, ()).order.tobytes() for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_nothing_asked_nothing_changed() -> None:
    given_pictures = pictures(8)
    assert np.array_equal(
        augmented(given_pictures, np.arange(8), draw(0, 0, 8, ())), given_pictures
    )


def test_a_flip_mirrors_about_half_of_the_pictures() -> None:
    given_pictures, drawn = pictures(200), draw(0, 0, 200, ("flip",))
    found = augmented(given_pictures, np.arange(200), drawn)
    for before, after, flipped in zip(given_pictures, found, drawn.flip, strict=True):
        assert np.array_equal(after, before[:, ::-1] if flipped else before)
    assert 70 < drawn.flip.sum() < 130


@pytest.mark.parametrize("side", [8, 16, 33])
def test_a_shift_moves_by_an_eighth_at_most_and_repeats_the_border(side: int) -> None:
    given_pictures, drawn = pictures(100, side), draw(0, 0, 100, ("shift",))
    found = augmented(given_pictures, np.arange(100), drawn)
    reach = side // 8
    seen = set()
    for before, after, move in zip(given_pictures, found, drawn.shift, strict=True):
        down, right = np.rint(move * reach).astype(int)
        padded = np.pad(before, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
        top, left = reach + down, reach + right
        assert np.array_equal(after, padded[top : top + side, left : left + side])
        seen.add((down, right))
    assert {abs(down) for down, _ in seen} == set(range(reach + 1))
