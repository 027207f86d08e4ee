"""Packing and opening ``.da3b`` files: manifest, archive and slots compared with each other.

Rules of this file: the one place of the room that touches bundle files. A bundle is verified as a
whole before a caller gets any of it. The bytes are read once, so the caller gets the very bytes
that were verified. The writer reads its own result back before it appears under its name, so it
never writes what a reader would refuse. Nothing here is signed: digests show damage, not origin.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from toolchain.bundle.archive import LIMIT_BYTES, Archive, ByteSource, scan_archive, write_archive
from toolchain.bundle.manifest import EPOCH, MANIFEST_NAME, FileEntry, Manifest
from toolchain.bundle.patch import check_patch
from toolchain.bundle.slots import check_slots, slot_table
from toolchain.core.digest import sha256
from toolchain.core.errors import BundleError, Fault, UnknownNameError, UsageError
from toolchain.core.files import atomic_directory, open_limited, write_atomic
from toolchain.core.words import TIME_FORMAT, raise_faults

_MEDIA_TYPES = {
    ".json": "application/json",
    ".onnx": "application/x-onnx",
    ".safetensors": "application/x-safetensors",
    ".yaml": "application/yaml",
}


@dataclass(frozen=True, slots=True)
class Payload:
    """One file to pack: its role, its name in the bundle, its bytes."""

    role: str
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle in memory."""

    manifest: Manifest
    manifest_digest: str
    size_bytes: int
    _archive: Archive

    def blob(self, name: str) -> bytes:
        """Return the bytes of the file ``name``; raises UnknownNameError if there is none."""
        return self._archive.blobs[self._entry(name).digest]

    def place(self, name: str) -> tuple[int, int]:
        """Return where the file ``name`` lies in the archive: its offset and size in bytes."""
        entry = self._entry(name)
        return self._archive.places[entry.digest], entry.size

    def to_bytes(self) -> bytes:
        """Return the archive, which has one form only, so these are the bytes that were read."""
        return write_archive(self._archive.blobs, self.manifest_digest)

    def _entry(self, name: str) -> FileEntry:
        for entry in self.manifest.files:
            if entry.name == name:
                return entry
        raise UnknownNameError("file of the bundle", name, self.names())

    def names(self, role: str | None = None) -> tuple[str, ...]:
        """Return the names of all files, or of those with ``role``, as the manifest lists them."""
        return tuple(e.name for e in self.manifest.files if role is None or e.role == role)

    @property
    def checks(self) -> tuple[str, ...]:
        """What was checked when it was opened, a line each."""
        slots, size = self.manifest.adaptor.slots, self.size_bytes
        patch = self.manifest.patch
        patched = () if patch is None else (f"patch: {patch.tensors} tensors, all finite",)
        return (
            f"archive: {size} bytes, every header, padding byte and the end as specified",
            f"manifest: {self.manifest_digest}, canonical, schema {self.manifest.schema}",
            f"files: {len(self.manifest.files)}, each with its size and digest, none unlisted",
            f"slots: {len(slots)}, each with its shape, dtype and digest, all finite",
            *patched,
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`verify` found in order; a fault is raised, so every line here has passed."""

    path: Path
    manifest_digest: str
    size_bytes: int
    checks: tuple[str, ...]


def pack(
    path: str | Path,
    manifest: Manifest,
    payloads: Sequence[Payload],
    *,
    overwrite: bool = False,
) -> Manifest:
    """Write the bundle ``path`` and return its manifest; same inputs, same bytes.

    ``files`` and ``adaptor.slots`` of ``manifest`` are filled in from the payloads, whatever they
    held before, so that they cannot disagree with them. Raises BundleError for a manifest that
    breaks the schema or payloads that no reader would accept, ExistsError and StorageError as
    :func:`toolchain.core.files.write_atomic`.
    """
    files = tuple(sorted(map(_entry, payloads), key=lambda entry: entry.name))
    tables = [slot_table(p.data, p.name) for p in payloads if p.role == "slots"]
    slots = tables[0] if tables else ()
    full = replace(manifest, files=files, adaptor=replace(manifest.adaptor, slots=slots))
    text = full.to_json()
    blobs = {sha256(data): data for data in (text, *(payload.data for payload in payloads))}
    data = write_archive(blobs, sha256(text))
    # The reader's own checks, before anything appears under the name.
    packed = read_bundle(data)
    write_atomic(path, data, overwrite=overwrite)
    return packed.manifest


def open_bundle(path: str | Path) -> Bundle:
    """Return the bundle in the file ``path``, verified as a whole.

    Raises BundleError as :func:`read_bundle`, with the path; StorageError if the file cannot be
    read or is larger than 512 MiB.
    """
    with open_limited(path, limit_bytes=LIMIT_BYTES, what="bundle") as (source, size):
        try:
            return _read(source, size)
        except BundleError as err:
            raise BundleError(f"{path}: {err.message}", fix=err.fix) from err


def read_bundle(data: bytes) -> Bundle:
    """Return the bundle whose archive is ``data``.

    Raises BundleError for a fault of the archive or the manifest, a file that is missing, has
    another size or is not listed, and slots or a patch that are not those of the manifest.
    """
    return _read(io.BytesIO(data), len(data))


def _read(source: ByteSource, size: int) -> Bundle:
    archive = scan_archive(source, size)
    # The manifest is checked and read while the large blobs are hashed; nothing leaves before.
    with archive.hashing():
        manifest = Manifest.from_json(archive.manifest())
    _check_files(manifest, archive.manifest_digest, archive.blobs)
    bundle = Bundle(manifest, archive.manifest_digest, size, archive)
    (slots,) = bundle.names("slots")
    check_slots(manifest.adaptor.slots, bundle.blob(slots), slots)
    if manifest.patch is not None:
        (patch,) = bundle.names("patch")
        check_patch(manifest.patch, bundle.blob(patch), patch)
    return bundle


def verify(path: str | Path) -> Report:
    """Verify the bundle ``path`` and return what was checked; raises as :func:`open_bundle`."""
    bundle = open_bundle(path)
    return Report(Path(path), bundle.manifest_digest, bundle.size_bytes, bundle.checks)


def unpack(path: str | Path, folder: str | Path, *, overwrite: bool = False) -> Manifest:
    """Write the files of the bundle ``path`` and its manifest.json into the new ``folder``.

    The folder appears whole or not at all. Raises as :func:`open_bundle` and
    :func:`toolchain.core.files.atomic_directory`.
    """
    bundle = open_bundle(path)
    with atomic_directory(folder, overwrite=overwrite) as partial:
        (partial / MANIFEST_NAME).write_bytes(bundle.manifest.to_json())
        for name in bundle.names():
            (partial / name).write_bytes(bundle.blob(name))
    return bundle.manifest


def created_now() -> str:
    """Return SOURCE_DATE_EPOCH (seconds) as a manifest's ``created``, or 1970 where it is unset.

    The clock is never asked: same inputs, same bytes (reproducible-builds.org, SOURCE_DATE_EPOCH).
    Raises UsageError if the variable is not a whole number of seconds before the year 10000.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return EPOCH
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and int(text) < 253402300800):
        raise UsageError(
            f"SOURCE_DATE_EPOCH: expected whole seconds since 1970, got {text!r:.40}",
            fix="set it to the output of `git log -1 --format=%ct`, or unset it",
        )
    return datetime.fromtimestamp(int(text), timezone.utc).strftime(TIME_FORMAT)


def _entry(payload: Payload) -> FileEntry:
    media_type = _MEDIA_TYPES.get(Path(payload.name).suffix, "application/octet-stream")
    digest, size = sha256(payload.data), len(payload.data)
    return FileEntry(
        role=payload.role, name=payload.name, digest=digest, size=size, media_type=media_type
    )


def _check_files(manifest: Manifest, manifest_digest: str, blobs: Mapping[str, bytes]) -> None:
    """Raise BundleError unless every listed file is there with its size, and every blob listed."""
    faults: list[Fault] = []
    for entry in manifest.files:
        if entry.digest not in blobs:
            faults.append(Fault(entry.name, f"expected the blob {entry.digest}, got none"))
        elif len(blobs[entry.digest]) != entry.size:
            got = len(blobs[entry.digest])
            faults.append(Fault(entry.name, f"expected {entry.size} bytes, got {got}"))
    listed = {entry.digest for entry in manifest.files} | {manifest_digest}
    faults += [Fault(digest, "a blob that no file names") for digest in blobs.keys() - listed]
    raise_faults("bundle", faults)
