"""Attaching: the semantic laws of the whole project, on every toy family."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support import toys, wild
from toolchain.core.errors import AttachError, Da3Error, UnknownNameError
from toolchain.training.adapt.attached import (
    AttachedModel,
    attach,
    backbone_state,
    domain_state,
    weights_digest,
)
from toolchain.training.memory.analytic import count

names = st.sampled_from(sorted(toys.TOYS))
options = st.fixed_dictionaries(
    {
        "pool": st.sampled_from([0, 1, 2, 3, 4]),
        "rank": st.sampled_from([2, 4, 8]),
        "kernel": st.sampled_from([1, 3]),
        "groups": st.sampled_from([1, 2]),
        "norm": st.sampled_from(["none", "batch", "group"]),
        "placement": st.sampled_from(["gateable", "all"]),
        "attention": st.sampled_from(["sigmoid", "tanh", "softmax"]),
    }
)
seeds = st.integers(0, 10_000)
laws = settings(max_examples=40, deadline=None)


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@laws
@given(name=names, method=st.sampled_from(["da3", "da2", "head"]), chosen=options, seed=seeds)
@torch.no_grad()
def test_a_sample_is_answered_alone_as_in_a_batch(
    name: str, method: str, chosen: dict[str, Any], seed: int
) -> None:
    """Law: logits and gates of a sample do not depend on its neighbours."""
    images = toys.pictures(name, 16, seed)
    model = toys.scrambled(toys.attached(name, method=method, seed=seed, **chosen), seed)
    toys.balanced(model, images)
    together = model.trace(images)
    assert together.logits is not None
    for row in range(0, 16, 5):
        alone = model.trace(images[row : row + 1])
        assert alone.logits is not None
        torch.testing.assert_close(
            alone.logits, together.logits[row : row + 1], rtol=1e-5, atol=1e-5
        )
        for site, opened in alone.opened.items():
            assert torch.equal(opened, together.opened[site][row : row + 1])


@laws
@given(name=names, chosen=options, seed=seeds)
@torch.no_grad()
def test_both_states_of_every_gate_follow_the_equation(
    name: str, chosen: dict[str, Any], seed: int
) -> None:
    """Law: result = (block(x) if open else x) + upsampled correction, for each sample."""
    images = toys.pictures(name, 8, seed)
    model = toys.balanced(toys.scrambled(toys.attached(name, seed=seed, **chosen), seed), images)
    trace = model.trace(images)
    for site, opened in trace.opened.items():
        assert set(opened.reshape(-1).tolist()) == {0.0, 1.0}
        plain = trace.results[site] - spread(trace.corrections[site], trace.results[site], model)
        for row in range(8):
            maps = trace.outputs if opened[row] else trace.inputs
            torch.testing.assert_close(plain[row], maps[site][row], rtol=1e-4, atol=1e-4)


def spread(correction: Tensor, like: Tensor, model: AttachedModel) -> Tensor:
    """Nearest upsampling, written with ``repeat_interleave`` instead of the library's expand."""
    layout = next(iter(model.sites.values())).layout
    if layout == "NLC":
        return correction.squeeze(2).transpose(1, 2).expand_as(like)
    height, width = like.shape[2:] if layout == "NCHW" else like.shape[1:3]
    wide = correction.repeat_interleave(height // correction.shape[2], 2)
    wide = wide.repeat_interleave(width // correction.shape[3], 3)
    return wide if layout == "NCHW" else wide.permute(0, 2, 3, 1)


@pytest.mark.parametrize("name", sorted(toys.TOYS))
@pytest.mark.parametrize("method", ["da3", "da2"])
@torch.no_grad()
def test_a_fresh_domain_reproduces_the_backbone_bit_for_bit(name: str, method: str) -> None:
    """Law: adaptors start at zero and gates open, so the features are the backbone's own."""
    net = toys.backbone(name)
    images = toys.pictures(name, 4)
    plain = attach(net, method="head", classes=3, input_shape=images.shape[1:]).trace(images)
    fresh = toys.attached(name, method=method, placement="all").trace(images)
    assert plain.features is not None
    assert fresh.features is not None
    assert torch.equal(plain.features, fresh.features)


@pytest.mark.parametrize("name", sorted(toys.TOYS))
def test_attaching_changes_nothing_of_the_backbone(name: str) -> None:
    """Law: names, values and module tree stay; only ``requires_grad`` is switched off."""
    net = toys.backbone(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modules = [key for key, _ in net.named_modules()]
    model = attach(net, classes=3, input_shape=toys.TOYS[name].input_shape)
    model(toys.pictures(name, 2))
    assert [key for key, _ in net.named_modules()] == modules
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert hooks(net) == 0


def test_the_domain_starts_from_its_seed_and_leaves_the_global_state() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, same, other = (toys.attached("plain", seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    first, again, elsewhere = (m.domain.get_parameter("head.weight") for m in (one, same, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, elsewhere)


def test_hooks_are_gone_after_an_exception() -> None:
    model = toys.attached("plain")
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 4, 12, 12))
    assert hooks(model.backbone) == 0
    assert model(toys.pictures("plain", 1)).shape == (1, toys.CLASSES)


@torch.no_grad()
def test_two_domains_on_one_backbone_do_not_disturb_each_other() -> None:
    net, images = toys.backbone("plain"), toys.pictures("plain", 6)
    one, two = (
        toys.scrambled(attach(net, classes=4, input_shape=(3, 12, 12)), seed) for seed in (1, 2)
    )
    first = one(images)
    second = two(images)
    assert not torch.allclose(first, second)
    assert torch.equal(one(images), first)
    assert torch.equal(two(images), second)


@torch.no_grad()
def test_a_deep_copy_answers_the_same_and_is_its_own() -> None:
    model, images = toys.scrambled(toys.attached("plain")), toys.pictures("plain", 4)
    model.generator = torch.Generator().manual_seed(1)
    before = model(images)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images), before)
    toys.scrambled(twin, 9)
    assert torch.equal(model(images), before)


def test_a_backbone_put_into_training_mode_does_not_move() -> None:
    """Law: running statistics never move, whoever calls ``train`` on a part of the backbone."""
    model = toys.attached("plain")
    digest = weights_digest(model)
    model.train()
    model.backbone.get_submodule("blocks.0.bn1").train()
    model(toys.pictures("plain", 8)).sum().backward()
    buffers = dict(model.backbone.named_buffers())
    counters = [buffers[name] for name in buffers if name.endswith("num_batches_tracked")]
    assert counters
    assert weights_digest(model) == digest
    assert all(int(counter) == 0 for counter in counters)
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_gradients_reach_the_first_adaptor_through_the_frozen_blocks() -> None:
    model = toys.scrambled(toys.attached("plain"))
    model.train()
    model(toys.pictures("plain", 8)).square().sum().backward()
    slots = dict(model.domain.named_parameters())
    grads = {name: slot.grad for name, slot in slots.items() if slot.grad is not None}
    assert grads.keys() == slots.keys()
    assert float(grads["block00.adaptor.reduce.weight"].abs().max()) > 0
    assert float(grads["block00.gate.weight"].abs().max()) > 0


def test_slots_are_named_by_block_and_part() -> None:
    assert sorted(domain_state(toys.attached("plain", placement="gateable"))) == sorted(
        [
            f"block{index}.{part}"
            for index in ("00", "02")
            for part in (
                "adaptor.reduce.weight",
                "adaptor.reduce.bias",
                "adaptor.expand.weight",
                "adaptor.expand.bias",
                "gate.weight",
                "gate.bias",
            )
        ]
        + ["head.weight", "head.bias"]
    )


def test_the_classifier_is_no_part_of_the_backbones_identity() -> None:
    one, two = toys.backbone("plain"), toys.backbone("plain")
    two.fc = nn.Linear(16, 3)
    models = [attach(net, classes=2, input_shape=(3, 12, 12)) for net in (one, two)]
    assert weights_digest(models[0]) == weights_digest(models[1])
    assert not any(key.startswith("fc.") for key in backbone_state(one, "fc"))


@torch.no_grad()
def test_the_executed_share_counts_what_closed_gates_skip() -> None:
    model = toys.attached("plain")
    model.domain.get_parameter("block00.gate.bias").fill_(-1)
    share = model.executed_share(model.trace(toys.pictures("plain", 3)))
    skipped = model.sites["block00"].flops / model.anatomy.flops
    torch.testing.assert_close(share, torch.full((3,), 1 - skipped))
    assert 0 < skipped < 1


def test_da2_and_head_have_no_gates() -> None:
    for method in ("da2", "head"):
        model = toys.attached("plain", method=method)
        trace = model.trace(toys.pictures("plain", 2))
        assert not trace.gates
        assert model.executed_share(trace).tolist() == [1.0]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"method": "da33"}, UnknownNameError, "da3"),
        ({"pooling": 2}, UnknownNameError, "pool"),
        ({"classes": 0}, AttachError, "at least one class"),
        ({"groups": 3, "rank": 6}, AttachError, "groups"),
        ({"blocks": ["blocks.9"]}, AttachError, "blocks.9"),
        ({"head": "stem"}, AttachError, "Linear"),
        ({"input_shape": (3, 0, 12)}, AttachError, "does not run"),
    ],
)
def test_what_cannot_be_attached_says_so_with_the_fix(
    arguments: dict[str, Any], error: type[Da3Error], words: str
) -> None:
    keywords: dict[str, Any] = {"classes": 3, "input_shape": (3, 12, 12)} | arguments
    with pytest.raises(error, match=words) as caught:
        attach(toys.backbone("plain"), **keywords)
    assert caught.value.fix


def test_gateable_placement_needs_a_gateable_block() -> None:
    net = toys.Net(toys.stem(8), [toys.Residual(8, 16, 2)], 16)
    with pytest.raises(AttachError, match="placement='all'"):
        attach(net, classes=3, input_shape=(3, 8, 8), placement="gateable")
    assert attach(net, classes=3, input_shape=(3, 8, 8)).sites


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"placement": "x"}, "placement"),
        ({"rank": 0}, "rank"),
        ({"rank": -2}, "rank"),
        ({"kernel": 2}, "kernel"),
        ({"classes": 2.5}, "classes"),
        ({"classes": True}, "classes"),
        ({"blocks": "blocks.0"}, "list of module names"),
        ({"blocks": [0]}, "list of module names"),
        ({"blocks": ["blocks.0", "blocks.0.conv1"]}, "'blocks.0' and 'blocks.0.conv1'"),
        ({"blocks": ["blocks.0", "blocks.0"]}, "'blocks.0' and 'blocks.0'"),
    ],
)
def test_what_code_asks_for_is_held_to_the_rules(given: dict[str, Any], words: str) -> None:
    net = toys.Net(nn.Conv2d(3, 8, 3, 2, 1), [toys.Residual(8, 8)], 8)
    with pytest.raises(AttachError, match=words):
        attach(net, **{"classes": 3, "input_shape": (3, 16, 16), **given})


@pytest.mark.parametrize("error", [KeyError, AttributeError, ZeroDivisionError])
def test_whatever_a_forward_raises_is_an_attach_error(error: type[Exception]) -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error("inside")

    with pytest.raises(AttachError, match=error.__name__) as caught:
        attach(Failing(), classes=3, input_shape=(3, 16, 16))
    assert isinstance(caught.value.__cause__, error)


class Reused(nn.Module):
    """Its first block runs twice, in two places of the tree."""

    def __init__(self) -> None:
        super().__init__()
        first = toys.Residual(8, 8)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.early = nn.Sequential(first, toys.Residual(8, 8))
        self.late = nn.Sequential(first)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.late(self.early(self.stem(x))).mean((2, 3)))
        return y


@pytest.mark.parametrize("method", ["bias", "finetune", "piggyback"])
def test_a_module_in_two_places_is_changed_for_one_forward_only(method: str) -> None:
    """Law: the backbone is as before, also where one module has two names."""
    net = Reused()
    model = toys.scrambled(
        attach(net, method=method, classes=3, input_shape=(3, 8, 8), blocks=["early.1"])
    )
    digest = weights_digest(model)
    model.train()
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert weights_digest(model) == digest


class Flattened(toys.Net):
    """A backbone that asks for the ``view`` of a map, as LeNet and AlexNet do."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        assert self.fc is not None
        features: Tensor = self.fc(x.view(x.size(0), -1))
        return features


@pytest.mark.parametrize("method", ["da3", "bias"])
def test_a_backbone_that_cannot_run_channels_last_is_left_as_it_is(method: str) -> None:
    net = Flattened(toys.stem(8), [toys.Residual(8, 8), toys.Residual(8, 8)], 8 * 8 * 8).eval()
    images = torch.randn(4, 3, 8, 8)
    gradients = []
    for lean in (False, True):
        model = attach(net, method=method, classes=3, input_shape=(3, 8, 8), lean=lean)
        assert not model.anatomy.channels_last
        model.forced = {name: torch.tensor([[1.0], [1], [0], [1]]) for name in model.sites}
        model.generator = torch.Generator().manual_seed(0)
        toys.scrambled(model, 1).train()
        model(images).square().sum().backward()
        assert count(model, 4).stored.bytes > 0
        gradients.append(
            {n: p.grad for n, p in model.domain.named_parameters() if p.grad is not None}
        )
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)
    assert toys.attached("plain").anatomy.channels_last


class Narrow(nn.Module):
    """A block without a residual: what autocast narrows stays narrow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.one(x).relu())
        return y


@pytest.mark.parametrize("lean", [False, True])
def test_gates_choose_between_maps_that_autocast_narrowed_and_others(lean: bool) -> None:
    net = toys.Net(nn.BatchNorm2d(3), [Narrow(3), Narrow(3)], 3).eval()
    model = attach(net, classes=3, input_shape=(3, 8, 8), lean=lean)
    model.forced = {name: torch.tensor([[1.0], [0], [1], [0]]) for name in model.sites}
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(4, 3, 8, 8))
    logits.float().square().sum().backward()
    gate = model.domain.get_parameter("block00.gate.weight").grad
    assert gate is not None
    assert bool(gate.isfinite().all())


@pytest.mark.parametrize("name", ["vision_tokens", "transformers_vit", "stemless", "lines"])
def test_rows_that_run_alone_answer_as_the_whole_batch_does(name: str) -> None:
    """Law: blocks that use the batch size train on the open rows as they answer on all of them."""
    model = attach(wild.built(name), classes=3, input_shape=wild.SHAPE, rank=4, lean=True)
    toys.scrambled(model)
    model.forced = {site: torch.tensor([[1.0], [0], [1], [0]]) for site in model.sites}
    model.generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, *wild.SHAPE, generator=torch.Generator().manual_seed(1))
    trained = model.train()(images)
    trained.square().sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(trained.detach(), model.eval()(images), rtol=1e-4, atol=1e-5)
    assert all(p.grad is not None for n, p in model.domain.named_parameters() if "adaptor" in n)


@pytest.mark.parametrize("method", ["da3", "da2"])
def test_a_hook_on_a_block_sees_the_joined_map_in_training_and_evaluation(method: str) -> None:
    model = toys.scrambled(toys.attached("plain", method=method))
    model.forced = {name: torch.ones(2, 1) for name in model.sites}
    outputs: list[Tensor] = []
    last = model.backbone.get_submodule(list(model.sites.values())[-1].name)
    last.register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
    images = toys.pictures("plain", 2)
    model.train()(images)
    trace = model.eval().trace(images)
    torch.testing.assert_close(outputs[0], outputs[1])
    assert torch.equal(outputs[1], list(trace.results.values())[-1])


# torch 2.13's compiler itself makes an instance of each autograd function that it meets, and reads
# the gradient of tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("method", [pytest.param("lite_residual", marks=pytest.mark.full), "da3"])
def test_a_compiled_lean_model_has_the_same_gradients(method: str) -> None:
    model = attach(
        toys.backbone("single"), method=method, classes=3, input_shape=(3, 8, 8), lean=True
    )
    toys.scrambled(model)
    model.train()
    model.forced = {name: torch.ones(4, 1) for name in model.sites}
    images = toys.pictures("single", 4)
    both = []
    for run in (model, torch.compile(model, backend="aot_eager")):
        model.generator = torch.Generator().manual_seed(0)
        model.zero_grad()
        run(images).square().sum().backward()
        both.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    plain, compiled = both
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient)


class Wrapped(nn.Module):
    """A net whose forward returns what ``form`` makes of its answer."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.form = toys.backbone("plain"), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.net(x))


@pytest.mark.parametrize(
    "form",
    [
        lambda y: {"logits": y},
        lambda y: {"aux": y.mean(1), "logits": y},
        lambda y: {"out": y},
        lambda y: [y, y.mean(1)],
        lambda y: (y, y.mean(1)),
    ],
)
@pytest.mark.parametrize("head", [None, "net.fc"])
def test_a_net_may_return_its_answer_among_others(
    form: Callable[[Tensor], Any], head: str | None
) -> None:
    model = attach(Wrapped(form).eval(), classes=3, input_shape=(3, 16, 16), head=head)
    assert model.anatomy.head == "net.fc"
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_a_net_may_return_anything_where_its_head_is_named() -> None:
    net = Wrapped(lambda y: {"main": y, "aux": {"more": y.mean(1)}}).eval()
    model = attach(net, classes=3, input_shape=(3, 16, 16), head="net.fc")
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    with pytest.raises(AttachError, match="returns dict, expected a tensor"):
        attach(net, classes=3, input_shape=(3, 16, 16))
