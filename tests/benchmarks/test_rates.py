"""How rates are chosen: on pictures held out of training, with the rate that is asked for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks import rates
from benchmarks.accuracy import Entry, train_one
from tests.support import stripes
from toolchain.recipe import METHODS, Recipe
from toolchain.training.adapt import methods
from toolchain.training.data import DomainData


def test_held_out_pictures_are_no_training_pictures() -> None:
    split = stripes.data().train
    data = rates.held_out(split, limit=60)
    assert len(data.train) + len(data.test) == 60
    assert len(data.test) == 60 // rates.HELD_OUT
    assert len(set(np.bincount(data.test.labels).tolist())) == 1
    pictures = [part.batch(range(len(part)))[0] for part in (data.train, data.test)]
    sets = [{picture.tobytes() for picture in part} for part in pictures]
    assert not sets[0] & sets[1]


def test_every_method_with_tensors_of_its_own_is_tried() -> None:
    assert {*rates.OWNERS, *methods.SLOTS_ALONE} == set(METHODS)
    planned = list(rates.jobs(["bn", "bias"], [0.1, 1.0]))
    assert len(planned) == len(set(planned)) == 2 * 2 * len(rates.DOMAINS)


@pytest.mark.parametrize(("method", "slots_alone"), [("bias", False), ("da2", True)])
def test_the_factor_that_is_tried_is_the_one_that_trains(
    method: str, slots_alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training itself is watched, not replaced by another one's answer."""
    tries: list[tuple[float, float]] = []

    def watched(recipe: Recipe, pictures: DomainData) -> Entry:
        tries.append((recipe.train.lr, methods.REGISTRY[recipe.method].lr_factor))
        short = dataclasses.replace(recipe.train, epochs=1)
        return train_one(dataclasses.replace(recipe, train=short), pictures)

    monkeypatch.setattr(rates, "train_one", watched)
    monkeypatch.setattr(rates, "PICTURES", 100)
    before = methods.REGISTRY[method].lr_factor
    assert 0 <= rates.tried((method, 7.0, "digits")) <= 1
    assert tries == [(0.07, before) if slots_alone else (0.01, 7.0)]
    assert methods.REGISTRY[method].lr_factor == before
