"""The kit: what a target needs to build its engines, as one folder.

Rules of this file: schema ``da3.kit/1``, and the only code that writes or reads such a folder. The
manifest lists every file with its digest and size, and a file's bytes are checked when it is read.
A kit holds self-contained ONNX models in the target's dialect. Only the flavour ``static`` has a
domain's tensors. This file builds nothing and knows no ONNX.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from toolchain.bundle.backbone import BackboneManifest
from toolchain.bundle.limits import MAX_BLOCKS, MAX_SLOTS
from toolchain.bundle.linkage import FLAVOURS, Linkage, kit_linkage
from toolchain.core.canonical import read_document
from toolchain.core.digest import sha256, short
from toolchain.core.errors import DataError, Fault
from toolchain.core.fields import (
    ListOf,
    Nullable,
    Section,
    SectionOf,
    choice,
    key,
    printable,
    whole,
)
from toolchain.core.files import is_file
from toolchain.core.sealed import SealedFile, SealedKind, SealedManifest, listing
from toolchain.core.words import (
    DIGEST,
    DOMAIN,
    FILE_NAME,
    NATURAL,
    NOTES,
    PRECISIONS,
    TARGET,
    TENSOR_NAME,
    Notes,
    raise_faults,
    repeated,
)

SCHEMA = "da3.kit/1"
KIT_NAME, BACKBONE_NAME, LAYERS_NAME = "kit.json", "backbone.json", "layers.json"
LIMIT_FILES = 2048
# Three segments and their pinned nodes per block add up.
# protobuf refuses a message above 2 GiB.
LIMIT_MODEL_BYTES = 2 * 1024**3 - 1
ROLES = ("whole", "side", "opened", "closed", "tail")


@dataclass(frozen=True, slots=True)
class KitFile(SealedFile):
    """One file of the kit with its digest and size in bytes."""

    size: int = key(whole(0, LIMIT_MODEL_BYTES))


@dataclass(frozen=True, slots=True)
class KitSlot(Section):
    """One tensor of a domain as the models take it; null stands for the class count."""

    name: str = key(TENSOR_NAME)
    shape: tuple[int | None, ...] = key(ListOf(Nullable(whole(0, 2**31 - 1)), 0, 8))
    dtype: str = key(choice("float32"))


@dataclass(frozen=True, slots=True)
class KitModel(Section):
    """One ONNX model: the ``whole`` network, or one segment of ``staged``.

    ``site``: the block that a segment belongs to, null for ``whole`` and ``tail``.
    ``conditionals``: how many its network must have; ``boundaries``: outer tensors that their
    branches read, through conditional input layers, each counted once per conditional.
    ``pinned``: nodes that stay fp32 where precision is a flag of the builder and not in the graph.
    """

    role: str = key(choice(*ROLES))
    site: str | None = key(Nullable(TENSOR_NAME))
    file: str = key(FILE_NAME)
    conditionals: int = key(NATURAL)
    boundaries: int = key(NATURAL)
    pinned: tuple[str, ...] = key(ListOf(printable(200), 0, 4096), default=())


@dataclass(frozen=True, slots=True)
class KitFlavour(Section):
    """One way to run: its models in running order.

    ``domain`` and ``release``: name and manifest digest of the domain that is folded in, null but
    for ``static``.
    """

    flavour: str = key(choice(*FLAVOURS))
    domain: str | None = key(Nullable(DOMAIN))
    release: str | None = key(Nullable(DIGEST))
    models: tuple[KitModel, ...] = key(ListOf(SectionOf(KitModel), 1, LIMIT_FILES))

    @property
    def linkage(self) -> Linkage:
        """What its models are."""
        return kit_linkage(self.flavour)

    def contradictions(self) -> Iterator[Fault]:
        """Yield a fault unless a domain is named for ``static``, and there alone."""
        named = self.domain is not None, self.release is not None
        segmented = self.linkage.is_segmented
        if named != (self.linkage.folds_domain,) * 2:
            yield Fault("domain", "expected a domain and its release for static, and there alone")
        roles = [model.role for model in self.models]
        if not segmented and roles != ["whole"]:
            yield Fault("models", f"expected one whole model, got {', '.join(roles[:5])}")
        if segmented and (roles[-1] != "tail" or {"whole", "tail"} & {*roles[:-1]}):
            yield Fault("models", "expected segments and, at the end, one tail")
        yield from repeated("models", (model.file for model in self.models))
        for model in self.models:
            if (model.site is None) != (model.role in ("whole", "tail")):
                yield Fault(
                    f"models.{model.file}", "expected a site for a segment of one, no other"
                )


@dataclass(frozen=True, slots=True)
class ClassProfile(Section):
    """How many classes a domain may have: the engine's optimisation profile."""

    low: int = key(whole(1, 4096))
    best: int = key(whole(1, 4096))
    high: int = key(whole(1, 4096))

    def contradictions(self) -> Iterator[Fault]:
        """Yield a fault unless low <= best <= high."""
        if not self.low <= self.best <= self.high:
            yield Fault(
                "", f"expected low <= best <= high, got {self.low}, {self.best}, {self.high}"
            )


@dataclass(frozen=True, slots=True)
class KitManifest(SealedManifest):
    """What a kit says about itself.

    ``graph``: digest of the linked graph ``swap-if`` that it was made from; ``gates``: gated blocks
    in the order of the output ``gates``; ``options``: those of the adaptors that slot shapes do not
    show; ``slots`` sorted by name.
    """

    FILE = KIT_NAME

    schema: str = key(choice(SCHEMA))
    target: str = key(TARGET)
    precision: str = key(choice(*PRECISIONS))
    opset: int = key(whole(1, 100))
    graph: str = key(DIGEST)
    gates: tuple[str, ...] = key(ListOf(TENSOR_NAME, 0, MAX_BLOCKS))
    options: Notes = key(NOTES)
    slots: tuple[KitSlot, ...] = key(ListOf(SectionOf(KitSlot), 0, MAX_SLOTS))
    classes: ClassProfile = key(SectionOf(ClassProfile))
    flavours: tuple[KitFlavour, ...] = key(ListOf(SectionOf(KitFlavour), 1, len(FLAVOURS)))
    files: tuple[KitFile, ...] = key(ListOf(SectionOf(KitFile), 1, LIMIT_FILES))
    made_by: Notes = key(NOTES)

    def contradictions(self) -> Iterator[Fault]:
        """Yield the faults between fields that are right one by one."""
        names = [entry.name for entry in self.files]
        yield from repeated("files", names)
        yield from repeated("slots", (slot.name for slot in self.slots))
        yield from repeated("flavours", (item.flavour for item in self.flavours))
        if len({item.domain for item in self.flavours}) > 1:
            yield Fault("flavours", "expected a kit of one domain, or of none")
        slots = {slot.name for slot in self.slots}
        # A static kit has gates, but no slots: they lie inside its network.
        for gate in self.gates if slots else ():
            if f"{gate}.gate.bias" not in slots:
                yield Fault("gates", f"expected the slots of the gate {gate!r}")
        if BACKBONE_NAME not in names:
            yield Fault("files", f"expected {BACKBONE_NAME} among them")
        for item in self.flavours:
            for model in item.models:
                if model.file not in names:
                    yield Fault(f"flavours.{item.flavour}", f"expected the file {model.file!r}")

    def flavour(self, name: str) -> KitFlavour:
        """Return a flavour of the kit. Raises DataError, which says what it has."""
        for item in self.flavours:
            if item.flavour == name:
                return item
        have = ", ".join(item.flavour for item in self.flavours)
        raise DataError(
            f"expected a kit with the flavour {name!r}, got one with {have}",
            fix=f"da3-export --domain NAME --overwrite --target {self.target} --flavour {name}",
        )


KIT = SealedKind(
    what="kit",
    manifest_name=KIT_NAME,
    manifest=KitManifest,
    fix="copy the kit again, or export it again with --overwrite",
)


@dataclass(frozen=True, slots=True)
class Kit:
    """A kit whose manifest was read; files are checked as they are read."""

    path: Path
    manifest: KitManifest
    digest: str
    backbone: BackboneManifest

    def read(self, name: str) -> bytes:
        """Return a listed file. Raises BundleError unless its bytes are those that were listed."""
        return KIT.read(self.path, self.manifest.entry(name))

    def layers(self) -> dict[str, str]:
        """Return which layer of the PyTorch model a node comes from, for messages.

        Empty for a kit without them. Raises BundleError as :meth:`read`.
        """
        if LAYERS_NAME not in {entry.name for entry in self.manifest.files}:
            return {}
        layers = read_document(self.read(LAYERS_NAME), LAYERS_NAME)
        # They serve messages alone, so an odd value is cut and not refused.
        return {name: str(layer)[:200] for name, layer in layers.items()}


def kit_name(backbone: BackboneManifest, target: str, precision: str, domain: str = "") -> str:
    """Return the folder's name ``kit-<backbone>-<size>px-<12 hex>-<target>-<precision>``.

    ``domain``: the one that is folded in, for the flavour ``static``; its name stands at the end.
    """
    ends = [target, precision, *([domain] if domain else [])]
    size = f"{backbone.input.size}px"
    return "-".join(["kit", backbone.name, size, short(backbone.weights_digest), *ends])


def write_kit(
    folder: Path,
    manifest: KitManifest,
    backbone: BackboneManifest,
    files: Mapping[str, bytes],
    *,
    overwrite: bool = False,
) -> Kit:
    """Write a kit into ``folder`` under its name; same inputs, same bytes.

    ``files`` by name, ``kit.json`` and ``backbone.json`` apart; ``manifest.files`` is filled in.
    Scripts (``*.sh``) become executable. Raises as :func:`toolchain.core.files.atomic_directory`.
    """
    contents = {**files, BACKBONE_NAME: backbone.to_json()}
    text = replace(manifest, files=listing(KitFile, contents)).to_json()
    full = KitManifest.from_json(text)
    own = next((item.domain for item in full.flavours if item.domain), "")
    path = folder / kit_name(backbone, full.target, full.precision, own)
    KIT.write(path, full, contents, overwrite=overwrite)
    return Kit(path, full, sha256(text), backbone)


def open_kit(path: Path) -> Kit:
    """Return the kit in the folder ``path``, all of it verified by hashing.

    Raises DataError for a folder that is none, BundleError for a manifest that breaks the schema or
    contradicts itself and for files that are missing, not listed, links, or not what it says.
    """
    if not is_file(path / KIT_NAME):
        raise DataError(
            f"expected a kit, a folder with {KIT_NAME}, got {path}",
            fix="da3-export --domain NAME --target BOARD writes one beside the bundle",
        )
    manifest, digest = KIT.open(path)
    with KIT.reading(path):
        backbone = BackboneManifest.from_json(KIT.read(path, manifest.entry(BACKBONE_NAME)))
        raise_faults("kit", _backbone_faults(manifest, backbone))
    return Kit(path, manifest, digest, backbone)


def _backbone_faults(manifest: KitManifest, backbone: BackboneManifest) -> Iterator[Fault]:
    """Faults between the kit and the blocks of its backbone."""
    blocks = {block.name for block in backbone.blocks}
    sites = {model.site for item in manifest.flavours for model in item.models if model.site}
    for name in sorted((sites | set(manifest.gates)) - blocks):
        yield Fault("sites", f"expected a block of {backbone.name}, got {name!r}")
