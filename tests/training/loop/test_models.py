"""From a recipe to a model: what the recipe and the backbone's package name is what is used."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support import stripes, toys
from toolchain import recipe as recipes
from toolchain.core import digest
from toolchain.core.errors import AttachError, CheckpointError, RecipeError
from toolchain.recipe import Recipe
from toolchain.training.adapt import checkpoint as files
from toolchain.training.adapt.attached import AttachedModel
from toolchain.training.adapt.restore import restore
from toolchain.training.loop.evaluation import evaluate
from toolchain.training.loop.identity import recipe_digest, recipe_document
from toolchain.training.loop.models import build, save


class Loose(nn.Module):
    """Blocks by attribute, and two Linears at the end: the structure tells neither."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = toys.stem(8)
        self.one, self.two = toys.Residual(8, 8), toys.Residual(8, 8)
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.two(self.one(self.stem(x))).mean((2, 3))
        scores: Tensor = self.second(torch.relu(self.first(pooled)))
        return scores


ENTRY = """
from toolchain.training.adapt.backbones import Backbone

def build():
    from tests.training.loop.test_models import Loose
    return Loose().eval()

LOOSE = Backbone(name="loose", title="loose", build=build, input_size=12, classifier="second",
                 licence="MIT", source="a test", blocks=("two", "one"),
                 mean=(0.4, 0.4, 0.4), std=(0.25, 0.25, 0.25))
"""


@pytest.fixture
def loose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """A recipe on a backbone of a package that was installed as pip would, with its weights."""
    info = tmp_path / "site" / "loose_nets-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "loose_nets.py").write_text(ENTRY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loose_nets\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[da3.backbones]\nloose = loose_nets:LOOSE\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    torch.manual_seed(0)
    torch.save(
        {"state_dict": {f"module.{n}": t for n, t in Loose().state_dict().items()}},
        tmp_path / "w.pth",
    )
    yield dataclasses.replace(
        stripes.RECIPE,
        backbone="loose",
        weights="w.pth",
        weights_sha256=digest.sha256((tmp_path / "w.pth").read_bytes()),
        folder=tmp_path,
    )
    sys.modules.pop("loose_nets", None)


def blocks(model: AttachedModel) -> list[str]:
    return [site.name for site in model.anatomy.sites]


def test_the_package_names_blocks_and_head_and_the_recipe_others(loose: Recipe) -> None:
    model = build(loose, classes=3)
    assert (blocks(model), model.anatomy.head) == (["one", "two"], "second")
    other = build(dataclasses.replace(loose, blocks=("two",), head="first"), classes=3)
    assert (blocks(other), other.anatomy.head) == (["two"], "first")


def test_a_head_that_is_no_layer_names_what_it_is(loose: Recipe) -> None:
    with pytest.raises(AttachError, match="head 'one' is Residual"):
        build(dataclasses.replace(loose, head="one"), classes=3)


def test_wrapped_weights_and_another_preprocessing_are_said(loose: Recipe) -> None:
    lines: list[str] = []
    build(loose, classes=3, notify=lines.append)
    weights, preprocess = lines
    assert "'module.'" in weights
    assert "'state_dict'" in weights
    assert preprocess == (
        "backbone 'loose' was trained otherwise: mean [0.5, 0.5, 0.5] instead of [0.4, 0.4, 0.4]"
    )


@pytest.mark.parametrize(("side", "classifier"), [(8, False), (4, True)])
def test_an_answer_that_is_taken_for_features_is_said(side: int, *, classifier: bool) -> None:
    """With ``head: ''`` a net of scores would train in silence on 1000 scores as features."""
    net = nn.Sequential(
        toys.stem(8), nn.Sequential(toys.Residual(8, 8)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    if classifier:
        net.append(nn.Linear(8, side))
    lines: list[str] = []
    build(
        dataclasses.replace(stripes.RECIPE, head=""),
        classes=3,
        backbone=net.eval(),
        notify=lines.append,
    )
    (line,) = lines
    assert f"its answer of {side} values is taken for features" in line
    assert ("its layer '4' gives as many" in line and "head: 4" in line) == classifier


def saved(folder: Path, model: AttachedModel, recipe: Recipe) -> Path:
    data = stripes.data()
    evaluation = evaluate(model, data.test, recipe.preprocess)
    save(folder, model, recipe, data.classes, evaluation)
    return folder


def test_a_checkpoint_finds_the_same_places_again(loose: Recipe, tmp_path: Path) -> None:
    for name, changes in {"own": {}, "features": {"blocks": ("two",), "head": "first"}}.items():
        recipe = dataclasses.replace(loose, **changes)  # type: ignore[arg-type]
        folder = saved(tmp_path / name, build(recipe, classes=3), recipe)
        model, _ = restore(folder, weights=recipe.weights_path)
        assert blocks(model) == list(changes.get("blocks", ("one", "two")))


def test_a_backbone_of_features_stays_one_in_its_checkpoint(tmp_path: Path) -> None:
    """Its answer could be scores; that it is features was said once, at the training."""
    net = nn.Sequential(
        toys.stem(8),
        nn.Sequential(toys.Residual(8, 8)),
        nn.Conv2d(8, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()
    recipe = dataclasses.replace(stripes.RECIPE, head="")
    folder = saved(tmp_path / "c", build(recipe, classes=3, backbone=net), recipe)
    model, _ = restore(folder, backbone=net)
    assert (model.anatomy.head, model.anatomy.features) == (None, 6)


def test_a_checkpoint_whose_blocks_stand_in_another_order_is_refused(tmp_path: Path) -> None:
    """Slots are named by places: loaded in another order, blocks would get each other's."""
    folder = saved(tmp_path / "c", stripes.model(), stripes.RECIPE)
    text = (folder / files.INFO_FILE).read_text()
    listed = '"blocks":["blocks.0","blocks.1","blocks.2"]'
    assert listed in text
    (folder / files.INFO_FILE).write_text(
        text.replace(listed, '"blocks":["blocks.2","blocks.1","blocks.0"]')
    )
    with pytest.raises(CheckpointError, match="order in which they run"):
        restore(folder, backbone=toys.backbone("plain"))


def test_the_digest_of_a_recipe_without_names_is_what_it_was() -> None:
    """Law: keys that say nothing change no digest, so older trainings can go on."""
    document = recipe_document(stripes.RECIPE)
    assert not {"blocks", "head"} & set(document)
    named = dataclasses.replace(stripes.RECIPE, blocks=("one",))
    assert recipe_digest(named) != recipe_digest(stripes.RECIPE)
    assert "blocks" not in recipes.dump(stripes.RECIPE)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("blocks: []", "blocks: expected a list of 1 to 2000"),
        ("blocks: layer1.0", "blocks: expected a list"),
        ("blocks: [3]", r"blocks\[0\]: expected text"),
        ("head: [fc]", "head: expected a module's name"),
    ],
)
def test_names_that_cannot_be_names_are_faults(line: Any, words: str) -> None:
    text = recipes.dump(stripes.RECIPE) + f"\n{line}\n"
    with pytest.raises(RecipeError, match=words):
        recipes.loads(text)
