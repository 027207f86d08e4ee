"""The idx format of the MNIST family: pictures and labels as plain arrays, often gzipped.

Rules of this file: Yann LeCun's description of the format is the source: two zero bytes, one for
the type of the numbers, one for how many dimensions there are, then the size of each as 32 bits,
big-endian, then the numbers, big-endian too. A file is treated as hostile: its header says how much
there must be, that is compared with the limit before anything is unpacked, and the file must hold
that and no more. A digest that the recipe names is checked before the file is used.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from toolchain.core.arrays import Array
from toolchain.core.digest import sha256
from toolchain.core.errors import DataError
from toolchain.core.files import is_file, names, open_limited, read_limited
from toolchain.recipe.listing import PART_OF
from toolchain.recipe.spec import DataSpec
from toolchain.training.data.arrays import MAX_BYTES, Arrays, arranged, require_room, require_sides
from toolchain.training.data.labelled import PARTS, inside, paired, require_digest

_GZIP = b"\x1f\x8b"
# Type byte to numpy's big-endian type; pictures of other types than the first are refused later.
_TYPES = {
    0x08: ">u1",
    0x09: ">i1",
    0x0B: ">i2",
    0x0C: ">i4",
    0x0D: ">f4",
    0x0E: ">f8",
}
_MAX_DIMENSIONS = 4
_CHUNK_BYTES = 1 << 20
# Files of other names may well be something else, and nobody misses their twins.
_NAMED = re.compile(r"(images?|labels?)[^a-z0-9]?(idx\d|ubyte)")
_FIX = "download the file again; a page or a cut file may lie in its place"
# Names of parts in file names: t10k is MNIST's own.
_PART_WORDS = {**PART_OF, "t10k": "test"}


@dataclass(frozen=True, slots=True)
class _Header:
    """What the head of a file says: the type of the numbers, the shape, the bytes before them."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def arrays(spec: DataSpec, root: Path) -> Arrays:
    """Return the pictures in the files ``spec.files`` below ``root``.

    Raises DataError and StorageError.
    """
    files = spec.files or ()
    taken = 0
    read: list[Array] = []
    for number, name in enumerate(files):
        array = read_array(inside(root, name), spec.sha256[number] if spec.sha256 else None, taken)
        taken += array.nbytes
        read.append(array)
    notes = tuple(
        f"{part}: pictures are {pictures}, labels {labels}"
        for part, (pictures, labels) in paired(files).items()
    )
    return arranged(spec, root, paired(read), notes)


def read_array(path: Path, digest: str | None = None, taken: int = 0) -> Array:
    """Return the array in an idx file, gzipped or not; ``taken``: bytes of arrays before it.

    Raises DataError for what is no such file, for one that holds less or more than its header
    says, and for another digest than ``digest``.
    """
    data = read_limited(path, limit_bytes=MAX_BYTES + 64, what="idx file")
    if digest is not None:
        require_digest(path, sha256(data), digest)
    if not data.startswith(_GZIP):
        header = _header(path, data[: 4 + 4 * _MAX_DIMENSIONS])
        require_room(str(path), taken + header.bytes)
        _require_bytes(path, header.bytes, len(data) - header.offset, "")
        return _array(header, data)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            head = file.read(4 + 4 * _MAX_DIMENSIONS)
            header = _header(path, head)
            require_room(str(path), taken + header.bytes)
            size = header.offset + header.bytes
            unpacked = bytearray(head)
            # One byte more than there should be shows that there is more.
            while len(unpacked) <= size and (
                chunk := file.read(min(_CHUNK_BYTES, size + 1 - len(unpacked)))
            ):
                unpacked += chunk
    except (OSError, EOFError, zlib.error) as err:
        raise DataError(f"{path}: expected a whole gzip file, got: {err}", fix=_FIX) from err
    more = "+" if len(unpacked) > size else ""
    _require_bytes(path, header.bytes, len(unpacked) - header.offset, more)
    return _array(header, unpacked)


def _array(header: _Header, data: bytes | bytearray) -> Array:
    array = np.frombuffer(data, header.dtype, prod(header.shape), header.offset)
    return array.reshape(header.shape)


def _require_bytes(path: Path, expected: int, got: int, more: str) -> None:
    if got != expected:
        raise DataError(
            f"{path}: expected {expected} bytes, as its header says, got {got}{more}", fix=_FIX
        )


def _header(path: Path, head: bytes) -> _Header:
    dimensions = head[3] if len(head) > 3 else 0
    offset = 4 + 4 * dimensions
    if (
        head[:2] != b"\0\0"
        or len(head) < 4
        or head[2] not in _TYPES
        or not 1 <= dimensions <= _MAX_DIMENSIONS
        or len(head) < offset
    ):
        raise DataError(
            f"{path}: expected an idx file (0, 0, type, 1 to {_MAX_DIMENSIONS} dimensions), got "
            f"{head[:4].hex(' ') or 'nothing'}",
            fix=_FIX,
        )
    shape = tuple(int.from_bytes(head[place : place + 4], "big") for place in range(4, offset, 4))
    dtype = np.dtype(_TYPES[head[2]])
    require_sides(str(path), shape, dtype.itemsize)
    return _Header(dtype, shape, offset)


def recognised(root: Path) -> tuple[str, ...]:
    """Return the idx files in ``root`` in the order of ``data.files``; nothing where none are.

    Files are told by their first bytes, and paired by their names: those of pictures and labels
    differ by these words only. Raises DataError where it cannot be said which file is what, and for
    files named as those of MNIST that are damaged or alone: nobody tests with half a part.
    """
    shapes: dict[str, int] = {}
    damaged: list[str] = []
    for name in names(root):
        if not name.startswith(".") and re.search(r"idx|ubyte", name) and is_file(root / name):
            dimensions = _dimensions(root / name)
            plain = name.removesuffix(".gz")
            # Of a file and its gzipped twin one is enough.
            if dimensions and plain not in shapes:
                shapes[name] = dimensions
            elif not dimensions and _NAMED.search(name.lower()):
                damaged.append(name)
    for name in damaged:
        # Of a file and its gzipped twin one is enough here, too.
        if name.removesuffix(".gz") not in {whole.removesuffix(".gz") for whole in shapes}:
            read_array(root / name)
    labels = {_stem(name): name for name, dimensions in shapes.items() if dimensions == 1}
    _require_pairs(root, shapes, labels)
    pairs: dict[str, tuple[str, str]] = {}
    for name, dimensions in shapes.items():
        if dimensions < 3 or _stem(name) not in labels:
            continue
        words = [_PART_WORDS[w] for w in re.split(r"[^a-z0-9]+", name.lower()) if w in _PART_WORDS]
        part = words[0] if words else "train"
        if part in pairs:
            raise DataError(
                f"{root}: expected one pair of files for the part {part}, got {pairs[part][0]} "
                f"and {name}",
                fix="put the files of one data set into a folder of their own",
            )
        pairs[part] = (name, labels[_stem(name)])
    if not pairs:
        return ()
    if "train" not in pairs:
        raise DataError(
            f"{root}: expected pictures to train, got those to {' and '.join(pairs)}",
            fix="add the files of the part train, with train in their names",
        )
    if "test" not in pairs and "validation" in pairs:
        pairs["test"] = pairs.pop("validation")
    return tuple(name for part in PARTS if part in pairs for name in pairs[part])


def _require_pairs(root: Path, shapes: Mapping[str, int], labels: Mapping[str, str]) -> None:
    """Raise DataError for pictures without labels, and labels without pictures.

    ``labels``: of ``shapes``, the files of labels by their stems.
    """
    pictures = {_stem(name): name for name, dimensions in shapes.items() if dimensions > 2}
    for here, there, missing in ((pictures, labels, "labels"), (labels, pictures, "pictures")):
        for stem, name in here.items():
            if stem not in there and _NAMED.search(name.lower()):
                raise DataError(
                    f"{root}: expected {missing} for {name}, got no such idx file",
                    fix=f"add the file of its {missing}, or move {name} out of the folder",
                )


def _dimensions(path: Path) -> int:
    """Return how many dimensions an idx file has, 0 for another file. It reads its head only."""
    with open_limited(path, limit_bytes=1 << 62, what="file") as (file, _):
        head = file.read(2)
        file.seek(0)
        try:
            opened = gzip.GzipFile(fileobj=file) if head == _GZIP else file
            return len(_header(path, opened.read(4 + 4 * _MAX_DIMENSIONS)).shape)
        except (DataError, OSError, EOFError, zlib.error):
            return 0


def _stem(name: str) -> str:
    return re.sub(r"images?|labels?|idx\d|\.gz$|[^a-z0-9]", "", name.lower())
