"""What single layers keep, against bytes worked out by hand from their shapes.

The table is an oracle that knows nothing of autograd: TinyTL's rule (Cai et al., NeurIPS 2020,
section 3.1: an input waits where a weight is trained, a ReLU keeps one bit), widened to norms,
pools and attention. ``docs/memory.md`` has the same table in words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support import toys
from toolchain.training.adapt.attached import attach
from toolchain.training.lean.options import Precision
from toolchain.training.memory.analytic import analytic

N, C, SIDE = 6, 8, 8
ELEMENTS = N * C * SIDE * SIDE
FLOATS, BITS = 4 * ELEMENTS, ELEMENTS // 8
GROUPS = 2


class Attention(nn.Module):
    """Fused attention of two heads over the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(x.shape[0], 2, x.shape[1] // 2, -1).transpose(2, 3).contiguous()
        y = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return y.transpose(2, 3).reshape(x.shape)


class Block(nn.Module):
    """A residual block around a layer whose input needs a gradient."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.before, self.layer = nn.Conv2d(C, C, 1), layer
        self.after = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.after(self.layer(self.before(x)))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Case:
    """A frozen layer on a map ``[N, C, SIDE, SIDE]``: bytes kept by PyTorch's, lean and in int8."""

    layer: Callable[[], nn.Module]
    stock: int
    lean: int
    int8: int


STATISTICS = 2 * 4 * N  # a mean and a deviation for each picture
CASES = {
    "convolution": Case(lambda: nn.Conv2d(C, C, 3, padding=1), FLOATS, 0, 0),
    "depthwise": Case(lambda: nn.Conv2d(C, C, 3, padding=1, groups=C), FLOATS, 0, 0),
    "batch norm": Case(lambda: nn.BatchNorm2d(C), FLOATS, 0, 0),
    "group norm": Case(
        lambda: nn.GroupNorm(GROUPS, C),
        FLOATS + GROUPS * STATISTICS,
        FLOATS + GROUPS * STATISTICS,
        ELEMENTS + 8 * N + GROUPS * STATISTICS,
    ),
    "layer norm": Case(
        lambda: nn.LayerNorm([C, SIDE, SIDE]),
        FLOATS + STATISTICS,
        FLOATS + STATISTICS,
        ELEMENTS + 8 * N + STATISTICS,
    ),
    "relu": Case(nn.ReLU, FLOATS, BITS, BITS),
    "relu6": Case(nn.ReLU6, FLOATS, BITS, BITS),
    "leaky relu": Case(nn.LeakyReLU, FLOATS, BITS, BITS),
    "h-swish": Case(nn.Hardswish, FLOATS, FLOATS, FLOATS),
    "silu": Case(nn.SiLU, FLOATS, FLOATS, FLOATS),
    "gelu": Case(nn.GELU, FLOATS, FLOATS, FLOATS),
    "sigmoid": Case(nn.Sigmoid, FLOATS, FLOATS, FLOATS),
    "average pool": Case(lambda: nn.AvgPool2d(3, 1, 1), FLOATS, 0, 0),
    "max pool": Case(lambda: nn.MaxPool2d(3, 1, 1), FLOATS + 8 * ELEMENTS, ELEMENTS, ELEMENTS),
    # Its tokens (queries, keys and values at once), its output, a float for each head and pixel.
    "attention": Case(Attention, *(3 * [2 * FLOATS + 4 * N * 2 * SIDE * SIDE])),
    "nothing": Case(nn.Identity, 0, 0, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_frozen_layer_keeps_what_its_shapes_say(name: str) -> None:
    case = CASES[name]
    expected: dict[bool | Precision, int] = {
        False: case.stock,
        True: case.lean,
        "int8": case.int8,
    }
    for lean, kept in expected.items():
        net = toys.Net(toys.stem(C), [Block(case.layer()), Block(case.layer())], C).eval()
        model = attach(net, method="bias", classes=3, input_shape=(3, SIDE, SIDE), lean=lean)
        by_layer = analytic(model, N).by_layer
        assert by_layer.get("blocks.1.layer", 0) == kept, lean


@pytest.mark.parametrize(
    ("lean", "expected"), [(True, FLOATS), ("half", FLOATS // 2), ("int8", ELEMENTS + 8 * N)]
)
def test_a_trained_convolution_keeps_its_input(lean: bool | Precision, expected: int) -> None:
    net = toys.Net(toys.stem(C), [Block(nn.Identity()), Block(nn.Identity())], C).eval()
    selection = {"blocks.1.after.weight": tuple(range(C // 2))}
    model = attach(
        net,
        method="sparse",
        classes=3,
        input_shape=(3, SIDE, SIDE),
        lean=lean,
        selection=selection,
    )
    half_of_the_channels = ELEMENTS // 2 + 8 * N if lean == "int8" else expected // 2
    assert analytic(model, N).by_layer["blocks.1.after"] == half_of_the_channels
    whole = attach(
        toys.backbone("single"),
        method="parallel",
        classes=3,
        input_shape=(3, SIDE, SIDE),
        lean=lean,
    )
    kernel = 4 * C * C * 3 * 3  # a made one, which its adapter is folded into
    assert analytic(whole, N).by_layer["blocks.0.conv2"] == expected + kernel
