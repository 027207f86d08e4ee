"""Hostile archives, each made from a good one by the function that is named after the attack.

They are made by code because 8 KiB of tar tells a reader nothing. ``ATTACKS`` maps the name to
the function and to the words that the error must contain: each attack is refused for its own
reason, not for a digest that happens to differ as well.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.support.archives import read_archive
from toolchain.bundle.archive import write_archive
from toolchain.core.canonical import canonical_json
from toolchain.core.digest import sha256

Make = Callable[[bytes], bytes]
Edit = Callable[[dict[str, Any]], Any]


class Attack(NamedTuple):
    make: Make
    says: str


ATTACKS: dict[str, Attack] = {}


def refused(says: str) -> Callable[[Make], Make]:
    """Register an attack together with the words of its error."""

    def register(make: Make) -> Make:
        ATTACKS[make.__name__] = Attack(make, says)
        return make

    return register


# The archive: members


def members(good: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(good)) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def built(entries: list[tuple[tarfile.TarInfo, bytes]], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return a tar by an implementation that is not ours, cut to the two closing blocks."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    return stream.getvalue()[:end] + bytes(1024)


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def extra_member(good: bytes, name: str, data: bytes = b"", **fields: Any) -> bytes:
    return built([*members(good), member(name, data, **fields)])


@refused("unexpected member '../evil'")
def path_traversal_member(good: bytes) -> bytes:
    return extra_member(good, "../evil", b"x")


@refused("unexpected member '/etc/passwd'")
def absolute_path_member(good: bytes) -> bytes:
    return extra_member(good, "/etc/passwd", b"x")


@refused("unexpected member 'blobs/sha256/../../../evil'")
def traversal_inside_the_blob_folder(good: bytes) -> bytes:
    return extra_member(good, "blobs/sha256/../../../evil", b"x")


@refused("unexpected member 'README'")
def unexpected_member(good: bytes) -> bytes:
    return extra_member(good, "README", b"x")


@refused("got a symbolic link")
def symlink_member(good: bytes) -> bytes:
    name = "blobs/sha256/" + "f" * 64
    return extra_member(good, name, type=tarfile.SYMTYPE, linkname="/etc/shadow")


@refused("got a hard link")
def hardlink_member(good: bytes) -> bytes:
    name = "blobs/sha256/" + "f" * 64
    return extra_member(good, name, type=tarfile.LNKTYPE, linkname="index.json")


@refused("got a directory")
def directory_member(good: bytes) -> bytes:
    return extra_member(good, "blobs/sha256/", type=tarfile.DIRTYPE)


@refused("got a character device")
def device_member(good: bytes) -> bytes:
    return extra_member(good, "blobs/sha256/zero", type=tarfile.CHRTYPE)


@refused("got a pipe")
def pipe_member(good: bytes) -> bytes:
    return extra_member(good, "blobs/sha256/pipe", type=tarfile.FIFOTYPE)


@refused("got a GNU long name")
def gnu_longname(good: bytes) -> bytes:
    return extra_member(good, "././@LongLink", b"x" * 120, type=tarfile.GNUTYPE_LONGNAME)


@refused("got a pax header")
def pax_header(good: bytes) -> bytes:
    entries = members(good)
    entries[2][0].pax_headers = {"comment": "hello"}
    return built(entries, tarfile.PAX_FORMAT)


@refused("got a global pax header")
def global_pax_header(good: bytes) -> bytes:
    return extra_member(good, "pax", b"12 path=xyz\n", type=tarfile.XGLTYPE)


@refused("got a GNU sparse file")
def sparse(good: bytes) -> bytes:
    return extra_member(good, "blobs/sha256/" + "f" * 64, b"x", type=tarfile.GNUTYPE_SPARSE)


@refused("each member once and in sorted order")
def duplicate_member(good: bytes) -> bytes:
    entries = members(good)
    return built([*entries, entries[-1]])


@refused("each member once and in sorted order")
def members_out_of_order(good: bytes) -> bytes:
    entries = members(good)
    return built([*entries[:2], *reversed(entries[2:])])


@refused("at most 259 members")
def too_many_blobs(good: bytes) -> bytes:
    archive = read_archive(good)
    blobs = {digest: bytes(blob) for digest, blob in archive.blobs.items()}
    blobs |= {sha256(b"%d" % at): b"%d" % at for at in range(300)}
    return write_archive(blobs, archive.manifest_digest)


@refused("a blob that no file names")
def blob_that_nobody_names(good: bytes) -> bytes:
    archive = read_archive(good)
    blobs = {digest: bytes(blob) for digest, blob in archive.blobs.items()}
    return write_archive(blobs | {sha256(b"stowaway"): b"stowaway"}, archive.manifest_digest)


@refused("expected the blob sha256:")
def blob_missing(good: bytes) -> bytes:
    archive = read_archive(good)
    blobs = {digest: bytes(blob) for digest, blob in archive.blobs.items()}
    del blobs[next(digest for digest in blobs if digest != archive.manifest_digest)]
    return write_archive(blobs, archive.manifest_digest)


@refused("expected bytes with that digest")
def blob_swapped(good: bytes) -> bytes:
    entries = members(good)
    (a, a_data), (b, b_data) = entries[-2:]
    a.size, b.size = b.size, a.size
    return built([*entries[:-2], (a, b_data), (b, a_data)])


@refused("expected the member oci-layout")
def layout_missing(good: bytes) -> bytes:
    return built(members(good)[1:])


@refused("expected the member oci-layout")
def layout_of_another_version(good: bytes) -> bytes:
    return built([member("oci-layout", b'{"imageLayoutVersion":"2.0.0"}'), *members(good)[1:]])


@refused("expected the member index.json")
def index_missing(good: bytes) -> bytes:
    entries = members(good)
    return built([entries[0], *entries[2:]])


def with_index(good: bytes, edit: Edit) -> bytes:
    entries = members(good)
    index = json.loads(entries[1][1])
    edit(index)
    return built([entries[0], member("index.json", canonical_json(index)), *entries[2:]])


@refused("index.json: expected one descriptor")
def index_with_two_manifests(good: bytes) -> bytes:
    return with_index(good, lambda index: index["manifests"].append(index["manifests"][0]))


@refused("index.json: expected one descriptor")
def index_with_an_address(good: bytes) -> bytes:
    return with_index(good, lambda index: index["manifests"][0].update(urls=["http://x/"]))


@refused("of 1 bytes, got")
def index_with_a_lying_size(good: bytes) -> bytes:
    return with_index(good, lambda index: index["manifests"][0].update(size=1))


@refused("bytes, got none")
def index_of_a_manifest_that_is_not_there(good: bytes) -> bytes:
    return with_index(good, lambda i: i["manifests"][0].update(digest="sha256:" + "0" * 64))


@refused("index.json: expected canonical JSON")
def index_with_white_space(good: bytes) -> bytes:
    entries = members(good)
    spaced = json.dumps(json.loads(entries[1][1])).encode()
    return built([entries[0], member("index.json", spaced), *entries[2:]])


@refused("manifest.json: expected")
def index_that_points_at_another_blob(good: bytes) -> bytes:
    archive = read_archive(good)
    blobs = {digest: bytes(blob) for digest, blob in archive.blobs.items()}
    return write_archive(blobs, next(d for d in blobs if d != archive.manifest_digest))


# The archive: bytes


def with_header(good: bytes, at: int, value: bytes) -> bytes:
    """Return ``good`` with bytes of its second header changed and the checksum made right."""
    start = 1024
    block = bytearray(good[start : start + 512])
    block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return good[:start] + bytes(block) + good[start + 512 :]


@refused("truncated?")
def size_lies(good: bytes) -> bytes:
    return with_header(good, 124, b"%011o" % 10**6)


@refused("plain ustar header")
def size_in_base_256(good: bytes) -> bytes:
    return with_header(good, 124, b"\x80" + bytes(10) + b"\x80")


@refused("plain ustar header")
def size_is_negative(good: bytes) -> bytes:
    return with_header(good, 124, b"-0000000001")


@refused("truncated?")
def size_of_eight_gigabytes(good: bytes) -> bytes:
    return with_header(good, 124, b"7" * 11)


@refused("plain ustar header")
def executable_mode(good: bytes) -> bytes:
    return with_header(good, 100, b"0004755")


@refused("plain ustar header")
def owner_name(good: bytes) -> bytes:
    return with_header(good, 265, b"root")


@refused("plain ustar header")
def time_not_zero(good: bytes) -> bytes:
    return with_header(good, 136, b"00000000001")


@refused("plain ustar header")
def prefix_field(good: bytes) -> bytes:
    return with_header(good, 345, b"..")


@refused("plain ustar header")
def bytes_behind_the_name(good: bytes) -> bytes:
    return with_header(good, 90, b"hidden")


@refused("plain ustar header")
def link_name_of_a_regular_file(good: bytes) -> bytes:
    return with_header(good, 157, b"/etc/shadow")


@refused("plain ustar header")
def old_kind_of_regular_file(good: bytes) -> bytes:
    return with_header(good, 156, b"\0")


@refused("plain ustar header")
def unknown_kind(good: bytes) -> bytes:
    return with_header(good, 156, b"Z")


@refused("plain ustar header")
def gnu_magic(good: bytes) -> bytes:
    return with_header(good, 257, b"ustar  \0")


@refused("plain ustar header")
def wrong_checksum(good: bytes) -> bytes:
    return good[:148] + b"000000\0 " + good[156:]


@refused("expected zero padding")
def padding_not_zero(good: bytes) -> bytes:
    return good[:1000] + b"x" + good[1001:]


@refused("the end of the file")
def trailing_garbage(good: bytes) -> bytes:
    return good + b"x"


@refused("the end of the file")
def trailing_zero_blocks(good: bytes) -> bytes:
    return good + bytes(8192)


@refused("the end of the file")
def second_archive_behind_the_first(good: bytes) -> bytes:
    return good + good


@refused("truncated?")
def end_missing(good: bytes) -> bytes:
    return good[:-1024]


@refused("the end of the file")
def half_of_the_end(good: bytes) -> bytes:
    return good[:-512]


@refused("truncated?")
def empty_file(good: bytes) -> bytes:
    return b""


@refused("expected the member oci-layout")
def only_the_end(good: bytes) -> bytes:
    return bytes(1024)


@refused("plain ustar header")
def compressed(good: bytes) -> bytes:
    return gzip.compress(good, compresslevel=0)
