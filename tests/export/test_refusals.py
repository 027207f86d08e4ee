"""What an export is refused for before PyTorch starts."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import stripes
from toolchain.core.errors import CheckpointError
from toolchain.export.refusals import hides_differences, refuse_foreign, trained_by
from toolchain.recipe import Recipe, changed
from toolchain.training.adapt.checkpoint import Info
from toolchain.training.loop.evaluation import evaluate
from toolchain.training.loop.models import save

RECIPE = stripes.RECIPE


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> Info:
    """What a checkpoint of ``RECIPE`` says of itself."""
    model, data = stripes.model(), stripes.data()
    folder = tmp_path_factory.mktemp("refusals") / "c"
    save(folder, model, RECIPE, data.classes, evaluate(model, data.test, RECIPE.preprocess))
    return trained_by(folder)


def refused(info: Info, recipe: Recipe) -> CheckpointError:
    with pytest.raises(CheckpointError, match="c was trained by another recipe") as caught:
        refuse_foreign(Path("c"), info, recipe)
    return caught.value


def test_its_own_recipe_is_not_refused(info: Info) -> None:
    refuse_foreign(Path("c"), info, RECIPE, stripes.CLASSES)
    refuse_foreign(Path("c"), info, replace(RECIPE, title="Another title"))


def repeated(recipe: Recipe, fix: str) -> Recipe:
    """Return ``recipe`` with the options that a fix names."""
    assert fix.startswith("pass what it was trained with: ")
    words = shlex.split(fix.partition("; or")[0].partition(": ")[2])
    options = list(zip(words[::2], words[1::2], strict=True))
    assert {option for option, _ in options} <= {"--set", "--method"}
    for method in (value for option, value in options if option == "--method"):
        recipe = recipe.by(method)
    return changed(recipe, [value for option, value in options if option == "--set"])


@pytest.mark.parametrize(
    "settings",
    [
        ["train.lr=0.3"],
        ["train.lr=0.0000001", "train.class_weights=balanced", "train.augment=[]"],
        ["preprocess.mean=[0.1, 0.25, 1]", "preprocess.crop=center", "data.train=50"],
        ["preprocess.size=24", "preprocess.resize=24"],
        ["blocks=[layer1, layer2]", "head=fc", "adaptor.rank=2"],
        ["weights=net.pt", "weights_sha256=sha256:" + "0" * 64],
        ["method=da2", "train.seed=3"],
        ["method=head"],
    ],
)
def test_the_words_of_the_fix_give_the_recipe_that_was_trained(
    info: Info, settings: list[str]
) -> None:
    """Law: whoever repeats them exports, and the bundle then says what was trained."""
    other = changed(RECIPE, settings)
    err = refused(info, other)
    for setting in settings:
        assert f"\n  {setting.partition('=')[0]}: the recipe says " in err.message
    assert "Preprocessing(" not in err.message
    refuse_foreign(Path("c"), info, repeated(other, err.fix))


def test_what_no_weight_depends_on_may_differ(info: Info) -> None:
    refuse_foreign(Path("c"), info, changed(RECIPE, ["licence=MIT", "golden=drawn"]))
    moved = replace(RECIPE.data, root="/another/folder")
    refuse_foreign(Path("c"), info, replace(RECIPE, data=moved))
    assert info.recipe["data.root"] == '"PATH"'


def test_a_checkpoint_without_its_recipe_is_compared_as_far_as_it_goes(info: Info) -> None:
    before = replace(info, recipe={})
    refuse_foreign(Path("c"), before, changed(RECIPE, ["train.lr=0.3"]))
    for setting in ("preprocess.colour=BGR", "adaptor.rank=2", "train.seed=9"):
        other = changed(RECIPE, [setting])
        assert repeated(other, refused(before, other).fix) == RECIPE


def test_only_a_checkpoint_without_its_recipe_can_hide_what_differs(info: Info) -> None:
    other, before = changed(RECIPE, ["train.lr=0.3"]), replace(info, recipe={})
    assert hides_differences(before, other)
    assert not hides_differences(before, RECIPE)
    assert not hides_differences(info, other)


def test_another_domain_or_backbone_is_another_checkpoint(info: Info) -> None:
    err = refused(info, replace(RECIPE, backbone="resnet20"))
    assert "backbone: the recipe says resnet20, the checkpoint toy" in err.message
    assert "train it again with overwriting" in err.fix
