"""Installed domains: a bundle that was verified and tested once, laid out to be loaded fast.

Rules of this file: the folder holds the bundle as it is, and ``installed.json``. The record says
what running needs, whose bundle it was, and what identified the file (size, times, inode) right
after it was verified and written. Loading compares that again instead of hashing. If that differs,
the bytes decide: a remount, a hard link, chmod, chown and a backup change no byte. The bundle is
verified and tested again then, and the record is written anew. A file with other bytes is refused.
The comparison does not find a disk that changes bits by itself, nor an attacker who may write there
and sets the clock back. To guard against these, load the bundle, which is hashed each time. The
self-test counts for the onnxruntime, provider and linked graph that it ran on, or for the one
TensorRT engine, and for no other.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from toolchain import bundle
from toolchain.bundle import BackboneRef, Bundle, open_bundle
from toolchain.bundle.archive import LIMIT_BYTES
from toolchain.bundle.golden import golden_of
from toolchain.bundle.limits import MAX_SLOTS
from toolchain.bundle.manifest import ReleaseInfo
from toolchain.bundle.release import Graph, PatchFile, Release, patch_of, read_release
from toolchain.bundle.slots import Slots
from toolchain.core import canonical
from toolchain.core.digest import headed, headed_body
from toolchain.core.durable import place
from toolchain.core.errors import BundleError
from toolchain.core.fields import (
    ListOf,
    Nullable,
    Scalar,
    Section,
    SectionOf,
    TableOf,
    choice,
    key,
    printable,
    whole,
)
from toolchain.core.files import (
    atomic_directory,
    open_limited,
    read_limited,
    resolved,
    write_atomic,
)
from toolchain.core.safetensors import read_places
from toolchain.core.units import BackboneId
from toolchain.core.words import (
    DIGEST,
    TENSOR_NAME,
    read_record,
    to_json,
)
from toolchain.device.store.layout import BUNDLE_NAME, RECORD_NAME

SCHEMA, OLD_SCHEMA = "da3.installed/2", "da3.installed/1"
_FIRST_KEYS = (
    *("schema", "file", "tested_with", "name", "version", "release", "backbone", "classes"),
    *("preprocess", "gates", "options", "slots", "arrays", "graphs"),
)
_FIX = "install it again from its bundle"
# A slot as the record lists it; it is read thousands of times, so as a plain list.
_Row = tuple[str, str, tuple[int, ...], int]
_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("float32", "float16", "float64")}


def _is_row(row: object) -> bool:
    """Whether numpy may be given a row; numpy checks the rest itself."""
    match row:
        case [str(), str(), list(), int(offset)]:
            # numpy would read what lies before the buffer.
            return offset >= 0
    return False


_ROW = Scalar("name, dtype, shape and offset", _is_row)


@dataclass(frozen=True, slots=True)
class Extent(Section):
    """Where the slots lie in the bundle's file, in bytes."""

    offset: int = key(whole(0, LIMIT_BYTES))
    size: int = key(whole(8, LIMIT_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledRecord(ReleaseInfo):
    """What running needs of a bundle; ``file`` identifies the bundle's file as it was verified.

    ``arrays``: name, dtype, shape of each slot and the offset of its bytes in ``slots``. ``patch``:
    what the manifest says of the domain's own tensors of the backbone.
    """

    schema: str = key(choice(SCHEMA))
    file: str = key(printable(200))
    tested_with: str = key(printable(200))
    backbone: BackboneId = key(SectionOf(BackboneId))
    slots: Extent = key(SectionOf(Extent))
    arrays: tuple[_Row, ...] = key(ListOf(_ROW, 0, MAX_SLOTS))
    graphs: dict[str, str] = key(TableOf(TENSOR_NAME, DIGEST, 1, 16))
    patch: bundle.Patch | None = key(Nullable(SectionOf(bundle.Patch)), default=None)


@dataclass(frozen=True, slots=True)
class Installed:
    """What a folder of an installed domain holds.

    ``file``: the bundle that the release comes from. ``tested_with``: what the self-test ran on, as
    :attr:`toolchain.device.runtime.backbone_session.BackboneSession.tested_with`; empty if it does
    not count any more. ``renewed``: the record to write once the self-test has passed, None while
    the one that is there holds.
    """

    file: Path
    release: Release
    tested_with: str
    renewed: InstalledRecord | None = None


def write(folder: str | Path, opened: Bundle, release: Release, tested_with: str) -> None:
    """Write the verified and tested bundle into the new ``folder``, whole or not at all.

    ``tested_with``: that of the session that passed the test. Raises
    ExistsError and StorageError as :func:`toolchain.core.files.atomic_directory`.
    """
    with atomic_directory(folder) as partial:
        path = partial / BUNDLE_NAME
        # Mapped while it runs: nobody shall write into it by accident.
        place(path, opened.to_bytes(), mode=0o444)
        record = _record(opened, release, _identity(path.stat()), tested_with)
        place(partial / RECORD_NAME, _bytes_of(record))


def renew(folder: str | Path, record: InstalledRecord, tested_with: str) -> None:
    """Write a record anew whose bundle was verified and tested again. Raises StorageError."""
    data = _bytes_of(replace(record, tested_with=tested_with))
    write_atomic(Path(folder) / RECORD_NAME, data, overwrite=True)


def read(folder: str | Path) -> Installed:
    """Return what ``folder`` holds, verified again where its file is not the one of the record.

    Raises BundleError for a record that is damaged and a bundle with other bytes than were
    verified, StorageError where there is none.
    """
    # A link in a store may lead to the next release at any time: it is followed once.
    folder = resolved(folder)
    path = folder / BUNDLE_NAME
    record = _read_record(folder / RECORD_NAME)
    if (identity := _identity_of(path)) == record.file:
        # Graphs, golden data and the patch are seldom needed. Whoever reads the first of them
        # verifies the bundle anew, and the others come from the bytes that were verified.
        release = _release(path, record, cache(lambda: _bundle(path, record)))
        return Installed(path, release, record.tested_with)
    opened = _bundle(path, record)
    renewed = _record(opened, read_release(opened), identity, "")
    return Installed(path, _release(path, renewed, lambda: opened), "", renewed)


def _release(path: Path, record: InstalledRecord, opened: Callable[[], Bundle]) -> Release:
    """Return the release of ``record``; ``opened`` returns its verified bundle."""
    slots = _map_slots(path, record)
    return Release(
        **record.shared(),
        backbone=BackboneRef(**to_json(record.backbone), taps=()),
        slots=_arrays(path, record, slots),
        graphs={
            name: Graph(name, digest, _graph(opened, name))
            for name, digest in record.graphs.items()
        },
        golden=lambda: golden_of(opened()),
        fits_graph=record.tested_with.rpartition(" ")[2],
        patch=_patch(path, record, opened),
    )


def _graph(opened: Callable[[], Bundle], name: str) -> Callable[[], bytes]:
    return lambda: opened().blob(f"{name}.onnx")


def _patch(path: Path, record: InstalledRecord, opened: Callable[[], Bundle]) -> PatchFile | None:
    if record.patch is None:
        return None
    return PatchFile(record.patch, lambda: _patch_bytes(path, record, opened()))


def _patch_bytes(path: Path, record: InstalledRecord, opened: Bundle) -> bytes:
    patch = patch_of(opened)
    if patch is None or patch.about != record.patch:
        raise BundleError(f"{path}: expected the patch that the record tells of", fix=_FIX)
    return patch.read()


def _bundle(path: Path, record: InstalledRecord) -> Bundle:
    """Return the bundle, verified, if it is still the release that was read before."""
    try:
        opened = open_bundle(path)
    except BundleError as err:
        raise BundleError(err.message, fix=_FIX) from err
    if opened.manifest_digest != record.release:
        raise BundleError(
            f"{path}: expected the release {record.release}, got {opened.manifest_digest}", fix=_FIX
        )
    return opened


def _record(opened: Bundle, release: Release, file: str, tested_with: str) -> InstalledRecord:
    (slots,) = opened.names("slots")
    own = release.backbone
    return InstalledRecord(
        **release.shared(),
        schema=SCHEMA,
        file=file,
        tested_with=tested_with,
        backbone=BackboneId.of(own),
        slots=Extent(*opened.place(slots)),
        arrays=tuple(
            (place.name, release.slots[place.name].dtype.name, place.shape, place.offset)
            for place in read_places(opened.blob(slots))
        ),
        graphs={graph.name: graph.digest for graph in release.graphs.values()},
        patch=opened.manifest.patch,
    )


def _bytes_of(record: InstalledRecord) -> bytes:
    """Return the record's file: the digest of the JSON on a line of its own, and the JSON."""
    document = to_json(record)
    # Keys stand in the schema's order, whatever class of the record declares them.
    ordered = {name: document[name] for name in (*_FIRST_KEYS, *document)}
    body = json.dumps(ordered, ensure_ascii=False).encode()
    return headed(body)


def _read_record(path: Path) -> InstalledRecord:
    data = read_limited(path, limit_bytes=canonical.LIMIT_BYTES, what="installed domain")
    body = headed_body(data)
    if body is None:
        raise BundleError(
            f"{path}: the record is damaged, its digest is not the one that it begins with",
            fix=_FIX,
        )
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as err:
        raise BundleError(f"{path}: expected JSON, got {err}", fix=_FIX) from err
    if isinstance(value, dict) and value.get("schema") == OLD_SCHEMA:
        # What it says besides may be another than now: the bundle is verified and tested again.
        value = {name: item for name, item in value.items() if name != "fixed"}
        value |= {"schema": SCHEMA, "file": OLD_SCHEMA}
    return read_record(InstalledRecord, value, str(path), fix=_FIX)


def _map_slots(path: Path, record: InstalledRecord) -> memoryview:
    """Return the slots' bytes in memory mapped from the file, if it is the one that was verified.

    Nothing is copied; see docs/decisions/0007-verified-once.md for what that takes and costs.
    """
    first, size = record.slots.offset, record.slots.size
    # A map may begin at whole pages alone.
    start = first - first % mmap.ALLOCATIONGRANULARITY
    with open_limited(path, limit_bytes=LIMIT_BYTES, what="bundle") as (file, length):
        identity = _identity(os.fstat(file.fileno()))
        if identity != record.file or first + size > length:
            raise BundleError(
                f"{path}: expected the file that was verified ({record.file}), got another "
                f"({identity}), which came meanwhile",
                fix="load it again",
            )
        end = first + size - start
        mapped = mmap.mmap(file.fileno(), end, access=mmap.ACCESS_READ, offset=start)
    return memoryview(mapped)[first - start :]


def _arrays(path: Path, record: InstalledRecord, slots: memoryview) -> Slots:
    """Return the slots as views of their bytes; numpy holds each to the bytes that are there."""
    try:
        return {
            name: np.ndarray(shape, _DTYPES[dtype], slots, offset)
            for name, dtype, shape, offset in record.arrays
        }
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        raise BundleError(
            f"{path}: expected slots where the record says, got {err}", fix=_FIX
        ) from err


def _identity_of(path: Path) -> str:
    with open_limited(path, limit_bytes=LIMIT_BYTES, what="bundle") as (file, _):
        return _identity(os.fstat(file.fileno()))


def _identity(status: os.stat_result) -> str:
    """Return device, inode, size in bytes, and times of the last change of content and of state.

    Only the system writes the second time (ctime); to forge it one has to set the clock. So a file
    whose first time was put back, or one in an inode that was used again, counts as another file.
    """
    times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{times}"
