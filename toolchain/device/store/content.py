"""The content of releases: laid into the store once, and compared with what was laid there.

Rules of this file: a release's folder is named after its manifest's digest and appears whole or not
at all. Each file is listed with its size and digest, so bytes are compared, never times or inodes:
a store that was copied to another disk is the same store. ``installed.json`` alone changes later,
when a runner renews it, and carries its own digest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.core import durable
from toolchain.core.canonical import LIMIT_BYTES
from toolchain.core.digest import headed_body, sha256
from toolchain.core.errors import Da3Error, UsageError
from toolchain.core.files import (
    PARTIAL_SUFFIX,
    atomic_directory,
    is_folder,
    names,
    read_limited,
)
from toolchain.core.sealed import file_faults
from toolchain.core.units import BackboneId, Unit, is_backbone
from toolchain.device.store.layout import BUNDLE_NAME, RECORD_NAME, Layout
from toolchain.device.store.state import Held, StoredFile

if TYPE_CHECKING:
    from toolchain.bundle import Bundle


def faults(layout: Layout, release: Held) -> tuple[str, ...]:
    """Return what is wrong with the content of an installed release, nothing for whole content.

    Every byte is read. Raises no error: what cannot be read is a fault.
    """
    folder = layout.content(release.unit, release.digest)
    beside = [name for name in names(folder) if name.endswith(PARTIAL_SUFFIX)]
    is_domain = not is_backbone(release.unit)
    beside += [RECORD_NAME] if is_domain else []
    try:
        found = [str(fault) for fault in file_faults(folder, release.files, beside)]
        return tuple(found + (_record_faults(folder) if is_domain else []))
    except OSError as err:
        return (f"{err.strerror}: {folder}",)
    except Da3Error as err:
        return (err.message,)


def put_bundle(layout: Layout, unit: Unit, opened: Bundle, tested_with: str) -> Held:
    """Lay a verified bundle down as an installed domain, and return its release without a counter.

    Raises UsageError for a bundle of another domain, StorageError.
    """
    from toolchain.bundle.release import read_release
    from toolchain.device.store import installed

    own = opened.manifest
    if unit != Unit("domains", own.domain):
        raise UsageError(
            f"expected a bundle of {unit}, got one of domains/{own.domain}",
            fix="name the domain that the bundle is of",
        )
    data = opened.to_bytes()
    release = Held(
        unit=str(unit),
        counter=0,
        digest=opened.manifest_digest,
        state="INSTALLED",
        signed=False,
        files=(StoredFile(BUNDLE_NAME, sha256(data), len(data)),),
        fits=BackboneId.of(own.backbone),
    )
    if _is_there(layout, release):
        return release
    folder = layout.content(str(unit), release.digest)
    parsed = read_release(opened)
    durable.discard(folder)
    installed.write(folder, opened, parsed, tested_with or "nothing")
    return release


def backbone_digest(folder: Path) -> str:
    """Return the digest of an artefact's manifest. Raises BundleError, StorageError."""
    from toolchain.bundle.backbone import ARTEFACT

    return ARTEFACT.read_manifest(folder)[1]


def put_backbone(layout: Layout, unit: Unit, folder: Path) -> Held:
    """Copy a backbone artefact into the store and verify the copy before it has its name.

    Raises UsageError for another backbone than that of the unit, BundleError for a folder that is
    no artefact, StorageError.
    """
    from toolchain.bundle.backbone import ARTEFACT, SUMS_NAME, open_backbone
    from toolchain.bundle.manifest import MANIFEST_NAME

    manifest, digest = ARTEFACT.read_manifest(folder)
    if unit != Unit("backbones", manifest.name):
        raise UsageError(
            f"expected the backbone of {unit}, got backbones/{manifest.name}",
            fix="name the backbone that the folder holds",
        )
    text = manifest.to_json()
    sums = read_limited(folder / SUMS_NAME, limit_bytes=LIMIT_BYTES, what="backbone checksums")
    small = {MANIFEST_NAME: text, SUMS_NAME: sums}
    listed = [StoredFile(name, sha256(data), len(data)) for name, data in small.items()]
    listed += [StoredFile(one.name, one.digest, one.size) for one in manifest.files]
    release = Held(
        unit=str(unit),
        counter=0,
        digest=digest,
        state="INSTALLED",
        signed=False,
        files=tuple(listed),
        fits=BackboneId.of(manifest),
    )
    if _is_there(layout, release):
        return release
    durable.discard(layout.content(str(unit), digest))
    with atomic_directory(layout.content(str(unit), digest)) as partial:
        for one in listed:
            durable.copy(folder / one.name, partial / one.name, limit_bytes=one.size)
        open_backbone(partial)
    return release


def _is_there(layout: Layout, release: Held) -> bool:
    """Whether the content lies in the store already, whole."""
    folder = layout.content(release.unit, release.digest)
    return is_folder(folder) and not faults(layout, release)


def _record_faults(folder: Path) -> list[str]:
    data = read_limited(folder / RECORD_NAME, limit_bytes=LIMIT_BYTES, what="installed domain")
    if headed_body(data) is None:
        return [f"{RECORD_NAME}: expected the text of its digest, got another"]
    return []
