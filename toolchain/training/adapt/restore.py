"""From a checkpoint to an attached model.

Rules of this file: a checkpoint meets only the backbone that it was trained on. A model either
takes all of a checkpoint's tensors or stays as it was. It writes no checkpoint (``loop.models``).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from toolchain.core.errors import CheckpointError
from toolchain.training.adapt import checkpoint as files
from toolchain.training.adapt.attached import AttachedModel, attach, domain_state, weights_digest
from toolchain.training.adapt.checkpoint import Checkpoint, Info, shape_faults
from toolchain.training.adapt.weights import load_backbone
from toolchain.training.adapt.witness import TOLERANCE, difference, witness


def load_checkpoint(folder: Path, model: AttachedModel) -> Checkpoint:
    """Read ``folder`` into ``model.domain`` and return it; on an error the model is unchanged.

    Raises CheckpointError for another backbone (both digests shown), for one whose code computes
    something else than when the domain was trained, and for missing, extra, wrongly
    shaped, wrongly typed or not finite tensors, all of them at once; StorageError.
    """
    checkpoint = files.read(folder)
    _check_shape(folder, checkpoint.info)
    _check_backbone(folder, checkpoint.info, weights_digest(model))
    _check_code(folder, checkpoint.info, model)
    expected = {name: tuple(tensor.shape) for name, tensor in domain_state(model).items()}
    if faults := list(shape_faults(expected, checkpoint.tensors)):
        lines = "\n  ".join(faults)
        raise CheckpointError(
            f"{folder}: expected the slots of this model, got\n  {lines}",
            fix="attach with the checkpoint's method, options and number of classes",
        )
    state = {name: torch.from_numpy(array.copy()) for name, array in checkpoint.tensors.items()}
    # Checkpoints hold no BatchNorm counters; shape_faults() found nothing else missing.
    model.domain.load_state_dict(state, strict=False)
    return checkpoint


def _check_shape(folder: Path, info: Info) -> None:
    """Refuse a shape that its own pictures do not have, before anything runs on it."""
    side = info.preprocess.size
    if tuple(info.backbone.input_shape) != (3, side, side):
        raise CheckpointError(
            f"{folder}: backbone.input_shape: expected [3, {side}, {side}] as preprocess.size "
            f"says, got {list(info.backbone.input_shape)}",
            fix="train the domain again; this checkpoint was altered",
        )


def _check_backbone(folder: Path, info: Info, digest: str) -> None:
    if info.backbone.weights_digest != digest:
        raise CheckpointError(
            f"{folder}: expected the backbone {info.backbone.name!r} with "
            f"{info.backbone.weights_digest}, got one with {digest}",
            fix="give the backbone weights that the domain was trained on, or train it again",
        )


def _check_code(folder: Path, info: Info, model: AttachedModel) -> None:
    """Refuse equal weights in other code: no figure of the domain would be true of it."""
    if not info.backbone.witness:  # of an older version
        return
    now = witness(model.backbone, model.anatomy.input_shape, model.anatomy.head)
    apart = difference(info.backbone.witness, now)
    # A NaN fails every comparison.
    if not apart <= TOLERANCE:
        raise CheckpointError(
            f"{folder}: expected the backbone {info.backbone.name!r} that the domain was trained "
            f"on, got one with its weights that computes otherwise: on noise its features differ "
            f"by {apart:.2g} of the largest",
            fix="undo the change to the backbone's code, or train the domain again",
        )


def restore(
    folder: Path, *, backbone: nn.Module | None = None, weights: Path | None = None
) -> tuple[AttachedModel, Checkpoint]:
    """Return the model that the checkpoint ``folder`` describes, with its domain loaded.

    ``backbone`` is used in place of loading the one that the checkpoint names. ``weights`` is the
    file to load that one from, None for the weights that it ships. Raises CheckpointError,
    UnknownNameError, WeightsError, AttachError, StorageError.
    """
    info = files.read(folder).info
    _check_shape(folder, info)
    model = attach(
        load_backbone(info.backbone.name, weights=weights) if backbone is None else backbone,
        method=info.method,
        classes=len(info.classes),
        input_shape=info.backbone.input_shape,
        blocks=info.backbone.blocks,
        # None in a checkpoint says that the backbone returns features, not that nobody knows.
        head=info.backbone.head or "",
        options=info.options,
        selection=info.selection,
    )
    blocks = tuple(site.name for site in model.anatomy.sites)
    if blocks != info.backbone.blocks:
        # Slots are named by the place of their block; in another order they would be mixed up.
        raise CheckpointError(
            f"{folder}: expected the blocks in the order in which they run: {', '.join(blocks)}; "
            f"got {', '.join(info.backbone.blocks)}",
            fix="train the domain again; an older version kept the order in which they were listed",
        )
    return model, load_checkpoint(folder, model)
