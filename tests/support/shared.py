"""What is made once for all workers of a test run: bytes in files, under a lock.

Rules of this file: whoever asks first makes the bytes, the others wait and read them. ``FOLDER`` is
the run's own and set by ``tests/conftest.py``, so that nothing outlives the code that made it.
"""

from __future__ import annotations

import copyreg
import fcntl
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

FOLDER = Path(os.devnull)


@contextmanager
def locked(name: str) -> Iterator[Path]:
    """Yield the path ``name`` in the run's folder while no other worker has it."""
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path


def once(name: str, make: Callable[[], bytes]) -> bytes:
    """Return what ``make`` returns, which only the first worker calls; ``name`` is the file."""
    with locked(name) as path:
        if not path.exists():
            path.write_bytes(make())
        return path.read_bytes()


def value_once(name: str, make: Callable[[], Any]) -> Any:
    """Return what ``make`` returns, which only the first worker calls; a record or the like."""
    # Records hold read-only views of dictionaries, which pickle knows nothing about.
    copyreg.pickle(MappingProxyType, lambda view: (_view, (dict(view),)))
    return pickle.loads(once(name, lambda: pickle.dumps(make())))


def _view(values: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(values)
