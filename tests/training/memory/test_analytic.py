"""The count on fake tensors against a real step: every method, layout and precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support import toys, wild
from tests.support.steps import BATCH, forced, measured, step
from toolchain.core.errors import TrainingError
from toolchain.training.adapt import sparse
from toolchain.training.adapt.attached import AttachedModel, attach
from toolchain.training.adapt.blocks import examine
from toolchain.training.adapt.methods import REGISTRY
from toolchain.training.adapt.overrides import Selection
from toolchain.training.lean.ledger import Stored, stored
from toolchain.training.lean.options import Keep
from toolchain.training.memory.analytic import analytic, count

LEAN: tuple[bool | Keep, ...] = (True, "half", "int8", False)


def model_of(name: str, method: str, lean: bool | Keep) -> AttachedModel:
    selection: Selection = {}
    if method == "sparse":
        net = toys.backbone(name)
        selection = sparse.by_size(net, examine(net, toys.TOYS[name].input_shape), 4)
    return toys.attached(name, method=method, lean=lean, selection=selection)


def kept_by(model: AttachedModel) -> Stored:
    """What a real step keeps, all gates open."""
    shape = model.anatomy.input_shape
    images, labels = torch.randn(BATCH, *shape), torch.zeros(BATCH, dtype=torch.int64)
    return stored(model, step(forced(model, BATCH), images, labels), ignored=(images, labels))


@pytest.mark.parametrize("method", REGISTRY)
@pytest.mark.parametrize("lean", LEAN)
def test_every_method_keeps_what_is_counted(method: str, lean: bool | Keep) -> None:
    model = model_of("inverted", method, lean)
    assert analytic(model, BATCH).by_layer == measured(model, "inverted").by_layer


@pytest.mark.parametrize("name", toys.TOYS)
@pytest.mark.parametrize("method", ["da3", "bias", "finetune"])
def test_every_structure_keeps_what_is_counted(name: str, method: str) -> None:
    model = model_of(name, method, True)
    assert analytic(model, BATCH).by_layer == measured(model, name).by_layer


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(0, BATCH), lean=st.sampled_from(LEAN))
def test_rows_that_pass_a_block_by_keep_what_is_counted(rows: int, lean: bool | Keep) -> None:
    """Law: equal but for the rows that are probed, of which the count takes the mean."""
    model = model_of("plain", "da3", lean)
    size = analytic(model, BATCH, share=rows / BATCH).bytes
    one = sum(
        site.out_shape[0] * site.out_shape[1] * site.out_shape[2] * 4 + 8 + 4 + 8
        for site in model.sites.values()
    )
    closed = BATCH - rows
    assert size - one * (closed > 0) <= measured(model, "plain", rows).bytes <= size + one * closed


def test_the_model_stays_as_it_is() -> None:
    model = toys.attached("plain", lean=True)
    model.generator = torch.Generator()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    analytic(model, BATCH)
    assert not model.training
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_maps_under_way_grow_with_the_batch() -> None:
    model = toys.attached("plain", lean=True)
    one, many = count(model, 1), count(model, 10)
    # Frozen kernels do not grow, and a byte of bits may be half full.
    assert 9 * one.stored.bytes <= many.stored.bytes <= 10 * one.stored.bytes
    assert one.working < many.working <= 10 * one.working


def test_maps_under_way_are_those_that_the_code_holds() -> None:
    # The stem's norm holds its input and output, 8 channels of 8 x 8 floats each. In the block the
    # addition's two sides, its sum and the block's input live at once; so does one gradient.
    model = toys.attached("single", method="bias", lean=True)
    map_bytes = BATCH * 8 * 8 * 8 * 4
    working = count(model, BATCH).working
    assert 4 * map_bytes <= working <= 5 * map_bytes + BATCH * 1024


class Odd(nn.Module):
    """A residual block with an activation that has no lean form."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.activation(self.one(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("activation", [torch.sigmoid, F.softshrink, torch.erf])
def test_layers_without_a_lean_form_are_listed_with_their_bytes(
    activation: Callable[[Tensor], Tensor],
) -> None:
    net = toys.Net(toys.stem(8), [Odd(activation), Odd(activation)], 8).eval()
    model = attach(net, classes=3, input_shape=(3, 8, 8), lean=True)
    # The first block's input does not require a gradient: nothing is kept there.
    assert analytic(model, BATCH).stock == {activation.__name__: BATCH * 8 * 8 * 8 * 4}


class Direct(toys.Residual):
    """A block that calls torch's own norm and pools by a window too large for a byte."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        norm = self.bn1
        y = torch.batch_norm(
            y, norm.weight, norm.bias, norm.running_mean, norm.running_var, False, 0.1, 1e-5, False
        )
        return x + F.max_pool2d(F.pad(y, (8, 8, 8, 8)), 17, 1)


def test_what_runs_stock_is_told_as_stock_whatever_its_name() -> None:
    net = toys.Net(toys.stem(8), [Direct(8, 8), Direct(8, 8)], 8).eval()
    model = attach(net, method="bias", classes=3, input_shape=(3, 8, 8), lean=True)
    counted = analytic(model, BATCH)
    assert counted.by_layer == kept_by(model).by_layer
    assert counted.stock["batch_norm"] == 2 * BATCH * 8 * 8 * 8 * 4


def test_norms_that_count_batches_are_told_too() -> None:
    net = toys.backbone("plain")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    like = model_of("plain", "bn", False)
    model = attach(net, method="bn", classes=like.classes, input_shape=like.anatomy.input_shape)
    assert analytic(model, 4) == analytic(like, 4)


class Looking(toys.Residual):
    """A block whose code depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if bool(y.max() > -1e9) else x


def test_a_backbone_that_looks_at_values_is_refused() -> None:
    net = toys.Net(toys.stem(8), [Looking(8, 8), Looking(8, 8)], 8).eval()
    model = attach(net, classes=3, input_shape=(3, 8, 8), lean=True)
    with pytest.raises(TrainingError, match="shapes alone"):
        analytic(model, 2)


class Mirrored(nn.Module):
    """Pads by mirroring, and writes over maps with activations that need them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.Sequential(*(self.Block() for _ in range(2)))
        self.fc = nn.Linear(8, 4)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
            self.act = nn.Hardswish(inplace=True)
            self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
            self.clamp = nn.Hardtanh(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.clamp(self.conv2(self.act(self.conv1(x))))
            return x + y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.blocks(self.stem(x)).mean((2, 3)))
        return y


@pytest.mark.parametrize("lean", LEAN)
def test_mirrored_edges_and_maps_written_over_are_counted(lean: bool | Keep) -> None:
    model = attach(Mirrored(), method="bias", classes=3, input_shape=(3, 12, 12), lean=lean)
    assert analytic(model, BATCH).bytes == kept_by(model).bytes


class Attention(nn.Module):
    """PyTorch's own attention over tokens ``[N, L, C]``, then two Linears."""

    def __init__(self, width: int, *, weights: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.grow, self.shrink = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=self.weights)[0]
        return x + self.shrink(F.gelu(self.grow(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("method", ["da3", "bias", "finetune"])
@pytest.mark.parametrize("lean", [True, "int8", False])
def test_a_budget_holds_what_attention_keeps(lean: bool | Keep, method: str, weights: bool) -> None:
    """``need_weights=False`` runs a fused kernel, which keeps no map of queries by keys."""
    net = toys.TokenNet(8, 12, 2)
    net.blocks = nn.ModuleList(Attention(8, weights=weights) for _ in range(2))
    model = attach(net.eval(), method=method, classes=3, input_shape=(3, 12, 16), lean=lean)
    counted, ledger = analytic(model, BATCH), kept_by(model)
    assert ledger.bytes <= counted.bytes
    assert counted.by_layer == ledger.by_layer


def test_maps_inside_of_one_function_are_under_way_too() -> None:
    """Scores, and their softmax: attention over many tokens has no larger maps than these."""
    net = wild.Tokens([Attention(wild.WIDTH, weights=True) for _ in range(2)])
    model = attach(net.eval(), classes=3, input_shape=(3, 64, 64), method="head")
    scores = BATCH * 2 * (16 * 16) ** 2 * 4
    assert 2 * scores <= count(model, BATCH).working <= 4 * scores


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("side", [2, 3, 4])
@pytest.mark.parametrize("lean", LEAN)
def test_trained_kernels_of_an_even_side_keep_their_padded_input(
    side: int, lean: bool | Keep
) -> None:
    net = toys.backbone("single")
    block = net.get_submodule("blocks.0")
    assert isinstance(block, toys.Residual)
    block.conv1 = nn.Conv2d(8, 8, side, padding="same")
    model = attach(net.eval(), method="parallel", classes=3, input_shape=(3, 8, 8), lean=lean)
    assert analytic(model, BATCH).by_layer == kept_by(model).by_layer


# An oracle that knows nothing of autograd: bytes worked out by hand from shapes. It is TinyTL's
# rule (Cai et al., NeurIPS 2020, section 3.1: an input waits where a weight is trained, a ReLU
# keeps one bit), widened to norms, pools and attention. ``docs/memory.md`` has it in words.
N, C, SIDE = 6, 8, 8
ELEMENTS = N * C * SIDE * SIDE
FLOATS, BITS = 4 * ELEMENTS, ELEMENTS // 8
GROUPS = 2


class FusedAttention(nn.Module):
    """Fused attention of two heads over the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(x.shape[0], 2, x.shape[1] // 2, -1).transpose(2, 3).contiguous()
        y = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return y.transpose(2, 3).reshape(x.shape)


class Around(nn.Module):
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
    "attention": Case(FusedAttention, *(3 * [2 * FLOATS + 4 * N * 2 * SIDE * SIDE])),
    "nothing": Case(nn.Identity, 0, 0, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_frozen_layer_keeps_what_its_shapes_say(name: str) -> None:
    case = CASES[name]
    expected: dict[bool | Keep, int] = {
        False: case.stock,
        True: case.lean,
        "int8": case.int8,
    }
    for lean, size in expected.items():
        net = toys.Net(toys.stem(C), [Around(case.layer()), Around(case.layer())], C).eval()
        model = attach(net, method="bias", classes=3, input_shape=(3, SIDE, SIDE), lean=lean)
        by_layer = analytic(model, N).by_layer
        assert by_layer.get("blocks.1.layer", 0) == size, lean


@pytest.mark.parametrize(
    ("lean", "expected"), [(True, FLOATS), ("half", FLOATS // 2), ("int8", ELEMENTS + 8 * N)]
)
def test_a_trained_convolution_keeps_its_input(lean: bool | Keep, expected: int) -> None:
    net = toys.Net(toys.stem(C), [Around(nn.Identity()), Around(nn.Identity())], C).eval()
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
