"""Samples: the same pictures for the same seed, balanced, and different from class to class."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from toolchain import recipe
from toolchain.core.digest import sha256
from toolchain.core.errors import DataError, UnknownNameError
from toolchain.recipe import Recipe
from toolchain.recipe.library import packaged
from toolchain.training import data
from toolchain.training.data.samples import DRAWN, SIDE, digits, drawn_sample
from toolchain.training.data.samples.cars import STYLES
from toolchain.training.data.samples.drawing import Sheet


def small(name: str, train: int = 32, test: int = 16, **options: object) -> Recipe:
    base = recipe.load(packaged() / f"{name}.yaml")
    spec = dataclasses.replace(base.data, train=train, test=test, **options)  # type: ignore[arg-type]
    return dataclasses.replace(base, data=spec)


@pytest.mark.parametrize("name", [*DRAWN, "digits"])
def test_a_sample_loads_as_its_recipe_says(name: str) -> None:
    dataset = data.load(small(name))
    assert (len(dataset.train), len(dataset.test)) == (32, 16)
    assert dataset.train.name == f"{name}/train"
    pictures, labels = dataset.train.batch(range(32))
    assert pictures.shape == (32, SIDE, SIDE, 3)
    assert pictures.dtype == np.uint8
    assert labels.dtype == np.int64
    assert set(labels.tolist()) <= set(range(len(dataset.classes)))
    assert len(set(dataset.classes)) == len(dataset.classes) >= 6


@pytest.mark.parametrize("name", DRAWN)
def test_law_a_picture_depends_on_seed_and_index_only(name: str) -> None:
    """Law: the first n pictures are the same however many follow; another seed changes all."""
    sample = drawn_sample(name)
    few, many, other = (
        sample.draw(count, [seed, 0])[0] for count, seed in ((10, 1), (20, 1), (10, 2))
    )
    assert np.array_equal(few, many[:10])
    assert all(not np.array_equal(a, b) for a, b in zip(few, other, strict=True))


@pytest.mark.parametrize("name", DRAWN)
def test_classes_take_turns_and_parts_share_no_picture(name: str) -> None:
    dataset = data.load(small(name, 40, 40))
    assert np.bincount(dataset.train.labels).tolist() == [5] * 8
    train, test = (
        {sha256(picture.tobytes()) for picture in split.batch(range(40))[0]}
        for split in (dataset.train, dataset.test)
    )
    assert len(train | test) == 80


def features(pictures: np.ndarray) -> np.ndarray:
    """Return responses to 48 random 5 x 5 filters, pooled over a 2 x 2 grid: [N, 385]."""
    filters = np.random.default_rng(0).normal(size=(75, 48))
    filters -= filters.mean(axis=0)
    scaled = pictures / 64.0
    windows = np.lib.stride_tricks.sliding_window_view(scaled, (5, 5), axis=(1, 2))[:, ::2, ::2]
    responses = np.maximum(windows.reshape(*windows.shape[:3], 75) @ filters, 0.0)
    cells = responses.reshape(len(responses), 2, 7, 2, 7, 48)
    pooled = np.concatenate([cells.mean(axis=(2, 4)), cells.max(axis=(2, 4))], axis=-1)
    flat = pooled.reshape(len(responses), -1)
    return np.concatenate([flat, np.ones((len(responses), 1))], axis=1)


@pytest.mark.parametrize("name", ["chirps", "cells"])
def test_every_kind_can_be_told_from_every_other(name: str) -> None:
    """A ridge regression on random features beats chance (0.5) clearly for each pair of kinds."""
    train, test = (
        drawn_sample(name).draw(count, [5, part]) for part, count in enumerate((960, 320))
    )
    inputs = features(train[0])
    middle, width = inputs.mean(axis=0), inputs.std(axis=0) + 1e-6
    known, queries = ((features(part[0]) - middle) / width for part in (train, test))
    gram = known.T @ known + 100.0 * np.eye(known.shape[1])
    scores = queries @ np.linalg.solve(gram, known.T @ np.eye(8)[train[1]])
    for one, other in combinations(range(8), 2):
        rows = np.isin(test[1], (one, other))
        right = (scores[rows, one] > scores[rows, other]) == (test[1][rows] == one)
        assert right.mean() > 0.65, (one, other)


def test_no_two_body_styles_have_one_silhouette() -> None:
    """At equal length and without windows, any two outlines differ in a twelfth of their area."""
    masks = []
    for style in STYLES:
        sheet = Sheet(np.full((2, 2, 3), 255.0))
        length = max(x for x, _ in style.outline)
        outline = np.array(style.outline) * (0.9 / length, -0.9 / length) + (-0.45, 0.3)
        sheet.polygon(outline, (0, 0, 0))
        picture = sheet.finish(np.random.default_rng(0), noise=0.0, light=1.0, blur=0.0)
        masks.append(picture[..., 0] < 128)
    for one, other in combinations(range(len(STYLES)), 2):
        both, either = masks[one] & masks[other], masks[one] | masks[other]
        assert both.sum() / either.sum() < 11 / 12, (STYLES[one].name, STYLES[other].name)


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_neither_dark_nor_blank(name: str) -> None:
    pictures = drawn_sample(name).draw(64, [3, 0])[0].astype(np.float64)
    assert (pictures.std(axis=(1, 2, 3)) > 5).all()
    assert 25 < pictures.mean() < 235


def test_digits_are_split_once_and_for_all_by_writer() -> None:
    """Each writer's digits begin with 0 to 9 in turn; none writes in both parts."""
    train, test = digits.read("train", 1415), digits.read("test", 382)
    assert train[0].max() == 255
    assert np.bincount(test[1]).min() >= 35
    first = digits.read("test", 5)
    assert np.array_equal(first[0], test[0][:5])
    whole = load_digits()
    assert whole.target[1415:1425].tolist() == list(range(10))
    for part, rows in ((train, slice(0, 1415)), (test, slice(1415, None))):
        grey = np.rint(part[0][..., 0] * (16 / 255))
        assert sorted(map(bytes, grey)) == sorted(map(bytes, whole.images[rows]))


def test_a_nearest_neighbour_knows_a_writer_better_than_a_stranger() -> None:
    train, test = digits.read("train", 1415), digits.read("test", 382)

    def nearest(known: tuple[Any, Any], queries: tuple[Any, Any]) -> float:
        a, b = (
            pictures[..., 0].reshape(len(pictures), -1) / 16.0 for pictures, _ in (queries, known)
        )
        distances = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
        return float((known[1][distances.argmin(1)] == queries[1]).mean())

    assert nearest(train, test) < 0.97
    mixed = [(train[0][rows], train[1][rows]) for rows in (slice(0, 1100), slice(1100, None))]
    assert nearest(*mixed) > 0.98


def test_more_digits_than_there_are_is_an_error() -> None:
    with pytest.raises(DataError, match="at most 382 digits"):
        data.load(small("digits", 10, 383))


def test_pictures_take_the_size_and_colour_of_the_recipe() -> None:
    base = small("cars", 4, 4)
    wide = dataclasses.replace(base.preprocess, size=48, resize=64, colour="L3")
    pictures, _ = data.load(dataclasses.replace(base, preprocess=wide)).test.batch([0, 1])
    assert pictures.shape == (2, 48, 48, 3)
    assert np.array_equal(pictures[..., 0], pictures[..., 2])


def test_an_unknown_loader_is_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean cars"):
        data.load(small("cars", loader="carz"))
