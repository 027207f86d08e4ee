"""JPEGs of very many scans are refused before they are decoded; all others are decoded."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toolchain.core.errors import DataError
from toolchain.pictures import scans
from toolchain.pictures.decode import measured, upright_rgb
from toolchain.pictures.scans import MAX_SCANS

END = b"\xff\xd9"


def jpeg(side: int = 64, *, progressive: bool = True) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG", progressive=progressive, quality=95)
    return stream.getvalue()


def with_empty_scans(data: bytes, scans: int) -> bytes:
    """Add scans of one coefficient of the first channel, without a byte of data each."""
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x3f\x3f\x00"
    return data.removesuffix(END) + scan * scans + END


def with_segment(data: bytes, content: bytes) -> bytes:
    """Add an application's segment behind the start."""
    return data[:2] + b"\xff\xe5" + (len(content) + 2).to_bytes(2, "big") + content + data[2:]


OWN = jpeg().count(b"\xff\xda")


def test_a_jpeg_of_thousands_of_scans_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jpg"
    path.write_bytes(with_empty_scans(jpeg(1024), 6_000))
    begin = time.process_time()
    for read in (upright_rgb, measured):
        with pytest.raises(
            DataError, match=r"bomb\.jpg: expected a JPEG of at most 100 scans, got"
        ):
            read(path)
    with pytest.raises(DataError, match=f"the bytes: .*, got {6_000 + OWN}"):
        upright_rgb(path.read_bytes())
    assert time.process_time() - begin < 2


def test_as_many_scans_as_allowed_are_decoded() -> None:
    whole = with_empty_scans(jpeg(), MAX_SCANS - OWN)
    assert upright_rgb(whole).size == (64, 64)
    with pytest.raises(DataError, match="at most 100 scans, got 101"):
        upright_rgb(with_empty_scans(jpeg(), MAX_SCANS - OWN + 1))


@pytest.mark.parametrize("progressive", [False, True])
def test_other_bytes_that_look_like_scans_do_not_count(progressive: bool) -> None:
    plain = jpeg(progressive=progressive)
    shown = upright_rgb(plain).tobytes()
    looks = b"\xff\xda" * 200
    for data in (with_segment(plain, looks), plain + looks, with_segment(plain, looks) + looks):
        assert upright_rgb(data).tobytes() == shown


@pytest.mark.parametrize("before", [b"\xff\x02\xff\xff", b"\xff\xd0\xff\xff", b"\xff" * 9])
def test_scans_behind_a_code_without_a_length_count(before: bytes) -> None:
    end = jpeg().removesuffix(END) + before + END
    with pytest.raises(DataError, match=f"at most 100 scans, got {200 + OWN}"):
        upright_rgb(with_empty_scans(end, 200))


def test_scans_behind_very_many_segments_count() -> None:
    bomb = with_empty_scans(jpeg(), 200)
    hidden = bomb[:2] + b"\xff\xe5\x00\x02" * scans._MAX_SEGMENTS + bomb[2:]
    with pytest.raises(DataError, match="at most 100 scans"):
        upright_rgb(hidden)


def test_a_scan_between_two_chunks_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolchain.pictures.scans._CHUNK_BYTES", 1)
    with pytest.raises(DataError, match=f"got {200 + OWN}"):
        upright_rgb(with_empty_scans(jpeg(16), 200))
