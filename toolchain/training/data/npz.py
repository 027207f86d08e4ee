"""Numpy archives: arrays of pictures and of labels in one ``.npz`` file.

Rules of this file: no pickle, ever. An archive is treated as hostile: of each array the header is
read first, what it promises is compared with the archive's own words and with the limit, and only
then its numbers are unpacked. Packing methods are those that numpy writes: none and deflate. The
format of an array is numpy's own (NEP 1).
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import IO, cast

import numpy as np

from toolchain.core.arrays import Array
from toolchain.core.errors import DataError, first_few
from toolchain.core.files import open_limited
from toolchain.core.sealed import stream_digest
from toolchain.recipe.spec import DataSpec
from toolchain.training.data.arrays import MAX_BYTES, Arrays, arranged, require_room, require_sides
from toolchain.training.data.labelled import inside, paired, require_digest

MAX_ARRAYS = 1_000
MAX_HEADER = 4_096
_SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
_ENCRYPTED = 1
_CHUNK_BYTES = 1 << 20
_READ_BYTES = 2 << 20
"""At one time; of a directory that is larger, more entries would be made than there is room for."""
_FIX = "write it again: numpy.savez_compressed(file, x_train=..., y_train=..., x_test=..., ...)"


@dataclass(frozen=True, slots=True)
class Header:
    """What the head of an array says; ``offset``: bytes of its file before the numbers."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    @property
    def bytes(self) -> int:
        """The bytes of the numbers."""
        return prod(self.shape) * self.dtype.itemsize


def arrays(spec: DataSpec, root: Path) -> Arrays:
    """Return the pictures in the archive ``spec.files[0]`` below ``root``.

    Raises DataError and StorageError.
    """
    path = inside(root, (spec.files or ("",))[0])
    columns = [str(column) for column in spec.columns or ()]
    with _opened(path, spec.sha256[0] if spec.sha256 else None) as archive:
        headers = {name: archive.header(name) for name in columns}
        require_room(str(path), sum(header.bytes for header in headers.values()))
        read = [archive.array(name) for name in columns]
    notes = [
        f"{part}: pictures are {pictures} ({headers[pictures].dtype}), labels {labels}"
        for part, (pictures, labels) in paired(columns).items()
    ]
    if spec.white is not None:
        notes.append(f"{spec.white:g} is white in them, 0 black")
    if unused := [repr(name)[:60] for name in archive.names if name not in columns]:
        notes.append(f"left out: arrays that data.columns does not name: {first_few(unused, 5)}")
    return arranged(spec, root, paired(read), tuple(notes))


def headers(path: Path) -> dict[str, Header]:
    """Return the header of each array of an archive. Raises DataError."""
    with _opened(path, None) as archive:
        return {name: archive.header(name) for name in archive.names}


def values(spec: DataSpec, root: Path) -> list[tuple[float, float]]:
    """Return for each part the smallest and the largest value of its pictures, NaN where one is.

    Raises DataError and StorageError.
    """
    with _opened(root / (spec.files or ("",))[0], None) as archive:
        columns = [str(column) for column in (spec.columns or ())[::2]]
        require_room(str(archive.path), sum(archive.header(name).bytes for name in columns))
        ranges = []
        for name in columns:
            array = archive.array(name)
            if array.dtype.kind not in "buif" or not array.size:
                raise archive.fault(name, f"expected pictures, got {array.dtype} {array.shape}")
            ranges.append((float(array.min()), float(array.max())))
    return ranges


class _Bounded:
    """A file of which nobody reads much at once: `zipfile` reads a whole directory of any size."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, all without ``size``. Raises BadZipFile for too many."""
        data = self._file.read(_READ_BYTES + 1 if size < 0 else min(size, _READ_BYTES + 1))
        if len(data) > _READ_BYTES:
            raise zipfile.BadZipFile(f"a directory of more than {_READ_BYTES} bytes")
        return data


class _Archive:
    """An open archive, whose directory was checked."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        self._entries: dict[str, zipfile.ZipInfo] = {}
        if len(archive.infolist()) > MAX_ARRAYS:
            raise DataError(
                f"{path}: expected at most {MAX_ARRAYS} arrays, got {len(archive.infolist())}",
                fix=_FIX,
            )
        for entry in archive.infolist():
            name = entry.filename.removesuffix(_SUFFIX)
            if name in self._entries:
                raise self.fault(name, "expected each array once")
            self._entries[name] = entry

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arrays."""
        return tuple(self._entries)

    def header(self, name: str) -> Header:
        """Return what an array's head says, after comparing it with the archive's directory."""
        entry = self._entry(name)
        with self._archive.open(entry) as file:
            header = self._read_header(name, file)
        # Of Python's objects nobody knows the bytes; their array is never read.
        if not header.dtype.hasobject and header.offset + header.bytes != entry.file_size:
            raise self.fault(
                name,
                f"expected {header.bytes} bytes, as its header says, got "
                f"{entry.file_size - header.offset} by the archive's directory",
            )
        return header

    def array(self, name: str) -> Array:
        """Return an array, whose header was compared with the limits."""
        with self._archive.open(self._entry(name)) as file:
            header = self._read_header(name, file)
            dtype = header.dtype
            if dtype.hasobject or dtype.kind not in "buifU" or not dtype.itemsize:
                raise DataError(
                    f"{self.path}: {name!r:.60}: expected numbers or text, got {dtype}; "
                    "bytes and Python's objects are not read",
                    fix="write it again with labels as text: y.astype(str)",
                )
            data = bytearray()
            while len(data) < header.bytes and (
                chunk := file.read(min(_CHUNK_BYTES, header.bytes - len(data)))
            ):
                data += chunk
            # The end of the file is where its checksum is compared.
            rest = file.read(1)
        if len(data) != header.bytes or rest:
            raise self.fault(
                name, f"expected {header.bytes} bytes, got {len(data)}{'+' * len(rest)}"
            )
        flat = np.frombuffer(data, header.dtype)
        if header.fortran:
            return flat.reshape(header.shape[::-1]).T
        return flat.reshape(header.shape)

    def _entry(self, name: str) -> zipfile.ZipInfo:
        entry = self._entries.get(name)
        if entry is None:
            known = [repr(one)[:60] for one in self._entries]
            raise DataError(
                f"{self.path}: expected an array {name!r}, got {first_few(known, 20) or 'none'}",
                fix="name the arrays in data.columns: pictures, labels, pictures to test, ...",
            )
        if entry.flag_bits & _ENCRYPTED:
            raise self.fault(name, "expected plain bytes, got encrypted ones")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self.fault(name, f"expected deflate, got packing method {entry.compress_type}")
        return entry

    def _read_header(self, name: str, file: IO[bytes]) -> Header:
        start = file.read(8)
        version = start[6] if len(start) == 8 else 0
        if start[:6] != _MAGIC or version not in (1, 2):
            raise self.fault(name, "expected an array of numpy's format 1 or 2, got other bytes")
        width = 2 if version == 1 else 4
        size_bytes = file.read(width)
        size = int.from_bytes(size_bytes, "little")
        if size > MAX_HEADER:
            raise self.fault(name, f"expected a header of at most {MAX_HEADER} bytes, got {size}")
        text = io.BytesIO(size_bytes + file.read(size))
        read = (
            np.lib.format.read_array_header_1_0
            if version == 1
            else (np.lib.format.read_array_header_2_0)
        )
        try:
            shape, fortran, dtype = read(text, max_header_size=MAX_HEADER)
        # The header is a Python literal. Parser and tokenizer raise many kinds on other texts.
        except Exception as err:
            raise self.fault(name, f"expected a header of an array, got: {err!s:.200}") from err
        if any(type(side) is not int or side < 0 for side in shape) or len(shape) > 8:
            raise self.fault(name, f"expected a shape, got {shape!s:.60}")
        require_sides(f"{self.path}: {name!r:.60}", shape, dtype.itemsize)
        return Header(dtype, shape, fortran, 8 + width + size)

    def fault(self, name: str, message: str) -> DataError:
        """Return the error that says what is wrong with an array."""
        return DataError(f"{self.path}: {name!r:.60}: {message}", fix=_FIX)


@contextmanager
def _opened(path: Path, digest: str | None) -> Iterator[_Archive]:
    """Yield an archive; errors of the zip format in the block become DataError."""
    with open_limited(path, limit_bytes=MAX_BYTES + (1 << 24), what="archive") as (file, _):
        if digest is not None:
            require_digest(path, stream_digest(file), digest)
        try:
            with zipfile.ZipFile(cast("IO[bytes]", _Bounded(file))) as archive:
                yield _Archive(path, archive)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as err:
            raise DataError(f"{path}: expected a whole archive, got: {err}", fix=_FIX) from err
