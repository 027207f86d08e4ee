"""Put what was prepared for a target into kits beside the bundle.

Rules of this file: the kit of ``swap`` and ``staged`` is the backbone's and holds no domain; the
kit of ``static`` is one domain's. A kit that is there is left as it is if it is what would be
written, else refused: engines on devices were built from it. It emits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from toolchain.bundle import BackboneManifest, Manifest, open_bundle
from toolchain.bundle.release import shared_options
from toolchain.core.canonical import canonical_json, read_document
from toolchain.core.digest import sha256
from toolchain.core.errors import BundleError, Da3Error, ExistsError
from toolchain.device.engine.kit import (
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
from toolchain.device.engine.script import SCRIPT_NAME, script
from toolchain.export.emit.models import Emitted
from toolchain.export.graph.names import HEAD_SLOTS

# ImageNet has this many; a domain with more raises it.
MOST_CLASSES = 1000
RANGES_NAME = "ranges.json"
# Beyond it nothing of a network that works was measured.
MOST = 1e6
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


def refuse_others(found: Emitted, source: Source, folder: Path) -> None:
    """Raise ExistsError early if a kit that is there is another than would be written.

    ``source.release`` need not be known yet. Raises BundleError for one that is damaged.
    """
    for flavours in _split(found, source.manifest.domain, source.release):
        path = folder / _name(found, source.backbone, flavours)
        if path.is_dir():
            wanted = _manifest(found, source, flavours)
            _require_same(open_kit(path), wanted, found)


def existing(folder: Path, backbone: BackboneManifest, target: str, precision: str) -> Kit | None:
    """Return the backbone's kit in ``folder``, None if there is none. Raises BundleError."""
    path = folder / kit_name(backbone, target, precision)
    return open_kit(path) if path.is_dir() else None


def kept_ranges(kit: Kit) -> dict[str, float]:
    """Return the calibration of a kit, empty if it has none.

    Raises BundleError for magnitudes that no activation has.
    """
    if RANGES_NAME not in {entry.name for entry in kit.manifest.files}:
        return {}
    found = read_document(kit.read(RANGES_NAME), RANGES_NAME, limit_bytes=1 << 20)
    odd = [name for name, value in found.items() if not _is_range(value)]
    if odd:
        raise BundleError(
            f"{kit.path}: {RANGES_NAME}: expected magnitudes above 0 and up to {MOST:g}, got "
            f"{found[odd[0]]!r:.40} for {odd[0]!r:.80}",
            fix="calibrate from nothing with --recalibrate --overwrite",
        )
    return {name: float(value) for name, value in found.items()}


def _is_range(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < float(value) <= MOST  # type: ignore[arg-type]


def stale(folder: Path, kit: Kit, own: str) -> tuple[str, ...]:
    """Return the bundles in ``folder`` whose figures were measured on what ``kit`` was before.

    ``own``: the domain that it was just made for. Bundles that cannot be read are passed over.
    """
    digests = {entry.name: entry.digest for entry in kit.manifest.files}
    here = kit.manifest.target, kit.manifest.precision, digests.get("swap.onnx", "")
    found = []
    for path in sorted(folder.glob("*.da3b")):
        with suppress(Da3Error):
            manifest = open_bundle(path).manifest
            plans = [p for p in manifest.plans if (p.target, p.precision) == here[:2]]
            if manifest.domain != own and any(plan.model != here[2] for plan in plans):
                found.append(path.name)
    return tuple(found)


def _split(found: Emitted, domain: str, release: str) -> tuple[tuple[KitFlavour, ...], ...]:
    """Return the flavours of the backbone's kit and those of the domain's own, if any."""
    flavours = found.flavours
    shared = tuple(item for item in flavours if not item.linkage.folds_domain)
    own = tuple(
        replace(item, domain=domain, release=release)
        for item in flavours
        if item.linkage.folds_domain
    )
    return tuple(item for item in (shared, own) if item)


def _name(found: Emitted, backbone: BackboneManifest, flavours: tuple[KitFlavour, ...]) -> str:
    own = flavours[0].domain or ""
    return kit_name(backbone, found.wish.target.name, found.wish.precision, own)


def _manifest(found: Emitted, source: Source, flavours: tuple[KitFlavour, ...]) -> KitManifest:
    classes = len(source.manifest.classes)
    slots = {} if flavours[0].linkage.folds_domain else source.slots
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
        try:
            there = open_kit(path)
            # Kept even when it may be replaced: engines are bound to its digest.
            if not _differing(there, manifest, found):
                return there, "reused"
            if not overwrite:
                _require_same(there, manifest, found)
        except BundleError:
            if not overwrite:
                raise
    files = _contents(found, manifest.flavours)
    if found.wish.target.release.scripted:
        files[SCRIPT_NAME] = _script(manifest, found, source, files)
    return write_kit(folder, manifest, source.backbone, files, overwrite=overwrite), state


def _contents(found: Emitted, flavours: tuple[KitFlavour, ...]) -> dict[str, bytes]:
    """Return the kit's files by name, its script apart."""
    models = [model.file for item in flavours for model in item.models]
    files = {name: found.files[name] for name in models}
    files[LAYERS_NAME] = canonical_json(dict(found.layers))
    if found.wish.ranges:
        files[RANGES_NAME] = canonical_json(dict(found.wish.ranges))
    return files


def _differing(there: Kit, wanted: KitManifest, found: Emitted) -> list[str]:
    """Return what is another in the kit that is there: files, and what its manifest says.

    It may hold more flavours, and be best for another number of classes; it must have room.
    """
    listed = {entry.name: entry.digest for entry in there.manifest.files}
    contents = _contents(found, wanted.flavours)
    odd = [name for name, data in contents.items() if listed.get(name) != sha256(data)]
    held = {item.flavour: item for item in there.manifest.flavours}
    odd += [item.flavour for item in wanted.flavours if held.get(item.flavour) != item]
    same = ("target", "precision", "opset", "graph", "gates", "options", "slots")
    odd += [name for name in same if getattr(there.manifest, name) != getattr(wanted, name)]
    if there.manifest.classes.high < wanted.classes.best:
        odd.append(
            f"classes (up to {there.manifest.classes.high} there, {wanted.classes.best} here)"
        )
    return odd


def _require_same(there: Kit, wanted: KitManifest, found: Emitted) -> None:
    if other := _differing(there, wanted, found):
        raise ExistsError(
            f"{there.path} is another kit: {', '.join(other[:3])} would differ, made from other "
            "adaptor options, flavours or pictures, or by another version",
            fix="export into another folder (--dist), or replace the kit with --overwrite and "
            "build its engines anew",
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
