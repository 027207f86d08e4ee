"""Put what was prepared for a target into kits beside the bundle.

Rules of this file: the kit of ``swap`` and ``staged`` is the backbone's and holds no domain. The
kit of ``static`` is one domain's. Devices have engines that were built from a kit, so an existing
kit stays as it is if it equals the new one; otherwise the export is refused. This file emits no
models.
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
from toolchain.bundle.archive import BUNDLE_SUFFIX
from toolchain.bundle.release import shared_options
from toolchain.core.canonical import canonical_json, read_document
from toolchain.core.digest import sha256
from toolchain.core.errors import BundleError, Da3Error, ExistsError
from toolchain.core.files import is_folder
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
from toolchain.device.runtime.trt.skipping import gated_share
from toolchain.export.emit.models import KitModels
from toolchain.export.graph.names import HEAD_SLOTS

# ImageNet has this many; a domain with more raises it.
MOST_CLASSES = 1000
RANGES_NAME = "ranges.json"
# No activation of a working network was measured above this.
MOST = 1e6
KitState = Literal["written", "reused", "replaced"]


@dataclass(frozen=True, slots=True)
class KitSource:
    """Where a kit comes from: a domain's manifest, its backbone and its tensors.

    ``graph``: digest of the linked graph ``swap-if`` in the domain's bundle.
    """

    manifest: Manifest
    backbone: BackboneManifest
    slots: Mapping[str, npt.NDArray[Any]]
    graph: str


def write_kits(
    models: KitModels, source: KitSource, folder: Path, *, release: str, overwrite: bool = False
) -> tuple[tuple[Kit, KitState], ...]:
    """Write the kits of one target and precision; returns each, and what became of it.

    ``release``: digest of the domain's manifest, which a static kit names. Raises ExistsError if
    another kit is there, unless ``overwrite``.
    """
    return tuple(
        _write(_manifest(models, source, flavours), models, source, folder, overwrite=overwrite)
        for flavours in _by_kit(models, source.manifest.domain, release)
    )


def refuse_others(models: KitModels, source: KitSource, folder: Path) -> None:
    """Raise ExistsError early if a kit in ``folder`` differs from the one to be written.

    The release is not known yet, so a static kit that is there always differs. Raises BundleError
    for a damaged kit.
    """
    for flavours in _by_kit(models, source.manifest.domain, ""):
        path = folder / _name(models, source.backbone, flavours)
        if is_folder(path):
            _require_same(open_kit(path), _manifest(models, source, flavours), models)


def existing(folder: Path, backbone: BackboneManifest, target: str, precision: str) -> Kit | None:
    """Return the backbone's kit in ``folder``, None if there is none. Raises BundleError."""
    path = folder / kit_name(backbone, target, precision)
    return open_kit(path) if is_folder(path) else None


def kept_ranges(kit: Kit) -> dict[str, float]:
    """Return the calibration of a kit, empty if it has none.

    Raises BundleError for magnitudes that no activation has.
    """
    if RANGES_NAME not in {entry.name for entry in kit.manifest.files}:
        return {}
    ranges = read_document(kit.read(RANGES_NAME), RANGES_NAME, limit_bytes=1 << 20)
    odd = [name for name, value in ranges.items() if not _is_range(value)]
    if odd:
        raise BundleError(
            f"{kit.path}: {RANGES_NAME}: expected magnitudes above 0 and up to {MOST:g}, got "
            f"{ranges[odd[0]]!r:.40} for {odd[0]!r:.80}",
            fix="calibrate from nothing with --recalibrate --overwrite",
        )
    return {name: float(value) for name, value in ranges.items()}


def _is_range(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < float(value) <= MOST  # type: ignore[arg-type]


def stale(folder: Path, kit: Kit, own: str) -> tuple[str, ...]:
    """Return the bundles in ``folder`` whose figures were measured on what ``kit`` was before.

    ``own``: the domain that it was just made for. Bundles that cannot be read are passed over.
    """
    digests = {entry.name: entry.digest for entry in kit.manifest.files}
    here = kit.manifest.target, kit.manifest.precision
    names = []
    for path in sorted(folder.glob(f"*{BUNDLE_SUFFIX}")):
        with suppress(Da3Error):
            manifest = open_bundle(path).manifest
            plans = [p for p in manifest.plans if (p.target, p.precision) == here]
            outdated = any(plan.model != digests.get("swap.onnx", "") for plan in plans)
            if manifest.domain != own and outdated:
                names.append(path.name)
    return tuple(names)


def _by_kit(models: KitModels, domain: str, release: str) -> tuple[tuple[KitFlavour, ...], ...]:
    """Return the flavours of the backbone's kit and those of the domain's own, if any."""
    shared = tuple(item for item in models.flavours if not item.linkage.folds_domain)
    own = tuple(
        replace(item, domain=domain, release=release)
        for item in models.flavours
        if item.linkage.folds_domain
    )
    return tuple(flavours for flavours in (shared, own) if flavours)


def _name(models: KitModels, backbone: BackboneManifest, flavours: tuple[KitFlavour, ...]) -> str:
    own = flavours[0].domain or ""
    return kit_name(backbone, models.order.target.name, models.order.precision, own)


def _manifest(
    models: KitModels, source: KitSource, flavours: tuple[KitFlavour, ...]
) -> KitManifest:
    """Return the manifest of the kit of ``flavours``, its files yet to be listed."""
    classes = len(source.manifest.classes)
    # A static network has the domain's tensors inside.
    slots = {} if flavours[0].linkage.folds_domain else source.slots
    return KitManifest(
        schema=SCHEMA,
        target=models.order.target.name,
        precision=models.order.precision,
        opset=models.order.target.release.kit_opset,
        graph=source.graph,
        gates=_gates(source),
        options=shared_options(source.manifest.adaptor),
        slots=tuple(_slot(name, array) for name, array in sorted(slots.items())),
        classes=ClassProfile(low=1, best=classes, high=max(classes, MOST_CLASSES)),
        flavours=flavours,
        files=(),
        made_by={"toolchain": version("da3-toolchain")},
    )


def _gates(source: KitSource) -> tuple[str, ...]:
    blocks = source.manifest.gates.blocks
    return tuple(b.name for b in blocks if f"{b.name}.gate.bias" in source.slots)


def _slot(name: str, array: Any) -> KitSlot:
    # The head's first size is the class count, which is another for each domain.
    shape = (None, *array.shape[1:]) if name in HEAD_SLOTS else tuple(array.shape)
    return KitSlot(name=name, shape=shape, dtype=str(array.dtype))


def _write(
    manifest: KitManifest, models: KitModels, source: KitSource, folder: Path, *, overwrite: bool
) -> tuple[Kit, KitState]:
    path = folder / _name(models, source.backbone, manifest.flavours)
    state: KitState = "replaced" if is_folder(path) else "written"
    if state == "replaced":
        try:
            there = open_kit(path)
            # Left as it is even when it may be replaced: engines are bound to its digest.
            if not _differing(there, manifest, models):
                return there, "reused"
            if not overwrite:
                _require_same(there, manifest, models)
        # A damaged kit is replaced only for somebody who asked for replacing.
        except BundleError:
            if not overwrite:
                raise
    files = _contents(models, manifest.flavours)
    if models.order.target.release.scripted:
        files[SCRIPT_NAME] = _script(manifest, models, source, files)
    return write_kit(folder, manifest, source.backbone, files, overwrite=overwrite), state


def _contents(models: KitModels, flavours: tuple[KitFlavour, ...]) -> dict[str, bytes]:
    """Return the kit's files by name, its script apart."""
    files = {model.file: models.files[model.file] for item in flavours for model in item.models}
    files[LAYERS_NAME] = canonical_json(dict(models.layers))
    if models.ranges:
        files[RANGES_NAME] = canonical_json(dict(models.ranges))
    return files


def _differing(there: Kit, manifest: KitManifest, models: KitModels) -> list[str]:
    """Return where the kit that is there differs: files, and fields of ``manifest``.

    It may hold more flavours, and be best for another number of classes; it must have room.
    """
    listed = {entry.name: entry.digest for entry in there.manifest.files}
    contents = _contents(models, manifest.flavours)
    odd = [name for name, data in contents.items() if listed.get(name) != sha256(data)]
    flavours = {item.flavour: item for item in there.manifest.flavours}
    odd += [item.flavour for item in manifest.flavours if flavours.get(item.flavour) != item]
    # ``made_by`` is not here: another version that makes the same files makes the same kit.
    same = ("target", "precision", "opset", "graph", "gates", "options", "slots")
    odd += [name for name in same if getattr(there.manifest, name) != getattr(manifest, name)]
    if there.manifest.classes.high < manifest.classes.best:
        odd.append(
            f"classes (up to {there.manifest.classes.high} there, {manifest.classes.best} here)"
        )
    return odd


def _require_same(there: Kit, manifest: KitManifest, models: KitModels) -> None:
    if odd := _differing(there, manifest, models):
        raise ExistsError(
            f"{there.path} is another kit: {', '.join(odd[:3])} would differ, made from other "
            "adaptor options, flavours or pictures, or by another version",
            fix="export into another folder (--dist), or replace the kit with --overwrite and "
            "build its engines anew",
        )


def _script(
    manifest: KitManifest, models: KitModels, source: KitSource, files: dict[str, bytes]
) -> bytes:
    digests = {name: sha256(data) for name, data in sorted(files.items())}
    sums = "".join(
        f"{digest.removeprefix('sha256:')}  {name}\n" for name, digest in digests.items()
    )
    # The script is a file of the kit, so it cannot know the kit's digest. This one is over the
    # rest.
    identity = sha256(manifest.to_json() + canonical_json(digests))
    share = gated_share(source.backbone, manifest.gates)
    return script(manifest, models.order.target, identity, sums, share)
