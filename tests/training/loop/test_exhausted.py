"""Memory that runs out: told with the largest holders, and safe to go on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.support import stripes, toys
from toolchain.core.errors import MemoryBudgetError, TrainingError
from toolchain.training.adapt.attached import AttachedModel, domain_state
from toolchain.training.loop import models
from toolchain.training.loop.destination import state_path
from toolchain.training.loop.exhausted import is_exhaustion
from toolchain.training.loop.state import load_state
from toolchain.training.loop.training import train

RECIPE = stripes.recipe(epochs=2)
MORE_THAN_ANY = 1 << 60


def model() -> AttachedModel:
    return models.build(RECIPE, classes=3, backbone=toys.backbone("plain"))


def exhausting(network: AttachedModel, after: int) -> torch.utils.hooks.RemovableHandle:
    """Let the allocator itself refuse, in the middle of a forward, after some training steps."""
    steps = 0

    def hook(_: nn.Module, __: object) -> None:
        nonlocal steps
        if torch.is_grad_enabled():
            steps += 1
            if steps > after:
                torch.empty(MORE_THAN_ANY, dtype=torch.uint8)

    return network.backbone.get_submodule("blocks.1").register_forward_pre_hook(hook)


def test_a_step_that_finds_no_memory_names_the_holders_and_can_be_gone_on_from(
    tmp_path: Path,
) -> None:
    """Law: out of memory, then resumed = never interrupted."""
    data, out = stripes.data(), tmp_path / "out"
    whole = model()
    train(whole, data, RECIPE, out=tmp_path / "whole")

    network = model()
    handle = exhausting(network, 3)
    with pytest.raises(TrainingError, match=r"out of memory with batch 16.*blocks\.") as caught:
        train(network, data, RECIPE, out=out)
    assert str(state_path(out)) in caught.value.message
    assert "--resume" in caught.value.fix
    assert not out.exists()

    handle.remove()
    again = model()
    train(again, data, RECIPE, out=out, resume=True)
    expected = domain_state(whole)
    assert all(torch.equal(t, expected[name]) for name, t in domain_state(again).items())


@pytest.mark.parametrize("part", ["probe", "evaluate"])
def test_memory_that_runs_out_before_or_after_the_steps_is_told_alike(
    tmp_path: Path, part: str
) -> None:
    """Law: what was trained stays, and testing is all that a resume repeats."""
    network, out = model(), tmp_path / "out"
    trained: list[bool] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(inputs[0], FakeTensor):
            return  # the count of what a step needs, before anything runs
        trained.append(torch.is_grad_enabled())
        if not trained[-1] and (part == "probe" or any(trained)):
            torch.empty(MORE_THAN_ANY, dtype=torch.uint8)

    handle = network.backbone.get_submodule("blocks.0").register_forward_pre_hook(hook)
    with pytest.raises(TrainingError, match="out of memory with batch 16") as caught:
        train(network, stripes.data(), RECIPE, out=out)
    handle.remove()
    assert not out.exists()
    if part == "probe":
        assert "no state had been saved" in caught.value.message
        return
    report = train(network, stripes.data(), RECIPE, out=out, resume=True)
    assert report.steps == 0
    assert out.is_dir()


def test_memory_that_runs_out_in_an_update_leaves_the_last_whole_state(tmp_path: Path) -> None:
    network, out = model(), tmp_path / "out"
    steps = 0

    def fails(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps > 7:  # the second epoch; the first one's end was saved
            torch.empty(MORE_THAN_ANY, dtype=torch.uint8)

    handle = register_optimizer_step_post_hook(fails)
    try:
        with pytest.raises(TrainingError, match="out of memory"):
            train(network, stripes.data(), RECIPE, out=out)
    finally:
        handle.remove()
    assert load_state(state_path(out)).step == 5


def test_the_allocators_refusal_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(MORE_THAN_ANY, dtype=torch.uint8)
    assert is_exhaustion(caught.value)
    assert is_exhaustion(MemoryError())
    assert is_exhaustion(torch.OutOfMemoryError())
    with pytest.raises(RuntimeError) as other:
        torch.zeros(2) + torch.zeros(3)
    assert not is_exhaustion(other.value)


def test_a_fault_of_the_backbone_is_not_taken_for_memory(tmp_path: Path) -> None:
    network = model()

    def fails(_: nn.Module, __: object) -> None:
        if torch.is_grad_enabled():
            raise RuntimeError("a fault of its own")

    network.backbone.get_submodule("blocks.1").register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="of its own"):
        train(network, stripes.data(), RECIPE, out=tmp_path / "out")


def test_a_budget_that_nothing_fits_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(MemoryBudgetError, match="smallest"):
        train(model(), stripes.data(), RECIPE, out=tmp_path / "out", memory=100)
    assert not any(tmp_path.iterdir())


def test_a_budget_that_holds_trains(tmp_path: Path) -> None:
    train(model(), stripes.data(), RECIPE, out=tmp_path / "out", memory=1 << 30)
    assert (tmp_path / "out").is_dir()
