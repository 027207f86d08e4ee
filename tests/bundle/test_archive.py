"""The archive: one form, readable by other tar programs. What is refused: attacks_archive.py."""

from __future__ import annotations

import io
import json
import random
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from tests.support.archives import read_archive
from toolchain.bundle.archive import write_archive
from toolchain.core.digest import sha256

BLOBS = st.lists(st.binary(max_size=1500), min_size=1, max_size=8).map(
    lambda blobs: {sha256(blob): blob for blob in blobs}
)


@given(BLOBS)
def test_what_is_written_is_read(blobs: dict[str, bytes]) -> None:
    """Law: read(write(blobs)) == blobs, and writing what was read gives the same bytes."""
    manifest = next(iter(blobs))
    data = write_archive(blobs, manifest)
    archive = read_archive(data)
    assert archive.manifest_digest == manifest
    assert archive.blobs == blobs
    again = {digest: bytes(blob) for digest, blob in archive.blobs.items()}
    assert write_archive(again, manifest) == data


@given(BLOBS, st.randoms(use_true_random=False))
def test_order_does_not_matter(blobs: dict[str, bytes], rng: random.Random) -> None:
    """Law: the archive is a function of the set of blobs."""
    items = list(blobs.items())
    rng.shuffle(items)
    manifest = items[0][0]
    assert write_archive(dict(items), manifest) == write_archive(blobs, manifest)


@given(BLOBS)
def test_other_tar_programs_read_it(blobs: dict[str, bytes]) -> None:
    """The tar module of the standard library finds the same members, all of them plain files."""
    data = write_archive(blobs, next(iter(blobs)))
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        infos = tar.getmembers()
        contents = {info.name: tar.extractfile(info).read() for info in infos}  # type: ignore[union-attr]
    assert all(info.isreg() and info.mode == 0o644 and info.mtime == 0 for info in infos)
    assert [info.name for info in infos][:2] == ["oci-layout", "index.json"]
    assert json.loads(contents["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    for digest, blob in blobs.items():
        assert contents["blobs/sha256/" + digest.removeprefix("sha256:")] == blob


@given(BLOBS)
def test_the_standard_library_writes_the_same_bytes(blobs: dict[str, bytes]) -> None:
    """The format holds nothing of ours: plain ustar members in order give the same file."""
    data = write_archive(blobs, next(iter(blobs)))
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        parts = [(i.name, tar.extractfile(i).read()) for i in tar.getmembers()]  # type: ignore[union-attr]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in parts:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset
    assert stream.getvalue()[:end] + bytes(1024) == data
