"""What an export is refused for before PyTorch starts."""

from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support import stripes
from toolchain.core.errors import CheckpointError
from toolchain.export.refusals import refuse_foreign, trained_by
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


def test_values_that_were_set_are_named_and_the_fix_passes_them(info: Info) -> None:
    """Law: with the settings of the fix, the checkpoint is taken."""
    other = changed(
        RECIPE, ["preprocess.size=24", "preprocess.resize=24", "preprocess.mean=[0,0,0]"]
    )
    err = refused(info, other)
    assert "\n  preprocess.size: the recipe says 24, the checkpoint 12" in err.message
    assert "Preprocessing(" not in err.message
    assert "--set preprocess.size=12 --set preprocess.resize=12 --set " in err.fix
    words = shlex.split(err.fix.partition("; or")[0])
    settings = [text for before, text in pairwise(words) if before == "--set"]
    refuse_foreign(Path("c"), info, changed(other, settings))


def test_another_method_is_exported_as_what_it_is(info: Info) -> None:
    assert refused(info, RECIPE.by("head")).fix == "export it as what it is, with --method da3"


def test_another_domain_or_backbone_is_another_checkpoint(info: Info) -> None:
    err = refused(info, replace(RECIPE, backbone="resnet20"))
    assert "backbone: the recipe says resnet20, the checkpoint toy" in err.message
    assert "train it again with overwriting" in err.fix
