"""Weights of classes: rare ones count more, and the sum of all pictures stays."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support import stripes
from toolchain import recipe as recipes
from toolchain.core.errors import RecipeError, TrainingError
from toolchain.training.adapt.loss import class_loss
from toolchain.training.data import ArraySplit, DomainData
from toolchain.training.loop.balance import class_weights
from toolchain.training.loop.training import train

LABELS = st.lists(st.integers(0, 2), min_size=1, max_size=50)


@given(LABELS, st.sampled_from(["balanced", (1.0, 2.0, 5.0)]))
def test_the_mean_over_pictures_is_one(labels: list[int], words: str | tuple[float, ...]) -> None:
    """Law: weights do not change the size of the loss; balanced, each class has the same sum."""
    spec = dataclasses.replace(stripes.RECIPE.train, class_weights=words)
    weights = class_weights(np.array(labels), stripes.CLASSES, spec)
    assert weights is not None
    assert weights[labels].mean() == pytest.approx(1, rel=1e-5)
    if words == "balanced":
        sums = [weights[label] * labels.count(label) for label in set(labels)]
        assert sums == pytest.approx([len(labels) / len(sums)] * len(sums), rel=1e-5)


def test_none_is_no_weights_and_another_number_of_them_is_refused() -> None:
    labels = np.array([0, 1, 2])
    assert class_weights(labels, stripes.CLASSES, stripes.RECIPE.train) is None
    spec = dataclasses.replace(stripes.RECIPE.train, class_weights=(1.0, 2.0))
    with pytest.raises(TrainingError, match="for each of 3 classes, got 2") as caught:
        class_weights(labels, stripes.CLASSES, spec)
    assert "across, down, patch" in caught.value.fix


def test_a_weighted_loss_is_that_of_repeated_samples() -> None:
    """Law: a class of weight 3 counts as if each of its samples stood there three times."""
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 1, 2, 0])
    weights = torch.tensor([1.0, 3.0, 1.0])
    rows = torch.tensor([0, 1, 1, 1, 2, 2, 2, 3, 4])
    repeated = class_loss(logits[rows], labels[rows], None) * len(rows) / len(labels)
    assert torch.allclose(class_loss(logits, labels, weights), repeated)


def lopsided() -> DomainData:
    """Three classes that look much alike, one of them rare to train on."""
    whole = stripes.split("train", 300, 0)
    rng = np.random.default_rng(1)
    noisy = np.clip(whole.pictures + rng.normal(0, 90, whole.pictures.shape), 0, 255)
    rows = np.flatnonzero((whole.labels != 2) | (np.arange(300) % 30 == 2))
    pictures = noisy.astype(np.uint8)
    train = ArraySplit("stripes/train", pictures[rows], whole.labels[rows])
    return DomainData(
        train, ArraySplit("stripes/test", pictures, whole.labels.copy()), stripes.CLASSES
    )


def test_balanced_weights_find_more_of_a_rare_class(tmp_path: Path) -> None:
    data, recall = lopsided(), []
    for words in ("none", "balanced"):
        recipe = stripes.recipe(method="head", epochs=1, class_weights=words)
        report = train(stripes.model(method="head"), data, recipe, out=tmp_path / words)
        recall.append(report.evaluation.confusion.scores(data.classes)[2].recall or 0.0)
    assert recall[1] > recall[0] + 0.1


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("[1, 0]", "train.class_weights[1]"),
        ("even", "train.class_weights"),
        ("[1]", "train.class_"),
    ],
)
def test_a_recipe_takes_a_word_or_numbers_above_zero(written: str, path: str) -> None:
    text = recipes.dump(stripes.RECIPE)
    good = text.replace("class_weights: none", "class_weights: [1, 2.5, 3]")
    assert recipes.loads(good).train.class_weights == (1.0, 2.5, 3.0)
    with pytest.raises(RecipeError) as caught:
        recipes.loads(text.replace("class_weights: none", f"class_weights: {written}"))
    assert caught.value.faults[0].path.startswith(path)
