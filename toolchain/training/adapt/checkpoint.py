"""A trained domain on disk: ``adaptor.safetensors`` and ``adaptor.json`` in one folder.

Rules of this file: numpy only, no torch, so that any machine can look at a checkpoint. Both files
appear together or not at all. The JSON binds the tensors by their sha256, and both files bind the
backbone by its ``weights_digest``. It checks everything before it returns it and reports all faults
at once. It builds no models (``restore``) and saves no half-done trainings (``loop.state``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from toolchain.core import digest
from toolchain.core.canonical import canonical_json, parse_json
from toolchain.core.confusion import Cell
from toolchain.core.errors import CheckpointError, Fault, first_few
from toolchain.core.fields import (
    ListOf,
    Nullable,
    Section,
    SectionOf,
    TableOf,
    choice,
    key,
    number,
    printable,
    whole,
)
from toolchain.core.files import atomic_directory, read_limited
from toolchain.core.safetensors import read_metadata
from toolchain.core.words import DIGEST, EXACT, read_record, to_json
from toolchain.pictures.preprocess import Preprocessing
from toolchain.recipe import METHODS, AdaptorOptions

FORMAT = 2
"""Format 1 says less of how the domain was trained, and can still be read."""
TENSORS_FILE = "adaptor.safetensors"
INFO_FILE = "adaptor.json"
# Far above any real domain. They keep a damaged or hostile file from filling the memory.
TENSORS_LIMIT_BYTES = 1 << 30
INFO_LIMIT_BYTES = 1 << 24
SLOTS_LIMIT = 20_000
CELLS_LIMIT = 200_000
EPOCHS_LIMIT = 10_000
LISTED = 8
"""How many tensors of one kind of fault are named before the rest is only counted."""

_METADATA_KEY = "da3"
_NAME = printable(500)
_SHARE = number(0, 1)
_FINITE = number(-1e300, 1e300)
_CHANNELS = ListOf(whole(0, 65_535), 1, 65_536)
_COUNT = whole(0, EXACT)
_VALUE = printable(1 << 22)  # the longest is a weight for each class

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class BackboneInfo(Section):
    """The backbone that a domain was trained on, and where the domain joins it.

    ``witness``: what its code computes (:mod:`toolchain.training.adapt.witness`); empty in format
    1.
    """

    name: str = key(printable(200))
    weights_digest: str = key(DIGEST)
    input_shape: tuple[int, int, int] = key(ListOf(whole(1, 65_536), 3, 3))
    blocks: tuple[str, ...] = key(ListOf(_NAME, 0, 2000))
    head: str | None = key(Nullable(_NAME))
    witness: tuple[float, ...] = key(ListOf(_FINITE, 0, 1000), default=())


@dataclass(frozen=True, slots=True)
class Metrics(Section):
    """What the domain reaches on its test split; shares and rates in 0..1.

    ``gate_rates``: how often each gate is open, over ``gate_pictures`` training pictures, since a
    static graph is made by them; of the test split in format 1, with 0 pictures.
    ``balanced_accuracy``: the mean over classes, None in format 1. ``confusion``: cells of
    :class:`toolchain.core.confusion.Confusion`; empty in format 1, and where there are more than
    ``CELLS_LIMIT``.
    """

    accuracy: float = key(_SHARE)
    head_accuracy: float | None = key(Nullable(_SHARE))
    executed_share: float = key(_SHARE)
    gate_rates: Mapping[str, float] = key(TableOf(_NAME, _SHARE, 0, 2000))
    gate_pictures: int = key(_COUNT, default=0)
    balanced_accuracy: float | None = key(Nullable(_SHARE), default=None)
    confusion: tuple[Cell, ...] = key(ListOf(ListOf(_COUNT, 3, 3), 0, CELLS_LIMIT), default=())


@dataclass(frozen=True, slots=True)
class EpochFigures(Section):
    """What one epoch of a training reached; shares in 0..1.

    ``lr``: the learning rate of its last step. ``loss``, ``accuracy`` and ``executed_share``: means
    over its augmented training pictures, while weights and gates still moved. ``validation_...``:
    after it, on the validation part; None without one.
    """

    lr: float = key(_FINITE)
    loss: float = key(_FINITE)
    accuracy: float = key(_SHARE)
    executed_share: float = key(_SHARE)
    validation_loss: float | None = key(Nullable(_FINITE), default=None)
    validation_accuracy: float | None = key(Nullable(_SHARE), default=None)
    validation_balanced_accuracy: float | None = key(Nullable(_SHARE), default=None)
    validation_executed_share: float | None = key(Nullable(_SHARE), default=None)


@dataclass(frozen=True, slots=True)
class History(Section):
    """How a domain was trained: its ``epochs``, and the one whose weights it has, from 1.

    ``validation``: the pictures of the part that chose it; 0 where the last epoch was taken.
    """

    epochs: tuple[EpochFigures, ...] = key(ListOf(SectionOf(EpochFigures), 1, EPOCHS_LIMIT))
    epoch: int = key(whole(1, EPOCHS_LIMIT))
    validation: int = key(_COUNT)

    def contradictions(self) -> Iterator[Fault]:
        """Yield an epoch that there was not."""
        if self.epoch > len(self.epochs):
            yield Fault("epoch", f"expected at most {len(self.epochs)}, got {self.epoch}")


@dataclass(frozen=True, slots=True)
class Versions(Section):
    """What trained it."""

    toolchain: str = key(printable(100))
    torch: str = key(printable(100))


@dataclass(frozen=True, slots=True)
class Info(Section):
    """Everything about a domain but its tensors; the content of ``adaptor.json``.

    ``selection``: the trained channels of a tensor, in rising order, for methods that choose them.
    ``history``: None in format 1, and for a domain that nobody trained. ``recipe``: the keys of the
    recipe that training depends on, flat, without paths, each value as JSON; empty in format 1.
    """

    format: int = key(whole(1, FORMAT))
    domain: str = key(printable(200))
    title: str = key(printable(200))
    licence: str = key(printable(200))
    method: str = key(choice(*METHODS))
    options: AdaptorOptions = key(SectionOf(AdaptorOptions))
    classes: tuple[str, ...] = key(ListOf(_NAME, 1, 100_000))
    preprocess: Preprocessing = key(SectionOf(Preprocessing))
    backbone: BackboneInfo = key(SectionOf(BackboneInfo))
    metrics: Metrics = key(SectionOf(Metrics))
    recipe_digest: str = key(DIGEST)
    seed: int = key(whole(0, 2**31 - 1))
    versions: Versions = key(SectionOf(Versions))
    tensors_sha256: str = key(DIGEST)
    selection: Mapping[str, tuple[int, ...]] = key(
        TableOf(_NAME, _CHANNELS, 0, SLOTS_LIMIT), default_factory=dict
    )
    history: History | None = key(Nullable(SectionOf(History)), default=None)
    recipe: Mapping[str, str] = key(TableOf(_NAME, _VALUE, 0, 1000), default_factory=dict)

    def contradictions(self) -> Iterator[Fault]:
        """Yield a confusion of classes that there are not."""
        count = len(self.classes)
        if any(max(true, answer) >= count for true, answer, _ in self.metrics.confusion):
            yield Fault("metrics.confusion", f"expected classes below {count}, got others")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A domain as it lies on disk: ``tensors`` are float32 arrays by slot name."""

    info: Info
    tensors: Tensors


def write(folder: Path, info: Info, tensors: Tensors, *, overwrite: bool = False) -> Checkpoint:
    """Write both files into the new directory ``folder`` and return what was written.

    ``info.tensors_sha256`` is filled in here. Raises CheckpointError for tensors that are not
    finite float32, ExistsError, StorageError; nothing is left behind then.
    """
    faults = list(value_faults(tensors))
    if faults:
        raise _unfit(folder, faults, "train again with a lower learning rate")
    bound = {_METADATA_KEY: _bond(info)}
    data = safetensors.save({name: np.ascontiguousarray(t) for name, t in tensors.items()}, bound)
    text = canonical_json(to_json(replace(info, tensors_sha256=digest.sha256(data))))
    with atomic_directory(folder, overwrite=overwrite) as partial:
        (partial / TENSORS_FILE).write_bytes(data)
        (partial / INFO_FILE).write_bytes(text)
    # Parsed by the reader's own rules: the caller gets what any later reader will get.
    return Checkpoint(parse_info(folder / INFO_FILE, text), dict(tensors))


def read(folder: Path) -> Checkpoint:
    """Return the checkpoint in ``folder``, checked as far as it goes without its backbone.

    Raises CheckpointError (JSON faults with their key paths, damaged or foreign tensors, values
    that are not finite float32), StorageError for missing or oversized files.
    """
    path = folder / INFO_FILE
    info = parse_info(path, read_limited(path, limit_bytes=INFO_LIMIT_BYTES, what="checkpoint"))
    path = folder / TENSORS_FILE
    data = read_limited(path, limit_bytes=TENSORS_LIMIT_BYTES, what="checkpoint")
    if (actual := digest.sha256(data)) != info.tensors_sha256:
        raise CheckpointError(
            f"{path}: expected {info.tensors_sha256} as {INFO_FILE} says, got {actual}",
            fix="the file is damaged or from another training: train again, or copy both files",
        )
    tensors = _parsed(path, data, _bond(info))
    if faults := list(value_faults(tensors)):
        raise _unfit(path, faults, "train again; a checkpoint holds finite float32 tensors only")
    return Checkpoint(info, tensors)


def value_faults(tensors: Tensors) -> Iterator[str]:
    """Yield what keeps tensors from being a domain's, whatever the model."""
    wrong = [f"{n} ({t.dtype.name})" for n, t in tensors.items() if t.dtype != np.float32]
    yield from listed("not float32", wrong)
    holed = [
        n for n, t in tensors.items() if t.dtype.kind == "f" and not bool(np.isfinite(t).all())
    ]
    yield from listed("not finite (NaN or Inf)", holed)


def shape_faults(expected: Mapping[str, tuple[int, ...]], tensors: Tensors) -> Iterator[str]:
    """Yield which slots are missing, extra or of another shape than ``expected``."""
    yield from listed("missing", [name for name in expected if name not in tensors])
    yield from listed("extra", [name for name in tensors if name not in expected])
    wrong = [
        f"{name} (expected {list(shape)}, got {list(tensors[name].shape)})"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    yield from listed("wrongly shaped", wrong)


def listed(kind: str, names: list[str]) -> Iterator[str]:
    """Yield one line naming the first few of ``names``, or nothing."""
    if names:
        yield f"{kind}: {first_few(names, LISTED)}"


def _unfit(where: Path, faults: list[str], fix: str) -> CheckpointError:
    lines = "\n  ".join(faults)
    return CheckpointError(f"{where}: expected a domain's tensors, got\n  {lines}", fix=fix)


def _bond(info: Info) -> str:
    # One key: safetensors writes several in no fixed order, and the same domain is the same bytes.
    bond = {"format": info.format, "backbone_weights_digest": info.backbone.weights_digest}
    return canonical_json(bond).decode()


def parse_info(path: Path, data: bytes) -> Info:
    """Return what the bytes of ``adaptor.json`` say; raises CheckpointError naming ``path``."""
    try:
        value = parse_json(data)
    except ValueError as err:
        raise CheckpointError(
            f"{path}: expected JSON, got: {err}", fix="train the domain again"
        ) from err
    return read_record(
        Info,
        value,
        f"{path}: expected a checkpoint of format 1 or {FORMAT}",
        error=CheckpointError,
        fix="train the domain again with this version",
    )


def _parsed(path: Path, data: bytes, expected: str) -> dict[str, npt.NDArray[Any]]:
    try:
        tensors = safetensors.load(data)
        bond = read_metadata(data).get(_METADATA_KEY)
    except (SafetensorError, ValueError, KeyError, TypeError) as err:
        raise CheckpointError(
            f"{path}: expected a safetensors file, got: {err}", fix="train the domain again"
        ) from err
    # An empty tensor would pass every comparison of values.
    if len(tensors) > SLOTS_LIMIT or any(math.prod(t.shape) == 0 for t in tensors.values()):
        raise CheckpointError(
            f"{path}: expected 1 to {SLOTS_LIMIT} tensors, none of them empty, got {len(tensors)}",
            fix="train the domain again",
        )
    if bond != expected:
        raise CheckpointError(
            f"{path}: expected the metadata {expected}, got {bond}",
            fix="the two files belong to different trainings: copy both from one",
        )
    return tensors
