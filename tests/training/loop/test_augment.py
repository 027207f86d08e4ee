"""Augmentation: a function of (seed, epoch, index), and only what was asked for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.recipe.spec import AUGMENTS
from toolchain.training.loop.augment import Epoch, augmented, draw

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
    all_pictures, drawn = pictures(20), draw(seed, epoch, 20, AUGMENTS)
    whole = augmented(all_pictures, np.arange(20), drawn)
    some = np.array(rows)
    assert np.array_equal(augmented(all_pictures[some], some, drawn), whole[some])


@given(seed=st.integers(0, 999), count=st.integers(1, 50))
def test_an_epoch_visits_every_picture_once(seed: int, count: int) -> None:
    """Law: the order is a permutation, the same for the same (seed, epoch)."""
    order = draw(seed, 3, count, ()).order
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, draw(seed, 3, count, AUGMENTS).order)


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
    outputs = augmented(given_pictures, np.arange(200), drawn)
    for before, after, flipped in zip(given_pictures, outputs, drawn.flip, strict=True):
        assert np.array_equal(after, before[:, ::-1] if flipped else before)
    assert 70 < drawn.flip.sum() < 130


@pytest.mark.parametrize(("side", "reach"), [(8, 1), (16, 2), (32, 4), (33, 4), (224, 4)])
def test_a_shift_moves_by_a_few_pixels_and_reflects_the_border(side: int, reach: int) -> None:
    given_pictures, drawn = pictures(60, side), draw(0, 0, 60, ("shift",))
    outputs = augmented(given_pictures, np.arange(60), drawn)
    moves = set()
    for before, after, move in zip(given_pictures, outputs, drawn.shift, strict=True):
        down, right = np.rint(move * reach).astype(int)
        padded = np.pad(before, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
        top, left = reach + down, reach + right
        assert np.array_equal(after, padded[top : top + side, left : left + side])
        moves |= {abs(down), abs(right)}
    assert moves == set(range(reach + 1))


def one(side: int, **draws: float) -> Epoch:
    """An epoch of one picture with the draws that are named."""
    zero = {name: np.array([draws.get(name, 0.0)]) for name in ("zoom", "turn", "brightness")}
    shift = np.array([[draws.get("down", 0.0), draws.get("right", 0.0)]])
    return Epoch(np.array([0]), np.array([draws.get("flip", 0.0) > 0]), shift, **zero)


ROW = np.array([0])


def disc(side: int, row: float, column: float, radius: float) -> npt.NDArray[np.uint8]:
    """A white disc on black, uint8 [1, side, side, 3]."""
    rows, columns = np.indices((side, side))
    inside = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    picture = (inside * 255).astype(np.uint8)[None, :, :, None]
    return np.repeat(picture, 3, axis=3)


def centre(picture: npt.NDArray[np.uint8]) -> tuple[float, float, float]:
    """Row and column of the middle of what is white, and how much is."""
    weights = picture[0, :, :, 0] / 255.0
    rows, columns = np.indices(weights.shape)
    total = weights.sum()
    return (rows * weights).sum() / total, (columns * weights).sum() / total, total


def test_a_turn_goes_around_the_middle_and_a_zoom_away_from_it() -> None:
    picture, middle = disc(64, 31.5, 47.5, 6), 31.5
    row, column, area = centre(augmented(picture, ROW, one(64, turn=1.0)))
    angle = np.rad2deg(np.arctan2(row - middle, column - middle))
    assert abs(angle) == pytest.approx(15, abs=0.5)
    assert np.hypot(row - middle, column - middle) == pytest.approx(16, abs=0.2)
    _, column, larger = centre(augmented(picture, ROW, one(64, zoom=1.0)))
    assert column - middle == pytest.approx(20, abs=0.2)
    assert larger == pytest.approx(area * 1.25**2, rel=0.05)


def test_turning_moves_and_mirrors_as_the_rest_does() -> None:
    """Law: a turn by next to nothing with shift and flip is the shift and flip alone."""
    picture = disc(32, 12.5, 18.5, 5)
    draws = {"flip": 1.0, "down": 0.75, "right": -0.5}
    plain = centre(augmented(picture, ROW, one(32, **draws)))
    turned = centre(augmented(picture, ROW, one(32, turn=1e-6, **draws)))
    assert plain == pytest.approx(turned, abs=0.1)


def test_no_part_of_a_turned_picture_is_empty() -> None:
    white = np.full((1, 32, 32, 3), 200, np.uint8)
    for turn in (-1.0, 1.0):
        outputs = augmented(white, ROW, one(32, turn=turn, zoom=-1.0, down=1.0, right=1.0))
        assert outputs.min() == outputs.max() == 200


def test_brightness_scales_values_and_white_stays_white() -> None:
    picture = np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)
    bright = augmented(picture, ROW, one(8, brightness=1.0))
    assert np.array_equal(bright, np.rint(picture * 1.25).clip(0, 255).astype(np.uint8))
    dark = augmented(np.full_like(picture, 255), ROW, one(8, brightness=-1.0))
    assert set(dark.ravel()) == {204}


@pytest.mark.parametrize("name", AUGMENTS)
def test_each_name_changes_most_pictures_and_nothing_about_the_others(name: str) -> None:
    given_pictures = pictures(40)
    outputs = augmented(given_pictures, np.arange(40), draw(3, 1, 40, (name,)))
    assert outputs.dtype == np.uint8
    assert outputs.shape == given_pictures.shape
    changed = (outputs != given_pictures).any(axis=(1, 2, 3))
    assert changed.sum() >= 10
