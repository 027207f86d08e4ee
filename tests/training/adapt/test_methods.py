"""Every method: through one registry, one loop, with one set of laws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support import stripes, toys
from toolchain.core.errors import AttachError
from toolchain.recipe import METHOD_OPTIONS, METHODS
from toolchain.training.adapt.attached import AttachedModel, attach, weights_digest
from toolchain.training.adapt.methods import REGISTRY, page
from toolchain.training.adapt.restore import restore
from toolchain.training.adapt.weights import load_backbone
from toolchain.training.lean.options import Lean
from toolchain.training.loop import models
from toolchain.training.loop.training import train

ALL = sorted(REGISTRY)
DOCUMENT = Path(__file__).parents[3] / "docs" / "methods.md"
SELECTION = {"blocks.0.conv2.weight": (1, 3), "blocks.1.conv1.weight": (0,)}


def model(method: str, *, lean: bool | Lean, toy: str = "plain") -> AttachedModel:
    return attach(
        toys.backbone(toy),
        method=method,
        classes=len(stripes.CLASSES),
        input_shape=toys.TOYS[toy].input_shape,
        options=stripes.RECIPE.adaptor,
        lean=lean,
        selection=SELECTION if method == "sparse" else None,
    )


def test_recipes_and_registry_know_the_same_methods() -> None:
    assert tuple(REGISTRY) == METHODS
    assert set(METHOD_OPTIONS) == set(METHODS)


@pytest.mark.parametrize("method", ALL)
def test_a_method_says_what_it_is_and_where_it_comes_from(method: str) -> None:
    about = REGISTRY[method].about
    assert len(about.split()) > 10
    assert method in ("head", "finetune") or any(year in about for year in ("20", "2012.01362"))


@pytest.mark.parametrize("method", ALL)
def test_a_method_learns_what_it_says_and_no_more(method: str) -> None:
    network = model(method, lean=True)
    learned = {
        name.removeprefix("own.").rpartition(".")[0]
        for name, parameter in network.domain.named_parameters()
        if parameter.requires_grad and name.startswith("own.")
    }
    backbone = dict(network.backbone.named_parameters())
    norms = {
        f"{name}.{leaf}"
        for name, module in network.backbone.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for leaf in ("weight", "bias")
    }
    whole = {name for name in backbone if not name.startswith("fc.")}
    kernels = {n for n in whole if backbone[n].dim() == 4}
    last = f"blocks.{len(network.anatomy.sites) - 1}."
    expected = {
        "finetune": whole,
        "bn": norms,
        "bias": {name for name in whole if name.endswith(".bias")},
        "piggyback": kernels,
        "sparse": {*SELECTION} | {n for n in learned if n.endswith(".bias")},
        "lite_residual": {name for name in whole if name.endswith(".bias")},
    }
    if method in ("series", "parallel"):
        assert learned - norms < kernels
        assert norms <= learned
    elif method == "mobiletl":
        assert all(f"{n}" in whole for n in learned)
        assert not {n for n in norms if n.endswith(".weight")} & learned
        assert any(n.startswith(last) for n in learned)
    else:
        assert learned == expected.get(method, set())
    adapted = {name.partition(".")[0] for name, _ in network.domain.named_parameters()}
    assert (adapted - {"own", "head"} != set()) is (method in ("da3", "da2", "lite_residual"))


def test_mobiletl_alone_masks_activations_unasked() -> None:
    assert [name for name, method in REGISTRY.items() if method.smooth != "exact"] == ["mobiletl"]
    for method in ALL:
        lean = model(method, lean=True).lean
        if lean is not None:
            assert (lean.smooth, lean.keep) == (REGISTRY[method].smooth, "fp32")
    assert attach(toys.backbone("plain"), classes=3, input_shape=(3, 12, 12), lean="int8").lean == (
        Lean(keep="int8")
    )


def test_the_document_is_the_registry(request: pytest.FixtureRequest) -> None:
    """docs/methods.md is generated: pytest --update-goldens writes it."""
    if request.config.getoption("--update-goldens"):
        DOCUMENT.write_text(page())
    assert DOCUMENT.read_text() == page()


@pytest.mark.parametrize("method", ALL)
@torch.no_grad()
def test_a_fresh_domain_answers_as_the_backbone(method: str) -> None:
    images = toys.pictures("plain", 4)
    fresh, plain = (model(name, lean=False).trace(images).features for name in (method, "head"))
    assert fresh is not None
    assert plain is not None
    assert torch.equal(fresh, plain)


@pytest.mark.parametrize("method", ALL)
def test_training_never_moves_the_backbone(method: str) -> None:
    """Law: weights, statistics and counters stay, whatever a method trains."""
    network = model(method, lean=True)
    before = {k: v.clone() for k, v in network.backbone.state_dict().items()}
    network.train()
    optimiser = torch.optim.SGD(network.domain.parameters(), lr=0.1)
    for seed in range(2):
        network(toys.pictures("plain", 8, seed)).square().sum().backward()
        optimiser.step()
    after = network.backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert not any(module.training for module in network.backbone.modules())


def gradients(network: AttachedModel, images: Tensor) -> dict[str, Tensor]:
    network.train()
    network.generator = torch.Generator().manual_seed(3)
    network.zero_grad()
    trace = network.trace(images)
    assert trace.logits is not None
    loss = trace.logits.square().sum() + network.executed_share(trace).mean()
    torch.autograd.backward(loss)
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in network.domain.named_parameters()
    }


@pytest.mark.parametrize("toy", sorted(toys.TOYS))
@pytest.mark.parametrize("method", ["da3", "da2", "lite_residual", "bias", "bn", "mobiletl"])
def test_lean_gradients_are_the_stock_ones(method: str, toy: str) -> None:
    """Law: nothing quantised, nothing changed: within 1e-5 of autograd through stock layers."""
    if method == "bn" and toy in ("tokens", "channels_last"):
        pytest.skip("these toys have no BatchNorm")
    # Both in the layout that lean maps have: another one rounds batch statistics otherwise.
    images = toys.pictures(toy, 8).contiguous(memory_format=torch.channels_last)
    both = []
    for lean in (False, True):
        network = model(method, lean=Lean() if lean else False, toy=toy)
        toys.scrambled(network, 1)
        both.append(gradients(network, images))
    stock, lean_ones = both
    assert stock.keys() == lean_ones.keys()
    assert any(bool(g.any()) for g in stock.values())
    for name, gradient in stock.items():
        scale = float(gradient.abs().max()) or 1.0
        assert float((gradient - lean_ones[name]).abs().max()) <= 1e-5 * scale, name


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *[("resnet50", 64), ("mobilenet_v2", 64), ("efficientnet_lite0", 64)],
        *[("resnet26", 32), ("resnet20", 32)],
    ],
)
def test_lean_gradients_of_the_backbones_that_are_shipped(name: str, side: int) -> None:
    net = load_backbone(name, untrained_seed=0)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    both = []
    for lean in (False, True):
        # Drawn adaptors on every block of an untrained ResNet-50 add up to infinity.
        network = attach(
            net, classes=3, input_shape=(3, side, side), lean=lean, placement="gateable"
        )
        network.forced = {name: torch.ones(2, 1) for name in network.sites}
        both.append(gradients(toys.scrambled(network, 1), images))
    stock, lean_ones = both
    for name, gradient in stock.items():
        scale = float(gradient.abs().max()) or 1.0
        assert float((gradient - lean_ones[name]).abs().max()) <= 1e-5 * scale, name


@pytest.mark.parametrize("method", ["series", "parallel", "piggyback", "sparse", "finetune"])
def test_lean_gradients_of_methods_with_trained_kernels(method: str) -> None:
    images = toys.pictures("plain", 8).contiguous(memory_format=torch.channels_last)
    stock, lean_ones = (
        gradients(toys.scrambled(model(method, lean=lean), 1), images) for lean in (False, True)
    )
    for name, gradient in stock.items():
        scale = float(gradient.abs().max()) or 1.0
        assert float((gradient - lean_ones[name]).abs().max()) <= 1e-5 * scale, name


def test_rows_of_closed_gates_take_no_part_in_the_backward_pass() -> None:
    """Law: with a gradient, a block runs for the rows whose gate is open and for no other."""
    network = toys.scrambled(model("da3", lean=True))
    network.train()
    images = toys.pictures("plain", 6)
    name, site = next((n, s) for n, s in network.sites.items() if s.gateable)
    sizes: list[int] = []

    def count(_: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
        if torch.is_grad_enabled():
            sizes.append(len(args[0]))

    handle = network.backbone.get_submodule(f"{site.name}.conv1").register_forward_hook(count)
    for closed in (0, 2, 6):
        mask = torch.ones(6, 1)
        mask[:closed] = 0
        network.forced = {name: mask}
        trace = network.trace(images)
        assert trace.opened[name].detach().reshape(-1).tolist() == mask.reshape(-1).tolist()
    handle.remove()
    assert sizes == [6, 4]


def test_probed_rows_tell_a_closed_gate_what_its_block_would_have_changed() -> None:
    """Law: over many draws, a closed gate's gradient is that of running its block every time."""
    network = toys.scrambled(model("da3", lean=False), 3)
    images = toys.pictures("plain", 8)
    name = next(iter(network.sites))
    network.forced = {other: torch.ones(8, 1) for other in network.sites} | {
        name: torch.zeros(8, 1)
    }
    bias = network.domain.get_parameter(f"{name}.gate.bias")
    network.train()
    # Blocks that answer with more than a map run whole: the exact value.
    network._whole.add(name)

    def gradient(seed: int) -> float:
        network.generator = torch.Generator().manual_seed(seed)
        (slope,) = torch.autograd.grad(network(images).square().sum(), bias)
        return float(slope)

    exact = gradient(0)
    network._whole.clear()
    drawn = torch.tensor([gradient(seed) for seed in range(600)])
    error = float(drawn.std()) / len(drawn) ** 0.5
    assert abs(float(drawn.mean()) - exact) < 4 * error
    assert error < 0.2 * abs(exact)


def test_skipped_rows_answer_as_the_exact_equation() -> None:
    """Law: training skips, evaluation computes all and picks: same values for same decisions."""
    network = toys.scrambled(model("da3", lean=False), 2)
    images = toys.pictures("plain", 6)
    network.forced = {name: (torch.rand(6, 1) > 0.5).float() for name in network.sites}
    with torch.no_grad():
        expected = network.train(False)(images)
    network.train()
    torch.testing.assert_close(network(images).detach(), expected)


@pytest.mark.parametrize("method", ALL)
def test_every_method_trains_and_comes_back_from_its_checkpoint(
    method: str, tmp_path: Path
) -> None:
    # Enough steps for running statistics to arrive at those of the batches.
    recipe = stripes.recipe(method=method, epochs=16, lr=0.003, augment=())
    data = stripes.data()
    network = models.build(recipe, classes=3, backbone=toys.backbone("plain"), data=data)
    digest = weights_digest(network)
    report = train(network, data, recipe, out=tmp_path / "out")
    assert report.checkpoint.info.metrics.head_accuracy is not None
    assert report.evaluation.accuracy > 0.4  # of three classes
    again, _ = restore(tmp_path / "out", backbone=toys.backbone("plain"))
    assert weights_digest(again) == digest
    images = toys.pictures("plain", 4)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))


def test_sparse_names_kernels_that_it_can_update() -> None:
    for name in ("fc.weight", "blocks.0.bn1.weight", "nowhere.weight"):
        with pytest.raises(AttachError, match="plain or depthwise"):
            attach(
                toys.backbone("plain"),
                method="sparse",
                classes=3,
                input_shape=(3, 12, 12),
                selection={name: (0,)},
            )


def test_sparse_needs_pictures_to_choose() -> None:
    recipe = stripes.recipe(method="sparse")
    with pytest.raises(AttachError, match="pictures"):
        models.build(recipe, classes=3, backbone=toys.backbone("plain"))


@pytest.mark.parametrize("lean", ["int4", 3, None])
def test_an_unknown_precision_is_refused(lean: object) -> None:
    with pytest.raises(AttachError, match="lean"):
        model("da3", lean=lean)  # type: ignore[arg-type]
