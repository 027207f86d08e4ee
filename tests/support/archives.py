"""Archives from bytes, with every check at once."""

from __future__ import annotations

import io

from toolchain.bundle.archive import Archive, scan_archive


def read_archive(data: bytes) -> Archive:
    """Return the archive in ``data`` with every blob checked against its digest.

    Raises BundleError as ``scan_archive``, and for a blob that is not what its name says.
    """
    archive = scan_archive(io.BytesIO(data), len(data))
    with archive.hashing():
        pass
    archive.manifest()
    return archive
