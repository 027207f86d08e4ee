"""What each part of da3 is worth: every row changes what it says, and nothing stays changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import ablations, results
from tests.support import stripes
from toolchain.recipe import dump
from toolchain.training.adapt import loss
from toolchain.training.adapt.adaptors import Gate
from toolchain.training.loop import run, schedule


def state() -> tuple[bool, bool, bool]:
    """Whether the head is fitted first, gates are normalised, and the budget waits."""
    gate = Gate(3)
    gate.learn(torch.Generator().manual_seed(0))
    return (
        vars(run)["REGISTRY"]["da3"].fitted_head,
        gate.learns,
        schedule.budget_at(0.0, 0.5) is None,
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", (False, True, True)),
        ("head", (True, True, True)),
        ("gates", (False, False, True)),
        ("schedule", (False, True, False)),
    ],
)
def test_a_patch_changes_one_part_and_only_inside(
    name: str, expected: tuple[bool, bool, bool]
) -> None:
    with ablations.PATCHES[name]():
        assert state() == expected
    assert state() == (False, True, True)


def test_smoothed_labels_cost_a_sure_answer_more() -> None:
    logits, labels = torch.tensor([[9.0, 0.0]]), torch.tensor([0])
    sharp = loss.training_loss(logits, labels, torch.ones(1), budget=1, weight=1)
    with ablations.PATCHES["labels"]():
        assert loss.training_loss(logits, labels, torch.ones(1), budget=1, weight=1) > 0.4 > sharp
    assert loss.training_loss(logits, labels, torch.ones(1), budget=1, weight=1) == sharp


def test_every_row_is_another_training(tmp_path: Path) -> None:
    """Law: a row that changed nothing would be the first one under another name."""
    (tmp_path / "stripes.yaml").write_text(dump(replace(stripes.RECIPE, backbone="resnet20")))
    planned = ablations.tries(tmp_path, ["stripes"], 2)
    assert len({one.file for one in planned}) == len(planned) == 2 * len(ablations.PARTS)
    changes = [repr((part.adaptor, part.train, part.patched)) for part in ablations.PARTS.values()]
    assert len(set(changes)) == len(changes)


def test_the_section_has_a_row_for_each_part() -> None:
    figures = {"accuracy": 0.876, "executed_share": 0.65, "decide": 0.5}
    rows = {part: {"fashion": figures} for part in ablations.PARTS}
    text = "\n".join(results.ablations(rows, 1))
    assert text.startswith(results.ABLATIONS)
    assert text.count("87.6, 0.65, 0.50") == len(ablations.PARTS)
