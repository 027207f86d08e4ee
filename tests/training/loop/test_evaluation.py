"""Evaluation, the head-only baseline, and the public names of the room."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support import stripes, toys
from toolchain import training
from toolchain.pictures.preprocess import normalise
from toolchain.recipe import METHODS
from toolchain.training.adapt.attached import weights_digest
from toolchain.training.adapt.methods import REGISTRY
from toolchain.training.data import DomainData, Split
from toolchain.training.loop.baseline import probe
from toolchain.training.loop.evaluation import evaluate
from toolchain.training.loop.identity import data_digest, recipe_digest, training_document


def images(split: Split) -> Tensor:
    pictures, _ = split.batch(np.arange(len(split)))
    return torch.from_numpy(normalise(stripes.RECIPE.preprocess, pictures))


def test_means_do_not_depend_on_the_batch_size() -> None:
    """Law: an evaluation is a mean over samples, whatever the batches."""
    split = stripes.data().test
    model = toys.balanced(toys.scrambled(stripes.model()), images(split))
    whole, parts = (
        evaluate(model, split, stripes.RECIPE.preprocess, batch=batch) for batch in (60, 7)
    )
    assert whole.gate_rates == parts.gate_rates
    assert whole.accuracy == parts.accuracy
    assert whole.loss == pytest.approx(parts.loss, rel=1e-5)
    assert whole.executed_share == pytest.approx(parts.executed_share, rel=1e-6)
    assert whole.gate_rates["block00"] == pytest.approx(0.5, abs=0.05)


def test_an_evaluation_is_what_the_samples_say_one_by_one() -> None:
    split = stripes.data().test
    model = toys.scrambled(stripes.model())
    evaluation = evaluate(model, split, stripes.RECIPE.preprocess)
    with torch.no_grad():
        answers = [int(model(image[None]).argmax()) for image in images(split)]
    assert evaluation.accuracy == np.mean(np.array(answers) == split.labels)
    assert evaluation.samples == 60


def test_the_baseline_separates_what_a_linear_head_can() -> None:
    data, model = stripes.data(), stripes.model()
    before = weights_digest(model)
    domain = {name: tensor.clone() for name, tensor in model.domain.state_dict().items()}
    baseline = probe(model, data, stripes.RECIPE.preprocess)
    assert baseline.accuracy > 0.5
    assert baseline.weight.shape == (3, 16)
    assert weights_digest(model) == before
    assert all(torch.equal(t, domain[n]) for n, t in model.domain.state_dict().items())


def test_the_baselines_head_works_on_the_features_as_they_are() -> None:
    """Law: a head-only model with the probe's head reaches the accuracy that the probe states."""
    data, model = stripes.data(), stripes.model(method="head")
    baseline = probe(model, data, stripes.RECIPE.preprocess)
    with torch.no_grad():
        model.domain.get_parameter("head.weight").copy_(baseline.weight)
        model.domain.get_parameter("head.bias").copy_(baseline.bias)
    reached = evaluate(model, data.test, stripes.RECIPE.preprocess).accuracy
    assert reached == pytest.approx(baseline.accuracy, abs=1 / 60)


def test_digests_tell_data_and_recipes_apart() -> None:
    data = stripes.data()
    assert data_digest(data) == data_digest(stripes.data())
    assert data_digest(data) != data_digest(stripes.data(3))
    renamed = DomainData(data.train, data.test, ("a", "b", "c"))
    assert data_digest(data) != data_digest(renamed)
    assert recipe_digest(stripes.RECIPE) != recipe_digest(stripes.recipe(lr=0.5))


def test_a_recipes_digest_says_nothing_of_folders() -> None:
    """Bundles carry it: nobody can try paths against it, and a moved folder changes no byte."""
    source = dataclasses.replace(stripes.RECIPE.data, root="/home/ann/patients")
    moved = stripes.recipe(data=source)
    assert recipe_digest(moved) == recipe_digest(stripes.RECIPE)
    assert training_document(moved) != training_document(stripes.RECIPE)


def test_a_training_depends_on_numbers_not_on_words() -> None:
    one = training_document(stripes.RECIPE)
    assert one["train.lr"] == 0.01
    assert one == training_document(stripes.recipe(title="Other", licence="MIT", golden=9))
    assert one != training_document(stripes.recipe(seed=5))


def test_every_public_name_is_there() -> None:
    homes = {name: getattr(training, name) for name in training.__all__}
    assert all(value.__module__.startswith("toolchain.training.") for value in homes.values())
    assert tuple(REGISTRY) == METHODS
    absent = "nothing"
    with pytest.raises(AttributeError, match=absent):
        getattr(training, absent)


def test_a_submodule_does_not_take_its_functions_name() -> None:
    code = (
        "import toolchain.training.loop.training, toolchain.training.adapt.attached;"
        "from toolchain import training;"
        "from toolchain.training.adapt.attached import AttachedModel;"
        "assert callable(training.attach) and callable(training.train);"
        "assert training.AttachedModel is AttachedModel"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_room_does_not_import_torch() -> None:
    code = (
        "import sys, toolchain.training, toolchain.training.data; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
