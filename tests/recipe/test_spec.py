"""What a recipe may say: every fault comes with its path, its words and its fix."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.support.recipes import SHIPPED, cars
from toolchain import recipe
from toolchain.core.errors import RecipeError
from toolchain.recipe import AdaptorOptions, DataSpec
from toolchain.recipe.library import packaged


def test_the_contract_of_cars() -> None:
    loaded = cars()
    assert loaded.data == DataSpec("cars", None, 4400, 1000, 1)
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


TABLE = DataSpec(
    loader="csv",
    root="pictures",
    train=None,
    test=None,
    seed=1,
    files=("ann/labels.csv",),
    columns=("file", "label"),
    path="ann/{}.png",
    labels=("0", "1"),
    classes=("no", "yes"),
    test_share=0.25,
)
ARCHIVE = DataSpec("npz", "d", None, None, 1, files=("a.npz",), columns=("x", "y"), white=1.0)
IDX = DataSpec("idx", "d", None, None, 1, files=("a", "b"), sha256=("sha256:" + "0" * 64,) * 2)


@pytest.mark.parametrize("data", [TABLE, ARCHIVE, IDX], ids=lambda data: data.loader)
def test_law_the_keys_of_a_loader_are_written_and_read(data: DataSpec) -> None:
    one = dataclasses.replace(cars(), data=data, golden=None)
    assert recipe.loads(recipe.dump(one)) == one
    assert one.golden_drawn
    shown = one.without_paths()
    assert recipe.loads(recipe.dump(shown)) == shown
    assert "ann" not in recipe.dump(shown)


@pytest.mark.parametrize(
    ("data", "keys", "path"),
    [
        (TABLE, {"files": None}, "data.files"),
        (TABLE, {"files": ("../a.csv",)}, "data.files[0]"),
        (TABLE, {"files": ("/a.csv",)}, "data.files[0]"),
        (TABLE, {"columns": None}, "data.columns"),
        (TABLE, {"columns": ("file", 2)}, "data.columns"),
        (TABLE, {"columns": ("file", "file")}, "data.columns"),
        (TABLE, {"columns": (0, 1)}, "data.columns[0]"),
        (TABLE, {"columns": ("a", "b", "c")}, "data.test_share"),
        (TABLE, {"path": "images/.png"}, "data.path"),
        (TABLE, {"path": "../{}"}, "data.path"),
        (TABLE, {"delimiter": ","}, "data.delimiter"),
        (TABLE, {"labels": None}, "data.classes"),
        (TABLE, {"classes": ("one", "one")}, "data.classes"),
        (TABLE, {"classes": ("one", "two", "three")}, "data.classes"),
        (TABLE, {"labels": (0.5, 1.5)}, "data.labels[0]"),
        (TABLE, {"white": 1.0}, "data.white"),
        (TABLE, {"test_share": 1.0}, "data.test_share"),
        (ARCHIVE, {"columns": ("x", "y", "z")}, "data.columns"),
        (ARCHIVE, {"columns": (1, 2)}, "data.columns"),
        (ARCHIVE, {"files": ("a.npz", "b.npz")}, "data.files"),
        (ARCHIVE, {"delimiter": "comma"}, "data.delimiter"),
        (IDX, {"files": ("a", "b", "c"), "sha256": None}, "data.files"),
        (IDX, {"sha256": ("sha256:" + "0" * 64,)}, "data.sha256"),
        (IDX, {"columns": ("x", "y")}, "data.columns"),
        (IDX, {"root": None}, "data.root"),
    ],
)
def test_keys_that_do_not_go_with_the_loader_or_each_other(
    data: DataSpec, keys: dict[str, Any], path: str
) -> None:
    one = dataclasses.replace(cars(), data=dataclasses.replace(data, **keys), golden=None)
    with pytest.raises(RecipeError) as caught:
        recipe.loads(recipe.dump(one))
    assert path in {fault.path for fault in caught.value.faults}


def test_a_table_with_a_column_of_parts_is_one_table() -> None:
    data = dataclasses.replace(
        TABLE, files=("a.csv", "b.csv"), columns=("a", "b", "c"), test_share=None
    )
    with pytest.raises(RecipeError, match=r"data\.columns: expected 2 columns, as each table"):
        recipe.loads(recipe.dump(dataclasses.replace(cars(), data=data)))


def test_whole_numbers_are_labels_too() -> None:
    text = recipe.dump(dataclasses.replace(cars(), data=TABLE))
    text = text.replace('labels: ["0", "1"]', "labels: [0, 1]")
    assert recipe.loads(text).data == TABLE


@pytest.mark.parametrize(
    ("loader", "golden", "drawn", "pictures"),
    [
        ("cars", None, False, 8),
        ("cars", 12, False, 12),
        ("cars", "drawn", True, 8),
        ("folder", None, True, 8),
        ("folder", 5, False, 5),
        ("decathlon", None, True, 8),
        ("npz", None, True, 8),
    ],
)
def test_golden_pictures_are_drawn_where_the_data_is_the_users(
    loader: str, golden: int | str | None, drawn: bool, pictures: int
) -> None:
    """Without the key, a bundle holds no picture of a user's folder."""
    data = dataclasses.replace(cars().data, loader=loader)
    one = dataclasses.replace(cars(), data=data, golden=golden)
    assert (one.golden_drawn, one.golden_pictures) == (drawn, pictures)


@pytest.mark.parametrize("value", ["0", "257", "painted", "null", "true", "8.0", "[drawn]"])
def test_other_values_of_golden_are_refused(value: str) -> None:
    text = recipe.dump(cars()).replace("golden: 8", f"golden: {value}")
    with pytest.raises(RecipeError, match=r"golden: expected .* from 1 to 256, or the word drawn"):
        recipe.loads(text)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_that_read_a_folder_put_no_picture_into_a_bundle(name: str) -> None:
    """Whoever has a copy of such pictures may seldom pass them on."""
    one = recipe.load(packaged() / f"{name}.yaml")
    assert one.golden_drawn == (one.data.root is not None)


def test_a_recipe_without_paths_is_a_recipe_still() -> None:
    """Law: what a bundle carries loads, names no folder, and is else the same."""
    data = DataSpec("folder", "/home/ann/patients", None, None, 1)
    digest = "sha256:" + "0" * 64
    own = dataclasses.replace(
        cars(), data=data, weights="/home/ann/nets/eye.pt", weights_sha256=digest
    )
    shown = own.without_paths()
    assert recipe.loads(recipe.dump(shown)) == shown
    assert "ann" not in recipe.dump(shown)
    assert (shown.data.root, shown.weights, shown.folder) == ("PATH", "eye.pt", None)
    back = dataclasses.replace(shown, data=data, weights=own.weights)
    assert back == own
    assert cars().without_paths() == cars()
