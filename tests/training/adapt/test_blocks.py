"""Finding blocks: every toy family and structures of real model zoos; refused with what helps."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support import toys, wild
from toolchain.core.errors import AttachError
from toolchain.export.graph.split import split
from toolchain.training.adapt.attached import attach
from toolchain.training.adapt.blocks import Anatomy, examine


@pytest.mark.parametrize("name", sorted(toys.TOYS))
def test_the_blocks_of_every_family_are_found(name: str) -> None:
    toy = toys.TOYS[name]
    anatomy = examine(toys.backbone(name), toy.input_shape)
    assert tuple(site.gateable for site in anatomy.sites) == toy.gateable
    assert {site.layout for site in anatomy.sites} == {toy.layout}
    assert [site.name for site in anatomy.sites] == [
        f"blocks.{i}" for i in range(len(toy.gateable))
    ]


@pytest.mark.parametrize(
    ("name", "head"), [("plain", "fc"), ("tokens", "head"), ("headless", None)]
)
def test_the_classifier_is_the_linear_that_returns_the_answer(name: str, head: str | None) -> None:
    anatomy = examine(toys.backbone(name), toys.TOYS[name].input_shape)
    assert anatomy.head == head
    assert anatomy.features == {"plain": 16, "tokens": 8, "headless": 8}[name]


def test_flops_are_multiply_adds_counted_by_hand() -> None:
    """A 3x3 convolution from 8 to 8 channels on 8x8 maps: 8 * 8 * 9 * 64 multiply-adds."""
    anatomy = examine(toys.backbone("single"), (3, 8, 8))
    one = 8 * 8 * 9 * 64
    assert anatomy.sites[0].flops == 2 * one
    assert anatomy.flops == 2 * one + 3 * 8 * 9 * 64


def test_shapes_are_those_of_one_sample() -> None:
    sites = examine(toys.backbone("odd"), (3, 15, 11)).sites
    assert [(s.in_shape, s.out_shape) for s in sites] == [
        ((8, 15, 11), (8, 8, 6)),
        ((8, 8, 6), (8, 8, 6)),
        ((8, 8, 6), (16, 4, 3)),
    ]


def test_examining_leaves_the_mode_and_the_statistics() -> None:
    net = toys.backbone("plain").train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    examine(net, (3, 12, 12))
    assert net.training
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_named_blocks_are_taken_as_they_are() -> None:
    anatomy = examine(toys.backbone("plain"), (3, 12, 12), blocks=["blocks.2"])
    assert [site.name for site in anatomy.sites] == ["blocks.2"]


class Plain(nn.Module):
    """Layers by attribute, nothing in a container."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.fc(self.two(self.one(x)).mean((2, 3)))
        return answer


class TwoInputs(nn.Module):
    """A block that is run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(toys.Residual(4, 4))
        self.stem = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.fc(self.blocks(self.blocks(self.stem(x))).mean((2, 3)))
        return answer


class Caster(nn.Module):
    """A block that returns another dtype than it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.more = nn.Conv2d(8, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.more(self.conv(x)).double()
        return answer


class ConvHead(nn.Module):
    """Scores from a convolution: no Linear layer to replace."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(toys.Residual(3, 4))
        self.scores = nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.scores(self.blocks(x)).mean((2, 3))
        return answer


class Names(nn.Module):
    """Answers with the names of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(toys.Residual(3, 4))

    def forward(self, x: Tensor) -> list[str]:
        return [str(int(best)) for best in self.blocks(x).mean((2, 3)).argmax(1)]


def casting() -> nn.Module:
    return toys.Net(toys.stem(8), [Caster()], 8, head=False)


@pytest.mark.parametrize(
    ("build", "arguments", "words"),
    [
        (Plain, {}, "found no blocks in Plain"),
        (TwoInputs, {"blocks": ["blocks.0"]}, "ran 2 times"),
        (ConvHead, {}, "found no classifier"),
        (Names, {}, "returns list"),
        (casting, {}, r"blocks\.0.*float32.*float64"),
        (Plain, {"blocks": ["nowhere"]}, "is not a module of Plain"),
        (Plain, {"blocks": ["fc"]}, "cannot take an adaptor"),
        (Plain, {"blocks": ["two"], "head": "one"}, "expected a Linear layer"),
        (Plain, {"blocks": ["two"], "head": "nowhere"}, "not a module"),
    ],
)
def test_what_cannot_be_examined_is_named_with_what_would_help(
    build: Callable[[], nn.Module], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(AttachError, match=words) as caught:
        examine(build(), (3, 8, 8), **arguments)
    assert caught.value.fix


def test_a_wrong_input_shape_tells_the_shape_that_was_tried() -> None:
    with pytest.raises(AttachError, match=r"\[1, 5, 8, 8\]"):
        examine(toys.backbone("plain"), (5, 8, 8))


def test_naming_blocks_helps_where_structure_does_not() -> None:
    anatomy = examine(Plain(), (3, 8, 8), blocks=["two"])
    assert [(s.name, s.gateable) for s in anatomy.sites] == [("two", True)]


# Structures that real model zoos have and the toys do not.


class Shuffled(nn.Module):
    """ShuffleNet's block: half of the channels pass, half are convolved, then both are mixed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width // 2, width // 2, 3, padding=1)
        self.two = nn.Conv2d(width // 2, width // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        rest, turned = x.chunk(2, dim=1)
        return torch.stack([rest, self.two(self.one(turned))], dim=2).flatten(1, 2)


class Dense(nn.ModuleDict):
    """DenseNet's block: a container with a forward of its own that joins all it computed."""

    def __init__(self, width: int) -> None:
        super().__init__({"a": nn.Conv2d(width, 4, 1), "b": nn.Conv2d(width + 4, 4, 1)})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.values():
            x = torch.cat([x, layer(x)], dim=1)
        return x


class Scaled(nn.Conv2d):
    """One layer with two parameters of rank four, as weight-standardised convolutions have."""

    def __init__(self, width: int) -> None:
        super().__init__(3, width, 1)
        self.gain = nn.Parameter(torch.ones(width, 1, 1, 1))


class PixelHead(nn.Module):
    """Pool first, then a 1x1 convolution as the classifier, as pre-activation nets have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.Sequential(toys.PreActivation(8))
        self.fc = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.blocks(self.stem(x)).mean((2, 3), keepdim=True)
        scores: Tensor = self.fc(pooled)
        return scores.flatten(1)


class Overwriting(nn.Module):
    """Its first activation writes into the map that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.one = nn.Conv2d(8, 8, 1)
        self.two = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.one(self.act(x)))
        return y


class Features(nn.Module):
    """Convolutions in one Sequential, pooled: nothing says whether the answer is scores."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(inplace)]
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.features(x).mean((2, 3))
        return pooled


def anatomy(block: nn.Module, size: int = 8, **arguments: Any) -> Anatomy:
    return examine(toys.Net(toys.stem(8), [block], 8), (3, size, size), **arguments)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_a_block_that_convolves_half_of_its_channels_has_them_first(size: int) -> None:
    """Also where the map is as wide as the convolution (4) or as the block has channels (8)."""
    assert [site.layout for site in anatomy(Shuffled(8), size).sites] == ["NCHW"]


def test_a_container_with_a_forward_of_its_own_is_a_block() -> None:
    net = toys.Net(toys.stem(8), [Dense(8)], 16)
    assert [(s.name, s.gateable) for s in examine(net, (3, 8, 8)).sites] == [("blocks.0", False)]


def test_one_layer_is_no_block_however_many_parameters_it_has() -> None:
    net = toys.Net(nn.Sequential(Scaled(8)), [toys.Residual(8, 8)], 8)
    assert [site.name for site in examine(net, (3, 8, 8)).sites] == ["blocks.0"]


def test_a_classifier_of_one_pixel_is_replaced_like_a_linear_layer() -> None:
    model = attach(PixelHead().eval(), classes=5, input_shape=(3, 8, 8))
    assert (model.anatomy.head, model.anatomy.features) == ("fc", 8)
    toys.scrambled(model)
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    trace = model.trace(images)
    assert trace.features is not None
    assert trace.logits is not None
    torch.testing.assert_close(trace.logits, model.domain["head"](trace.features))
    assert trace.logits.shape == (3, 5)
    assert "head.weight" in split(model).slots


@pytest.mark.parametrize(
    ("build", "blocks", "words"),
    [
        (lambda: toys.Net(toys.stem(8), [Overwriting()], 8), None, "input of block 'blocks.0'"),
        (lambda: Features(inplace=True), ["features.2"], "output of block 'features.2'"),
    ],
)
def test_a_map_that_is_overwritten_in_place_is_refused(
    build: Any, blocks: list[str] | None, words: str
) -> None:
    with pytest.raises(AttachError, match=words) as caught:
        examine(build(), (3, 8, 8), blocks=blocks, head=None if blocks is None else "")
    assert "inplace=False" in caught.value.fix


def test_an_empty_head_says_that_the_answer_is_features() -> None:
    with pytest.raises(AttachError, match="found no classifier") as caught:
        examine(Features(), (3, 8, 8), blocks=["features.2"])
    assert "head=''" in caught.value.fix
    assert examine(Features(), (3, 8, 8), blocks=["features.2"], head="").features == 8


def test_where_nothing_is_found_the_error_lists_what_could_be_named() -> None:
    with pytest.raises(AttachError) as caught:
        examine(Features(), (3, 8, 8))
    assert "['features.0', 'features.2']" in caught.value.fix


# Nets as zoos write them (tests/support/wild.py).


def test_stages_are_opened_where_no_gate_could_skip_them() -> None:
    """Blocks inside keep their shape; the last stage keeps its own, and is opened as the others."""
    sites = examine(wild.built("swin_stages"), wild.SHAPE).sites
    assert [site.name for site in sites] == [
        f"layers.{stage}.blocks.{block}" for stage in range(3) for block in range(2)
    ]
    assert all(site.gateable for site in sites)


def test_a_stage_that_stands_alone_and_keeps_its_shape_stays_whole() -> None:
    net = toys.Net(toys.stem(8), [wild.Mlp(12), wild.Whole(8)], 8)
    assert [site.name for site in examine(net, (3, 8, 12)).sites] == ["blocks.0", "blocks.1"]


class Squeezed(nn.Module):
    """EfficientNet's block: a unit in its Sequential scales the channels and keeps the shape."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(inputs, 32, 1), Excitation(32), nn.Conv2d(32, outputs, 3, stride, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if y.shape == x.shape else y


class Excitation(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return x * scale


def test_a_unit_that_does_little_is_no_finer_block() -> None:
    net = toys.Net(toys.stem(8), [Squeezed(8, 12, 2), Squeezed(12, 12, 1)], 12)
    assert [(s.name, s.gateable) for s in examine(net, (3, 12, 12)).sites] == [
        ("blocks.0", False),
        ("blocks.1", True),
    ]


def test_blocks_that_see_pixels_as_pictures_are_no_blocks() -> None:
    """A gate would decide for each pixel of a patch, and rows are no longer pictures."""
    net = wild.built("mobilevit")
    names = [site.name for site in examine(net, wild.SHAPE).sites]
    assert names == ["blocks.0", "blocks.1"]
    with pytest.raises(AttachError, match=r"blocks\.1\.layer\.0.*for one picture") as caught:
        examine(net, wild.SHAPE, blocks=["blocks.1.layer.0"])
    assert "the block around it" in caught.value.fix


def test_blocks_come_in_the_order_in_which_they_run() -> None:
    want = ["blocks.2", "blocks.1", "blocks.0"]
    net = wild.built("disordered")
    assert [site.name for site in examine(net, wild.SHAPE).sites] == want
    listed = ["blocks.0", "blocks.2", "blocks.1"]
    assert [site.name for site in examine(net, wild.SHAPE, blocks=listed).sites] == want


def test_a_signals_channels_come_first() -> None:
    assert {site.layout for site in examine(wild.built("lines"), wild.SHAPE).sites} == {"NCL"}


class Mixer(nn.Module):
    """A token mixer: its Conv1d takes the tokens for channels, on a map that has tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(wild.WIDTH)
        self.mix = nn.Conv1d(wild.TOKENS, wild.TOKENS, 1)
        self.out = nn.Linear(wild.WIDTH, wild.WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.mix(self.norm(x)))
        return x + y


class Turning(nn.Module):
    """Tokens that a Conv1d sees as a signal, turned: their channels are last."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(wild.WIDTH, wild.WIDTH, 3, padding=1)
        self.two = nn.Linear(wild.WIDTH, wild.WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.one(x.transpose(1, 2)).transpose(1, 2))
        return x + y


@pytest.mark.parametrize("block", [Mixer, Turning])
def test_tokens_stay_tokens_where_a_convolution_mixes_them(block: type[nn.Module]) -> None:
    net = wild.built(lambda: wild.Tokens([block()]))
    assert [site.layout for site in examine(net, wild.SHAPE).sites] == ["NLC"]


def test_a_module_that_all_blocks_share_is_looked_at_in_each() -> None:
    sites = examine(wild.built("coat"), wild.SHAPE).sites
    assert [(site.name, site.layout) for site in sites] == [
        ("blocks.0", "NLC"),
        ("blocks.1", "NLC"),
    ]


def test_a_module_may_take_a_learned_token_as_its_input() -> None:
    """Its gradient does not count in a dry run, and afterwards it learns as before."""
    net = wild.built("cait")
    fixed = net.get_parameter("patches.bias").requires_grad_(False)
    assert [site.gateable for site in examine(net, wild.SHAPE).sites] == [True, True]
    assert [p for p in net.parameters() if not p.requires_grad] == [fixed]


def test_features_as_wide_as_an_early_convolution_are_no_scores() -> None:
    """A convolution is taken for the classifier only where it is the last layer that runs."""
    net = wild.built(lambda: wild.Features([wild.Mlp(), wild.Mlp()]))
    anatomy = examine(net, wild.SHAPE)
    assert (anatomy.head, anatomy.features) == (None, wild.WIDTH)


class Loose(nn.Module):
    """No container at all, and an activation that writes into the map of the layer before it."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.ReLU(inplace)
        self.block = toys.Residual(8, 8)
        self.twice = toys.Residual(8, 8)
        self.last = toys.Residual(8, 12, 2)
        self.fc = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.block(self.act(self.one(x)))))
        return self.fc(self.last(x).mean((2, 3)))  # type: ignore[no-any-return]


class OnlyStrides(nn.Module):
    """Layers that all change the shape of their map."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.fc = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.two(self.one(x)).mean((2, 3)))  # type: ignore[no-any-return]


class AllOverwritten(nn.Module):
    """Every map is written into by what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.two(self.act(self.one(x)))).mean((2, 3)))  # type: ignore[no-any-return]


def advised(net: nn.Module) -> dict[str, Any]:
    """The arguments that the fix of the error names."""
    with pytest.raises(AttachError) as caught:
        attach(net, classes=3, input_shape=(3, 8, 8))
    words = re.search(r"attach\(\.\.\., (.*?)\), or", caught.value.fix)
    assert words, caught.value.fix
    arguments: dict[str, Any] = eval(f"dict({words[1]})")
    return arguments


@pytest.mark.parametrize(
    "build", [lambda: Loose(inplace=True), lambda: Loose(inplace=False), OnlyStrides]
)
def test_whoever_follows_the_advice_gets_a_model(build: Callable[[], nn.Module]) -> None:
    """Law: the names that an error suggests can be attached to, as they stand there."""
    net = build().eval()
    model = attach(net, classes=3, input_shape=(3, 8, 8), **advised(net))
    assert model.sites
    assert "twice" not in {site.name for site in model.sites.values()}


def test_where_no_name_would_work_the_error_says_what_has_to_change() -> None:
    net = AllOverwritten().eval()
    with pytest.raises(AttachError, match="found no blocks") as caught:
        attach(net, classes=3, input_shape=(3, 8, 8))
    assert "inplace=False" in caught.value.fix
    net.act.inplace = False
    assert attach(net, classes=3, input_shape=(3, 8, 8), **advised(net)).sites


def test_a_value_that_others_read_keeps_a_block_from_having_a_gate() -> None:
    """The reader is named; what the fix says works, up to the split."""
    net = wild.built(wild.DeeplySupervised)
    with pytest.raises(AttachError, match=r"'blocks\.0' cannot have a gate.*own forward") as caught:
        attach(net, classes=3, input_shape=wild.SHAPE)
    assert "blocks=['blocks.1']" in caught.value.fix
    assert "method='da2'" in caught.value.fix
    assert [
        s.name
        for s in attach(net, classes=3, input_shape=wild.SHAPE, blocks=["blocks.1"]).sites.values()
    ]
    assert attach(net, classes=3, input_shape=wild.SHAPE, method="da2").sites


def test_values_that_go_from_block_to_block_keep_all_of_them_from_having_gates() -> None:
    with pytest.raises(AttachError, match=r"'blocks\.0'.*'blocks\.1' reads \(3 blocks") as caught:
        attach(wild.built(wild.Passing), classes=3, input_shape=wild.SHAPE)
    assert "blocks=['last.0']" in caught.value.fix


def test_the_head_of_features_has_to_be_features() -> None:
    with pytest.raises(AttachError, match=r"expected features \[1, width\].*\[1, 8, 12, 16\]"):
        examine(nn.Sequential(toys.stem(8), toys.Residual(8, 8)), wild.SHAPE, head="")


def test_the_fix_for_a_wrong_block_names_parts_that_can_be_named() -> None:
    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(3, 4, 3))
    net.add_module("blocks", nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(3))))
    with pytest.raises(AttachError) as caught:
        examine(net, (3, 8, 8), blocks=["blocks.7"])
    assert caught.value.fix == "its parts are stem, blocks.0 to blocks.2"
