"""Mixed precision on this machine's CPU; on a GPU the same tests are marked ``gpu``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support import stripes
from tests.training.loop.test_training import Recorder, press_ctrl_c, same, weights
from toolchain.core.errors import TrainingError, UsageError
from toolchain.training.adapt.attached import AttachedModel, attach, weights_digest
from toolchain.training.adapt.checkpoint import read
from toolchain.training.lean import Lean
from toolchain.training.loop.devices import Device, device_of
from toolchain.training.loop.training import train

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
PLACES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
METHODS = ["da3", "finetune"]


def model(method: str) -> AttachedModel:
    backbone = stripes.model(method="head").backbone
    return attach(
        backbone,
        method=method,
        classes=3,
        input_shape=(3, stripes.SIDE, stripes.SIDE),
        options=stripes.RECIPE.adaptor,
        lean=Lean(keep="int8"),
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", METHODS)
def test_it_learns_in_mixed_precision_and_writes_float32(
    tmp_path: Path, method: str, place: str
) -> None:
    """Law: the backbone stays frozen, what is written is finite float32, the model comes back."""
    one = model(method)
    before = weights_digest(one)
    recipe = stripes.recipe(method=method, epochs=4)
    report = train(one, stripes.data(), recipe, out=tmp_path / "out", device=Device(place, "mixed"))
    assert report.evaluation.accuracy >= 0.6  # of three classes
    assert weights_digest(one) == before
    assert device_of(one).type == "cpu"
    assert {array.dtype.name for array in read(tmp_path / "out").tensors.values()} == {"float32"}


@pytest.mark.parametrize("place", PLACES)
def test_its_layers_really_compute_in_bfloat16(tmp_path: Path, place: str) -> None:
    one, kinds = model("da3"), set()

    def look(_: torch.nn.Module, __: object, output: torch.Tensor) -> None:
        kinds.add(output.dtype)

    one.backbone.get_submodule("stem.0").register_forward_hook(look)
    recipe = stripes.recipe(epochs=1)
    train(one, stripes.data(), recipe, out=tmp_path / "out", device=Device(place, "mixed"))
    assert kinds == {torch.bfloat16, torch.float32}  # training, and evaluation


def test_interrupted_and_resumed_in_mixed_precision(tmp_path: Path) -> None:
    """Law: the state is whole in mixed precision too; another precision is named."""
    data, recipe, mixed = stripes.data(), stripes.recipe(), Device("cpu", "mixed")
    whole, resumed = model("da3"), model("da3")
    train(whole, data, recipe, out=tmp_path / "whole", device=mixed)
    out, stop = tmp_path / "out", Recorder(7, press_ctrl_c)
    with pytest.raises(TrainingError, match="stopped"):
        train(model("da3"), data, recipe, out=out, device=mixed, progress=stop)
    with pytest.raises(TrainingError, match="training's device: "):
        train(model("da3"), data, recipe, out=out, resume=True)
    train(resumed, data, recipe, out=out, device=mixed, resume=True)
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused_before_anything_else(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(UsageError, match="expected the device"):
        train(
            stripes.model(),
            stripes.data(),
            stripes.recipe(),
            out=tmp_path / "deep" / "out",
            device=Device(name),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_ends_close_to_the_cpu(tmp_path: Path, method: str) -> None:
    recipe = stripes.recipe(method=method, epochs=6)
    reached = [
        train(
            model(method), stripes.data(), recipe, out=tmp_path / name, device=Device(name)
        ).evaluation.accuracy
        for name in ("cpu", "cuda")
    ]
    assert reached[1] == pytest.approx(reached[0], abs=0.1)
