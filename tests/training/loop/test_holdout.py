"""The validation part: taken from the training pictures, fair to classes, and it chooses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import stripes
from tests.training.loop.test_training import Recorder
from toolchain.core.confusion import Confusion
from toolchain.core.errors import TrainingError
from toolchain.training.data import ArraySplit, DomainData
from toolchain.training.loop.destination import best_path, state_path
from toolchain.training.loop.evaluation import Evaluation, evaluate
from toolchain.training.loop.holdout import SHARE, parted, score
from toolchain.training.loop.training import train


def numbered(labels: list[int]) -> DomainData:
    """Pictures of one pixel whose red value is their number."""
    pictures = np.arange(len(labels), dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    train = ArraySplit("numbered/train", pictures, np.array(labels, np.int64))
    return DomainData(train, stripes.data().test, ("a", "b", "c"))


@given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=200),
    share=st.floats(0.01, 0.5),
    seed=st.integers(0, 9),
)
def test_the_part_is_a_share_of_each_class_and_training_has_the_rest(
    labels: list[int], share: float, seed: int
) -> None:
    """Law: no picture is lost or in both parts, no class is without pictures to train on."""
    recipe = stripes.recipe(validation=share)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, seed=seed))
    data = numbered(labels)
    try:
        parts = parted(data, recipe)
    except TrainingError as err:
        assert "got none" in err.message
        assert all(round(share * labels.count(c)) == 0 or labels.count(c) == 1 for c in set(labels))
        return
    assert parts.validation is not None
    splits = [parts.data.train, parts.validation]
    numbers = [split.batch(np.arange(len(split)))[0][:, 0, 0, 0].tolist() for split in splits]
    assert sorted(numbers[0] + numbers[1]) == list(range(len(labels)))
    for split, own in zip(splits, numbers, strict=True):
        assert split.labels.tolist() == [labels[number] for number in own]
    for label in set(labels):
        count = labels.count(label)
        assert (parts.validation.labels == label).sum() == min(round(share * count), count - 1)
    assert parts.data.test is data.test


def test_without_a_word_a_tenth_is_taken_where_it_is_enough() -> None:
    labels = [0, 1] * 300
    part = parted(numbered(labels[:255]), stripes.recipe()).validation
    assert part is None  # it would have 26 pictures
    many = DomainData(stripes.split("train", 600, 0), stripes.data().test, stripes.CLASSES)
    part = parted(many, stripes.recipe()).validation
    assert part is not None
    assert len(part) == SHARE * 600
    assert part.name == "stripes/train, validation"
    assert parted(many, stripes.recipe(validation=0.0)).validation is None


def test_a_part_that_the_data_set_aside_is_taken_first() -> None:
    aside = stripes.split("validation", 12, 5)
    data = dataclasses.replace(stripes.data(), validation=aside)
    parts = parted(data, stripes.recipe())
    assert parts.validation is aside
    assert parts.data.train is data.train
    assert parted(data, stripes.recipe(validation=0.0)).validation is None
    assert len(parted(data, stripes.recipe(validation=0.5)).validation or ()) == 45


def test_patience_without_a_part_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"validation part for train\.patience") as caught:
        parted(numbered([0, 1] * 20), stripes.recipe(patience=2))
    assert "train.validation" in caught.value.fix


def evaluation(confusion: Confusion, share: float, *, gated: bool = True) -> Evaluation:
    return Evaluation(confusion, 0.1, share, {"block00": 0.5} if gated else {})


def test_the_score_is_accuracy_less_what_is_above_the_budget() -> None:
    lopsided = Confusion(2, ((0, 0, 90), (1, 0, 10)))
    recipe = stripes.recipe(budget=0.6, budget_weight=10.0)
    assert score(evaluation(lopsided, 0.5), recipe.train) == 0.9
    assert score(evaluation(lopsided, 0.7), recipe.train) == pytest.approx(0.9 - 10 * 0.1**2)
    assert score(evaluation(lopsided, 1.0, gated=False), recipe.train) == 0.9
    balanced = stripes.recipe(class_weights="balanced")
    assert score(evaluation(lopsided, 0.5), balanced.train) == 0.5


RISING = stripes.recipe(epochs=4, validation=0.2, budget=1.0)


def test_the_best_epoch_is_kept_and_nothing_is_left(tmp_path: Path) -> None:
    """Law: the checkpoint holds the weights of the last of the best epochs by validation."""
    data, model, watch = stripes.data(), stripes.model(), Recorder()
    report = train(model, data, RISING, out=tmp_path / "out", progress=watch)
    figures = [status.figures for status in watch.epochs]
    assert report.history.epochs == tuple(figures)
    shares = [epoch.validation_accuracy or 0.0 for epoch in report.history.epochs]
    best = 4 - shares[::-1].index(max(shares))
    assert report.history.epoch == best == watch.epochs[-1].best
    assert report.history.validation == 18
    assert report.checkpoint.info.history == report.history
    part = parted(data, RISING).validation
    assert part is not None
    again = evaluate(model, part, RISING.preprocess)
    assert again.accuracy == max(shares)
    assert not best_path(tmp_path / "out").exists()
    assert not state_path(tmp_path / "out").exists()


def test_training_stops_when_nothing_gets_better(tmp_path: Path) -> None:
    # So high a rate that no epoch is better than the first ones.
    recipe = stripes.recipe(epochs=40, validation=0.2, patience=2, budget=1.0, lr=0.5)
    report = train(stripes.model(), stripes.data(), recipe, out=tmp_path / "out")
    history = report.history
    assert len(history.epochs) < 40
    assert len(history.epochs) == history.epoch + 2
    assert report.steps == len(history.epochs) * (72 // 16)


def test_the_test_pictures_choose_nothing(tmp_path: Path) -> None:
    """Law: with other test pictures the same weights and rates of gates are written."""
    one, two = stripes.data(), stripes.data()
    two = dataclasses.replace(two, test=stripes.split("test", 30, 77))
    recipe = dataclasses.replace(RISING, train=dataclasses.replace(RISING.train, epochs=2))
    infos = [
        train(stripes.model(), data, recipe, out=tmp_path / name).checkpoint.info
        for name, data in (("one", one), ("two", two))
    ]
    assert infos[0].tensors_sha256 == infos[1].tensors_sha256
    assert infos[0].metrics.gate_rates == infos[1].metrics.gate_rates
    assert infos[0].metrics.gate_pictures == len(one.train)
    assert infos[0].metrics.confusion != infos[1].metrics.confusion
