"""How many scans a JPEG has, counted before anything of it is decoded.

Rules of this file: it reads markers only (ITU-T T.81, annex B). A progressive JPEG refines its
picture scan by scan; Pillow writes 10 of them. Each one is a pass over all of the picture, however
empty it is, so a small file of thousands of scans would take minutes to decode.
"""

from __future__ import annotations

import re
from typing import BinaryIO

from toolchain.core.errors import DataError

MAX_SCANS = 100
"""As in libtiff, for the JPEGs inside of TIFFs."""
_START, _SCAN = b"\xff\xd8", b"\xff\xda"
_SCAN_CODE, _END_CODE = 0xDA, 0xD9
# Codes with a length, and the end. Decoders pass over codes below C0 and restarts, byte by byte.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
_MAX_SEGMENTS = 10_000
_CHUNK_BYTES = 1 << 20


def require_few_scans(file: BinaryIO, what: str) -> None:
    """Raise DataError for a JPEG of more than ``MAX_SCANS`` scans; ``what`` names it.

    ``file`` is left at its start. Other files pass.
    """
    file.seek(0)
    if file.read(2) == _START and _at_most(file) > MAX_SCANS:
        file.seek(0)
        if (count := _scans(file.read())) > MAX_SCANS:
            raise DataError(
                f"{what}: expected a JPEG of at most {MAX_SCANS} scans, got {count}",
                fix="save it anew as JPEG or PNG, if you trust it; else remove it",
            )
    file.seek(0)


def _at_most(file: BinaryIO) -> int:
    """Return how many pairs of bytes from here on look like the start of a scan."""
    count, last = 0, b""
    while chunk := file.read(_CHUNK_BYTES):
        count += (last + chunk).count(_SCAN)
        last = chunk[-1:]
    return count


def _scans(data: bytes) -> int:
    """Return the number of scans of the first picture in ``data``.

    What lies in other segments, such as a preview, and behind the end does not count; where there
    are more segments than any camera writes, everything does that looks like a scan.
    """
    scans = place = 0
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, place)
        if found is None or data[found.end() - 1] == _END_CODE:
            return scans
        scans += data[found.end() - 1] == _SCAN_CODE
        # A length of less than 2 is damage, which the decoder will tell.
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return data.count(_SCAN)
