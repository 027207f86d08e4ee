"""What a budget holds, and sizes as people write them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load
from torch import nn

from tests.support import toys
from tests.support.steps import BATCH, forced, step
from toolchain.bundle import make_patch
from toolchain.core.errors import MemoryBudgetError
from toolchain.export.graph.split import split
from toolchain.training.adapt.attached import attach
from toolchain.training.adapt.folded import overrides_folded
from toolchain.training.adapt.methods import REGISTRY, SLOTS_ALONE
from toolchain.training.memory.analytic import analytic
from toolchain.training.memory.fit import (
    Need,
    domain_bytes,
    fitting,
    line,
    need,
    within,
)
from toolchain.training.memory.measured import peak


def test_a_need_is_the_sum_of_its_parts() -> None:
    model = toys.attached("plain", lean="int8")
    needs = need(model, BATCH)
    floats = sum(p.numel() for p in model.domain.parameters())
    assert needs.trainable == floats
    assert needs.gradients == needs.parameters == needs.optimiser // 2 == 4 * floats
    assert needs.stored == analytic(model, BATCH).bytes
    assert needs.total == needs.stored + needs.working + 16 * floats


def test_a_domain_costs_its_slots() -> None:
    model = toys.attached("plain")
    assert domain_bytes(model) == sum(4 * p.numel() for p in model.domain.parameters())


def test_masks_cost_one_bit_a_weight() -> None:
    model = toys.attached("plain", method="piggyback")
    assert model.overrides is not None
    masks = [-(-version.scores.numel() // 8) for _, version in model.overrides.items()]  # type: ignore[operator]
    head = sum(4 * p.numel() for p in model.domain["head"].parameters())
    assert domain_bytes(model) == sum(masks) + head


def test_a_finetuned_domain_costs_the_backbone_but_no_statistics() -> None:
    model = toys.attached("plain", method="finetune")
    parameters = [p for name, p in model.backbone.named_parameters() if not name.startswith("fc.")]
    head = sum(4 * p.numel() for p in model.domain["head"].parameters())
    assert domain_bytes(model) == sum(4 * tensor.numel() for tensor in parameters) + head


def test_statistics_are_stored_where_the_norm_has_nothing_else() -> None:
    """A norm without weight and bias is folded all the same: as a factor and a bias."""
    net = toys.Net(toys.stem(8), [toys.Residual(8, 8)], 8)
    stem = net.stem
    assert isinstance(stem, nn.Sequential)
    stem[1] = nn.BatchNorm2d(8, affine=False)
    model = attach(net.eval(), method="bn", classes=3, input_shape=(3, 8, 8))
    head = sum(4 * p.numel() for p in model.domain["head"].parameters())
    assert domain_bytes(model) == head + 3 * 8 * 2 * 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Methods that fold into the backbone have one structure, which is captured once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def frozen(cache: Path) -> bytes:
    """The weights file of the plain toy, which all methods share."""
    return split(toys.attached("plain", method="head"), cache=cache).weights_data


@pytest.mark.parametrize("method", [name for name in REGISTRY if name not in SLOTS_ALONE])
def test_what_is_told_is_what_a_bundle_stores(frozen: bytes, cache: Path, method: str) -> None:
    selection = {"blocks.0.conv1.weight": (0, 2)} if method == "sparse" else None
    model = toys.scrambled(toys.attached("plain", method=method, selection=selection))
    changed = overrides_folded(model)
    assert changed is not None
    halves = split(changed, cache=cache)
    patch = make_patch(frozen, halves.weights_data)
    assert patch is not None
    tensors = [*load(patch.data).values(), *load(halves.slots_data).values()]
    assert domain_bytes(model) == pytest.approx(sum(a.nbytes for a in tensors), rel=0.1)
    assert patch.about.scaled == {"bn": 7, "series": 1, "parallel": 1}.get(method, 0)


@pytest.mark.parametrize("method", list(REGISTRY))
def test_a_step_takes_no_more_than_its_need(method: str) -> None:
    selection = {"blocks.0.conv1.weight": (0, 2)} if method == "sparse" else None
    model = toys.attached("plain", method=method, lean="int8", selection=selection)
    images, labels = toys.pictures("plain", BATCH), torch.zeros(BATCH, dtype=torch.int64)
    loss = step(forced(model, BATCH), images, labels)
    optimiser = torch.optim.AdamW(model.domain.parameters(), lr=1e-6)

    def whole() -> None:
        loss().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()

    whole()  # the first one makes the moments
    needs = need(model, BATCH)
    there = needs.parameters + needs.optimiser
    # Kernels on several threads have scratch memory of their own, which shows in so small a net.
    assert 0.5 < peak(whole) / (needs.total - there) <= 1.05


@settings(max_examples=4, deadline=None)
@given(budget=st.integers(60_000, 600_000))
def test_every_batch_fits_and_the_next_one_does_not(budget: int) -> None:
    model = toys.attached("single", lean=True)
    for choice in fitting(model, budget, BATCH, methods=["da3"]):
        assert choice.need.total <= budget
        if choice.pool == model.options.pool and choice.keep == "fp32":
            layers = len(list(model.modules()))  # of bits, less than a byte each
            assert need(model, choice.batch).total <= budget + layers
            assert budget < need(model, choice.batch + 1).total + layers


def test_the_best_comes_first() -> None:
    model = toys.attached("single", lean=True, pool=2)
    choices = fitting(model, need(model, BATCH).total, BATCH)
    ours = [choice for choice in choices if choice.method == "da3"]
    assert (ours[0].pool, ours[0].keep) == (2, "fp32")  # as it is, since that fits
    assert choices[-1].method == "head"


def test_each_change_more_holds_more_pictures() -> None:
    model = toys.attached("single", lean=True, pool=2)
    choices = fitting(model, 8 * need(model, BATCH).total, BATCH, methods=["da3", "da2"])
    for method in ("da3", "da2"):
        batches = [choice.batch for choice in choices if choice.method == method]
        assert len(batches) > 1
        assert all(a < b for a, b in pairwise(batches))


def test_a_larger_pool_comes_before_a_smaller_batch() -> None:
    model = toys.attached("single", lean=True, pool=2)
    budget = need(model, BATCH).total - 1
    assert (choices := fitting(model, budget, BATCH))[0].batch >= BATCH
    assert (choices[0].pool, choices[0].keep) == (4, "fp32")


def test_a_method_that_the_backbone_cannot_take_is_left_out() -> None:
    model = toys.attached("tokens", lean=True)
    choices = fitting(model, 1 << 24, BATCH, methods=["da3", "series", "bias"])
    assert {choice.method for choice in choices} == {"da3", "bias"}


def test_no_larger_batch_than_asked_for_is_suggested() -> None:
    model = toys.attached("single", lean=True, pool=2)
    budget = need(model, BATCH).total - 1
    assert fitting(model, budget, BATCH)[0].batch >= BATCH
    with pytest.raises(MemoryBudgetError) as caught:
        within(model, BATCH, budget)
    assert f"adaptor.pool: 4, train.keep: fp32, train.batch: {BATCH} " in caught.value.fix


def test_what_does_not_fit_is_refused_with_what_does() -> None:
    model = toys.attached("single", lean=True)
    enough = need(model, BATCH).total
    assert within(model, BATCH, enough) == need(model, BATCH)
    with pytest.raises(MemoryBudgetError, match=f"batch {BATCH} needs") as caught:
        within(model, BATCH, enough // 2)
    best = fitting(model, enough // 2, BATCH)[0]
    assert best.batch < BATCH
    assert str(best) in caught.value.fix
    assert caught.value.exit_code == 1


def test_nothing_fits_into_nothing() -> None:
    with pytest.raises(
        MemoryBudgetError, match=r"smallest found, \w+ with .*train\.batch: 1, needs"
    ):
        fitting(toys.attached("single", lean=True), 1000, BATCH)


def test_a_line_tells_method_batch_and_need() -> None:
    needs = Need(3 << 20, 1 << 20, 2048, 1024, 1024, 256, 0, 1024)
    text = line(needs, 8, "da3")
    assert text.startswith("da3, batch 8: keeps 3.0 MiB")
    assert "2.0 KiB for the optimiser of 256 parameters" in text
    assert "\n" not in text
