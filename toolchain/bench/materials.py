"""What is measured, as files: a backbone artefact, bundles, and what they are compared with.

Rules of this file: it knows paths and how they are written down. It needs numpy and the bundle
format, no framework. Bundles that somebody else exported are materials too: they lack the models to
compare with, and the parts say so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolchain import bundle
from toolchain.bundle import Bundle
from toolchain.core.errors import UsageError
from toolchain.core.files import read_limited, write_atomic

INDEX_NAME = "materials.json"
LIMIT_INDEX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Materials:
    """Files to measure.

    ``backbone``: the artefact's folder; ``bundles``: domains on it. ``wholes``: models of one
    domain each with every tensor inside; ``shared``: such models whose backbone tensors are given
    by whoever makes the session. ``statics``: graphs of the first domain by name, their slots to be
    given. ``made``: what they were made of, empty for foreign bundles.
    """

    backbone: Path
    bundles: tuple[Path, ...]
    wholes: tuple[Path, ...] = ()
    shared: tuple[Path, ...] = ()
    statics: Mapping[str, Path] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)

    def open(self, index: int = 0) -> Bundle:
        """Return a bundle, verified."""
        return bundle.open_bundle(self.bundles[index])

    def to_json(self) -> dict[str, Any]:
        """Return the paths as text; :func:`from_json` takes them."""
        return {
            "backbone": str(self.backbone.resolve()),
            "bundles": _texts(self.bundles),
            "wholes": _texts(self.wholes),
            "shared": _texts(self.shared),
            "statics": {name: str(path.resolve()) for name, path in self.statics.items()},
            "made": dict(self.made),
        }


def from_json(document: Mapping[str, Any]) -> Materials:
    """Return the materials that :meth:`Materials.to_json` wrote."""
    return Materials(
        Path(document["backbone"]),
        _paths(document["bundles"]),
        _paths(document["wholes"]),
        _paths(document["shared"]),
        {name: Path(path) for name, path in document["statics"].items()},
        dict(document["made"]),
    )


def foreign(bundles: Sequence[Path], backbone: Path | None = None) -> Materials:
    """Return bundles that exist already as materials.

    ``backbone``: the artefact, or the folder that holds it; by default it is looked for beside the
    first bundle. Raises UsageError for fewer than two bundles and for one that changes the
    backbone, BundleError, StorageError.
    """
    if len(bundles) < 2:
        raise UsageError(
            f"expected two bundles or more, got {len(bundles)}",
            fix="name each with --bundle; swapping needs something to swap for",
        )
    manifests = [bundle.open_bundle(path).manifest for path in bundles]
    for path, manifest in zip(bundles, manifests, strict=True):
        if manifest.patch is not None:
            raise UsageError(
                f"{path.name}: expected a domain on the frozen backbone, got one that changes it "
                f"({manifest.adaptor.method}): there is no session to share",
                fix="leave it out; its latency is that of the plain backbone",
            )
    reference = manifests[0].backbone
    place = bundles[0].parent if backbone is None else backbone
    artefact = bundle.find_backbone(reference, manifests[0].preprocess.size, place)
    return Materials(artefact.path, tuple(bundles))


def write_index(work: Path, materials: Materials) -> None:
    """Write the materials down in their folder, last of all: without index it is half done."""
    text = json.dumps(materials.to_json(), indent=1).encode()
    write_atomic(work / INDEX_NAME, text, overwrite=True)


def read_index(work: Path, made: Mapping[str, Any]) -> Materials | None:
    """Return the materials in ``work`` if they are there and were made of the same."""
    path = work / INDEX_NAME
    if not path.is_file():
        return None
    try:
        text = read_limited(path, limit_bytes=LIMIT_INDEX_BYTES, what="bench index")
        materials = from_json(json.loads(text))
    # A damaged index is as good as none: the materials are made anew.
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return materials if dict(materials.made) == dict(made) else None


def _texts(paths: Sequence[Path]) -> list[str]:
    return [str(path.resolve()) for path in paths]


def _paths(texts: Sequence[str]) -> tuple[Path, ...]:
    return tuple(map(Path, texts))
