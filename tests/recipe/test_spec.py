"""What a recipe may say: every fault comes with its path, its words and its fix."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support.recipes import cars
from toolchain import recipe
from toolchain.core.errors import RecipeError
from toolchain.recipe import AdaptorOptions, DataSpec
from toolchain.recipe.library import packaged


def test_the_contract_of_cars() -> None:
    loaded = cars()
    assert loaded.data == DataSpec("cars", None, 4000, 1000, 1)
    assert loaded.train.lr == pytest.approx(0.01)
    assert loaded.train.augment == ("shift", "flip")
    assert loaded.adaptor == AdaptorOptions(placement="all", pool=2, kernel=3, rank=16)
    assert loaded.folder == packaged()
    assert loaded.weights_path is None


def test_all_faults_come_at_once_with_path_and_fix() -> None:
    text = recipe.dump(cars())
    for old, new in (
        ("backbone: resnet20\n", ""),
        ("  lr: 0.01", "  lr: fast"),
        ("crop: center", "crop: centre"),
        ("mean: [0.5, 0.5, 0.5]", "mean: [0.5, x, 0.5]"),
        ("golden: 8", "golden: 8\nmetod: da3"),
    ):
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(RecipeError) as caught:
        recipe.loads(text, where="here.yaml")
    fixes = {fault.path: fault.fix for fault in caught.value.faults}
    assert fixes == {
        "backbone": "add backbone: ...",
        "train.lr": "",
        "preprocess.crop": "did you mean center?",
        "preprocess.mean[1]": "",
        "metod": "did you mean method?",
    }
    assert "here.yaml: 5 faults" in str(caught.value)


@pytest.mark.parametrize(
    ("section", "name", "value", "path"),
    [
        ("data", "train", None, "data.train"),
        ("data", "train", 200_000, "data.train"),
        ("data", "root", "pictures", "data.root"),
        ("data", "dataset", "aircraft", "data.dataset"),
        ("data", "loader", "folder", "data.root"),
        ("adaptor", "groups", 3, "adaptor.groups"),
        ("adaptor", "kernel", 4, "adaptor.kernel"),
        ("train", "augment", ("flip", "flip"), "train.augment"),
        ("train", "budget", 0.0, "train.budget"),
    ],
)
def test_contradictions_are_faults(section: str, name: str, value: object, path: str) -> None:
    inner = dataclasses.replace(getattr(cars(), section), **{name: value})
    with pytest.raises(RecipeError) as caught:
        recipe.loads(recipe.dump(dataclasses.replace(cars(), **{section: inner})))
    assert [fault.path for fault in caught.value.faults] == [path]


def test_decathlon_needs_a_data_set() -> None:
    data = dataclasses.replace(cars().data, loader="decathlon", root="d")
    with pytest.raises(RecipeError, match=r"data\.dataset"):
        recipe.loads(recipe.dump(dataclasses.replace(cars(), data=data)))
