"""The archive: content-addressed blobs in one file, an uncompressed tar that has one form only.

Rules of this file: bytes in, values out; it opens nothing, and it does not know what a blob means.
The layout is that of an OCI image (image-spec 1.0, "image-layout"): ``oci-layout``,
``index.json``, then ``blobs/sha256/<hex>`` in sorted order, as POSIX ustar members (IEEE 1003.1
"pax", ustar interchange format). Every byte follows from the blobs. A header is accepted only if
it is the very header that the writer would make; padding is zero; nothing follows the end. So any
changed bit is found, and two archives with the same blobs are the same file. Other tar programs
can list and extract the archive, but what they repack is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, Protocol

from toolchain.bundle.manifest import LIMIT_FILES
from toolchain.core.canonical import canonical_json, read_document
from toolchain.core.digest import BackgroundDigests, sha256
from toolchain.core.errors import BundleError

BUNDLE_SUFFIX = ".da3b"
LIMIT_BYTES = 512 * 1024 * 1024
MANIFEST_MEDIA_TYPE = "application/vnd.da3.bundle.manifest.v1+json"

BLOCK_BYTES = 512
_END = bytes(2 * BLOCK_BYTES)
Member = tuple[str, bytes, int]
_NOTHING: Member = ("the end of the archive", b"", 0)
_LAYOUT_NAME = "oci-layout"
_LAYOUT = canonical_json({"imageLayoutVersion": "1.0.0"})
_INDEX_NAME = "index.json"
_BLOB_FOLDER = "blobs/sha256/"
_BLOB_NAME = re.compile(_BLOB_FOLDER + "[0-9a-f]{64}")
# The manifest is a blob as well; oci-layout and index.json are not.
_LIMIT_MEMBERS = LIMIT_FILES + 3
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a directory",
    b"6": "a pipe",
    b"L": "a GNU long name",
    b"K": "a GNU long link name",
    b"S": "a GNU sparse file",
    b"x": "a pax header",
    b"g": "a global pax header",
}


class ByteSource(Protocol):
    """What an archive is read from: a file, or bytes in memory."""

    def read(self, size: int, /) -> bytes:
        """Return the next ``size`` bytes, fewer only at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Archive:
    """The content of an archive: which blob is the manifest, and all blobs by digest.

    ``places``: the offset of a blob's first byte in the archive.
    """

    manifest_digest: str
    manifest_size: int
    blobs: Mapping[str, bytes]
    places: Mapping[str, int]

    @contextmanager
    def hashing(self) -> Iterator[None]:
        """Hash every blob while the block runs; BundleError at its end if a digest is wrong."""
        digests = BackgroundDigests(list(self.blobs.values()))
        yield
        for name, digest in zip(self.blobs, digests.result(), strict=True):
            if name != digest:
                _fail(f"the blob {name}: expected bytes with that digest, got {digest}")

    def manifest(self) -> bytes:
        """Return the manifest's bytes; raises BundleError for another size or digest."""
        data = self.blobs[self.manifest_digest]
        if (digest := sha256(data)) != self.manifest_digest:
            _fail(
                f"the manifest {self.manifest_digest}: "
                f"expected bytes with that digest, got {digest}"
            )
        if len(data) != self.manifest_size:
            _fail(f"expected a manifest of {self.manifest_size} bytes, got {len(data)} bytes")
        return data


def write_archive(blobs: Mapping[str, bytes], manifest_digest: str) -> bytes:
    """Return the archive that holds ``blobs`` (digest to bytes), one of them the manifest.

    It takes the keys as they are. Whoever reads the archive proves them (:meth:`Archive.hashing`).
    """
    index = _index(manifest_digest, len(blobs[manifest_digest]))
    members = [(_LAYOUT_NAME, _LAYOUT), (_INDEX_NAME, index)]
    members += [
        (_BLOB_FOLDER + digest.removeprefix("sha256:"), blobs[digest]) for digest in sorted(blobs)
    ]
    parts: list[bytes] = []
    for name, data in members:
        parts += [_header(name, len(data)), data, bytes(-len(data) % BLOCK_BYTES)]
    return b"".join([*parts, _END])


def scan_archive(source: ByteSource, size: int) -> Archive:
    """Return the archive of ``size`` bytes that ``source`` reads; its digests are not checked yet.

    Each blob is read into bytes of its own, so that keeping one keeps nothing else. Raises
    BundleError for anything that :func:`write_archive` would not have written: a truncated or
    longer file, members missing, unexpected, repeated or out of order, links and other kinds, odd
    headers, padding that is not zero.
    """
    if size > LIMIT_BYTES:
        _fail(f"expected at most {LIMIT_BYTES} bytes, got {size}")
    members = _members(source, size)
    _expect_member(members, _LAYOUT_NAME, _LAYOUT)
    name, content, _ = next(members, _NOTHING)
    if name != _INDEX_NAME:
        _fail(f"expected the member {_INDEX_NAME}, got {name!r}")
    manifest_digest, manifest_size = _read_index(content)
    blobs, places = _read_blobs(members)
    if manifest_digest not in blobs:
        _fail(f"expected a manifest {manifest_digest} of {manifest_size} bytes, got none")
    return Archive(manifest_digest, manifest_size, blobs, places)


def _read_blobs(members: Iterator[Member]) -> tuple[dict[str, bytes], dict[str, int]]:
    blobs: dict[str, bytes] = {}
    places: dict[str, int] = {}
    last = ""
    for name, content, place in members:
        if not _BLOB_NAME.fullmatch(name):
            _fail(f"unexpected member {name!r}")
        # In strictly rising order no name can stand twice.
        if name <= last:
            _fail(f"expected each member once and in sorted order, got {name} after {last}")
        last = name
        digest = "sha256:" + name.removeprefix(_BLOB_FOLDER)
        blobs[digest] = content
        places[digest] = place
    return blobs, places


def _members(source: ByteSource, total: int) -> Iterator[Member]:
    """Yield name, content and offset of each member; checks headers, padding and the end."""
    at = 0
    for _ in range(_LIMIT_MEMBERS + 1):
        block = source.read(BLOCK_BYTES)
        if block == _END[:BLOCK_BYTES]:
            if block + source.read(BLOCK_BYTES + 1) != _END:
                _fail(f"expected {len(_END)} zero bytes and the end of the file from byte {at} on")
            return
        name, size = _read_header(block, at)
        start = at + BLOCK_BYTES
        # The size is compared before anything is read, so that no header can ask for memory.
        content = source.read(size) if size <= total - start else b""
        if len(content) != size:
            _fail(f"member {name!r}: expected {size} bytes, got {total - start}; truncated?")
        padding = source.read(-size % BLOCK_BYTES)
        if padding != bytes(-size % BLOCK_BYTES):
            _fail(f"member {name!r}: expected zero padding")
        at = start + size + len(padding)
        yield name, content, start
    _fail(f"expected at most {_LIMIT_MEMBERS} members, got more")


def _read_header(block: bytes, at: int) -> tuple[str, int]:
    """Return name and size of a member, whose header must be exactly the writer's."""
    if len(block) != BLOCK_BYTES:
        _fail(f"expected a member or the end at byte {at}, got {len(block)} bytes; truncated?")
    if block[156:157] in _KINDS:
        _fail(f"member at byte {at}: expected a regular file, got {_KINDS[block[156:157]]}")
    # Only name and size are read; comparing the whole block proves every other field.
    name = block[:100].partition(b"\0")[0].decode("ascii", "replace")
    digits = block[124:135]
    size = int(digits, 8) if re.fullmatch(rb"[0-7]{11}", digits) else 0
    if not name.isascii() or block != _header(name, size):
        _fail(f"member {name!r} at byte {at}: expected the plain ustar header of a bundle")
    return name, size


def _header(name: str, size: int) -> bytes:
    """Return the ustar header of a regular file: mode 0644, owner 0, time 0, no names."""
    fields = (
        name.encode("ascii").ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,
        b"%011o\0" % size + b"%011o\0" % 0,
        b" " * 8,
        b"0" + bytes(100),
        b"ustar\x0000",
    )
    block = b"".join(fields).ljust(BLOCK_BYTES, b"\0")
    # The checksum counts its own field as eight spaces; six octal digits, a null and a space.
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _index(digest: str, size: int) -> bytes:
    """Return the OCI image index (image-spec 1.0) with the manifest as its one descriptor."""
    descriptor = {"digest": digest, "mediaType": MANIFEST_MEDIA_TYPE, "size": size}
    return canonical_json(
        {
            "manifests": [descriptor],
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "schemaVersion": 2,
        }
    )


def _read_index(data: bytes) -> tuple[str, int]:
    """Return the manifest's digest and size; the index must be the one that the writer makes."""
    match read_document(data, _INDEX_NAME):
        case {"manifests": [{"digest": str(digest), "size": int(size)}]}:
            expected = _index(digest, size)
        case _:
            expected = b""
    if data != expected:
        _fail(f"{_INDEX_NAME}: expected one descriptor of a bundle manifest, got something else")
    return digest, size


def _expect_member(members: Iterator[Member], name: str, content: bytes) -> None:
    actual, data, _ = next(members, _NOTHING)
    if actual != name or data != content:
        _fail(f"expected the member {name} with {content!r}, got {actual!r} with other bytes")


def _fail(message: str) -> NoReturn:
    raise BundleError(
        f"bundle: {message}", fix="take the bundle from its source again, or export it again"
    )
