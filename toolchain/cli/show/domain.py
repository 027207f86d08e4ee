"""What a domain reaches and what it changes; shared by ``export`` and ``inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from toolchain.cli.show import layout
from toolchain.cli.show.classes import class_lines

if TYPE_CHECKING:
    from toolchain.bundle import Manifest
    from toolchain.training.adapt.checkpoint import History, Info


def patch_document(manifest: Manifest) -> dict[str, Any] | None:
    """Return what a domain changes of its backbone, None for nothing."""
    if manifest.patch is None:
        return None
    return {"kind": manifest.patch.kind, **asdict(manifest.patch), "bytes": _patch_bytes(manifest)}


def patch_line(manifest: Manifest) -> dict[str, str]:
    """Return what a domain changes in words, labelled; nothing where the backbone stays frozen."""
    patch, method = manifest.patch, manifest.adaptor.method
    if patch is None:
        return {}
    verb, how = "changes", "the bundle carries them"
    if patch.kind == "masked":
        verb, how = "masks", "the bundle carries 1 bit per weight"
    elif patch.scaled:
        how += f", {patch.scaled} as one factor per channel"
    return {
        "patch": f"{method} {verb} {patch.tensors} of {patch.of} tensors of the backbone: {how} "
        f"({layout.size(_patch_bytes(manifest))}) and the device keeps a session of its own"
    }


def _patch_bytes(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files if entry.role == "patch")


def holds(manifest: Manifest) -> dict[str, str]:
    """Return what a bundle says that it holds of people's data, labelled."""
    pictures = {
        "test": "pictures of the test data, for everyone who has the file to see",
        "drawn": "no picture of the data, as golden pictures are drawn",
        "none": "no picture",
    }
    # Schema 1 does not say, and a path was in its recipes still.
    older = manifest.selftest.pictures is None
    path = "; perhaps the folder of the data, in recipe.yaml" if older else ""
    return {"holds": f"the names of the classes; {pictures[manifest.pictures]}{path}"}


def metrics(measured: Mapping[str, Any], executed_share: float) -> dict[str, str]:
    """Return what a domain reaches, labelled; ``measured`` is a manifest's ``metrics``."""
    alone, whole = measured.get("head_accuracy"), measured.get("accuracy")
    beside = "" if alone is None else f"  (head alone {layout.percent(alone)})"
    if alone is not None and whole is not None and whole < alone:
        beside += ": less than the head alone"
    balanced = measured.get("balanced_accuracy")
    return {
        "accuracy": f"{layout.percent(whole)}{beside}",
        **(
            {} if balanced is None else {"balanced": f"{layout.percent(balanced)}, mean of classes"}
        ),
        "executed": f"{layout.percent(executed_share)} of the backbone's FLOPs",
    }


def epoch(history: History | None) -> dict[str, str]:
    """Return which epoch was kept, and why, labelled; nothing where that is not known."""
    if history is None:
        return {}
    pictures = history.validation
    why = f"best on {pictures} validation pictures" if pictures else "the last, without validation"
    return {"epoch": f"{history.epoch} of {len(history.epochs)}, {why}"}


def classes(info: Info) -> list[str]:
    """Return how well each class is recognised; nothing where that is not known."""
    from toolchain.core.confusion import Confusion

    if not info.metrics.confusion:
        return []
    return ["", *class_lines(Confusion(len(info.classes), info.metrics.confusion), info.classes)]


def gate_rates(manifest: Manifest) -> dict[str, float | None]:
    """Return how often the gate of each block is open; None for a block without a gate."""
    return {block.name: block.rate for block in manifest.gates.blocks}
