"""The five nets: names, shapes, parameter counts, and their arithmetic written down a second time.

The files in ``state_dicts/`` list the names and shapes of torchvision's checkpoints, derived from
the papers' tables, and of timm's ``tf_efficientnet_lite0``, printed by timm. None was printed from
the code under test.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from da3_models import efficientnet_lite0, mobilenet_v2, resnet20, resnet26, resnet50
from torch import Tensor, nn
from torch.nn import functional as F

STATE_DICTS = Path(__file__).parent / "state_dicts"
NETS: dict[str, ModuleType] = {
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_lite0": efficientnet_lite0,
}
MOBILENET_BLOCKS = [
    # stride and shortcut of features.1 to features.17
    *[(1, False)],
    *[(2, False), (1, True)],
    *[(2, False), (1, True), (1, True)],
    *[(2, False), (1, True), (1, True), (1, True)],
    *[(1, False), (1, True), (1, True)],
    *[(2, False), (1, True), (1, True)],
    *[(1, False)],
]


def settled(module: ModuleType, classes: int, seed: int = 0) -> nn.Module:
    """Build a net whose norms are far from the identity, so that a mistake in one shows."""
    torch.manual_seed(seed)
    net: nn.Module = module.build(classes).eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            nn.init.uniform_(norm.weight, 0.4, 0.8)
            nn.init.normal_(norm.bias, 0.0, 0.2)
            nn.init.normal_(norm.running_mean, 0.0, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return net


class Arithmetic:
    """A net's operations read straight from its state dict."""

    def __init__(self, net: nn.Module, eps: float = 1e-5) -> None:
        self.eps = eps
        self.state: dict[str, Tensor] = net.state_dict()

    def conv(self, x: Tensor, key: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self.state[f"{key}.weight"]
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)

    def norm(self, x: Tensor, key: str) -> Tensor:
        mean, var, scale, shift = (
            self.state[f"{key}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + self.eps) * scale + shift

    def linear(self, x: Tensor, key: str) -> Tensor:
        return x.mean((2, 3)) @ self.state[f"{key}.weight"].T + self.state[f"{key}.bias"]


@pytest.mark.parametrize(
    ("module", "classes", "parameters"),
    [
        (resnet20, 10, 271_824 + 64 * 10 + 10),
        (resnet26, 1000, 5_814_176 + 256 * 1000 + 1000),
        (resnet50, 1000, 25_557_032),
        (mobilenet_v2, 1000, 3_504_872),
        (efficientnet_lite0, 1000, 4_652_008),
    ],
)
def test_parameter_count(module: ModuleType, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        net = module.build(classes)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("name", NETS)
def test_state_dict_has_the_names_order_and_shapes_of_the_zoos(name: str) -> None:
    with torch.device("meta"):
        state = NETS[name].build(1000).state_dict()
    lines = [f"{k} {'x'.join(map(str, t.shape)) or 'scalar'}" for k, t in state.items()]
    assert lines == (STATE_DICTS / f"{name}.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("module", "side", "block", "shape"),
    [
        (resnet20, 32, "layer3.2", (64, 8, 8)),
        (resnet26, 64, "layer3.3", (256, 8, 8)),
        (resnet26, 72, "layer3.3", (256, 9, 9)),
        (resnet50, 224, "layer4.2", (2048, 7, 7)),
        (mobilenet_v2, 224, "features.17", (320, 7, 7)),
        (efficientnet_lite0, 224, "blocks.6.0", (320, 7, 7)),
    ],
)
def test_last_block_has_the_papers_map_size(
    module: ModuleType, side: int, block: str, shape: tuple[int, ...]
) -> None:
    net = module.build(3).eval()
    shapes: list[tuple[int, ...]] = []
    net.get_submodule(block).register_forward_hook(lambda *a: shapes.append(tuple(a[-1].shape)))
    with torch.no_grad():
        logits = net(torch.zeros(1, 3, side, side))
    assert shapes == [(1, *shape)]
    assert logits.shape == (1, 3)


def test_resnet50_computes_what_its_paper_and_torchvision_say() -> None:
    """The stride sits on the 3x3 (v1.5); the shortcut joins before the last ReLU."""
    net = settled(resnet50, 7)
    a, image = Arithmetic(net), torch.randn(1, 3, 64, 64)
    x = F.max_pool2d(F.relu(a.norm(a.conv(image, "conv1", 2), "bn1")), 3, 2, 1)
    for layer, depth in enumerate((3, 4, 6, 3), 1):
        for index in range(depth):
            key, stride = f"layer{layer}.{index}", 2 if layer > 1 and index == 0 else 1
            y = F.relu(a.norm(a.conv(x, f"{key}.conv1"), f"{key}.bn1"))
            y = F.relu(a.norm(a.conv(y, f"{key}.conv2", stride), f"{key}.bn2"))
            y = a.norm(a.conv(y, f"{key}.conv3"), f"{key}.bn3")
            if index == 0:
                x = a.norm(a.conv(x, f"{key}.downsample.0", stride), f"{key}.downsample.1")
            x = F.relu(x + y)
    with torch.no_grad():
        torch.testing.assert_close(net(image), a.linear(x, "fc"), rtol=1e-4, atol=1e-4)


def test_mobilenet_v2_computes_what_its_paper_and_torchvision_say() -> None:
    """Expand, depthwise with the stride, linear projection; ReLU6 after all but the projection."""
    net = settled(mobilenet_v2, 7)
    a, image = Arithmetic(net), torch.randn(1, 3, 64, 64)
    x = F.relu6(a.norm(a.conv(image, "features.0.0", 2), "features.0.1"))
    for index, (stride, shortcut) in enumerate(MOBILENET_BLOCKS, 1):
        key, y, part = f"features.{index}.conv", x, 0
        if index > 1:
            y = F.relu6(a.norm(a.conv(y, f"{key}.0.0"), f"{key}.0.1"))
            part = 1
        y = a.conv(y, f"{key}.{part}.0", stride, groups=y.shape[1])
        y = F.relu6(a.norm(y, f"{key}.{part}.1"))
        y = a.norm(a.conv(y, f"{key}.{part + 1}"), f"{key}.{part + 2}")
        x = x + y if shortcut else y
    x = F.relu6(a.norm(a.conv(x, "features.18.0"), "features.18.1"))
    with torch.no_grad():
        torch.testing.assert_close(net(image), a.linear(x, "classifier.1"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("module", "side"), [(resnet20, 32), (resnet26, 64)])
def test_small_nets_compute_what_their_papers_say(module: ModuleType, side: int) -> None:
    """Basic blocks; resnet20 projects where the shape changes, resnet26 averages and pads."""
    net = settled(module, 5)
    a, image = Arithmetic(net), torch.randn(2, 3, side, side)
    x = F.relu(a.norm(a.conv(image, "conv1"), "bn1"))
    first = 2 if module is resnet26 else 1
    for layer, depth in enumerate((4, 4, 4) if module is resnet26 else (3, 3, 3), 1):
        for index in range(depth):
            key, stride = f"layer{layer}.{index}", 1
            if index == 0:
                stride = first if layer == 1 else 2
            y = F.relu(a.norm(a.conv(x, f"{key}.conv1", stride), f"{key}.bn1"))
            y = a.norm(a.conv(y, f"{key}.conv2"), f"{key}.bn2")
            if stride == 2 and module is resnet20:
                x = a.norm(a.conv(x, f"{key}.downsample.0", 2), f"{key}.downsample.1")
            elif stride == 2:
                x = F.avg_pool2d(x, 2)
                x = torch.cat([x, torch.zeros_like(x)], 1)
            x = F.relu(x + y)
    with torch.no_grad():
        torch.testing.assert_close(net(image), a.linear(x, "fc"), rtol=1e-4, atol=1e-4)
