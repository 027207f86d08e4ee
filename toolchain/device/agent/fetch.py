"""From a signed release to its content on the device, every byte against its digest.

Rules of this file: what is here already is not fetched again; what was fetched in part goes on. A
file is asked for by its digest, so any mirror will do. Nothing is installed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from toolchain import bundle
from toolchain.bundle import Bundle
from toolchain.bundle.archive import write_archive
from toolchain.bundle.backbone import BackboneArtefact, BackboneManifest, assemble_backbone
from toolchain.bundle.manifest import FileEntry, Manifest
from toolchain.bundle.package import read_bundle
from toolchain.core.canonical import LIMIT_BYTES
from toolchain.core.errors import Da3Error
from toolchain.core.files import read_limited
from toolchain.device.agent.transport import Transport
from toolchain.device.store.layout import BUNDLE_NAME, Layout
from toolchain.device.store.store import Writer
from toolchain.trust.release import SignedRelease, check_manifest
from toolchain.trust.unit import blob_place, manifest_place

Progress = Callable[[str, int, int], None]
"""Takes the name of a file, the bytes that are here, and all of its bytes."""


@dataclass(frozen=True, slots=True)
class Repository:
    """Where releases come from: an address, and how its bytes are brought."""

    url: str
    transport: Transport

    def place(self, path: str) -> str:
        """Return the address of a path below the site."""
        return f"{self.url.rstrip('/')}/{quote(path)}"


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Brings releases from ``repository`` into the parts of the store of ``layout``."""

    repository: Repository
    writer: Writer
    layout: Layout
    progress: Progress

    def manifest(self, release: SignedRelease) -> tuple[Manifest | BackboneManifest, bytes]:
        """Return the manifest that ``release`` signs, and its bytes.

        Raises RepositoryError, VerificationError, StorageError.
        """
        signed = release.manifest
        place = manifest_place(release.unit, signed.name, signed.digest)
        path = self.file(place, signed.name, signed.digest, signed.size)
        data = read_limited(path, limit_bytes=LIMIT_BYTES, what="manifest")
        return check_manifest(release, data), data

    def bundle(self, release: SignedRelease) -> Bundle:
        """Return the verified bundle of a domain's release. Raises as :meth:`manifest`."""
        manifest, text = self.manifest(release)
        assert isinstance(manifest, Manifest)  # as its unit is a domain
        digest = release.manifest.digest
        blobs = {digest: text}
        here = self._installed(release)
        for entry in manifest.files:
            known = here.get(entry.digest)
            blobs[entry.digest] = known() if known else self._blob(entry)
        return read_bundle(write_archive(blobs, digest))

    @contextmanager
    def backbone(self, release: SignedRelease) -> Iterator[BackboneArtefact]:
        """Yield the verified artefact of a backbone's release, in a folder that goes afterwards.

        Raises as :meth:`manifest`.
        """
        manifest, text = self.manifest(release)
        files = {
            entry.name: self.file(blob_place(entry.digest), entry.name, entry.digest, entry.size)
            for entry in manifest.files
        }
        # Beside the parts, so that files are linked and not copied.
        with TemporaryDirectory(dir=self.layout.parts, prefix="backbone-") as folder:
            yield assemble_backbone(Path(folder), text, files)

    def drop(self, release: SignedRelease, manifest: Manifest | BackboneManifest) -> None:
        """Remove the parts of a release that is installed."""
        for digest in (release.manifest.digest, *(entry.digest for entry in manifest.files)):
            self.writer.drop_part(digest)

    def _blob(self, entry: FileEntry) -> bytes:
        path = self.file(blob_place(entry.digest), entry.name, entry.digest, entry.size)
        return read_limited(path, limit_bytes=entry.size, what="part")

    def file(self, place: str, name: str, digest: str, size: int) -> Path:
        """Return the part that holds the file at ``place`` of the site.

        Raises RepositoryError, VerificationError, QuotaError, StorageError.
        """
        path = self.writer.part(digest, size)
        self.repository.transport.download(
            self.repository.place(place),
            path,
            size=size,
            digest=digest,
            progress=lambda there: self.progress(name, there, size),
        )
        return path

    def _installed(self, release: SignedRelease) -> dict[str, Callable[[], bytes]]:
        """Return how to read each file of the unit's release that runs, by its digest."""
        held = self.writer.state.running.get(str(release.unit))
        if held is None:
            return {}
        path = self.layout.content(held.unit, held.digest) / BUNDLE_NAME
        try:
            opened = bundle.open_bundle(path)
        except Da3Error:
            # It is damaged, which others find and mend; here it only saves bytes.
            return {}
        names = {entry.digest: entry.name for entry in opened.manifest.files}
        return {digest: (lambda name=name: opened.blob(name)) for digest, name in names.items()}  # type: ignore[misc]
