"""What is refused before a domain learns nothing, or something wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint

from tests.support import toys
from toolchain.core.errors import AttachError
from toolchain.training.adapt.attached import attach


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_backbone_that_is_not_float32_is_refused(dtype: torch.dtype) -> None:
    net = toys.Net(nn.Conv2d(3, 8, 3, 2, 1), [toys.Residual(8, 8)], 8).to(dtype)
    with pytest.raises(AttachError, match=r"expected float32(.|\n)*\.float\(\)"):
        attach(net, classes=3, input_shape=(3, 16, 16))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@torch.no_grad()
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    net = toys.Net(nn.Conv2d(3, 8, 3, 2, 1), [toys.Residual(8, 8)], 8)
    net.get_parameter("stem.weight")[0, 0, 0, 0] = value
    with pytest.raises(AttachError, match=r"stem\.weight"):
        attach(net, classes=3, input_shape=(3, 16, 16))


def test_tensors_that_two_modules_share_are_not_replaced() -> None:
    net = toys.Net(nn.Conv2d(3, 8, 3, 2, 1), [toys.Residual(8, 8), toys.Residual(8, 8)], 8)
    one, two = net.get_submodule("blocks.0.conv1"), net.get_submodule("blocks.1.conv1")
    two.weight = one.weight
    with pytest.raises(AttachError, match=r"shared.*blocks\.0\.conv1\.weight"):
        attach(net, method="finetune", classes=3, input_shape=(3, 16, 16))
    assert attach(net, classes=3, input_shape=(3, 16, 16)).sites


def test_a_second_forward_on_one_backbone_is_refused_and_leaves_the_first() -> None:
    net = toys.backbone("plain")
    one, two = (attach(net, classes=3, input_shape=(3, 12, 12)) for _ in range(2))
    images = toys.pictures("plain", 2)
    refused: list[str] = []

    def inside(_: nn.Module, __: object) -> None:
        try:
            two(images)
        except AttachError as err:
            refused.append(err.message)

    expected = one(images)
    handle = net.get_submodule("blocks.1").register_forward_pre_hook(inside)
    logits = one(images)
    handle.remove()
    assert len(refused) == 1
    assert "one forward at a time" in refused[0]
    assert torch.equal(logits, expected)
    assert two(images).shape == (2, 3)


class Standardised(nn.Conv2d):
    """A convolution that never takes its kernel as it is."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias, padding=1)


def test_a_partly_trained_kernel_that_no_convolution_takes_is_refused() -> None:
    net = toys.Net(nn.Conv2d(3, 8, 3, 2, 1), [toys.Residual(8, 8)], 8)
    net.set_submodule("blocks.0.conv1", Standardised(8, 8, 3, padding=1))
    chosen = {"blocks.0.conv1.weight": (0, 1)}
    options: dict[str, Any] = {"classes": 3, "input_shape": (3, 16, 16), "selection": chosen}
    model = attach(net, method="sparse", lean=True, **options)
    with pytest.raises(AttachError, match=r"blocks\.0\.conv1\.weight"):
        model(torch.randn(2, 3, 16, 16))
    stock = attach(net, method="sparse", **options)
    stock(torch.randn(2, 3, 16, 16)).sum().backward()
    delta = stock.domain.get_parameter("own.blocks.0.conv1.weight.delta").grad
    assert delta is not None
    assert bool(delta.any())


class Checkpointed(toys.Net):
    """A backbone that recomputes its blocks in the backward pass."""

    reentrant = True

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        features: Tensor = x.mean((2, 3))
        return features if self.fc is None else self.fc(features)


@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("method", ["da3", "da2", "bias"])
def test_a_backbone_that_checkpoints_its_blocks_never_learns_in_silence(
    method: str, lean: bool
) -> None:
    net = Checkpointed(nn.Conv2d(3, 8, 3, 2, 1), [toys.Residual(8, 8), toys.Residual(8, 8)], 8)
    model = attach(net, method=method, classes=3, input_shape=(3, 16, 16), lean=lean)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():  # nothing learns there, so nothing is lost
        model.train()(images)
    model.eval()(images)
    with pytest.raises(AttachError, match="Residual to run with gradients") as caught:
        model.train()(images)
    assert "checkpointing off" in caught.value.fix
    net.reentrant = False
    if method == "bias" and not lean:
        return  # what is recomputed is what ran: torch has nothing to refuse
    with pytest.raises(CheckpointError):  # torch's own, which finds other kept tensors
        model(images).sum().backward()


def test_batch_statistics_of_one_value_are_told() -> None:
    model = toys.attached("one_pixel", method="bn")
    model.train()
    with pytest.raises(AttachError, match="several values per channel"):
        model(toys.pictures("one_pixel", 1))
    assert not any(module.training for module in model.backbone.modules())


def scripted(net: nn.Module) -> nn.Module:
    return torch.jit.script(net)


def traced(net: nn.Module) -> nn.Module:
    return torch.jit.trace(net, torch.zeros(1, 3, 16, 16))  # type: ignore[no-any-return, no-untyped-call]


def part_scripted(net: nn.Module) -> nn.Module:
    net.set_submodule("blocks.0", scripted(net.get_submodule("blocks.0")))
    return net


def quantised(net: nn.Module) -> nn.Module:
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(net, {nn.Linear})  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(
    ("change", "words", "fix"),
    [
        (scripted, "got TorchScript", "Python class"),
        (traced, "got TorchScript", "Python class"),
        (part_scripted, r"'blocks\.0'.*got TorchScript", "Python class"),
        (quantised, r"'fc\..*quantised or packed", "before it was quantised"),
        (lambda net: net.to("meta"), "meta device", "to_empty"),
    ],
)
def test_what_no_domain_can_join_is_refused_before_anything_runs(
    change: Any, words: str, fix: str
) -> None:
    net = toys.Net(nn.Conv2d(3, 8, 3, 2, 1), [toys.Residual(8, 8)], 8).eval()
    with pytest.raises(AttachError, match=words) as caught:
        attach(change(net), classes=3, input_shape=(3, 16, 16))
    assert fix in caught.value.fix
