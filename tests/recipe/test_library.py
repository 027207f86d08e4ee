"""Recipes as files: found by their names; what is written reads back equal."""

from __future__ import annotations

import dataclasses
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.recipes import SHIPPED, cars
from toolchain import recipe
from toolchain.core.errors import RecipeError, StorageError, UnknownNameError, UsageError
from toolchain.core.words import is_domain_name
from toolchain.recipe import (
    AdaptorOptions,
    DataSpec,
    Preprocessing,
    Recipe,
    TrainSpec,
    changed,
    yamlio,
)
from toolchain.recipe.library import packaged

DECATHLON = "imagenet12 aircraft cifar100 daimlerpedcls dtd gtsrb vgg-flowers omniglot svhn ucf101"


def test_the_shipped_domains_are_those_that_are_promised() -> None:
    samples = {"cars", "digits", "chirps", "cells"}
    folders = {"stanford_cars", "cubs", "flowers", "wikiart", "sketch"}
    decathlon = set(DECATHLON.replace("-", "_").split())
    assert samples | folders | {f"vd_{name}" for name in decathlon} == set(SHIPPED)


@pytest.mark.parametrize("dataset", DECATHLON.split())
def test_the_ten_decathlon_domains_name_their_data_set(dataset: str) -> None:
    loaded = recipe.load(recipe.find(f"vd_{dataset.replace('-', '_')}"))
    assert (loaded.data.loader, loaded.data.dataset) == ("decathlon", dataset)
    assert ("flip" in loaded.train.augment) == (dataset not in ("gtsrb", "omniglot", "svhn"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_loads_and_names_its_command(name: str) -> None:
    path = packaged() / f"{name}.yaml"
    assert recipe.load(path).domain == name
    assert f"# Build it:  da3-export --domain {name}\n" in path.read_text(encoding="utf-8")


def test_weights_lie_relative_to_the_recipe(tmp_path: Path) -> None:
    changed = dataclasses.replace(cars(), weights="w/a.pth", weights_sha256="sha256:" + "0" * 64)
    path = tmp_path / "cars.yaml"
    path.write_text(recipe.dump(changed), encoding="utf-8")
    assert recipe.load(path).weights_path == tmp_path / "w" / "a.pth"


def test_find_looks_here_first_then_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe.find("digits") == packaged() / "digits.yaml"
    own = tmp_path / "own"
    for folder in (own, tmp_path / "recipes"):
        folder.mkdir()
        (folder / "digits.yaml").write_bytes((packaged() / "digits.yaml").read_bytes())
    assert recipe.find("digits").resolve() == tmp_path / "recipes" / "digits.yaml"
    assert recipe.find("digits", [own]) == own / "digits.yaml"


def test_find_takes_a_decomposed_file_name(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "blüten")
    path = tmp_path / f"{decomposed}.yaml"
    path.write_text(recipe.dump(dataclasses.replace(cars(), domain="blüten")), encoding="utf-8")
    assert recipe.load(recipe.find("blüten", [tmp_path])).domain == "blüten"
    assert recipe.find(decomposed, [tmp_path]) == path


@pytest.mark.parametrize("name", ["carz", "../cars", "/etc/passwd", "", "cars.yaml"])
def test_an_unknown_name_is_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(UnknownNameError, match="da3 recipes ls"):
        recipe.find(name)


def test_available_lists_an_unreadable_recipe_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("domain: other\n", encoding="utf-8")
    entries = {entry.name: entry for entry in recipe.available([tmp_path])}
    assert set(SHIPPED) < set(entries)
    assert entries["broken"].recipe is None
    assert isinstance(entries["broken"].error, RecipeError)
    assert entries["cars"].recipe == cars()


def test_a_missing_file_and_a_large_one_are_errors(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        recipe.load(tmp_path / "none.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * (yamlio.MAX_BYTES + 1))
    with pytest.raises(StorageError, match="big"):
        recipe.load(tmp_path / "big.yaml")
    with pytest.raises(RecipeError, match="at most"):
        recipe.loads(b"#" * (yamlio.MAX_BYTES + 1))


SHOWN = st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" ")
WORD = st.builds(str.__add__, st.sampled_from("aé#-:'\"花1~"), st.text(SHOWN, max_size=30))
NAME = st.text(st.characters(categories=["L", "Nd"]), min_size=1, max_size=9)
UNIT = st.floats(0, 1, allow_subnormal=False)
RECIPES = st.builds(
    Recipe,
    domain=NAME.map(lambda text: unicodedata.normalize("NFC", text)).filter(is_domain_name),
    title=WORD,
    licence=WORD,
    backbone=st.sampled_from(["resnet20", "null", "true", "1e3", "42", "a-b.c"]),
    weights=st.none(),
    weights_sha256=st.none(),
    data=st.builds(
        DataSpec,
        loader=st.just("folder"),
        root=WORD,
        train=st.none() | st.integers(1, 10**7),
        test=st.none() | st.integers(1, 10**7),
        seed=st.integers(0, 2**31 - 1),
        dataset=st.none(),
    ),
    preprocess=st.builds(
        Preprocessing,
        size=st.integers(8, 64),
        resize=st.integers(64, 128),
        crop=st.just("center"),
        interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
        colour=st.sampled_from(["RGB", "BGR", "L3"]),
        mean=st.tuples(UNIT, UNIT, UNIT),
        std=st.tuples(*[st.floats(1e-3, 10)] * 3),
    ),
    method=st.just("da3"),
    adaptor=st.builds(
        AdaptorOptions,
        placement=st.sampled_from(["all", "gateable"]),
        pool=st.integers(0, 64),
        rank=st.integers(1, 4096),
        norm=st.sampled_from(["none", "batch", "group"]),
    ),
    train=st.builds(
        TrainSpec,
        epochs=st.integers(1, 10_000),
        batch=st.integers(1, 65_536),
        lr=st.floats(0, 10, exclude_min=True, allow_subnormal=False),
        weight_decay=UNIT,
        seed=st.integers(0, 2**31 - 1),
        budget=st.floats(0.01, 1),
        budget_weight=st.floats(0, 1000),
        augment=st.sampled_from([(), ("flip",), ("shift", "flip")]),
    ),
    golden=st.none() | st.just("drawn") | st.integers(1, 256),
    blocks=st.none() | st.lists(WORD, min_size=1, max_size=3).map(tuple),
    head=st.none() | st.just("") | WORD,
)


@settings(deadline=None, max_examples=60)
@given(RECIPES, st.text(max_size=60))
def test_law_dump_then_loads_is_the_same_recipe(one: Recipe, header: str) -> None:
    """Law: loads(dump(recipe, header)) == recipe, whatever the header holds."""
    assert recipe.loads(recipe.dump(one, header), stem=one.domain) == one


def test_settings_change_any_key_and_are_read_as_a_recipe_is() -> None:
    values = ["train.lr=0.003", "train.augment=[flip]", "golden=3", 'title="A: b"', "train.lr=1"]
    other = changed(cars(), values)
    assert (other.train.lr, other.train.augment) == (1.0, ("flip",))
    assert (other.golden, other.title) == (3, "A: b")
    assert other.folder == cars().folder
    same = dataclasses.replace(other.train, lr=cars().train.lr, augment=cars().train.augment)
    assert same == cars().train


@pytest.mark.parametrize(
    "path", ["data.seed", "preprocess.size", "adaptor.rank", "train.validation"]
)
def test_every_section_can_be_set(path: str) -> None:
    section, name = path.split(".")
    value = 0.25 if name == "validation" else 24
    assert getattr(getattr(changed(cars(), [f"{path}={value}"]), section), name) == value


def test_another_method_drops_options_that_it_lacks() -> None:
    other = changed(cars(), ["method=sparse", "adaptor.update_kib=7"])
    assert (other.method, other.adaptor.update_kib) == ("sparse", 7)
    assert other.adaptor.rank == AdaptorOptions().rank


def test_all_faults_of_settings_come_at_once() -> None:
    wrong = ["train.lr=fast", "train.rate=1", "trian.lr=1", "golden=[", "domain.name=x"]
    with pytest.raises(RecipeError) as caught:
        changed(cars(), wrong)
    assert {fault.path for fault in caught.value.faults} == {
        *("train.lr", "train.rate", "trian.lr", "golden", "domain.name")
    }
    fixes = {fault.path: fault.fix for fault in caught.value.faults}
    assert fixes["trian.lr"] == "did you mean train.lr?"
    assert caught.value.fix == "da3 recipes show cars prints the keys with their values"
    with pytest.raises(RecipeError, match=r"known keys: domain, .*golden, blocks, head"):
        changed(cars(), ["qqq.lr=1"])
    for text in ("train.lr", "=3", ""):
        with pytest.raises(UsageError, match="expected KEY=VALUE"):
            changed(cars(), [text])
