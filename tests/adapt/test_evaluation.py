"""Evaluation, the head-only baseline, and the public names of the room."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import toys
from tests.adapt import domains
from toolchain import adapt
from toolchain.adapt.attached import weights_digest
from toolchain.adapt.baseline import probe
from toolchain.adapt.data import DomainData, Split
from toolchain.adapt.evaluation import evaluate
from toolchain.adapt.identity import data_digest, recipe_digest, training_document
from toolchain.adapt.methods import REGISTRY
from toolchain.preprocess import normalise


def images(split: Split) -> Tensor:
    pictures, _ = split.batch(np.arange(len(split)))
    return torch.from_numpy(normalise(domains.RECIPE.preprocess, pictures))


def test_means_do_not_depend_on_the_batch_size() -> None:
    """Law: an evaluation is a mean over samples, whatever the batches."""
    split = domains.data().test
    model = toys.balanced(toys.scrambled(domains.model()), images(split))
    whole, parts = (
        evaluate(model, split, domains.RECIPE.preprocess, batch=batch) for batch in (60, 7)
    )
    assert whole.gate_rates == parts.gate_rates
    assert whole.accuracy == parts.accuracy
    assert whole.loss == pytest.approx(parts.loss, rel=1e-5)
    assert whole.executed_share == pytest.approx(parts.executed_share, rel=1e-6)
    assert whole.gate_rates["block00"] == pytest.approx(0.5, abs=0.05)


def test_an_evaluation_is_what_the_samples_say_one_by_one() -> None:
    split = domains.data().test
    model = toys.scrambled(domains.model())
    found = evaluate(model, split, domains.RECIPE.preprocess)
    with torch.no_grad():
        answers = [int(model(image[None]).argmax()) for image in images(split)]
    assert found.accuracy == np.mean(np.array(answers) == split.labels)
    assert found.samples == 60


def test_the_baseline_separates_what_a_linear_head_can() -> None:
    data, model = domains.data(), domains.model()
    before = weights_digest(model)
    domain = {name: tensor.clone() for name, tensor in model.domain.state_dict().items()}
    found = probe(model, data, domains.RECIPE.preprocess)
    assert found.accuracy > 0.5
    assert found.weight.shape == (3, 16)
    assert weights_digest(model) == before
    assert all(torch.equal(t, domain[n]) for n, t in model.domain.state_dict().items())


def test_the_baselines_head_works_on_the_features_as_they_are() -> None:
    """Law: a head-only model with the probe's head reaches the accuracy that the probe states."""
    data, model = domains.data(), domains.model(method="head")
    found = probe(model, data, domains.RECIPE.preprocess)
    with torch.no_grad():
        model.domain.get_parameter("head.weight").copy_(found.weight)
        model.domain.get_parameter("head.bias").copy_(found.bias)
    reached = evaluate(model, data.test, domains.RECIPE.preprocess).accuracy
    assert reached == pytest.approx(found.accuracy, abs=1 / 60)


def test_digests_tell_data_and_recipes_apart() -> None:
    data = domains.data()
    assert data_digest(data) == data_digest(domains.data())
    assert data_digest(data) != data_digest(domains.data(3))
    renamed = DomainData(data.train, data.test, ("a", "b", "c"))
    assert data_digest(data) != data_digest(renamed)
    assert recipe_digest(domains.RECIPE) != recipe_digest(domains.recipe(lr=0.5))


def test_a_training_depends_on_numbers_not_on_words() -> None:
    one = training_document(domains.RECIPE)
    assert one["train.lr"] == 0.01
    assert one == training_document(domains.recipe(title="Other", licence="MIT", golden=9))
    assert one != training_document(domains.recipe(seed=5))


def test_every_public_name_is_there() -> None:
    homes = {name: getattr(adapt, name) for name in adapt.__all__ if name != "METHODS"}
    assert all(value.__module__.startswith("toolchain.adapt.") for value in homes.values())
    assert tuple(REGISTRY) == adapt.METHODS
    absent = "nothing"
    with pytest.raises(AttributeError, match=absent):
        getattr(adapt, absent)


def test_a_submodule_does_not_take_its_functions_name() -> None:
    code = (
        "import toolchain.adapt.training, toolchain.adapt.attached; from toolchain import adapt;"
        "from toolchain.adapt.attached import AttachedModel;"
        "assert callable(adapt.attach) and callable(adapt.train);"
        "assert adapt.AttachedModel is AttachedModel"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_room_does_not_import_torch() -> None:
    code = "import sys, toolchain.adapt, toolchain.adapt.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
