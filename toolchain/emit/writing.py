"""Put what was prepared for a target into kits beside the bundle.

Rules of this file: the kit of ``swap`` and ``staged`` is the backbone's and holds no domain; the
kit of ``static`` is one domain's. A kit that is there is left as it is if it is what would be
written, else refused: engines on devices were built from it. It emits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from toolchain.bundle import BackboneManifest, Manifest
from toolchain.bundle.document import read_document
from toolchain.digest import canonical_json, sha256
from toolchain.emit.kit import Emitted
from toolchain.engine.kit import (
    LAYERS_NAME,
    SCHEMA,
    ClassProfile,
    Kit,
    KitFlavour,
    KitManifest,
    KitSlot,
    kit_name,
    open_kit,
    write_kit,
)
from toolchain.engine.script import SCRIPT_NAME, script
from toolchain.errors import ExistsError
from toolchain.graph.names import HEAD_SLOTS
from toolchain.runtime.release import shared_options

# ImageNet has this many; a domain with more raises it.
MOST_CLASSES = 1000
RANGES_NAME = "ranges.json"
State = Literal["written", "reused", "replaced"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a kit comes from: a domain's manifest and its digest, its backbone and its tensors.

    ``graph``: digest of the linked graph ``swap-if`` in the domain's bundle.
    """

    manifest: Manifest
    release: str
    backbone: BackboneManifest
    slots: Mapping[str, npt.NDArray[Any]]
    graph: str


def write_kits(
    found: Emitted, source: Source, folder: Path, *, overwrite: bool = False
) -> tuple[tuple[Kit, State], ...]:
    """Write the kits of one target and precision; returns each, and what became of it.

    Raises ExistsError for a kit that is there and another, unless ``overwrite``.
    """
    release = source.manifest.domain, source.release
    return tuple(
        _write(_manifest(found, source, flavours), found, source, folder, overwrite=overwrite)
        for flavours in _split(found, *release)
    )


def refuse_others(found: Emitted, backbone: BackboneManifest, domain: str, folder: Path) -> None:
    """Raise ExistsError early if a kit that is there is another than would be written."""
    for flavours in _split(found, domain, ""):
        path = folder / _name(found, backbone, flavours)
        if path.is_dir():
            _require_same(open_kit(path), found, flavours)


def _split(found: Emitted, domain: str, release: str) -> tuple[tuple[KitFlavour, ...], ...]:
    """Return the flavours of the backbone's kit and those of the domain's own, if any."""
    flavours = found.flavours
    shared = tuple(item for item in flavours if item.flavour != "static")
    own = tuple(
        replace(item, domain=domain, release=release)
        for item in flavours
        if item.flavour == "static"
    )
    return tuple(item for item in (shared, own) if item)


def _name(found: Emitted, backbone: BackboneManifest, flavours: tuple[KitFlavour, ...]) -> str:
    own = flavours[0].domain or ""
    return kit_name(backbone, found.wish.target.name, found.wish.precision, own)


def kept_ranges(
    folder: Path, backbone: BackboneManifest, target: str, precision: str
) -> dict[str, float]:
    """Return the calibration of the backbone's kit in ``folder``, empty if there is none.

    Raises BundleError for a kit that was altered.
    """
    path = folder / kit_name(backbone, target, precision)
    if not path.is_dir():
        return {}
    kit = open_kit(path)
    if RANGES_NAME not in {entry.name for entry in kit.manifest.files}:
        return {}
    found = read_document(kit.read(RANGES_NAME), RANGES_NAME, limit_bytes=1 << 20)
    return {name: float(value) for name, value in found.items()}


def _manifest(found: Emitted, source: Source, flavours: tuple[KitFlavour, ...]) -> KitManifest:
    classes = len(source.manifest.classes)
    static = flavours[0].flavour == "static"
    slots = {} if static else source.slots
    return KitManifest(
        schema=SCHEMA,
        target=found.wish.target.name,
        precision=found.wish.precision,
        opset=found.wish.opset,
        graph=source.graph,
        gates=_gates(source),
        options=shared_options(source.manifest.adaptor),
        slots=tuple(_slot(name, array) for name, array in sorted(slots.items())),
        classes=ClassProfile(1, classes, max(classes, MOST_CLASSES)),
        flavours=flavours,
        files=(),
        made_by={"toolchain": version("da3-toolchain")},
    )


def _gates(source: Source) -> tuple[str, ...]:
    blocks = source.manifest.gates.blocks
    return tuple(b.name for b in blocks if f"{b.name}.gate.bias" in source.slots)


def _slot(name: str, array: Any) -> KitSlot:
    shape = tuple(array.shape)
    opened = (None, *shape[1:]) if name in HEAD_SLOTS else shape
    return KitSlot(name, opened, str(array.dtype))


def _write(
    manifest: KitManifest, found: Emitted, source: Source, folder: Path, *, overwrite: bool
) -> tuple[Kit, State]:
    path = folder / _name(found, source.backbone, manifest.flavours)
    state: State = "replaced" if path.is_dir() else "written"
    if state == "replaced":
        there = open_kit(path)
        # Kept even when it may be replaced: engines are bound to its digest.
        if not _differing(there, found, manifest.flavours) and not _too_small(there, manifest):
            return there, "reused"
        if not overwrite:
            _require_same(there, found, manifest.flavours)
            _require_room(there, manifest)
    files = {name: found.files[name] for name in _files(manifest.flavours)}
    files[LAYERS_NAME] = canonical_json(dict(found.layers))
    if found.wish.ranges:
        files[RANGES_NAME] = canonical_json(dict(found.wish.ranges))
    if found.wish.target.release.scripted:
        files[SCRIPT_NAME] = _script(manifest, found, source, files)
    return write_kit(folder, manifest, source.backbone, files, overwrite=overwrite), state


def _files(flavours: tuple[KitFlavour, ...]) -> list[str]:
    return [model.file for item in flavours for model in item.models]


def _differing(there: Kit, found: Emitted, flavours: tuple[KitFlavour, ...]) -> list[str]:
    """Return the models that are not in the kit, or are others there."""
    listed = {entry.name: entry.digest for entry in there.manifest.files}
    return [name for name in _files(flavours) if listed.get(name) != sha256(found.files[name])]


def _require_same(there: Kit, found: Emitted, flavours: tuple[KitFlavour, ...]) -> None:
    if other := _differing(there, found, flavours):
        raise ExistsError(
            f"{there.path} is another kit: {', '.join(other[:3])} would differ, made from other "
            "adaptor options, flavours or pictures, or by another version",
            fix="export into another folder (--dist), or replace the kit with --overwrite and "
            "build its engines anew",
        )


def _too_small(there: Kit, manifest: KitManifest) -> bool:
    return there.manifest.classes.high < manifest.classes.best


def _require_room(there: Kit, manifest: KitManifest) -> None:
    if _too_small(there, manifest):
        raise ExistsError(
            f"{there.path} is for up to {there.manifest.classes.high} classes, got a domain of "
            f"{manifest.classes.best}",
            fix="replace it with --overwrite and build its engines anew",
        )


def _script(
    manifest: KitManifest, found: Emitted, source: Source, files: dict[str, bytes]
) -> bytes:
    digests = {name: sha256(data) for name, data in sorted(files.items())}
    sums = "".join(
        f"{digest.removeprefix('sha256:')}  {name}\n" for name, digest in digests.items()
    )
    identity = sha256(manifest.to_json() + canonical_json(digests))
    blocks = source.backbone.blocks
    gated = sum(block.flops for block in blocks if block.name in manifest.gates)
    share = gated / (sum(block.flops for block in blocks) or 1)
    return script(manifest, found.wish.target, identity, sums, share)
