"""What recipes, checkpoints, bundles, backbones, golden data and plain tensors say of themselves.

Rules of this file: the room that owns a format reads it, with its limits and checks; here the value
is only taken apart. No torch, no onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from toolchain import bundle, recipe
from toolchain.bundle import BackboneManifest, GateStates, Manifest
from toolchain.bundle.golden import read_golden
from toolchain.core.canonical import parse_json
from toolchain.core.errors import CheckpointError, UsageError
from toolchain.core.files import read_limited
from toolchain.inspect.groups import Block, TensorEntry, grouped
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
    slots: tuple[TensorEntry, ...]


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """A bundle, verified as a whole.

    ``pictures``: what its golden pictures are, as :attr:`Manifest.pictures`. ``training``: how its
    domain was trained, None where the bundle does not say it.
    """

    manifest_digest: str
    size_bytes: int
    pictures: str
    blocks: tuple[Block, ...]
    manifest: Manifest
    training: Info | None


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
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """A half-done training that can be resumed; ``identity`` is what it depends on.

    Nobody has checked its tensors: only resuming does that.
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
    trained = checkpoint.read(folder)
    slots = tuple(
        TensorEntry(name, tuple(array.shape), array.dtype.name)
        for name, array in sorted(trained.tensors.items())
    )
    size_bytes = sum(array.nbytes for array in trained.tensors.values())
    return CheckpointFacts(trained.info, size_bytes, grouped(slots), slots)


def read_bundle(path: Path) -> BundleFacts:
    """Return a bundle; raises as :func:`toolchain.bundle.open_bundle`."""
    opened = bundle.open_bundle(path)
    slots = [TensorEntry(s.name, s.shape, s.dtype) for s in opened.manifest.adaptor.slots]
    return BundleFacts(
        manifest_digest=opened.manifest_digest,
        size_bytes=opened.size_bytes,
        pictures=opened.manifest.pictures,
        blocks=grouped(slots),
        manifest=opened.manifest,
        training=_trained(opened),
    )


def _trained(opened: bundle.Bundle) -> Info | None:
    """Return what the bundle's training file says, if it is one of this toolchain's."""
    for name in opened.names("training"):
        with suppress(CheckpointError):
            return checkpoint.parse_info(Path(name), opened.blob(name))
    return None


def read_backbone(folder: Path) -> BackboneFacts:
    """Return a backbone artefact; raises as :func:`toolchain.bundle.open_backbone`."""
    manifest = bundle.open_backbone(folder).manifest
    return BackboneFacts(sum(entry.size for entry in manifest.files), manifest)


def golden(path: Path) -> GoldenFacts:
    """Return golden data; raises as :func:`toolchain.bundle.golden.read_golden`."""
    data = read_limited(path, limit_bytes=GOLDEN_LIMIT_BYTES, what="golden data")
    cases = read_golden(data, str(path))
    return GoldenFacts(
        cases=len(cases),
        natural=int(cases.natural.sum()),
        picture=tuple(cases.pixels.shape[1:]),
        classes=cases.logits.shape[1],
        sites=cases.sites,
        gates=cases.states(),
    )


def tensors(path: Path) -> TensorsFacts:
    """Return names and shapes of a safetensors file of any size; its values are not read.

    Raises UsageError for a file that is none.
    """
    try:
        # The library's parser reads the header alone, at most 100 MB of it, and compares every
        # offset with the file's size: files of any size can be looked at.
        with safe_open(str(path), framework="np") as file:
            metadata = dict(file.metadata() or {})
            names = sorted(file.keys())
            entries = tuple(_entry(file, name) for name in names[:TENSORS_LIMIT])
    except (SafetensorError, OSError, ValueError) as err:
        raise UsageError(
            f"{path}: expected a safetensors file, got: {err}", fix="take it from its source again"
        ) from err
    if len(names) > TENSORS_LIMIT:
        raise UsageError(
            f"{path}: expected at most {TENSORS_LIMIT} tensors, got {len(names)}",
            fix="check that this is the file that was meant",
        )
    total = sum(entry.elements for entry in entries)
    return TensorsFacts(path.stat().st_size, total, metadata, entries)


def _entry(file: Any, name: str) -> TensorEntry:
    """Return what an open safetensors file says of one tensor; its values stay on the disk."""
    described = file.get_slice(name)
    return TensorEntry(name, tuple(described.get_shape()), str(described.get_dtype()))


def training(path: Path) -> TrainingFacts:
    """Return what the state of a training says; raises UsageError for a file that is none."""
    facts = tensors(path)
    note = training_note(facts)
    if note is None:
        raise UsageError(
            f"{path}: expected the state of a training, got other tensors",
            fix="name NAME.training.safetensors, which `da3 train` keeps until it is done",
        )
    return TrainingFacts(
        facts.size_bytes, note["step"], float(note["head_accuracy"]), note["identity"]
    )


def training_note(facts: TensorsFacts) -> dict[str, Any] | None:
    """Return what the state of a training notes beside its tensors, None for other files."""
    try:
        note = parse_json(facts.metadata.get("da3", ""))
    except ValueError:
        return None
    if not isinstance(note, dict):
        return None
    # JSON may hold 1 where 1.0 was meant.
    kinds = {"step": int, "head_accuracy": float | int, "identity": dict}
    return note if all(isinstance(note.get(name), kind) for name, kind in kinds.items()) else None
