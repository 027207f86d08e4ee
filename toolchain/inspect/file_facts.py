"""What recipes, checkpoints, bundles, backbones, golden data and plain tensors say of themselves.

Rules of this file: each reader is the one of the room that owns the format, with its limits and
checks; here its value is only taken apart. No torch, no onnx.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from toolchain import bundle, recipe
from toolchain.bundle import BackboneManifest, GateStates, Manifest
from toolchain.bundle.golden import read_golden
from toolchain.core.errors import UsageError
from toolchain.core.files import read_limited
from toolchain.inspect.groups import Block, Tensor, grouped
from toolchain.recipe import Recipe
from toolchain.training.adapt import checkpoint
from toolchain.training.adapt.checkpoint import Info

GOLDEN_LIMIT_BYTES = 1 << 29
TENSORS_LIMIT = 100_000


@dataclass(frozen=True, slots=True)
class RecipeFacts:
    """A recipe without faults."""

    recipe: Recipe


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """A trained domain; ``size_bytes`` of its tensors."""

    info: Info
    size_bytes: int
    blocks: tuple[Block, ...]
    slots: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """A bundle, verified as a whole."""

    manifest_digest: str
    size_bytes: int
    blocks: tuple[Block, ...]
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class BackboneFacts:
    """A backbone artefact, verified as a whole; ``size_bytes`` of graph and weights."""

    size_bytes: int
    manifest: BackboneManifest


@dataclass(frozen=True, slots=True)
class GoldenFacts:
    """Golden data; ``picture`` is height, width, channels; ``gates`` by site."""

    cases: int
    natural: int
    picture: tuple[int, ...]
    classes: int
    sites: tuple[str, ...]
    gates: Mapping[str, GateStates]


@dataclass(frozen=True, slots=True)
class TensorsFacts:
    """Any other safetensors file; ``metadata`` is what its writer noted."""

    size_bytes: int
    elements: int
    metadata: Mapping[str, str]
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """A half-done training that can be resumed; ``identity`` is what it depends on.

    Its tensors are looked at by resuming only.
    """

    size_bytes: int
    step: int
    head_accuracy: float
    identity: Mapping[str, Any]


def read_recipe(path: Path) -> RecipeFacts:
    """Return a recipe; raises as :func:`toolchain.recipe.load`."""
    return RecipeFacts(recipe.load(path))


def read_checkpoint(folder: Path) -> CheckpointFacts:
    """Return a checkpoint; raises as :func:`toolchain.training.adapt.checkpoint.read`."""
    found = checkpoint.read(folder)
    slots = tuple(
        Tensor(name, tuple(array.shape), array.dtype.name)
        for name, array in sorted(found.tensors.items())
    )
    size_bytes = sum(array.nbytes for array in found.tensors.values())
    return CheckpointFacts(found.info, size_bytes, grouped(slots), slots)


def read_bundle(path: Path) -> BundleFacts:
    """Return a bundle; raises as :func:`toolchain.bundle.open_bundle`."""
    held = bundle.open_bundle(path)
    slots = [Tensor(s.name, s.shape, s.dtype) for s in held.manifest.adaptor.slots]
    return BundleFacts(held.manifest_digest, held.size_bytes, grouped(slots), held.manifest)


def read_backbone(folder: Path) -> BackboneFacts:
    """Return a backbone artefact; raises as :func:`toolchain.bundle.open_backbone`."""
    manifest = bundle.open_backbone(folder).manifest
    return BackboneFacts(sum(entry.size for entry in manifest.files), manifest)


def golden(path: Path) -> GoldenFacts:
    """Return golden data; raises as :func:`toolchain.bundle.golden.read_golden`."""
    found = read_golden(
        read_limited(path, limit_bytes=GOLDEN_LIMIT_BYTES, what="golden data"), str(path)
    )
    states = found.states().items()
    return GoldenFacts(
        len(found),
        int(found.natural.sum()),
        tuple(found.pixels.shape[1:]),
        found.logits.shape[1],
        found.sites,
        {site: GateStates(one.open, one.closed, one.forced) for site, one in states},
    )


def tensors(path: Path) -> TensorsFacts:
    """Return names and shapes of a safetensors file of any size; its values are not read.

    Raises UsageError for a file that is none.
    """
    try:
        # The parser bounds the header (100 MB) and holds every offset against the file's size.
        with safe_open(str(path), framework="np") as file:
            metadata = dict(file.metadata() or {})
            names = sorted(file.keys())
            slices = [(name, file.get_slice(name)) for name in names[:TENSORS_LIMIT]]
            held = tuple(Tensor(n, tuple(s.get_shape()), str(s.get_dtype())) for n, s in slices)
    except (SafetensorError, OSError, ValueError) as err:
        raise UsageError(
            f"{path}: expected a safetensors file, got: {err}", fix="take it from its source again"
        ) from err
    if len(names) > TENSORS_LIMIT:
        raise UsageError(
            f"{path}: expected at most {TENSORS_LIMIT} tensors, got {len(names)}",
            fix="check that this is the file that was meant",
        )
    total = sum(tensor.elements for tensor in held)
    return TensorsFacts(path.stat().st_size, total, metadata, held)


def training(path: Path) -> TrainingFacts:
    """Return what the state of a training says; raises UsageError for a file that is none."""
    found = tensors(path)
    about = training_note(found)
    if about is None:
        raise UsageError(
            f"{path}: expected the state of a training, got other tensors",
            fix="name NAME.training.safetensors, which `da3 train` keeps until it is done",
        )
    return TrainingFacts(
        found.size_bytes, about["step"], float(about["head_accuracy"]), about["identity"]
    )


def training_note(found: TensorsFacts) -> dict[str, Any] | None:
    """Return what the state of a training notes beside its tensors, None for other files."""
    try:
        about = json.loads(found.metadata.get("da3", ""))
    except (ValueError, RecursionError):
        return None
    wanted = {"step": int, "head_accuracy": float | int, "identity": dict}
    if not isinstance(about, dict):
        return None
    return about if all(isinstance(about.get(n), kind) for n, kind in wanted.items()) else None
