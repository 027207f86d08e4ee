"""The manifest of a bundle, schema ``da3.bundle/2``: every field, its type, range and meaning.

Rules of this file: values and checks only; it opens and hashes nothing. The dataclasses are the
schema. docs/bundle-format.md shows the same tables, and a test compares the two. A manifest is data
about a domain, bound to its files by digest: it holds no code, no path and no address. A method, a
parity run or a training may note more than the typed fields, in flat tables of notes. An unknown
note can be shown, but it never changes what is run.

Schema ``da3.bundle/1`` has no ``selftest.pictures``, at most 1,024 slots and 64 KiB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from toolchain.bundle.limits import CLASS_NAME, MAX_BLOCKS, MAX_CLASSES, MAX_SLOTS, MAX_TAPS
from toolchain.bundle.linkage import LINKED_ROLES
from toolchain.core.canonical import canonical_json
from toolchain.core.errors import Fault
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
from toolchain.core.units import BackboneId
from toolchain.core.words import (
    AGENT,
    BOOLEAN,
    DIGEST,
    DOMAIN,
    DTYPE,
    FILE_NAME,
    MEDIA_TYPE,
    NATURAL,
    NOTES,
    PRECISIONS,
    SHAPE,
    TARGET,
    TENSOR_NAME,
    TIME,
    VERSION,
    WORD,
    Document,
    Notes,
    repeated,
    to_json,
)
from toolchain.pictures.preprocess import Preprocessing

SCHEMA = "da3.bundle/2"
OLDER_SCHEMAS = ("da3.bundle/1",)
EPOCH = "1970-01-01T00:00:00Z"
LIMIT_FILES = 256
MANIFEST_NAME = "manifest.json"
ROLES = ("recipe", "domain", "slots", *LINKED_ROLES, "golden", "training", "patch")

_SHARE = number(0, 1)
_POSITIVE = number(0, 1e12, above=True)
_ROLE = choice(*ROLES)


@dataclass(frozen=True, slots=True)
class FileEntry(Section):
    """One file of the bundle; ``digest`` and ``size`` (bytes) are those of its blob."""

    role: str = key(_ROLE)
    name: str = key(FILE_NAME)
    digest: str = key(DIGEST)
    size: int = key(whole(0, 2**29))
    media_type: str = key(MEDIA_TYPE)


@dataclass(frozen=True, slots=True)
class Tap(Section):
    """A tensor of the backbone that a domain reads; ``shape`` is per sample, without the batch."""

    name: str = key(TENSOR_NAME)
    shape: tuple[int, ...] = key(SHAPE)
    dtype: str = key(DTYPE)


@dataclass(frozen=True, slots=True)
class BackboneRef(BackboneId):
    """The one backbone that this domain fits, by digest; there are no version ranges."""

    taps: tuple[Tap, ...] = key(ListOf(SectionOf(Tap), 0, MAX_TAPS))


@dataclass(frozen=True, slots=True)
class Slot(Section):
    """One tensor of the domain: adaptor, gate or head. ``digest`` is that of its elements."""

    name: str = key(TENSOR_NAME)
    shape: tuple[int, ...] = key(SHAPE)
    dtype: str = key(DTYPE)
    digest: str = key(DIGEST)


@dataclass(frozen=True, slots=True)
class Adaptation(Section):
    """How the domain was adapted, and its tensors, sorted by name."""

    method: str = key(WORD)
    options: Notes = key(NOTES)
    slots: tuple[Slot, ...] = key(ListOf(SectionOf(Slot), 0, MAX_SLOTS))


@dataclass(frozen=True, slots=True)
class GateBlock(Section):
    """One block of the backbone: its cost (FLOPs per sample) and how often its gate is open."""

    name: str = key(TENSOR_NAME)
    gateable: bool = key(BOOLEAN)
    flops: int = key(NATURAL)
    rate: float | None = key(Nullable(_SHARE))


@dataclass(frozen=True, slots=True)
class Gates(Section):
    """What the gates save: executed FLOPs as a share of all FLOPs of the backbone."""

    blocks: tuple[GateBlock, ...] = key(ListOf(SectionOf(GateBlock), 0, MAX_BLOCKS))
    executed_share: float = key(_SHARE)


@dataclass(frozen=True, slots=True)
class Requires(Section):
    """What the domain needs of a device; null where it is not known."""

    memory_bytes: int | None = key(Nullable(NATURAL))
    latency_ms: float | None = key(Nullable(_POSITIVE))
    power_mode: str | None = key(Nullable(printable(200)))


@dataclass(frozen=True, slots=True)
class GateStates(Section):
    """In how many golden samples a gate is open and closed; forced: through the gate's bias."""

    open: int = key(NATURAL)
    closed: int = key(NATURAL)
    forced: bool = key(BOOLEAN)


@dataclass(frozen=True, slots=True)
class Selftest(Section):
    """How a device checks itself: run the golden inputs, compare with the golden outputs.

    ``pictures``: ``test`` for pictures of the domain's test data, ``drawn`` for those that the
    export drew; None in schema ``da3.bundle/1``, which has no such key.
    """

    inputs: str = key(_ROLE)
    outputs: str = key(_ROLE)
    samples: int = key(whole(1, 4096))
    tolerance_relative: float = key(number(0, 0.05))
    gate_states: Mapping[str, GateStates] = key(
        TableOf(TENSOR_NAME, SectionOf(GateStates), 0, MAX_BLOCKS)
    )
    time_limit_s: float = key(number(0.001, 86400))
    pictures: str | None = key(choice("test", "drawn"), default=None)


@dataclass(frozen=True, slots=True)
class PrecisionCost(Section):
    """What a precision costs this domain on a target, measured when it was exported.

    ``model``: digest of the kit's whole model; ``samples``: pictures of the validation part, or
    without one training pictures that no range was calibrated with. ``accuracy``: top-1;
    ``agreement`` and ``gate_agreement``: shares of samples with fp32's best class, and with all
    gates in fp32's state; ``max_relative``: largest error of a logit over the range of all.
    """

    target: str = key(TARGET)
    precision: str = key(choice(*PRECISIONS))
    model: str = key(DIGEST)
    samples: int = key(NATURAL)
    accuracy: float = key(_SHARE)
    agreement: float = key(_SHARE)
    gate_agreement: float = key(_SHARE)
    max_relative: float = key(number(0, 1e12))


@dataclass(frozen=True, slots=True)
class Patch(Section):
    """What the domain has in place of tensors of the backbone: ``tensors`` of ``of``.

    ``of`` counts the float32 tensors of the backbone's weights file; ``masks`` of the ``tensors``
    only put elements to zero, ``scaled`` multiply each output channel by one factor. ``digest``: of
    the weights file once it is patched.
    """

    tensors: int = key(whole(1, 2**20))
    masks: int = key(whole(0, 2**20))
    scaled: int = key(whole(0, 2**20))
    of: int = key(whole(1, 2**20))
    digest: str = key(DIGEST)

    @property
    def kind(self) -> str:
        """``masked`` if it only puts elements to zero, ``whole`` if it replaces every tensor."""
        if self.masks == self.tensors:
            return "masked"
        return "whole" if self.tensors - self.masks - self.scaled == self.of else "tensors"

    def contradictions(self) -> Iterator[Fault]:
        """Yield the faults between fields that are right one by one."""
        if self.tensors > self.of:
            yield Fault("tensors", f"expected at most {self.of} as `of` says, got {self.tensors}")
        if self.masks > self.tensors:
            yield Fault("masks", f"expected at most {self.tensors}, got {self.masks}")
        elif self.scaled > (rest := self.tensors - self.masks):
            yield Fault("scaled", f"expected at most {rest} beside the masks, got {self.scaled}")


@dataclass(frozen=True, slots=True)
class Manifest(Document):
    """Everything that a bundle says about itself. Build one, then :func:`toolchain.bundle.pack`.

    ``patch`` is None for a domain on the backbone as it is, and then has no key in the document.
    """

    FILE = MANIFEST_NAME

    schema: str = key(choice(SCHEMA, *OLDER_SCHEMAS))
    min_agent: str = key(AGENT)
    created: str = key(TIME)
    domain: str = key(DOMAIN)
    version: str = key(VERSION)
    release_counter: int = key(NATURAL)
    files: tuple[FileEntry, ...] = key(ListOf(SectionOf(FileEntry), 1, LIMIT_FILES))
    backbone: BackboneRef = key(SectionOf(BackboneRef))
    adaptor: Adaptation = key(SectionOf(Adaptation))
    preprocess: Preprocessing = key(SectionOf(Preprocessing))
    classes: tuple[str, ...] = key(ListOf(CLASS_NAME, 1, MAX_CLASSES))
    gates: Gates = key(SectionOf(Gates))
    plans: tuple[PrecisionCost, ...] = key(ListOf(SectionOf(PrecisionCost), 0, 64))
    requires: Requires = key(SectionOf(Requires))
    selftest: Selftest = key(SectionOf(Selftest))
    parity: Notes = key(NOTES)
    metrics: Notes = key(NOTES)
    fallback: str | None = key(Nullable(DOMAIN))
    provenance: Notes = key(NOTES)
    licence: str = key(printable(200))
    patch: Patch | None = key(SectionOf(Patch), default=None)

    def to_json(self) -> bytes:
        """Return the canonical JSON (RFC 8785), whose sha256 is the manifest's digest."""
        document = to_json(self)
        if self.patch is None:
            del document["patch"]
        if self.selftest.pictures is None:
            del document["selftest"]["pictures"]
        return canonical_json(document)

    @property
    def pictures(self) -> str:
        """What the golden pictures are: ``drawn``, ``test`` (of the test data), or ``none``."""
        if not any(entry.role == "golden" for entry in self.files):
            return "none"
        # A bundle of schema 1 does not say. No picture was drawn when that was written.
        return self.selftest.pictures or "test"

    def contradictions(self) -> Iterator[Fault]:
        """Yield the faults between fields that are right one by one."""
        yield from _times(self.created)
        yield from _files(self)
        yield from repeated("backbone.taps", (tap.name for tap in self.backbone.taps))
        yield from repeated("classes", self.classes)
        yield from repeated("gates.blocks", (block.name for block in self.gates.blocks))
        yield from _sorted("adaptor.slots", [slot.name for slot in self.adaptor.slots])
        yield from _selftest(self)
        yield from repeated("plans", (f"{plan.target} {plan.precision}" for plan in self.plans))


# Fields that a release has just as its manifest has them.
CARRIED = ("version", "classes", "preprocess")


@dataclass(frozen=True, slots=True)
class ReleaseInfo(Section):
    """What requests need to know of a release; an installed domain keeps the same fields.

    Those in :data:`CARRIED` are copied from the manifest by their name.

    ``release``: digest of the bundle's manifest. ``gates``: gated blocks in the order of the
    graph's output ``gates``.
    ``options``: of its adaptors, those that the shapes of slots may not show, such as the pool
    ratio; empty without adaptors. ``tolerance``: the largest error that a self-test lets pass,
    relative to the range of the logits; ``time_limit_s``: what the self-test may take.
    """

    name: str = key(DOMAIN)
    version: str = key(printable(64))
    release: str = key(DIGEST)
    classes: tuple[str, ...] = key(ListOf(CLASS_NAME, 1, MAX_CLASSES))
    preprocess: Preprocessing = key(SectionOf(Preprocessing))
    gates: tuple[str, ...] = key(ListOf(TENSOR_NAME, 0, MAX_BLOCKS))
    options: Notes = key(NOTES)
    tolerance: float = key(number(0, 1))
    time_limit_s: float = key(number(0.001, 86400))

    def shared(self) -> dict[str, Any]:
        """Return these fields by name, and none of those that a subclass adds."""
        return {item.name: getattr(self, item.name) for item in fields(ReleaseInfo)}


def _sorted(path: str, names: list[str]) -> Iterator[Fault]:
    yield from repeated(path, names)
    if names != sorted(names):
        yield Fault(path, "expected names in sorted order")


def _times(created: str) -> Iterator[Fault]:
    try:
        # The pattern alone would take the 31st of February.
        datetime.strptime(created, "%Y-%m-%dT%H:%M:%SZ")
    except ValueError as err:
        yield Fault("created", f"expected a time that exists, got {created!r}: {err}")


def _files(manifest: Manifest) -> Iterator[Fault]:
    names = [entry.name for entry in manifest.files]
    yield from _sorted("files", names)
    if MANIFEST_NAME in names:
        yield Fault("files", f"expected a name other than {MANIFEST_NAME!r}, which is taken")
    roles = Counter(entry.role for entry in manifest.files)
    for role in ("domain", "slots"):
        if roles[role] != 1:
            yield Fault("files", f"expected one file of role {role!r}, got {roles[role]}")
    want = int(manifest.patch is not None)
    if roles["patch"] != want:
        got = roles["patch"]
        yield Fault("files", f"expected {want} of role 'patch' as `patch` says, got {got}")
    for role in ("recipe", "golden", "training"):
        if roles[role] > 1:
            yield Fault("files", f"expected at most one file of role {role!r}, got {roles[role]}")


def _selftest(manifest: Manifest) -> Iterator[Fault]:
    roles = {entry.role for entry in manifest.files}
    selftest = manifest.selftest
    for name, role in (("inputs", selftest.inputs), ("outputs", selftest.outputs)):
        if role not in roles:
            yield Fault(f"selftest.{name}", f"expected the role of a file, got {role!r}")
    if (selftest.pictures is None) != (manifest.schema in OLDER_SCHEMAS):
        what = "missing key" if selftest.pictures is None else "unknown key"
        yield Fault("selftest.pictures", f"{what} in schema {manifest.schema}")
    gated = {block.name for block in manifest.gates.blocks if block.gateable}
    for name in selftest.gate_states:
        if name not in gated:
            yield Fault(f"selftest.gate_states.{name}", "expected a gateable block of gates.blocks")
