"""Timings of tactics: kept between builds, and used after a build that was killed.

Rules of this file: bytes and files. A build takes minutes on a small board. Nearly all of that time
TensorRT times tactics, and it hands its timings out only when a build has ended. So a build in
pieces saves the timings after each piece: a board that runs out of memory or power loses at most
one piece. A timing cache is valid only for the same TensorRT build on the same device. The name of
its file is a digest of the parts of the engine's key that say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain.core.canonical import canonical_json, read_document
from toolchain.core.digest import sha256, short
from toolchain.core.errors import BundleError, StorageError
from toolchain.core.files import read_limited, write_atomic
from toolchain.device.engine.features import TensorRT

LIMIT_BYTES = 512 << 20
_LIMIT_MARKER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Timings:
    """The files of one device and TensorRT: ``<12 hex>.timing``, and the marker of a build."""

    folder: Path
    name: str

    @property
    def path(self) -> Path:
        """Where the cache lies."""
        return self.folder / f"{self.name}.timing"

    @property
    def marker(self) -> Path:
        """The file that exists while a build runs; a killed build leaves it behind."""
        return self.folder / f"{self.name}.building"

    def load(self) -> bytes:
        """Return the kept timings, none if there is no file. Raises StorageError."""
        if not self.path.exists():
            return b""
        return read_limited(self.path, limit_bytes=LIMIT_BYTES, what="timing cache")

    def save(self, data: bytes) -> None:
        """Keep ``data`` whole or not at all. Raises StorageError."""
        write_atomic(self.path, data, overwrite=True)


def timings(folder: Path, parts: Sequence[tuple[str, str | int | None]]) -> Timings:
    """Return the file for a device; ``parts`` as :meth:`Key.device`."""
    return Timings(folder, short(sha256(canonical_json([list(part) for part in parts]))))


def open_cache(trt: TensorRT, builder: Any, data: bytes) -> tuple[Any, str]:
    """Return a timing cache that holds ``data``, and a note for the reader, "" if all is well.

    The cache is None where the module keeps no timings. For data of another build or device
    TensorRT returns an empty cache (TensorRT API, ``create_timing_cache``) and says so in its log.
    """
    if not trt.features.timing_cache:
        return None, f"{trt.name} keeps no timings: it measures nothing while it builds"
    config = builder.create_builder_config()
    with trt.journal.watch() as messages:
        cache = config.create_timing_cache(data)
    if cache is None:
        cache = config.create_timing_cache(b"")
    lines = messages.errors or messages.warnings
    return cache, f"the kept timings are not used: {lines[0]}" if data and lines else ""


def serialise(cache: Any) -> bytes:
    """Return the bytes of a timing cache, none for None."""
    return b"" if cache is None else bytes(cache.serialize())


@dataclass(frozen=True, slots=True)
class Interrupted:
    """What a killed build left: it was building ``during``, and had ``done`` those before."""

    during: str
    done: tuple[str, ...]


def interrupted(timings: Timings) -> Interrupted | None:
    """Return what a killed build left, None if there is nothing. Raises StorageError.

    A marker that cannot be read stands for a build of which nothing is known.
    """
    try:
        text = read_limited(timings.marker, limit_bytes=_LIMIT_MARKER_BYTES, what="build marker")
    except StorageError:
        if timings.marker.exists():
            raise
        return None
    with suppress(BundleError):
        value = read_document(text, "build marker")
        during, done = value.get("during"), value.get("done")
        if isinstance(during, str) and isinstance(done, list) and _words(done):
            return Interrupted(during, tuple(done))
    return Interrupted("", ())


def run(
    timings: Timings, pieces: Sequence[str], build: Callable[[str, bytes], bytes]
) -> Interrupted | None:
    """Build every piece and save the timings after each; returns what a killed build had left.

    ``build(piece, timings)`` returns the timings afterwards. It builds all pieces, also those that
    were done before; their timings are there, so they take little time. The marker goes when all
    are done, and also if ``build`` raises. Only a killed build leaves it. Raises StorageError.
    """
    killed = interrupted(timings)
    done: list[str] = []
    try:
        for piece in pieces:
            # Before the piece begins: a process that is killed writes nothing more.
            text = canonical_json({"during": piece, "done": done})
            write_atomic(timings.marker, text, overwrite=True)
            data = timings.load()
            # Empty where the module keeps no timings.
            if (after := build(piece, data)) and after != data:
                timings.save(after)
            done.append(piece)
    finally:
        # A marker that cannot be removed could not be written either, and that has raised.
        with suppress(OSError):
            timings.marker.unlink()
    return killed


def _words(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)
