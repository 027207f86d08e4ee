"""From a recipe or a checkpoint to an attached model, and from a model to a checkpoint.

Rules of this file: it joins what ``weights``, ``attach`` and ``checkpoint`` do and holds no logic
of its own; a checkpoint meets only the backbone that it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch
from torch import nn

from toolchain.core import digest
from toolchain.core.errors import AttachError
from toolchain.recipe import Recipe
from toolchain.training.adapt import checkpoint as files
from toolchain.training.adapt.attached import (
    AttachedModel,
    arrays,
    attach,
    domain_state,
    weights_digest,
)
from toolchain.training.adapt.blocks import examine
from toolchain.training.adapt.checkpoint import (
    BackboneInfo,
    Checkpoint,
    Info,
    Metrics,
    Versions,
)
from toolchain.training.adapt.methods import Selection
from toolchain.training.adapt.weights import load_backbone
from toolchain.training.data.splits import DomainData
from toolchain.training.lean.options import Precision
from toolchain.training.loop.contribution import search
from toolchain.training.loop.evaluation import Evaluation
from toolchain.training.loop.identity import recipe_digest

DISTRIBUTION = "da3-toolchain"


def build(
    recipe: Recipe,
    *,
    classes: int,
    backbone: nn.Module | None = None,
    data: DomainData | None = None,
) -> AttachedModel:
    """Return the recipe's backbone with a fresh domain for ``classes`` classes, lean.

    ``backbone`` is used in place of loading ``recipe.backbone``. The domain starts from
    ``recipe.train.seed``. ``sparse`` measures on ``data.train`` what it is to update. Raises
    UnknownNameError, WeightsError, AttachError, TrainingError (nothing fits sparse's budget).
    """
    if backbone is None:
        backbone = load_backbone(
            recipe.backbone, weights=recipe.weights_path, sha256=recipe.weights_sha256
        )
    side = recipe.preprocess.size
    selection: Selection = {}
    if recipe.method == "sparse":
        selection = _searched(backbone, data, recipe, classes)
    keep = recipe.train.keep
    return attach(
        backbone,
        method=recipe.method,
        classes=classes,
        input_shape=(3, side, side),
        options=recipe.adaptor,
        seed=recipe.train.seed,
        lean=cast("Precision", keep),
        selection=selection,
    )


def _searched(
    backbone: nn.Module, data: DomainData | None, recipe: Recipe, classes: int
) -> Selection:
    if data is None:
        raise AttachError(
            "expected pictures to measure what sparse is to update, got none",
            fix="pass data=adapt.data.load(recipe)",
        )
    side = recipe.preprocess.size
    anatomy = examine(backbone, (3, side, side))
    return search(backbone, anatomy, data, recipe, classes=classes)


def save(
    folder: Path,
    model: AttachedModel,
    recipe: Recipe,
    classes: Sequence[str],
    found: Evaluation,
    *,
    head_accuracy: float | None = None,
    overwrite: bool = False,
) -> Checkpoint:
    """Write ``model``'s domain as the checkpoint ``folder`` and return it.

    Raises CheckpointError for NaN or Inf, ExistsError, StorageError; nothing is left behind then.
    """
    anatomy = model.anatomy
    info = Info(
        format=files.FORMAT,
        domain=recipe.domain,
        title=recipe.title,
        licence=recipe.licence,
        method=model.method,
        options=model.options,
        classes=tuple(classes),
        preprocess=recipe.preprocess,
        backbone=BackboneInfo(
            recipe.backbone,
            weights_digest(model),
            _three(anatomy.input_shape),
            tuple(site.name for site in anatomy.sites),
            anatomy.head,
        ),
        metrics=Metrics(found.accuracy, head_accuracy, found.executed_share, found.gate_rates),
        recipe_digest=recipe_digest(recipe),
        seed=recipe.train.seed,
        selection=dict(model.selection),
        versions=Versions(version(DISTRIBUTION), torch.__version__),
        tensors_sha256=digest.sha256(b""),  # filled in by write
    )
    return files.write(folder, info, arrays(domain_state(model)), overwrite=overwrite)


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width
