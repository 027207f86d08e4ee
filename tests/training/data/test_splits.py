"""Splits: read-only, the same for ever, bounded in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from toolchain.core.errors import DataError
from toolchain.pictures.preprocess import Preprocessing
from toolchain.training.data.splits import ArraySplit, FileSplit, Pictures, spread

P = Preprocessing(8, 8, "center", "bilinear", "RGB", (0.5,) * 3, (0.5,) * 3)


def array_split() -> ArraySplit:
    pictures = np.arange(5 * 8 * 8 * 3, dtype=np.uint8).reshape(5, 8, 8, 3)
    return ArraySplit("toy/train", pictures, np.arange(5, dtype=np.int64))


def file_split(tmp_path: Path, cache_bytes: int) -> FileSplit:
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (9, 12), (i, 2 * i, 3 * i)).save(paths[-1])
    labels = np.array([0, 1, 0, 1], dtype=np.int64)
    store = Pictures([str(path) for path in paths], tmp_path, P, cache_bytes)
    return FileSplit("toy/test", store, 0, labels)


def test_a_batch_follows_its_indices() -> None:
    split = array_split()
    pictures, labels = split.batch([3, 0, 3])
    assert labels.tolist() == [3, 0, 3]
    assert np.array_equal(pictures[0], split.pictures[3])
    assert len(split) == 5


def test_nothing_can_be_written_into_a_split() -> None:
    split = array_split()
    with pytest.raises(ValueError, match="read-only"):
        split.labels[0] = 7
    with pytest.raises(ValueError, match="read-only"):
        split.pictures[0] = 7
    split.batch([0])[0][:] = 0
    assert split.batch([0])[0].any()


@pytest.mark.parametrize("indices", [[5], [-1], [0, 99]])
def test_indices_outside_are_refused(indices: list[int]) -> None:
    with pytest.raises(IndexError, match="expected indices 0 to 4"):
        array_split().batch(indices)


def test_an_empty_batch_is_empty() -> None:
    assert array_split().batch([])[0].shape == (0, 8, 8, 3)


def test_the_cache_is_bounded_and_invisible(tmp_path: Path) -> None:
    split = file_split(tmp_path, cache_bytes=2 * 8 * 8 * 3)
    first = split.batch([0, 1, 2, 3])
    assert split.store._decoded.nbytes == 2 * 8 * 8 * 3
    assert split.store.held_bytes < 2 * 8 * 8 * 3 + 4 * 400
    again = split.batch([0, 1, 2, 3])
    assert np.array_equal(first[0], again[0])
    assert first[0][:, 0, 0].tolist() == [[i, 2 * i, 3 * i] for i in range(4)]


def test_a_picture_that_vanished_is_named(tmp_path: Path) -> None:
    split = file_split(tmp_path, cache_bytes=0)
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png"):
        split.batch([2])


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.none() | st.integers(1, 50),
    st.integers(0, 9),
)
def test_law_spread_is_even_over_classes(labels: list[int], limit: int | None, seed: int) -> None:
    """Law: min(limit, n) distinct rows, ascending; no class gives two more than one that could."""
    array = np.array(labels, dtype=np.int64)
    rows = spread(array, limit, seed)
    assert len(rows) == min(limit or len(labels), len(labels))
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, spread(array, limit, seed))
    taken, have = np.bincount(array[rows], minlength=4), np.bincount(array, minlength=4)
    short = taken < have
    assert not short.any() or taken.max() <= taken[short].min() + 1
