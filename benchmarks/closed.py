"""Blocks that are closed for every picture: what dynamic gates have to be better than.

Rules of this file: it trains ``da3`` as the recipe says, but no gate learns, and some blocks are
left out from the first step to the last. ``static`` leaves out those that the validation part
misses least, found one after the other on a net that was trained with all of them; ``random``
leaves out drawn ones. Both stop at the recipe's budget. The test part chooses nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from toolchain import training
from toolchain.recipe import Recipe
from toolchain.training.adapt.adaptors import Gate
from toolchain.training.adapt.attached import AttachedModel
from toolchain.training.data import DomainData
from toolchain.training.data.splits import Split
from toolchain.training.loop import schedule
from toolchain.training.loop.evaluation import evaluate
from toolchain.training.loop.holdout import parted

ROWS = ("static", "random")


def fixed(
    recipe: Recipe, pictures: DomainData, row: str, backbone: nn.Module | None = None
) -> AttachedModel:
    """Return a model for ``recipe`` whose gates are open or closed for every picture.

    ``row``: one of ``ROWS``. Train it inside of :func:`kept`. ``backbone``: as ``training.build``.
    """
    model = training.build(recipe, classes=len(pictures.classes), data=pictures, backbone=backbone)
    gated = [name for name, _ in model.gates()]
    if row == "random":
        drawn = np.random.default_rng(recipe.train.seed).permutation(gated)
        order = iter(drawn.tolist())
    else:
        order = _missed_least(recipe, pictures, backbone)
    closed: list[str] = []
    while share(model, closed) > recipe.train.budget and len(closed) < len(gated):
        closed.append(next(order))
    close(model, closed)
    return model


@contextmanager
def unlearnt() -> Iterator[None]:
    """Let no gate be normalised inside."""
    with patch.object(Gate, "learn", lambda *_: None):
        yield


@contextmanager
def unscheduled() -> Iterator[None]:
    """Let the budget hold from the first step inside, and gates decide from there on."""
    with patch.multiple(schedule, OPEN_UNTIL=0.0, TIGHT_FROM=0.0):
        yield


@contextmanager
def kept() -> Iterator[None]:
    """Let gates be as they are inside: none learns, and none is opened for the first steps."""
    with unlearnt(), unscheduled():
        yield


def close(model: AttachedModel, closed: Collection[str]) -> None:
    """Close these blocks' gates for every picture, and open all others."""
    for name, gate in model.gates():
        with torch.no_grad():
            gate.weight.zero_()
            gate.bias.fill_(-1.0 if name in closed else 1.0)
        gate.requires_grad_(requires_grad=False)


def share(model: AttachedModel, closed: Collection[str]) -> float:
    """Return the share of the backbone's multiply-adds that is left without these blocks."""
    left_out = sum(model.sites[name].flops for name in closed)
    return 1 - left_out / model.anatomy.flops


def _missed_least(
    recipe: Recipe, pictures: DomainData, backbone: nn.Module | None
) -> Iterator[str]:
    """Yield blocks in the order in which to close them: each time the one that is missed least."""
    whole = replace(recipe, train=replace(recipe.train, budget=1.0))
    model = training.build(whole, classes=len(pictures.classes), data=pictures, backbone=backbone)
    close(model, ())
    with tempfile.TemporaryDirectory(prefix="da3-open-") as folder, kept():
        training.train(model, pictures, whole, out=Path(folder) / recipe.domain)
    parts = parted(pictures, recipe)
    chosen_by: Split = parts.data.train if parts.validation is None else parts.validation
    left = [name for name, _ in model.gates()]
    closed: list[str] = []
    while left:
        accuracies = {}
        for name in left:
            close(model, [*closed, name])
            accuracies[name] = evaluate(model, chosen_by, recipe.preprocess).accuracy
        best = max(left, key=lambda name: accuracies[name])
        left.remove(best)
        closed.append(best)
        yield best
