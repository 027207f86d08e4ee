"""Reading small system files that may be missing, odd or endless.

Rules of this file: bounded and never an error; what is no regular file, or may not be read, reads
as nothing. Unlike :mod:`toolchain.core.files` it takes files whose size reads as zero, as those of
/proc do, and an end that is cut off.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

LIMIT_BYTES = 64 * 1024


def text(path: Path, limit_bytes: int = LIMIT_BYTES) -> str:
    """Return the first ``limit_bytes`` of the regular file ``path`` as UTF-8, else nothing.

    What is not UTF-8 becomes U+FFFD.
    """
    try:
        # Without waiting: a pipe in its place would never be opened for want of a writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return ""
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return ""
        data = b""
        while len(data) < limit_bytes and (part := os.read(handle, limit_bytes - len(data))):
            data += part
    except OSError:
        return ""
    finally:
        os.close(handle)
    return data.decode(errors="replace")


def first_match(root: Path, folders: Iterable[str], pattern: str) -> str | None:
    """Return group 1 of the first file name in ``folders`` below ``root`` that is ``pattern``."""
    for folder in folders:
        try:
            names = sorted(entry.name for entry in os.scandir(root / folder))
        except OSError:
            continue
        for name in names:
            if found := re.fullmatch(pattern, name):
                return found[1]
    return None
