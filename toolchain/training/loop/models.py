"""From a recipe to an attached model, and from a trained model to a checkpoint.

Rules of this file: it joins what ``weights``, ``attach`` and ``checkpoint`` do and holds no logic
of its own. From a checkpoint back to a model: ``adapt.restore``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from toolchain import DISTRIBUTION
from toolchain.core import digest
from toolchain.core.errors import AttachError
from toolchain.core.timing import Notify
from toolchain.recipe import Recipe
from toolchain.training.adapt import backbones
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
    History,
    Info,
    Metrics,
    Versions,
)
from toolchain.training.adapt.overrides import Selection
from toolchain.training.adapt.weights import load_backbone
from toolchain.training.adapt.witness import witness
from toolchain.training.data.splits import DomainData
from toolchain.training.lean.options import Keep
from toolchain.training.loop.contribution import search
from toolchain.training.loop.evaluation import Evaluation
from toolchain.training.loop.holdout import parted
from toolchain.training.loop.identity import recipe_digest, training_texts
from toolchain.training.loop.progress import Tick, unheard

Search = Callable[..., Selection]
"""Called as ``contribution.search``."""

SEARCHES: Mapping[str, Search] = {"sparse": search}
"""By method: how it finds, on the domain's pictures, what it is to update."""


def build(
    recipe: Recipe,
    *,
    classes: int,
    backbone: nn.Module | None = None,
    data: DomainData | None = None,
    memory: int | None = None,
    tick: Tick = unheard,
    notify: Notify = lambda _: None,
) -> AttachedModel:
    """Return the recipe's backbone with a fresh domain for ``classes`` classes, with lean layers.

    ``backbone`` is used in place of loading ``recipe.backbone``. ``notify`` gets a line for what
    was wrapped around its weights, for a preprocessing that is not that of its training, and for an
    answer that is taken for features. The domain starts from ``recipe.train.seed``. The method
    ``sparse`` measures on ``data.train`` what it is to update, within ``memory`` bytes beside the
    weights if a number is given; ``tick`` hears of that. Raises UnknownNameError, WeightsError,
    AttachError, TrainingError (nothing fits sparse's budget), MemoryBudgetError.
    """
    joints: dict[str, Any] = {"blocks": None, "head": None}
    if backbone is None:
        described = backbones.get(recipe.backbone)
        joints = described.joints
        backbone = load_backbone(
            recipe.backbone,
            weights=recipe.weights_path,
            sha256=recipe.weights_sha256,
            notify=notify,
        )
        if lines := described.differences(recipe.preprocess):
            notify(f"backbone {recipe.backbone!r} was trained otherwise: {'; '.join(lines)}")
    # What a recipe names goes before what the backbone's package names.
    own = {"blocks": recipe.blocks, "head": recipe.head}
    joints |= {key: value for key, value in own.items() if value is not None}
    side = recipe.preprocess.size
    model = attach(
        backbone,
        method=recipe.method,
        classes=classes,
        input_shape=(3, side, side),
        options=recipe.adaptor,
        seed=recipe.train.seed,
        lean=cast("Keep", recipe.train.keep),
        selection=_searched(backbone, data, recipe, joints, memory, tick, notify),
        **joints,
    )
    if model.anatomy.head is None:
        notify(_features_line(recipe.backbone, backbone, model.anatomy.features))
    return model


def _features_line(name: str, backbone: nn.Module, width: int) -> str:
    """Return what is said of a backbone whose whole answer is taken for features."""
    line = f"backbone {name!r}: its answer of {width} values is taken for features"
    like = [
        path
        for path, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == width
    ]
    if not like:
        return line
    return (
        f"{line}; its layer {like[-1]!r} gives as many: if that is a classifier, write "
        f"head: {like[-1]} into the recipe, or --set head={like[-1]}"
    )


def _searched(
    backbone: nn.Module,
    data: DomainData | None,
    recipe: Recipe,
    joints: Mapping[str, Any],
    memory: int | None,
    tick: Tick,
    notify: Notify,
) -> Selection:
    """Return what the method's search finds; nothing for a method without one."""
    if recipe.method not in SEARCHES:
        return {}
    if data is None:
        raise AttachError(
            f"expected pictures to measure what {recipe.method} is to update, got none",
            fix="pass data=training.data.load(recipe)",
        )
    side = recipe.preprocess.size
    anatomy = examine(backbone, (3, side, side), **joints)
    return SEARCHES[recipe.method](
        backbone,
        anatomy,
        parted(data, recipe).data,
        recipe,
        memory=memory,
        tick=tick,
        notify=notify,
    )


def save(
    folder: Path,
    model: AttachedModel,
    recipe: Recipe,
    classes: Sequence[str],
    evaluation: Evaluation,
    *,
    head_accuracy: float | None = None,
    gates: Evaluation | None = None,
    history: History | None = None,
    overwrite: bool = False,
) -> Checkpoint:
    """Write ``model``'s domain as the checkpoint ``folder`` and return it.

    ``gates``: an evaluation of other pictures, whose rates of gates are written. Raises
    CheckpointError for NaN or Inf, ExistsError, StorageError; nothing is left behind then.
    """
    anatomy, cells = model.anatomy, evaluation.confusion.cells
    channels, height, width = anatomy.input_shape
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
            name=recipe.backbone,
            weights_digest=weights_digest(model),
            input_shape=(channels, height, width),
            blocks=tuple(site.name for site in anatomy.sites),
            head=anatomy.head,
            witness=witness(model.backbone, anatomy.input_shape, anatomy.head),
        ),
        metrics=Metrics(
            accuracy=evaluation.accuracy,
            head_accuracy=head_accuracy,
            executed_share=evaluation.executed_share,
            gate_rates=(gates or evaluation).gate_rates,
            # Zero says that the rates are those of the test split.
            gate_pictures=0 if gates is None else gates.samples,
            balanced_accuracy=evaluation.balanced_accuracy,
            # With very many classes it would outgrow the file, which has a limit.
            confusion=cells if len(cells) <= files.CELLS_LIMIT else (),
        ),
        recipe_digest=recipe_digest(recipe),
        recipe=training_texts(recipe),
        seed=recipe.train.seed,
        selection=dict(model.selection),
        history=history,
        versions=Versions(toolchain=version(DISTRIBUTION), torch=torch.__version__),
        tensors_sha256=digest.sha256(b""),  # filled in by write
    )
    return files.write(folder, info, arrays(domain_state(model)), overwrite=overwrite)
