"""Samples: the same pictures for the same seed, balanced, and different from class to class."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from toolchain import recipe
from toolchain.adapt import data
from toolchain.adapt.data.samples import DRAWN, SIDE, digits, drawn
from toolchain.digest import sha256
from toolchain.errors import DataError, UnknownNameError
from toolchain.recipe import Recipe
from toolchain.recipe.store import packaged


def small(name: str, train: int = 32, test: int = 16, **options: object) -> Recipe:
    found = recipe.load(packaged() / f"{name}.yaml")
    spec = dataclasses.replace(found.data, train=train, test=test, **options)  # type: ignore[arg-type]
    return dataclasses.replace(found, data=spec)


@pytest.mark.parametrize("name", [*DRAWN, "digits"])
def test_a_sample_loads_as_its_recipe_says(name: str) -> None:
    found = data.load(small(name))
    assert (len(found.train), len(found.test)) == (32, 16)
    assert found.train.name == f"{name}/train"
    pictures, labels = found.train.batch(range(32))
    assert pictures.shape == (32, SIDE, SIDE, 3)
    assert pictures.dtype == np.uint8
    assert labels.dtype == np.int64
    assert set(labels.tolist()) <= set(range(len(found.classes)))
    assert len(set(found.classes)) == len(found.classes) >= 6


@pytest.mark.parametrize("name", DRAWN)
def test_law_a_picture_depends_on_seed_and_index_only(name: str) -> None:
    """Law: the first n pictures are the same however many follow; another seed changes all."""
    sample = drawn(name)
    few, many, other = (
        sample.draw(count, [seed, 0])[0] for count, seed in ((10, 1), (20, 1), (10, 2))
    )
    assert np.array_equal(few, many[:10])
    assert all(not np.array_equal(a, b) for a, b in zip(few, other, strict=True))


@pytest.mark.parametrize("name", DRAWN)
def test_classes_take_turns_and_parts_share_no_picture(name: str) -> None:
    found = data.load(small(name, 40, 40))
    assert np.bincount(found.train.labels).tolist() == [5] * 8
    train, test = (
        {sha256(picture.tobytes()) for picture in split.batch(range(40))[0]}
        for split in (found.train, found.test)
    )
    assert len(train | test) == 80


@pytest.mark.parametrize(("name", "floor"), [("cars", 0.5), ("chirps", 0.5), ("cells", 0.5)])
def test_a_kind_can_be_told_from_the_drawing(name: str, floor: float) -> None:
    """Pictures of one kind, averaged over noise and pose, are not those of another kind."""
    sample = drawn(name)
    pictures, labels = sample.draw(400, [5, 0])
    edges = np.abs(np.diff(pictures.astype(np.float64).mean(axis=3), axis=2)).mean(axis=1)
    means = np.stack([edges[labels == kind].mean(axis=0) for kind in range(8)])
    gaps = np.abs(means[:, None] - means[None]).max(axis=2)
    assert gaps[~np.eye(8, dtype=bool)].min() > floor


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_neither_dark_nor_blank(name: str) -> None:
    pictures = drawn(name).draw(64, [3, 0])[0].astype(np.float64)
    assert (pictures.std(axis=(1, 2, 3)) > 5).all()
    assert 25 < pictures.mean() < 235


def test_digits_are_split_once_and_for_all() -> None:
    train, test = digits.read("train", 1397), digits.read("test", 400)
    assert np.bincount(test[1]).tolist() == [40] * 10
    assert len(train[1]) == 1397
    first = digits.read("test", 5)
    assert np.array_equal(first[0], test[0][:5])
    assert train[0].max() == 255


def test_more_digits_than_there_are_is_an_error() -> None:
    with pytest.raises(DataError, match="at most 400 digits"):
        data.load(small("digits", 10, 401))


def test_pictures_take_the_size_and_colour_of_the_recipe() -> None:
    found = small("cars", 4, 4)
    wide = dataclasses.replace(found.preprocess, size=48, resize=64, colour="L3")
    pictures, _ = data.load(dataclasses.replace(found, preprocess=wide)).test.batch([0, 1])
    assert pictures.shape == (2, 48, 48, 3)
    assert np.array_equal(pictures[..., 0], pictures[..., 2])


def test_an_unknown_loader_is_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean cars"):
        data.load(small("cars", loader="carz"))
