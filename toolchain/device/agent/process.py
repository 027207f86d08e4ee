"""A command of the toolchain in a process of its own, with a limit on its memory.

Rules of this file: the standard library only, as :mod:`toolchain.device.agent.loop` rests on it.
The process starts in the root folder: Python looks for modules where it starts, and nobody but root
writes there.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress


def command(*words: str) -> list[str]:
    """Return how this Python runs ``da3`` with ``words``."""
    return [sys.executable, "-m", "toolchain", *words]


def started(words: Sequence[str], memory_bytes: int | None) -> subprocess.Popen[bytes]:
    """Start a command whose standard output is read here.

    ``memory_bytes``: of private memory; None for as much as this process could ask for. Only the
    soft limit is set: the trial of a graph sets its own, which may be higher. Raises OSError.
    """
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/")
    with suppress(OSError, ValueError):
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_DATA)
        limit = hard if memory_bytes is None else memory_bytes
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (limit, hard))
    return process
