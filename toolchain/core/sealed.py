"""The sealed folder: a folder whose manifest lists its files, each with its size and digest.

Rules of this file: the only code that writes such a folder, or reads one back. Backbone artefacts,
kits, engines and the cache of split models are kinds of it. Each kind brings the schema of its
manifest, and says which fields contradict each other. A folder appears under its name whole or not
at all. Each fault names its file. This file does not know what a file is for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Generic, TypeVar

from toolchain.core.digest import sha256
from toolchain.core.errors import BundleError, Fault, StorageError
from toolchain.core.fields import Section, key
from toolchain.core.files import atomic_directory, read_limited
from toolchain.core.words import DIGEST, FILE_NAME, NATURAL, Document, raise_faults

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SealedFile(Section):
    """One file as a manifest lists it; ``size`` in bytes. A kind may narrow the size."""

    name: str = key(FILE_NAME)
    digest: str = key(DIGEST)
    size: int = key(NATURAL)


class SealedManifest(Document):
    """A manifest with a field ``files`` that lists every file of its folder but itself."""

    __slots__ = ()
    files: tuple[SealedFile, ...]

    def entry(self, name: str) -> SealedFile:
        """Return the entry of the file ``name``, which must be listed."""
        return next(entry for entry in self.files if entry.name == name)


FileT = TypeVar("FileT", bound=SealedFile)
ManifestT = TypeVar("ManifestT", bound=SealedManifest)


@dataclass(frozen=True, slots=True)
class SealedKind(Generic[ManifestT]):
    """One kind of sealed folder.

    ``what``: its name in messages; ``manifest_name``: the manifest's file; ``beside``: further
    files that belong there without an entry; ``fix``: what to do about a damaged folder.
    """

    what: str
    manifest_name: str
    manifest: type[ManifestT]
    fix: str
    beside: tuple[str, ...] = ()

    def write(
        self,
        path: Path,
        manifest: ManifestT,
        contents: Mapping[str, bytes],
        *,
        overwrite: bool = False,
    ) -> None:
        """Write ``contents``, by file name, and the manifest that lists them into ``path``.

        Scripts (``*.sh``) become executable. Raises as
        :func:`toolchain.core.files.atomic_directory`.
        """
        texts = {**contents, self.manifest_name: manifest.to_json()}
        with atomic_directory(path, overwrite=overwrite) as partial:
            for name, data in texts.items():
                (partial / name).write_bytes(data)
                if name.endswith(".sh"):
                    (partial / name).chmod(0o755)

    def read_manifest(self, path: Path) -> tuple[ManifestT, str]:
        """Return the manifest in the folder ``path`` and its digest; no other file is looked at.

        Raises BundleError for one that breaks its schema, StorageError.
        """
        limit_bytes, what = self.manifest.LIMIT_BYTES, f"{self.what} manifest"
        text = read_limited(path / self.manifest_name, limit_bytes=limit_bytes, what=what)
        return self.manifest.from_json(text), sha256(text)

    def open(self, path: Path) -> tuple[ManifestT, str]:
        """Return the manifest in the folder ``path`` and its digest; every file is hashed.

        Raises BundleError for a manifest that breaks its schema, and for files that are missing,
        not listed, links, or not what it says; StorageError if the file system refuses.
        """
        with self.reading(path):
            manifest, digest = self.read_manifest(path)
            beside = {self.manifest_name, *self.beside}
            raise_faults("files", file_faults(path, manifest.files, beside))
        return manifest, digest

    def read(self, path: Path, entry: SealedFile) -> bytes:
        """Return the bytes of a listed file of the folder ``path``, checked as they are read.

        Raises BundleError unless they are those that were listed, StorageError.
        """
        file = path / entry.name
        data = read_limited(file, limit_bytes=entry.size, what=f"file of the {self.what}")
        # A longer file was refused while it was read.
        if len(data) != entry.size:
            raise BundleError(f"{file}: expected {entry.size} bytes, got {len(data)}", fix=self.fix)
        if (digest := sha256(data)) != entry.digest:
            raise BundleError(f"{file}: expected {entry.digest}, got {digest}", fix=self.fix)
        return data

    @contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """Name the folder ``path`` in what the block raises, and what to do about it.

        A BundleError stays one. An OSError becomes a StorageError.
        """
        try:
            yield
        except BundleError as err:
            raise BundleError(f"{path}: {err.message}", fix=self.fix) from err
        except OSError as err:
            raise StorageError(
                f"cannot read the {self.what} {path}: {err.strerror}",
                fix="check the path and its permissions",
            ) from err


def listing(kind: type[FileT], contents: Mapping[str, bytes]) -> tuple[FileT, ...]:
    """Return the entry of each file in ``contents``, sorted by name."""
    return tuple(
        kind(name=name, digest=sha256(data), size=len(data))
        for name, data in sorted(contents.items())
    )


def file_faults(
    folder: Path, entries: Iterable[SealedFile], beside: Collection[str]
) -> Iterator[Fault]:
    """Yield what is wrong with ``folder``; ``beside``: names that belong there without an entry.

    A link is a fault, as it may point at other bytes tomorrow. Raises OSError.
    """
    listed = tuple(entries)
    known = {entry.name for entry in listed} | set(beside)
    for name in sorted({entry.name for entry in os.scandir(folder)} - known):
        yield Fault(name[:64], "unexpected file")
    for entry in listed:
        file = folder / entry.name
        if file.is_symlink() or not file.is_file():
            yield Fault(entry.name, "expected a regular file, got none")
        # The size is compared first: it costs nothing, and hashing a large file does.
        elif (size := file.stat().st_size) != entry.size:
            yield Fault(entry.name, f"expected {entry.size} bytes, got {size}")
        elif (digest := file_digest(file)) != entry.digest:
            yield Fault(entry.name, f"expected {entry.digest}, got {digest}")


def file_digest(path: Path) -> str:
    """Return a file's sha256, read in pieces: it may be larger than the memory that is free."""
    with path.open("rb", buffering=0) as file:
        return stream_digest(file)


def stream_digest(file: FileIO) -> str:
    """Return the sha256 of an open file from its place on, read in pieces."""
    running = hashlib.sha256()
    while piece := file.read(_CHUNK_BYTES):
        running.update(piece)
    return "sha256:" + running.hexdigest()
