"""A toy domain that trains in a second: stripes, bars and patches on the plain toy net."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tests.support import toys
from toolchain.recipe import AdaptorOptions, DataSpec, Preprocessing, Recipe, TrainSpec
from toolchain.training.adapt.attached import AttachedModel, attach
from toolchain.training.data import ArraySplit, DomainData

CLASSES = ("across", "down", "patch")
SIDE = 12

RECIPE = Recipe(
    domain="stripes",
    title="Stripes, bars and patches",
    licence="CC0-1.0",
    backbone="toy",
    weights=None,
    weights_sha256=None,
    data=DataSpec("folder", "nowhere", None, None, 0),
    preprocess=Preprocessing(
        SIDE, SIDE, "none", "nearest", "RGB", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    ),
    method="da3",
    adaptor=AdaptorOptions(placement="gateable", rank=4, pool=2),
    train=TrainSpec(3, 16, 0.01, 0.0001, 0, 0.6, 5.0, ("flip", "shift")),
    golden=4,
)


def recipe(**changes: Any) -> Recipe:
    """The recipe with fields of ``train`` (by name) or of its own replaced."""
    own = {name: changes.pop(name) for name in list(changes) if hasattr(RECIPE, name)}
    train = dataclasses.replace(RECIPE.train, **changes)
    return dataclasses.replace(RECIPE, **{"train": train, **own})


def split(name: str, count: int, seed: int) -> ArraySplit:
    """Noisy pictures uint8 [count, 12, 12, 3] of the three classes, evenly."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % len(CLASSES)
    grids = [np.indices((SIDE, SIDE))[0] // 2 % 2, np.indices((SIDE, SIDE))[1] // 2 % 2]
    grids.append((np.indices((SIDE, SIDE)) // 6).sum(0) % 2)
    clean = np.stack([grids[label] for label in labels])[..., None] * 120 + 60
    noisy = clean + rng.normal(0, 40, (count, SIDE, SIDE, 3))
    return ArraySplit(f"stripes/{name}", np.clip(noisy, 0, 255).astype(np.uint8), labels)


def data(seed: int = 0) -> DomainData:
    """90 pictures to train on, 60 to test with."""
    return DomainData(split("train", 90, seed), split("test", 60, seed + 1), CLASSES)


def model(*, method: str = "da3", toy: str = "plain", seed: int = 0) -> AttachedModel:
    """The toy with the recipe's domain."""
    return attach(
        toys.backbone(toy, seed),
        method=method,
        classes=len(CLASSES),
        input_shape=(3, SIDE, SIDE),
        options=RECIPE.adaptor,
        seed=RECIPE.train.seed,
    )
