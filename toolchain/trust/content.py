"""What a release brings: its manifests, and every file that these list, each checked.

Rules of this file: it reads bundles, backbone folders and kits, and writes nothing. A kit comes as
its reader has verified it, because kits belong to the device's room; a published one is found again
by the digest that was signed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from toolchain.bundle.archive import BUNDLE_SUFFIX
from toolchain.bundle.backbone import open_backbone
from toolchain.bundle.package import open_bundle
from toolchain.core.canonical import LIMIT_BYTES, read_document
from toolchain.core.digest import sha256
from toolchain.core.errors import DataError, Fault, UsageError
from toolchain.core.fields import read_section
from toolchain.core.files import is_file, is_folder, names, read_limited
from toolchain.core.sealed import SealedFile
from toolchain.core.units import BACKBONES, DOMAINS, BackboneId, Unit, kit_file
from toolchain.core.words import raise_faults
from toolchain.trust.release import SignedFile, SignedRelease, backbone_of

SUFFIX = ".release.json"
_KIT_PREFIX, _KIT_MANIFEST = "kit-", "kit.json"


class Kit(Protocol):
    """A verified kit, as :func:`toolchain.device.engine.kit.open_kit` returns it."""

    @property
    def path(self) -> Path:
        """Its folder."""
        ...

    @property
    def manifest(self) -> Any:
        """Its manifest, with ``target``, ``files`` and ``to_json``."""
        ...

    @property
    def backbone(self) -> Any:
        """The manifest of the backbone that it was made from."""
        ...


@dataclass(frozen=True, kw_only=True)
class Content:
    """What one release brings.

    ``manifests``: bytes by name; ``blobs``: by digest, the bytes or the file that holds them.
    """

    unit: Unit
    backbone: BackboneId
    manifests: Mapping[str, bytes]
    blobs: Mapping[str, bytes | Path]
    bytes: int

    def files(self) -> tuple[SignedFile, ...]:
        """Return the manifests as a release lists them."""
        return tuple(
            SignedFile(name=name, digest=sha256(data), size=len(data))
            for name, data in self.manifests.items()
        )


def release_path(path: Path) -> Path:
    """Return where the signed release of a bundle or a backbone folder lies: beside it."""
    stem = path.name.removesuffix(BUNDLE_SUFFIX)
    return path.parent / f"{stem}{SUFFIX}"


def content_of(path: Path, kits: Sequence[Kit] = ()) -> Content:
    """Return what the bundle or the backbone folder ``path`` brings, verified as a whole.

    Raises BundleError, UsageError for kits with a bundle, two kits of a board, or kits of another
    backbone; DataError for a path that is neither; StorageError.
    """
    if is_file(path):
        if kits:
            raise UsageError(
                f"expected kits with a backbone, got them with the bundle {path}",
                fix="sign the backbone's folder with its kits, and the bundle alone",
            )
        return _of_bundle(path)
    if not is_folder(path):
        raise DataError(
            f"expected a bundle or the folder of a backbone at {path}, got nothing",
            fix="da3-export --domain NAME writes both",
        )
    return _of_backbone(path, kits)


def _of_bundle(path: Path) -> Content:
    opened = open_bundle(path)
    manifest = opened.manifest
    unit = Unit(kind=DOMAINS, name=manifest.domain)
    text = manifest.to_json()
    blobs = {entry.digest: opened.blob(entry.name) for entry in manifest.files}
    return Content(
        unit=unit,
        backbone=backbone_of(manifest),
        manifests={unit.manifest: text},
        blobs=blobs,
        bytes=len(text) + sum(map(len, blobs.values())),
    )


def _of_backbone(path: Path, kits: Sequence[Kit]) -> Content:
    manifest = open_backbone(path).manifest
    unit, own = Unit(kind=BACKBONES, name=manifest.name), backbone_of(manifest)
    raise_faults("kits", _kit_faults(own, kits), error=UsageError, fix="leave these kits out")
    manifests = {unit.manifest: manifest.to_json()}
    manifests |= {kit_file(kit.manifest.target): kit.manifest.to_json() for kit in kits}
    entries = [(path, entry) for entry in manifest.files]
    entries += [(kit.path, entry) for kit in kits for entry in kit.manifest.files]
    sizes = {entry.digest: entry.size for _, entry in entries}
    return Content(
        unit=unit,
        backbone=own,
        manifests=manifests,
        blobs={entry.digest: folder / entry.name for folder, entry in entries},
        bytes=sum(map(len, manifests.values())) + sum(sizes.values()),
    )


def _kit_faults(own: BackboneId, kits: Sequence[Kit]) -> Iterator[Fault]:
    seen: set[str] = set()
    for kit in kits:
        if backbone_of(kit.backbone) != own:
            yield Fault(kit.path.name, f"expected a kit of {own.name}, got one of another backbone")
        if kit.manifest.target in seen:
            yield Fault(kit.path.name, f"expected one kit for {kit.manifest.target}, got two")
        seen.add(kit.manifest.target)


def find_content(release_file: Path, signed: SignedRelease) -> Content:
    """Return what a signed release brings, from what lies beside its file.

    Raises DataError where the bundle, the backbone or a kit is not there or is another than was
    signed; BundleError, StorageError.
    """
    stem = release_file.with_name(release_file.name.removesuffix(SUFFIX))
    is_domain = signed.unit.kind == DOMAINS
    path = stem.with_name(stem.name + BUNDLE_SUFFIX) if is_domain else stem
    content = content_of(path)
    manifests, blobs = dict(content.manifests), dict(content.blobs)
    for file in signed.files[1:]:
        folder = _kit_folder(release_file.parent, file)
        manifests[file.name] = read_limited(
            folder / _KIT_MANIFEST, limit_bytes=LIMIT_BYTES, what="kit manifest"
        )
        blobs |= {entry.digest: folder / entry.name for entry in _listed(manifests[file.name])}
    digests = {name: sha256(data) for name, data in manifests.items()}
    if digests != {file.name: file.digest for file in signed.files}:
        raise DataError(
            f"{path}: expected what {release_file.name} signs, got another release of "
            f"{content.unit}",
            fix=f"sign it again: da3 sign {path} --key KEYS/{signed.unit}",
        )
    return Content(
        unit=signed.unit,
        backbone=content.backbone,
        manifests=manifests,
        blobs=blobs,
        bytes=signed.bytes,
    )


def _kit_folder(folder: Path, file: SignedFile) -> Path:
    for name in names(folder):
        path = folder / name / _KIT_MANIFEST
        if name.startswith(_KIT_PREFIX) and is_file(path) and path.stat().st_size == file.size:
            data = read_limited(path, limit_bytes=file.size, what="kit manifest")
            if sha256(data) == file.digest:
                return folder / name
    raise DataError(
        f"expected the kit {file.digest} in a folder kit-* of {folder}, got none",
        fix="put the kit that was signed beside the backbone",
    )


def _listed(manifest: bytes) -> Iterable[SealedFile]:
    """Return the files that a sealed folder's manifest lists; nothing else of it is looked at."""
    faults: list[Fault] = []
    entries = read_document(manifest, _KIT_MANIFEST).get("files", [])
    listed = [read_section(SealedFile, "files", entry, faults) for entry in entries]
    raise_faults(_KIT_MANIFEST, faults)
    return [entry for entry in listed if entry is not None]
