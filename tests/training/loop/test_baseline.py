"""Where methods that train with the batch's statistics begin: at their head, not far below it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support import stripes
from tests.training.loop.test_training import Recorder, same, weights
from toolchain.core.errors import AttachError
from toolchain.pictures.preprocess import normalise
from toolchain.training.adapt.attached import HEAD, AttachedModel
from toolchain.training.adapt.guards import batch_statistics
from toolchain.training.loop.baseline import probe, settle
from toolchain.training.loop.training import train

COUNTING = ("finetune", "bn", "series", "parallel")


def strange(method: str, momentum: float = 0.1) -> AttachedModel:
    """The toy with statistics of quite other pictures, as a net of ImageNet has for X-rays."""
    model = stripes.model(method="head")
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.add_(1.5)
            module.running_var.mul_(9)
            module.momentum = momentum
    return AttachedModel(model.backbone, model.anatomy, method, 3, stripes.RECIPE.adaptor)


def images() -> tuple[Tensor, Tensor]:
    split = stripes.data().train
    pictures, labels = split.batch(np.arange(len(split)))
    return torch.from_numpy(normalise(stripes.RECIPE.preprocess, pictures)), torch.from_numpy(
        labels
    )


def losses(model: AttachedModel) -> list[float]:
    """The loss on all training pictures in evaluation, and with the batch's statistics."""
    pictures, labels = images()
    values = []
    with torch.no_grad():
        for mode in (False, True):
            model.train(mode)
            values.append(float(nn.functional.cross_entropy(model(pictures), labels)))
    return values


@pytest.mark.parametrize("method", COUNTING)
def test_the_first_step_meets_the_features_that_the_head_was_fitted_to(method: str) -> None:
    model, plain = strange(method), strange(method)
    heads = [
        probe(model, stripes.data(), stripes.RECIPE.preprocess, batch=16),
        probe(strange("head"), stripes.data(), stripes.RECIPE.preprocess, batch=16),
    ]
    assert heads[0].accuracy == heads[1].accuracy  # the baseline is the plain backbone's
    for one, head in zip((model, plain), heads, strict=True):
        one.domain[HEAD].load_state_dict({"weight": head.weight, "bias": head.bias})
    fair, unfair = losses(model), losses(plain)
    assert fair[1] < 1.5 * fair[0] + 0.05
    assert unfair[1] > 3 * fair[1]  # what they began with before


def test_settled_statistics_are_the_mean_over_the_batches() -> None:
    """Law: every batch counts the same, and the net's own statistics count nothing."""
    model = strange("bn")
    settle(model, stripes.data().train, stripes.RECIPE.preprocess, batch=90)
    first = next(
        name for name, m in model.backbone.named_modules() if isinstance(m, nn.BatchNorm2d)
    )
    maps: list[Tensor] = []
    module = model.backbone.get_submodule(first)
    module.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    with torch.no_grad():
        model(images()[0])
    moved = dict(model.domain.named_buffers())
    assert torch.allclose(
        moved[f"own.{first}.running_mean.value"], maps[0].mean((0, 2, 3)), atol=1e-4
    )
    assert torch.allclose(
        moved[f"own.{first}.running_var.value"], maps[0].var((0, 2, 3)), rtol=1e-3
    )


def test_the_nets_own_momentum_plays_no_part(tmp_path: Path) -> None:
    """Law: a net that says 0.01 follows the domain as one that says 0.1 does, bit for bit."""
    recipe = stripes.recipe(method="bn", epochs=1)
    ends = []
    for momentum in (0.1, 0.01):
        model = strange("bn", momentum)
        train(model, stripes.data(), recipe, out=tmp_path / f"{momentum}")
        ends.append(weights(model))
        norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {norm.momentum for norm in norms} == {momentum}
    assert same(*ends)


def test_momentum_comes_back_after_an_error() -> None:
    norm = nn.BatchNorm2d(3, momentum=0.03).eval()
    with pytest.raises(AttachError, match="several values"), batch_statistics(norm, 0.5):
        assert (norm.training, norm.momentum) == (True, 0.5)
        norm(torch.zeros(1, 3, 1, 1))
    assert (norm.training, norm.momentum) == (False, 0.03)


@pytest.mark.parametrize("method", ["finetune", "bn"])
def test_training_never_falls_far_below_where_it_began(tmp_path: Path, method: str) -> None:
    recorder, model = Recorder(), strange(method)
    recipe = stripes.recipe(method=method, epochs=3)
    train(model, stripes.data(), recipe, out=tmp_path / "out", progress=recorder)
    first = recorder.steps[0].loss
    assert max(status.loss for status in recorder.epochs) < 2 * first + 0.5
